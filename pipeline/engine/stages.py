"""The first and the last stage of extraction: frames in batches for the encoder, and tokens into committed shards.

`BatchFeeder` resizes and crops the frames of decoded videos, where the encoder runs, and gathers them in batches.
Batches cross videos but never shards. Videos are taken in stored order whatever process decoded them, so the batches,
and with them every byte, are the same on each run.

`ShardCommitter` writes tokens into the store and commits every shard. Frames of a video that cannot be decoded in full,
or whose tokens are not finite, may have been written when that is found out; they are taken back before the next video
begins. So such a video leaves nothing but its ledger row.

Where someone asks to stop, the shard in hand is closed with the videos that are done; the others are pending in it, and
the next run plans them anew.

Cost: one thread each; on the CPU the first takes some 0.3 ms a frame of 256 x 256 pixels.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vfz.pipeline.encoder.batching import frame_gatherer
from vfz.pipeline.encoder.transforms import cropper_of
from vfz.pipeline.engine.columns import first_unstorable
from vfz.pipeline.engine.tasks import (
    COPY,
    DECODE,
    ENCODE,
    PREPARE,
    WRITE,
    AllEnd,
    EncodedBatch,
    FrameBatch,
    FromFeeder,
    ShardEnd,
    ShardInProgress,
    ShardResult,
    ToWriter,
    VideoInProgress,
)
from vfz.pipeline.engine.threads import Channel, timed
from vfz.pipeline.errors import DecodeError, EncoderError
from vfz.pipeline.files import writer_lock
from vfz.pipeline.format.commits import ShardIndex, new_data_path
from vfz.pipeline.stores import STORES, ShardVideo, ShardWriter

if TYPE_CHECKING:
    import torch

    from vfz.pipeline.decoding.base import VideoFrame, VideoSource
    from vfz.pipeline.decoding.pool import DecodePool
    from vfz.pipeline.decoding.process import VideoStream
    from vfz.pipeline.encoder.transforms import Preprocess
    from vfz.pipeline.engine.tasks import ShardTask
    from vfz.pipeline.format.folder import CacheFolder
    from vfz.pipeline.format.header import Contents
    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.progress import StopRequest
    from vfz.pipeline.recipe import Recipe
    from vfz.pipeline.stores import ShardData


class BatchFeeder:
    """Hands on shards, their batches and their ends, in order.

    Args:
        recipe: how frames are cut.
        preprocess: the encoder's.
        batch_size: frames per batch; the last one of a shard may have fewer.
        device: where the batches are to be.
        pool: decodes.
        stop: when it is requested, the video in hand and those behind it are left.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        preprocess: Preprocess,
        batch_size: int,
        device: torch.device,
        pool: DecodePool,
        stop: StopRequest,
    ) -> None:
        self._recipe, self._gatherer = recipe, frame_gatherer(preprocess, device)
        self._batch_size, self._pool, self._stop = batch_size, pool, stop
        self._num_ended = 0  # videos, since the last message
        self._in_hand: VideoStream | None = None

    def run(self, tasks: Sequence[ShardTask], batches: Channel[FromFeeder]) -> None:
        """Hands on everything, until the last shard or until it is stopped."""
        streams = self._pool.videos(_sources(tasks))
        for task in tasks:
            if self._stop.is_requested:
                break
            shard = ShardInProgress(task=task, videos=tuple(VideoInProgress(planned=video) for video in task.videos))
            batches.put(shard)
            busy_seconds = self._pool.figures.busy_seconds
            for batch in self._batches(shard, streams):
                batches.put(batch)
            shard.stage_seconds[DECODE] = (self._pool.figures.busy_seconds - busy_seconds) / self._pool.num_workers
            batches.put(ShardEnd(shard=shard, num_videos=self._count_ended()))
        batches.put(AllEnd())

    def leave(self) -> None:
        """For another thread, once it is asked to stop: do not wait for the rest of the video in hand."""
        if self._in_hand is not None:
            self._in_hand.close()

    def _batches(self, shard: ShardInProgress, streams: Iterator[VideoStream]) -> Iterator[FrameBatch]:
        gatherer, seconds = self._gatherer, shard.stage_seconds
        videos: list[VideoInProgress] = []
        pts_seconds: list[float] = []
        for number, video in enumerate(shard.videos):
            if self._stop.is_requested:
                _leave(shard.videos[number:])
                break
            cropper = cropper_of(self._recipe.views, video.planned.id, video.planned.view)
            self._in_hand = next(streams)
            for frame in _frames(shard.task, video, self._in_hand):
                with timed(seconds, PREPARE):
                    gatherer.add(frame.pixels_HWC, cropper)
                videos.append(video)
                pts_seconds.append(frame.pts_seconds)
                if len(videos) == self._batch_size:
                    yield self._batch(shard, videos, pts_seconds)
                    videos, pts_seconds = [], []
            video.is_left = self._in_hand.is_cut and not video.reason  # by `leave`
            self._num_ended += not video.is_left
        if videos:
            yield self._batch(shard, videos, pts_seconds)

    def _batch(self, shard: ShardInProgress, videos: list[VideoInProgress], pts_seconds: list[float]) -> FrameBatch:
        with timed(shard.stage_seconds, PREPARE):
            pixels_BCHW = self._gatherer.take()
        return FrameBatch(
            shard=shard,
            pixels_BCHW=pixels_BCHW,
            videos=videos,
            pts_seconds=pts_seconds,
            num_videos=self._count_ended(),
        )

    def _count_ended(self) -> int:
        count, self._num_ended = self._num_ended, 0
        return count


def _leave(videos: Iterable[VideoInProgress]) -> None:
    for video in videos:
        video.is_left = True


