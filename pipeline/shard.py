"""One shard, start to commit: decode its videos, encode their frames, store the tokens, write the commit mark.

Batches cross videos but never shards. Memory holds one batch of frames and its tokens, however long a video is. A video
that cannot be decoded in full, or whose tokens are not finite, leaves nothing behind but its ledger row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.commit import ShardIndex, commit_shard, new_data_folder
from vfz.pipeline.encoder import FrozenEncoder, LayerTokens
from vfz.pipeline.errors import DecodeError, EncoderError
from vfz.pipeline.files import source_digest
from vfz.pipeline.frames import PreparedFrame, prepared_frames
from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.plan import PlannedVideo
from vfz.pipeline.precision import STORED_DTYPES, to_stored
from vfz.pipeline.progress import Progress
from vfz.pipeline.spec import Recipe
from vfz.pipeline.stores import ShardWriter, get_store
from vfz.pipeline.stores.records import Column, Part


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard still to be written.

    Attributes:
        paths: where each planned video lies now (a plan records where it was).
        attempts: how often each was tried before.
    """

    shard: str
    plan: int
    videos: tuple[PlannedVideo, ...]
    paths: dict[str, Path]
    attempts: dict[str, int]


@dataclass
class _Video:
    """A video on its way through the shard."""

    planned: PlannedVideo
    digest: str | None = None
    reason: str = ""
    missing: bool = False
    frame_start: int = 0
    num_frames: int = 0
    last_pts_seconds: float = 0.0


@dataclass
class _Batch:
    """Frames waiting for the encoder, each with the video it belongs to."""

    frames: list[PreparedFrame] = field(default_factory=list)
    videos: list[_Video] = field(default_factory=list)


class ShardExtractor:
    """Turns shard tasks into committed shards of one cache."""

    def __init__(self, *, cache: Path, encoder: FrozenEncoder, recipe: Recipe, store: str, progress: Progress) -> None:
        self._cache, self._encoder, self._recipe, self._progress = cache, encoder, recipe, progress
        self._writer_type = get_store(store).writer
        self._precision = recipe.storage.precision
        self._columns = columns_of(encoder, self._precision)
        self._started, self._num_encoded = time.perf_counter(), 0

    def extract(self, task: ShardTask) -> list[LedgerRow]:
        """Write and commit one shard.

        Returns:
            The ledger rows of its videos; none when another process committed the shard first: its rows stand, and ours
            are dropped with our data.

        Raises:
            StorageError: the disk is full; nothing of the shard is left.
        """
        videos = [_Video(planned=planned) for planned in task.videos]
        with self._writer_type(new_data_folder(self._cache, task.shard), self._columns) as writer:
            batch = _Batch()
            for video in videos:
                path = task.paths[video.planned.id]
                for frame in self._decode(video, path):
                    batch.frames.append(frame)
                    batch.videos.append(video)
                    if len(batch.frames) == self._encoder.batch_size:
                        self._encode(batch, writer)
                        batch = _Batch()
                if video.reason and video.num_frames:
                    writer.rollback(video.frame_start)
                    video.num_frames = 0
                self._progress.advance(figures=self._figures())
            self._encode(batch, writer)
            data = writer.finish() if writer.num_frames else None
            rows = [_row(video, task) for video in videos]
            committed = commit_shard(
                self._cache,
                ShardIndex(
                    shard=task.shard,
                    number=0,
                    plan=task.plan,
                    fingerprint=self._recipe.fingerprint,
                    calibration_digest=None,
                    data=data,
                    rows=tuple(rows),
                ),
            )
        self._progress.advance(0, figures=self._figures())
        for row in rows:
            if row.reason:
                self._progress.note(f"{row.status}: {row.id!r}: {row.reason}")
        return rows if committed else []

    def _decode(self, video: _Video, path: Path) -> Iterator[PreparedFrame]:
        """The frames of a video, until it or its tokens prove bad."""
        if not path.exists():
            video.missing, video.reason = True, f"no file {path}"
            return
        try:
            video.digest = source_digest(path)
            for frame in prepared_frames(path, self._recipe.frames, self._encoder.preprocess):
                if video.reason:  # its tokens were refused meanwhile
                    return
                yield frame
        except DecodeError as error:
            video.reason = str(error)
        except OSError as error:
            video.reason = f"cannot be read: {error.strerror}"

    def _encode(self, batch: _Batch, writer: ShardWriter) -> None:
        if not batch.frames:
            return
        tokens = self._encoder.encode(torch.stack([frame.pixels_CHW for frame in batch.frames]))
        arrays = stored_arrays(tokens, self._precision)
        self._num_encoded += len(batch.frames)
        for video, span in _spans(batch.videos):
            if video.reason:
                continue
            pts_seconds = np.array([frame.pts_seconds for frame in batch.frames[span]])
            if not video.num_frames:
                video.frame_start = writer.num_frames
            try:
                writer.append({key: array[span] for key, array in arrays.items()}, pts_seconds)
            except EncoderError as error:
                video.reason = str(error)
                writer.rollback(video.frame_start)
                video.num_frames = 0
            else:
                video.num_frames += len(pts_seconds)
                video.last_pts_seconds = float(pts_seconds[-1])

    def _figures(self) -> dict[str, float | str]:
        seconds = time.perf_counter() - self._started
        return {"frames/s": self._num_encoded / seconds}


def columns_of(encoder: FrozenEncoder, precision: str) -> list[Column]:
    """The columns a shard of this encoder has: patch, and prefix where the layer has prefix tokens."""
    columns = []
    for layer in encoder.layers:
        shape = encoder.shapes[layer]
        counts: dict[Part, int] = {"patch": shape.num_patches, "prefix": shape.num_prefix}
        columns += [
            Column(layer=layer, part=part, num_tokens=count, dim=shape.dim, dtype=STORED_DTYPES[precision])
            for part, count in counts.items()
            if count
        ]
    return columns


def stored_arrays(tokens: dict[str, LayerTokens], precision: str) -> dict[str, np.ndarray]:
    """What is stored of a batch: arrays [B,N,D] by column key."""
    arrays = {}
    for layer, found in tokens.items():
        arrays[f"layer_{layer}/patch"] = to_stored(found.patch_BND, precision)
        if found.prefix_BPD is not None:
            arrays[f"layer_{layer}/prefix"] = to_stored(found.prefix_BPD, precision)
    return arrays


def _spans(videos: Sequence[_Video]) -> Iterator[tuple[_Video, slice]]:
    """Runs of frames of the same video in a batch."""
    start = 0
    for end in range(1, len(videos) + 1):
        if end == len(videos) or videos[end] is not videos[start]:
            yield videos[start], slice(start, end)
            start = end


def _row(video: _Video, task: ShardTask) -> LedgerRow:
    planned = video.planned
    ok = not video.reason
    return LedgerRow(
        id=planned.id,
        view=planned.view,
        split=planned.split,
        label=planned.label,
        status="ok" if ok else "missing" if video.missing else "failed",
        reason=video.reason,
        attempts=task.attempts.get(planned.id, 0) + (not video.missing),
        num_frames=video.num_frames,
        frame_start=video.frame_start if ok else 0,
        shard=task.shard,
        source_digest=video.digest,
        source_path=str(task.paths[planned.id].absolute()),
        duration_seconds=video.last_pts_seconds if ok else 0.0,
    )
