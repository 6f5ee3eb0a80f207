"""What `FeatureCache.read_batch` costs beside plain files: batches of windows into buffers that are used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarks.pipeline.store_reads import (
    FRAMES,
    TOKENS,
    VIDEO_FRAMES,
    WINDOW,
    Row,
    make_arrays,
    make_columns,
    write_shard,
)
from helpers.measure import seconds_of
from helpers.tiny_cache import contents_of, recipe_of

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.format.commits import ShardIndex, commit_shard, new_data_path
from vfz.pipeline.format.header import create_cache, read_header
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.plan import extend_plans
from vfz.pipeline.stores import STORES
from vfz.pipeline.stores.quantization import channel_stats, expand, to_stored

BATCH = 16


def make_cache(folder: Path, *, store: str, dim: int, precision: str) -> Path:
    """A cache of one shard with the tokens that `store_reads` measures, in videos of 128 frames."""
    columns, num_frames = make_columns(dim, precision), FRAMES[dim]
    create_cache(
        folder,
        recipe=recipe_of(precision),
        provenance={},
        fill=lambda inside: contents_of(inside, columns, store=store),
    )
    records = [
        VideoRecord(id=f"v{start}", source=VideoSource(path=Path(f"/videos/v{start}.mp4")), split="train", label=None)
        for start in range(0, num_frames, VIDEO_FRAMES)
    ]
    (plan,) = extend_plans(folder / "plan", records, shard_size_videos=len(records))
    ((shard, videos),) = plan.shards.items()
    path = new_data_path(folder, shard, STORES[store].suffix)
    data = write_shard(store, path, columns, make_arrays(columns, num_frames))
    header = read_header(folder)
    rows = tuple(
        LedgerRow(
            id=video.id, view=0, split=video.split, label=None, status="ok", reason="", attempts=1,
            num_frames=VIDEO_FRAMES, frame_start=place * VIDEO_FRAMES, shard=shard, source_digest="0" * 64,
            source_path=video.path, duration_seconds=20.0, folds={},
        )
        for place, video in enumerate(videos)
    )  # fmt: skip
    commit_shard(
        folder,
        ShardIndex(
            shard=shard, number=0, plan=plan.number, fingerprint=header.fingerprint,
            calibration_digest=header.contents.calibration_digest(columns), data=data, rows=rows,
            column_keys=tuple(column.key for column in columns),
        ),
    )  # fmt: skip
    return folder


def batch_rows(store: str, folder: Path, *, dim: int, precision: str, rounds: int = 41) -> list[Row]:
    """Batches of 16 random windows through `FeatureCache`, times of frames included, against np.memmap copies."""
    path = make_cache(folder / f"{store}-{dim}-{precision}", store=store, dim=dim, precision=precision)
    cache = FeatureCache(path, checksums="never")
    plain_path, shape = folder / f"plain-{dim}", (FRAMES[dim], TOKENS, dim)
    make_arrays(make_columns(dim, "fp16"), shape[0])["layer_0/patch"].tofile(plain_path)
    plain = np.memmap(plain_path, np.float16, mode="r", shape=shape)
    random = np.random.default_rng(0)
    videos = random.integers(0, shape[0] // VIDEO_FRAMES, BATCH) * VIDEO_FRAMES
    starts = random.integers(0, VIDEO_FRAMES - WINDOW, BATCH)
    clips = [(f"v{video}", range(start, start + WINDOW)) for video, start in zip(videos, starts.tolist(), strict=True)]
    buffers = cache.new_batch(BATCH, WINDOW)
    plain_buffer = np.empty((BATCH, WINDOW, *shape[1:]), np.float16)  # as `new_batch` makes its own
    plain_buffer[...] = 0

    def through_memmap() -> None:
        for place, start in zip(plain_buffer, videos + starts, strict=True):
            np.copyto(place, plain[start : start + WINDOW])

    ours, theirs = seconds_of(lambda: cache.read_batch(clips, out=buffers), through_memmap, rounds=rounds)
    cache.close()
    return [
        Row(
            f"read_batch[{store},{TOKENS}x{dim},{precision}]",
            BATCH / ours,
            "windows/s",
            "np.memmap copy of float16",
            BATCH / theirs,
        )
    ]


def expansion_rows(*, dim: int, rounds: int = 21) -> list[Row]:
    """Stored windows to float32, which the reads above leave out, against float16 to float32."""
    tokens = torch.randn((WINDOW, TOKENS, dim), generator=torch.Generator().manual_seed(0))
    stats = channel_stats(tokens)
    stored = {precision: to_stored(tokens, precision, stats) for precision in ("fp16", "int8", "int4")}

    def through(precision: str) -> Callable[[], torch.Tensor]:
        found = stored[precision]
        return lambda: expand(found.payload, found.scale, precision=precision, stats=stats, dim=dim)

    *ours, theirs = seconds_of(through("int8"), through("int4"), through("fp16"), rounds=rounds)
    return [
        Row(f"expansion[{TOKENS}x{dim},{precision}]", 1 / seconds, "windows/s", "float16 to float32", 1 / theirs)
        for precision, seconds in zip(("int8", "int4"), ours, strict=True)
    ]
