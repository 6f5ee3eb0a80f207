"""The first stage of extraction: frames of decoded videos, resized and cropped, in batches for the encoder.

Batches cross videos but never shards. Videos are taken in stored order whatever process decoded them, so the batches,
and with them every byte, are the same on each run. Resizing and cropping run where the encoder does.

Cost: one thread; on the CPU some 0.3 ms a frame of 256 x 256 pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vfz.pipeline.encoder.batching import frame_gatherer
from vfz.pipeline.engine.tasks import (
    DECODE,
    PREPARE,
    AllEnd,
    FrameBatch,
    FromFeeder,
    ShardEnd,
    ShardInHand,
    VideoInHand,
)
from vfz.pipeline.errors import DecodeError
from vfz.pipeline.stages import Channel, timed
from vfz.pipeline.views import cropper_of

if TYPE_CHECKING:
    import torch

    from vfz.pipeline.decoding.base import VideoFrame
    from vfz.pipeline.decoding.pool import DecodePool
    from vfz.pipeline.decoding.stream import VideoStream
    from vfz.pipeline.encoder.transforms import Preprocess
    from vfz.pipeline.interrupts import StopRequest
    from vfz.pipeline.job import ShardTask
    from vfz.pipeline.recipe import Recipe
    from vfz.pipeline.source import VideoSource


class BatchFeeder:
    """Brings shards, their batches and their ends, in order.

    Args:
        recipe: how frames are cut.
        preprocess: the encoder's.
        batch_size: frames per batch; the last one of a shard may have fewer.
        device: where the batches are to be.
        pool: decodes.
        stop: when it is requested, no further shard is begun.
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

    def run(self, tasks: Sequence[ShardTask], batches: Channel[FromFeeder]) -> None:
        """Brings all there is, until the last shard or until it is stopped."""
        streams = self._pool.videos(_sources(tasks))
        for task in tasks:
            if self._stop.is_requested:
                break
            shard = ShardInHand(task=task, videos=tuple(VideoInHand(planned=video) for video in task.videos))
            batches.put(shard)
            busy_seconds = self._pool.figures.busy_seconds
            for batch in self._batches(shard, streams):
                batches.put(batch)
            shard.stage_seconds[DECODE] = (self._pool.figures.busy_seconds - busy_seconds) / self._pool.num_workers
            batches.put(ShardEnd(shard=shard, num_videos=self._count_ended()))
        batches.put(AllEnd())

    def _batches(self, shard: ShardInHand, streams: Iterator[VideoStream]) -> Iterator[FrameBatch]:
        gatherer, seconds = self._gatherer, shard.stage_seconds
        videos: list[VideoInHand] = []
        pts_seconds: list[float] = []
        for video in shard.videos:
            cropper = cropper_of(self._recipe.views, video.planned.id, video.planned.view)
            for frame in _frames(shard.task, video, next(streams)):
                with timed(seconds, PREPARE):
                    gatherer.add(frame.pixels_HWC, cropper)
                videos.append(video)
                pts_seconds.append(frame.pts_seconds)
                if len(videos) == self._batch_size:
                    yield self._batch(shard, videos, pts_seconds)
                    videos, pts_seconds = [], []
            self._num_ended += 1
        if videos:
            yield self._batch(shard, videos, pts_seconds)

    def _batch(self, shard: ShardInHand, videos: list[VideoInHand], pts_seconds: list[float]) -> FrameBatch:
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


def _sources(tasks: Iterable[ShardTask]) -> Iterator[VideoSource]:
    for task in tasks:
        for video in task.videos:
            yield task.sources[video.id]


def _frames(task: ShardTask, video: VideoInHand, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames of a video, until it or its tokens prove bad; then it says why."""
    first, source = task.first_rows.get(video.planned.key), task.sources[video.planned.id]
    num_frames = 0
    try:
        for frame in stream:
            video.digest = stream.digest
            if video.token_reason or (first is not None and stream.digest != first.source_digest):
                break
            num_frames += 1
            yield frame
    except DecodeError as error:
        video.decode_reason = str(error)
    stream.close()
    video.digest, video.missing = stream.digest, stream.missing
    if first is None or video.missing:
        return
    if video.digest != first.source_digest:
        video.decode_reason = f"{source} is not the file that its other layers were made from"
    elif not video.reason and num_frames != first.num_frames:
        video.decode_reason = f"{source} gives {num_frames} frames now, its other layers have {first.num_frames}"