def _sources(tasks: Iterable[ShardTask]) -> Iterator[VideoSource]:
    for task in tasks:
        for video in task.videos:
            yield task.sources[video.id]


def _frames(task: ShardTask, video: VideoInProgress, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames of a video, until it or its tokens prove bad; then it says why."""
    first, source = task.first_rows.get(video.planned.key), task.sources[video.planned.id]
    num_frames, is_bad = 0, False
    try:
        for frame in stream:
            video.digest = stream.digest
            is_bad = bool(video.token_reason) or (first is not None and stream.digest != first.source_digest)
            if is_bad:
                break
            num_frames += 1
            yield frame
    except DecodeError as error:
        video.decode_reason = str(error)
    if stream.is_cut and not is_bad:
        return  # it was asked to stop
    stream.close()
    video.digest, video.missing = stream.digest, stream.missing
    if first is None or video.missing:
        return
    if video.digest != first.source_digest:
        video.decode_reason = f"{source} is not the file that its other layers were made from"
    elif not video.reason and num_frames != first.num_frames:
        video.decode_reason = f"{source} gives {num_frames} frames now, its other layers have {first.num_frames}"


class ShardCommitter:
    """Writes and commits shards of one cache, one after the other.

    Args:
        cache: its folder.
        contents: what it holds.
    """

    def __init__(self, cache: CacheFolder, contents: Contents) -> None:
        self._cache, self._contents = cache, contents
        self._store = STORES[contents.store]
        self._autocast = str(cache.header.recipe["encoder"]["autocast"])

    def run(self, tokens: Channel[ToWriter], results: Channel[ShardResult]) -> None:
        """Makes every shard that comes, until all have.

        Raises:
            StorageError: the disk is full; nothing of the shard in progress is left.
        """
        while isinstance(shard := tokens.take(), ShardInProgress):
            results.put(self._make(shard, tokens))
        if not isinstance(shard, AllEnd):
            raise TypeError(f"{shard} outside a shard")

    def _make(self, shard: ShardInProgress, tokens: Channel[ToWriter]) -> ShardResult:
        """One shard from its first token to its commit; ours is dropped where another process was first."""
        task, seconds = shard.task, shard.stage_seconds
        path = new_data_path(self._cache.path, task.shard, self._store.suffix)
        with writer_lock(path), self._store.writer(path, task.columns) as writer:
            newest: VideoInProgress | None = None
            while isinstance(batch := tokens.take(), EncodedBatch):
                newest = self._append(writer, batch, newest, seconds)
            if not isinstance(batch, ShardEnd) or batch.shard is not shard:
                raise TypeError(f"{batch} in shard {task.shard}")
            with timed(seconds, WRITE):
                _drop_if_bad(newest, writer)
                data = writer.finish() if writer.num_frames else None
                rows = _rows_to_commit(shard)
                committed = bool(rows) and self._commit(task, data, rows)
        seconds[ENCODE] += seconds.pop(COPY)
        return ShardResult(
            task=task,
            rows=tuple(row for row in rows if row.status != "pending") if committed else (),
            committed=committed,
            is_whole=not any(video.is_left for video in shard.videos),
            started_seconds=shard.started,
            seconds=time.perf_counter() - shard.started,
            stage_seconds=seconds,
            num_frames=shard.num_frames,
            num_bytes=data.num_bytes if committed and data else 0,
            host=platform.node(),
            pid=os.getpid(),
            batch_size=shard.batch_size,
        )

    def _append(
        self, writer: ShardWriter, batch: EncodedBatch, newest: VideoInProgress | None, seconds: dict[str, float]
    ) -> VideoInProgress | None:
        """Writes a batch; returns the video begun last, None where the shard has none or has dropped it."""
        with timed(seconds, COPY):
            arrays, largest = batch.arrays.wait(), batch.largest.wait()
        with timed(seconds, WRITE):
            for video, span in _spans(batch.videos):
                if not video.is_dropped:
                    reason = first_unstorable(largest, writer.columns, span, autocast=self._autocast)
                    video.token_reason = reason or ""
                if newest is not video:
                    newest = _drop_if_bad(newest, writer)
                if video.is_dropped:
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

    def _commit(self, task: ShardTask, data: ShardData | None, rows: tuple[LedgerRow, ...]) -> bool:
        return self._cache.commit(
            ShardIndex(
                shard=task.shard,
                number=task.number,
                plan=task.plan,
                fingerprint=self._cache.header.fingerprint,
                calibration_digest=self._contents.calibration_digest(task.columns),
                data=data,
                rows=rows,
                column_keys=tuple(column.key for column in task.columns),
            ),
        )


def _begin(video: VideoInProgress, writer: ShardWriter) -> None:
    planned = video.planned
    video.frame_start = writer.num_frames
    writer.begin_video(ShardVideo(id=planned.id, view=planned.view, split=planned.split, label=planned.label))


def _drop_if_bad(video: VideoInProgress | None, writer: ShardWriter) -> VideoInProgress | None:
    """Takes back what was written of the video begun last, if it has proved bad or is left; returns it if it stays."""
    if video is None or not video.is_dropped:
        return video
    writer.drop_video()
    return None


def _rows_to_commit(shard: ShardInProgress) -> tuple[LedgerRow, ...]:
    """Those of all videos for the first commit of a shard, of the done ones for a later one; none if none is done."""
    rows = [video.row(shard.task) for video in shard.videos]
    done = [row for row in rows if row.status != "pending"]
    return tuple(rows if done and not shard.task.number else done)


def _spans(videos: Sequence[VideoInProgress]) -> Iterator[tuple[VideoInProgress, slice]]:
    """Runs of frames of the same video in a batch."""
    start = 0
    for end in range(1, len(videos) + 1):
        if end == len(videos) or videos[end] is not videos[start]:
            yield videos[start], slice(start, end)
            start = end
