"""What comes before the first shard of a column: its calibration and golden tokens, from a few frames of the dataset.

The same code fills a new cache and adds columns to one that is there; see `vfz.pipeline.format.folder` for how several
processes that do so at once end up with one result.

The videos are drawn by a seed, without repetition. One that cannot be decoded is passed over, since extraction will
record it and these frames only have to come from good ones. Frames of one video lie apart, since neighbours are nearly
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.pool import DecodePool
from vfz.pipeline.encoder.batching import prepare_frame
from vfz.pipeline.encoder.layers import LayerTokens
from vfz.pipeline.encoder.transforms import Preprocess
from vfz.pipeline.engine.columns import first_unstorable, largest_of, layers_of, stored_arrays, tokens_of
from vfz.pipeline.errors import DecodeError, EncoderError, TooManyFailuresError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.extraction.setup import Prepared
from vfz.pipeline.format.calibration import CalibratedColumn, calibrate, write_calibration
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.golden import (
    NUM_GOLDEN_FRAMES,
    FrameSample,
    write_golden_frames,
    write_golden_tokens,
)
from vfz.pipeline.format.header import Contents
from vfz.pipeline.recipe import CALIBRATION_FRAMES, CALIBRATION_FRAMES_PER_VIDEO, CALIBRATION_SEED, FrameSpec
from vfz.pipeline.stores import STORES, Column

DEFAULT_STORE = "zarr"
STEP_FRAMES = 8
MAX_FAILURES = 64


def fill_cache(folder: Path, columns: Sequence[Column], options: ExtractOptions, prepared: Prepared) -> Contents:
    """Puts calibrations and golden frames into a new cache's folder, and says what it holds.

    Args:
        folder: where the new cache is made.
        columns: what it is to store.
        options: say how: store, compression.
        prepared: the videos that the frames are from, and the encoder, which gives the layers of all the columns.

    Raises:
        TooManyFailuresError: when no video can be decoded. StorageError: when the disk is full. EncoderError: when no
        frame's tokens can be stored.
    """
    sample, store = _sample(options, prepared), options.store or DEFAULT_STORE
    sample, tokens = _storable(sample, prepared.encoder.encode(sample.pixels_MCHW), columns, options.autocast)
    calibrated = _calibrate(folder, columns, tokens, options, store)
    golden = write_golden_frames(folder, sample)
    golden |= write_golden_tokens(folder, _stored(_rows(tokens, slice(NUM_GOLDEN_FRAMES)), calibrated))
    dataset = prepared.dataset
    return Contents.of(calibrated, dataset=dataset.name, class_names=dataset.class_names, store=store, golden=golden)


def extend_cache(
    cache: CacheFolder, contents: Contents, columns: Sequence[Column], options: ExtractOptions, prepared: Prepared
) -> Contents:
    """Adds columns to a cache; its shards follow. Arguments as of `fill_cache`; `contents` are the cache's.

    Raises:
        TooManyFailuresError: when no video can be decoded. StorageError: when the disk is full. EncoderError: when no
        frame's tokens can be stored.
    """
    encoder = prepared.encoder.with_layers(layers_of(columns))
    sample = _sample(options, prepared)
    _, tokens = _storable(sample, encoder.encode(sample.pixels_MCHW), columns, options.autocast)
    calibrated = _calibrate(cache.path, columns, tokens, options, contents.store)
    pixels_GCHW = torch.from_numpy(cache.golden(contents).pixels_GCHW)
    return cache.add_columns(calibrated, _stored(encoder.encode(pixels_GCHW), calibrated))


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
    per_video = max(CALIBRATION_FRAMES_PER_VIDEO, -(-num_frames // len(records)))
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
                pixels.append(prepare_frame(frame, preprocess).pixels_CHW)
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


def _sample(options: ExtractOptions, prepared: Prepared) -> FrameSample:
    return draw_sample(
        prepared.records,
        prepared.recipe.frames,
        prepared.encoder.preprocess,
        num_frames=CALIBRATION_FRAMES,
        seed=CALIBRATION_SEED,
        time_limit_seconds=options.video_timeout,
    )


def _calibrate(
    folder: Path, columns: Sequence[Column], tokens: Mapping[str, LayerTokens], options: ExtractOptions, store: str
) -> list[CalibratedColumn]:
    """The columns with their compression chosen; writes their calibrations."""
    compression, compresses = options.compression or "auto", STORES[store].compresses
    return [
        write_calibration(
            folder,
            *calibrate(column, tokens_of(tokens, column), requested_compression=compression, compresses=compresses),
        )
        for column in columns
    ]


def _stored(tokens: Mapping[str, LayerTokens], columns: Sequence[CalibratedColumn]) -> dict[str, np.ndarray]:
    """What is stored of tokens: arrays by array key."""
    return stored_arrays(tokens, [new.column for new in columns], {new.column.key: new.calibration for new in columns})


def _storable(
    sample: FrameSample, tokens: Mapping[str, LayerTokens], columns: Sequence[Column], autocast: str
) -> tuple[FrameSample, Mapping[str, LayerTokens]]:
    """The frames of a sample whose tokens can be stored; videos of the others will fail by name.

    Raises:
        EncoderError: none can.
    """
    largest = {key: values.cpu().numpy() for key, values in largest_of(tokens, columns).items()}
    numbers = range(len(sample.video_ids))
    reasons = [first_unstorable(largest, columns, slice(n, n + 1), autocast=autocast) for n in numbers]
    kept = [number for number in numbers if reasons[number] is None]
    if not kept:
        raise EncoderError(f"none of {len(reasons)} frames drawn at random can be stored: {reasons[0]}")
    if len(kept) == len(reasons):
        return sample, tokens
    return FrameSample(
        pixels_MCHW=sample.pixels_MCHW[kept],
        video_ids=tuple(sample.video_ids[number] for number in kept),
        pts_seconds=tuple(sample.pts_seconds[number] for number in kept),
    ), _rows(tokens, kept)


def _rows(tokens: Mapping[str, LayerTokens], frames: slice | list[int]) -> dict[str, LayerTokens]:
    return {
        layer: LayerTokens(
            patch_BND=found.patch_BND[frames],
            prefix_BPD=None if found.prefix_BPD is None else found.prefix_BPD[frames],
        )
        for layer, found in tokens.items()
    }
