"""Golden frames: 16 frames of a cache's first videos as pixels, with the tokens they gave when the cache was made.

They tell later whether an encoder still is the one that made the cache, without any video at hand:
`golden/frames.npz` holds `pixels_GCHW` (uint8, before normalisation), `video_ids`, `pts_seconds` and one array
`layer_<k>/<part>` per column, in the stored dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.encoder import FrozenEncoder
from vfz.pipeline.errors import DecodeError, TooManyFailuresError
from vfz.pipeline.files import storage_errors
from vfz.pipeline.frames import prepared_frames
from vfz.pipeline.shard import stored_arrays
from vfz.pipeline.spec import Recipe

NUM_FRAMES = 16
FRAMES_PER_VIDEO = 4
MAX_VIDEOS_TRIED = 64


def write_golden(folder: Path, records: Sequence[VideoRecord], encoder: FrozenEncoder, recipe: Recipe) -> None:
    """Write `folder/frames.npz` from the first videos that can be decoded.

    Raises:
        TooManyFailuresError: when none of the first 64 can be: something is wrong with all of them.
    """
    pixels, ids, times, reasons = [], [], [], []
    for record in records[:MAX_VIDEOS_TRIED]:
        try:
            frames = list(islice(prepared_frames(record.path, recipe.frames, encoder.preprocess), FRAMES_PER_VIDEO))
        except DecodeError as error:
            reasons.append(
                str(error)
            )  # extraction will record it; a golden frame only has to come from some good video
            continue
        pixels += [frame.pixels_CHW for frame in frames]
        times += [frame.pts_seconds for frame in frames]
        ids += [record.id] * len(frames)
        if len(pixels) >= NUM_FRAMES:
            break
    if not pixels:
        raise TooManyFailuresError(
            f"none of the first {len(reasons)} videos can be decoded; first: {reasons[0]}; no cache was made"
        )
    pixels_GCHW = torch.stack(pixels[:NUM_FRAMES])
    arrays = stored_arrays(encoder.encode(pixels_GCHW), recipe.storage.precision)
    with storage_errors(folder):
        np.savez(
            folder / "frames.npz",
            pixels_GCHW=pixels_GCHW.numpy(),
            video_ids=np.array(ids[:NUM_FRAMES], dtype=np.str_),
            pts_seconds=np.array(times[:NUM_FRAMES]),
            **arrays,  # type: ignore[arg-type] # savez takes arrays by any name
        )
