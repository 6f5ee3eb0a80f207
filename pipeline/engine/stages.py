"""The last stage of extraction: tokens into the store, and the commit of every shard.

Frames of a video that cannot be decoded in full, or whose tokens are not finite, may have been written when that is
found out; they are taken back before the next video begins. So such a video leaves nothing but its ledger row.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vfz.pipeline.engine.tasks import (
    COPY,
    ENCODE,
    WRITE,
    AllEnd,
    ShardEnd,
    ShardInHand,
    TokenBatch,
    ToWriter,
    VideoInHand,
)
from vfz.pipeline.errors import EncoderError
from vfz.pipeline.format.calibration import digest_of
from vfz.pipeline.format.commits import ShardIndex, commit_shard, new_data_path
from vfz.pipeline.job import ShardResult
from vfz.pipeline.lease import writer_lease
from vfz.pipeline.stages import Channel, timed
from vfz.pipeline.stores import ShardVideo, ShardWriter, get_store

if TYPE_CHECKING:
    from pathlib import Path

    from vfz.pipeline.format.header import Contents
    from vfz.pipeline.stores import ShardData


class ShardCommitter:
    """Writes and commits shards of one cache, one after the other.

    Args:
        cache: its folder.
        contents: what it holds.
        fingerprint: its recipe's.
    """

    def __init__(self, cache: Path, contents: Contents, fingerprint: str) -> None:
        self._cache, self._contents, self._fingerprint = cache, contents, fingerprint
        self._store = get_store(contents.store)

    def run(self, tokens: Channel[ToWriter], results: Channel[ShardResult]) -> None:
        """Makes every shard that comes, until all have.

        Raises:
            StorageError: the disk is full; nothing of the shard in hand is left.
        """
        while isinstance(shard := tokens.take(), ShardInHand):
            results.put(self._make(shard, tokens))
        if not isinstance(shard, AllEnd):
            raise TypeError(f"{shard} outside a shard")

    def _make(self, shard: ShardInHand, tokens: Channel[ToWriter]) -> ShardResult:
        """One shard from its first token to its commit; ours is dropped where another process was first."""
        task, seconds = shard.task, shard.stage_seconds
        path = new_data_path(self._cache, task.shard, self._store.suffix)
        with writer_lease(path), self._store.writer(path, task.columns) as writer:
            newest: VideoInHand | None = None
            while isinstance(batch := tokens.take(), TokenBatch):
                newest = _append(writer, batch, newest, seconds)
            if not isinstance(batch, ShardEnd) or batch.shard is not shard:
                raise TypeError(f"{batch} in shard {task.shard}")
            with timed(seconds, WRITE):
                _drop_if_bad(newest, writer)
                data = writer.finish() if writer.num_frames else None
                committed = self._commit(shard, data)
        seconds[ENCODE] += seconds.pop(COPY)
        return ShardResult(
            task=task,
            rows=tuple(video.row(task) for video in shard.videos) if committed else (),
            committed=committed,
            started_seconds=shard.started,
            seconds=time.perf_counter() - shard.started,
            stage_seconds=seconds,
            num_frames=shard.num_frames,
            num_bytes=data.num_bytes if committed and data else 0,
            host=platform.node(),
            pid=os.getpid(),
            batch_size=shard.batch_size,
        )

    def _commit(self, shard: ShardInHand, data: ShardData | None) -> bool:
        task = shard.task
        return commit_shard(
            self._cache,
            ShardIndex(
                shard=task.shard,
                number=task.number,
                plan=task.plan,
                fingerprint=self._fingerprint,
                calibration_digest=digest_of(task.columns, self._contents),
                data=data,
                rows=tuple(video.row(task) for video in shard.videos),
                column_keys=tuple(column.key for column in task.columns),
            ),
        )


def _append(
    writer: ShardWriter, batch: TokenBatch, newest: VideoInHand | None, seconds: dict[str, float]
) -> VideoInHand | None:
    """Writes a batch; returns the video begun last, None where the shard has none or has dropped it."""
    with timed(seconds, COPY):
        arrays = batch.arrays.wait()
    with timed(seconds, WRITE):
        for video, span in _spans(batch.videos):
            if newest is not video:
                newest = _drop_if_bad(newest, writer)
            if video.reason:
                newest = _drop_if_bad(newest, writer)
                continue
            if newest is None or newest is not video:
                _begin(video, writer)
                newest = video
            pts_seconds = np.array(batch.pts_seconds[span])
            try:
                writer.append({key: array[span] for key, array in arrays.items()}, pts_seconds)
            except EncoderError as error:
                video.token_reason = str(error)
                newest = _drop_if_bad(video, writer)
            else:
                video.num_frames += len(pts_seconds)
                video.last_pts_seconds = float(pts_seconds[-1])
    return newest


def _begin(video: VideoInHand, writer: ShardWriter) -> None:
    planned = video.planned
    video.frame_start = writer.num_frames
    writer.begin_video(ShardVideo(id=planned.id, view=planned.view, split=planned.split, label=planned.label))


def _drop_if_bad(video: VideoInHand | None, writer: ShardWriter) -> VideoInHand | None:
    """Takes back what was written of the video begun last, if it has proved bad; returns it if it stays."""
    if video is None or not video.reason:
        return video
    writer.drop_video()
    return None


def _spans(videos: Sequence[VideoInHand]) -> Iterator[tuple[VideoInHand, slice]]:
    """Runs of frames of the same video in a batch."""
    start = 0
    for end in range(1, len(videos) + 1):
        if end == len(videos) or videos[end] is not videos[start]:
            yield videos[start], slice(start, end)
            start = end
