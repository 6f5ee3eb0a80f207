"""A cache of a few random tokens, made through the public functions, without videos or an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfz.pipeline.cache_header import create_cache, fingerprint_of
from vfz.pipeline.commit import ShardIndex, new_data_folder
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.plan import Plan, extend_plans
from vfz.pipeline.stores import STORES, Column

RECIPE = {"encoder": {"name": "test", "image_size": 32}, "frames": {"fps": 6.0}, "precision": "fp16"}
FINGERPRINT = fingerprint_of(RECIPE)
CONTENTS: dict[str, Any] = {
    "dataset": "tiny",
    "class_names": ["left", "right"],
    "layers": {"11": {"patch": [4, 8], "prefix": [1, 8]}, "2": {"patch": [4, 8], "prefix": [1, 8]}},
    "dtype": "float16",
    "splits": ["train", "val"],
    "views": [0],
}
COLUMNS = tuple(
    Column(layer=layer, part=part, num_tokens=num_tokens, dim=8, dtype="float16")
    for layer in ("2", "11")
    for part, num_tokens in (("patch", 4), ("prefix", 1))
)


def records(num_videos: int) -> list[VideoRecord]:
    """`v0`, `v1`, ...: every third one in `val`."""
    return [
        VideoRecord(id=f"v{n}", path=Path(f"/videos/v{n}.mp4"), split="val" if n % 3 == 2 else "train", label=n % 2)
        for n in range(num_videos)
    ]


def new_cache(folder: Path, num_videos: int = 6, shard_size_videos: int = 2) -> tuple[Plan, ...]:
    """A cache with its header and plan, and no shard."""
    create_cache(folder, recipe=RECIPE, contents=CONTENTS, provenance={"host": "here"})
    return extend_plans(folder / "plan", records(num_videos), shard_size_videos=shard_size_videos)


def num_frames_of(video_id: str) -> int:
    """Frames that `video_tokens` has of a video."""
    return 3 + int(video_id[1:])


def video_tokens(video_id: str, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tokens per column key, and times, of a video."""
    rng = np.random.default_rng([int(video_id[1:]), seed])
    num_frames = num_frames_of(video_id)
    tokens = {
        column.key: rng.standard_normal((num_frames, column.num_tokens, column.dim)).astype(np.float16)
        for column in COLUMNS
    }
    return tokens, np.arange(num_frames) / 6


def prepare_shard(folder: Path, plan: Plan, shard: str, *, bad: Sequence[str] = (), seed: int = 0) -> ShardIndex:
    """Writes the data of a shard; the videos in `bad` have failed. Not committed."""
    rows = []
    with STORES["zarr"].writer(new_data_folder(folder, shard), COLUMNS) as writer:
        for video in plan.shards[shard]:
            ok = video.id not in bad
            frame_start = writer.num_frames if ok else 0
            if ok:
                writer.append(*video_tokens(video.id, seed))
            rows.append(
                LedgerRow(
                    id=video.id,
                    view=video.view,
                    split=video.split,
                    label=video.label,
                    status="ok" if ok else "failed",
                    reason="" if ok else "no picture in it",
                    attempts=1,
                    num_frames=num_frames_of(video.id) if ok else 0,
                    frame_start=frame_start,
                    shard=shard,
                    source_digest="0" * 64,
                    source_path=video.path,
                    duration_seconds=1.0 if ok else 0.0,
                )
            )
        data = writer.finish() if writer.num_frames else None
    return ShardIndex(
        shard=shard,
        number=0,
        plan=plan.number,
        fingerprint=FINGERPRINT,
        calibration_digest=None,
        data=data,
        rows=tuple(rows),
    )
