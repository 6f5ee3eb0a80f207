"""A few frames of a dataset, drawn by a seed: what calibration and golden frames are made from.

Videos are drawn without repetition; one that cannot be decoded is passed over, since extraction will record it and
these frames only have to come from good ones. Frames of one video lie apart, since neighbours are nearly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.encoder.transforms import Preprocess
from vfz.pipeline.errors import DecodeError, TooManyFailuresError
from vfz.pipeline.frames import prepare
from vfz.pipeline.recipe import FrameSpec

FRAMES_PER_VIDEO = 3
STEP_FRAMES = 8
MAX_FAILURES = 64


@dataclass(frozen=True, kw_only=True)
class FrameSample:
    """M frames in view 0.

    Attributes:
        pixels_MCHW: uint8, before normalisation.
        video_ids: [M].
        pts_seconds: [M].
    """

    pixels_MCHW: torch.Tensor
    video_ids: tuple[str, ...]
    pts_seconds: tuple[float, ...]


def draw_sample(
    records: Sequence[VideoRecord],
    frames: FrameSpec,
    preprocess: Preprocess,
    *,
    num_frames: int,
    seed: int,
    time_limit_seconds: float,
) -> FrameSample:
    """`num_frames` frames of videos drawn by `seed`, fewer where the videos do not have so many.

    Args:
        records: the videos.
        frames: the rule for theirs.
        preprocess: the encoder's.
        num_frames: how many.
        seed: which.
        time_limit_seconds: how long decoding one video may take before it is passed over.

    Raises:
        TooManyFailuresError: when none of the first 64 drawn can be decoded: something is wrong with all.
    """
    per_video = max(FRAMES_PER_VIDEO, -(-num_frames // len(records)))
    by_id = sorted(records, key=lambda record: record.id)
    pixels: list[torch.Tensor] = []
    ids: list[str] = []
    times: list[float] = []
    reasons: list[str] = []
    drawn = [by_id[number] for number in np.random.default_rng(seed).permutation(len(by_id))]
    with DecodePool(frames, num_workers=1, time_limit_seconds=time_limit_seconds) as pool:
        for record, stream in zip(drawn, pool.videos(record.source for record in drawn), strict=True):
            try:
                found = list(islice(stream, per_video * STEP_FRAMES))
            except DecodeError as error:
                reasons.append(str(error))
                if not pixels and len(reasons) == MAX_FAILURES:
                    break
                continue
            step = min(STEP_FRAMES, max(1, len(found) // per_video))
            for frame in found[::step][:per_video]:
                pixels.append(prepare(frame, preprocess).pixels_CHW)
                ids.append(record.id)
                times.append(frame.pts_seconds)
            if len(pixels) >= num_frames:
                break
    if not pixels:
        raise TooManyFailuresError(
            f"none of {len(reasons)} videos drawn at random can be decoded; first: {reasons[0]}; "
            "nothing was made: mend the videos, or check --root"
        )
    return FrameSample(
        pixels_MCHW=torch.stack(pixels[:num_frames]),
        video_ids=tuple(ids[:num_frames]),
        pts_seconds=tuple(times[:num_frames]),
    )
