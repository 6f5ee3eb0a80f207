"""Shards of one cache, start to commit: videos decoded, frames encoded, tokens stored, the commit mark written.

Four stages work at the same time, each on what the one before it has done, with a few batches between them at most:

    decode processes -> feeder thread          -> this thread -> writer thread
    (DecodePool)        resize, crop, batches     encode lanes   store, fsync, commit

While one shard is being finished, the next is being decoded and encoded. Memory holds a few batches of frames and their
tokens, however long videos are and however many. The tokens of a frame do not depend on what is beside it in a batch,
so the bytes of a shard are the same on every run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vfz.pipeline.decoding.pool import BUFFER_BYTES, BUFFER_FRAMES, GPU_BUFFER_BYTES, GPU_BUFFER_FRAMES, DecodePool
from vfz.pipeline.engine.columns import largest_of, layers_of, stored_tensors
from vfz.pipeline.engine.metrics import RunMeter, log_shard
from vfz.pipeline.engine.stages import BatchFeeder, ShardCommitter
from vfz.pipeline.engine.tasks import (
    ENCODE,
    AllEnd,
    EncodedBatch,
    FrameBatch,
    FromFeeder,
    ShardEnd,
    ShardInProgress,
    ToWriter,
)
from vfz.pipeline.engine.threads import Channel, EncodeLanes, HostCopier, Stages, StoppedError, num_lanes_for
from vfz.pipeline.errors import CacheMismatchError
from vfz.pipeline.progress import STOPPING, Progress, SilentProgress, StopRequest, stop_on_signals
from vfz.pipeline.recipe import recipe_from_dict

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.engine.tasks import ExtractionJob, ShardResult, ShardTask


BATCHES_BETWEEN = 2
"""Batches that may wait between two stages."""
POLL_SECONDS = 0.1


class ShardExtractor:
    """Turns shard tasks into commits of one cache.

    Args:
        job: which cache, and how.
        progress: is told of what happens.
        encoder: the job's, where this process has built it already; None to build it.

    Raises:
        CacheMismatchError: the weights found here are not those of the cache.
        EncoderError, UsageError, CacheFormatError: the encoder cannot be built, or the cache not read.
    """

    def __init__(
        self, job: ExtractionJob, *, progress: Progress | None = None, encoder: FrozenEncoder | None = None
    ) -> None:
        self._job, self._progress = job, progress or SilentProgress()
        self._recipe = recipe_from_dict(dict(job.cache.header.recipe))
        self._contents = job.cache.contents()
        self._calibrations = job.cache.calibrations(self._contents)
        self._encoder = encoder or job.encoder.load()
        if self._encoder.weights_sha256 != self._recipe.encoder.weights_sha256:
            raise CacheMismatchError(
                f"the weights of {job.encoder.name} found here ({self._encoder.weights_sha256[:12]}…) are not those "
                f"that {job.cache.path} is made with ({self._recipe.encoder.weights_sha256[:12]}…); "
                "give every process the same ones"
            )
        self._encoders = {self._encoder.layers: self._encoder}
        self._copier = HostCopier(self._encoder.device)
        self._batch_size = job.encoder.batch_size  # as was told last
        self._told = False  # that it is about to stop
        self._leave: Callable[[], None] = lambda: None

    def extract_all(self, tasks: Iterable[ShardTask], *, stop: StopRequest | None = None) -> Iterator[ShardResult]:
        """The result of each task, in their order, as it is committed.

        Args:
            tasks: the shards.
            stop: asked again and again whether to go on.

        Raises:
            KeyboardInterrupt: it was asked to stop, and shards are left.
            StorageError: the disk is full; nothing of the shard in progress is left.
            RunError: no decode process can be started.
        """
        tasks, stop, stages = list(tasks), stop or StopRequest(), Stages()
        on_gpu = self._encoder.device.type == "cuda"
        pool = DecodePool(
            self._recipe.frames,
            num_workers=self._job.num_workers,
            time_limit_seconds=self._job.time_limit_seconds,
            buffer_frames=GPU_BUFFER_FRAMES if on_gpu else BUFFER_FRAMES,
            buffer_bytes=GPU_BUFFER_BYTES if on_gpu else BUFFER_BYTES,
        )
        meter = RunMeter(pool)
        num_left = len(tasks)
        # The pool is closed before the threads are waited for: the feeder may be waiting for its frames.
        with stages, pool:
            batches: Channel[FromFeeder] = Channel(stages, size=BATCHES_BETWEEN)
            tokens: Channel[ToWriter] = Channel(stages, size=BATCHES_BETWEEN)
            results: Channel[ShardResult] = Channel(stages, size=len(tasks))
            feeder = BatchFeeder(
                recipe=self._recipe,
                preprocess=self._encoder.preprocess,
                batch_size=self._encoder.batch_size,
                device=self._encoder.device,
                pool=pool,
                stop=stop,
            )
            self._leave = feeder.leave
            committer = ShardCommitter(self._job.cache, self._contents)
            stages.start("feed", lambda: feeder.run(tasks, batches))
            stages.start("write", lambda: committer.run(tokens, results))
            try:
                for result in self._encode_all(batches, tokens, results, meter, stop):
                    num_left -= result.is_whole
                    log_shard(self._job.cache.path, result)
                    for row in result.rows:
                        if row.reason:
                            self._progress.note(f"{row.status}: {row.id!r}: {row.reason}")
                    yield result
            except StoppedError:
                raise stages.error() from None
        if num_left:
            raise KeyboardInterrupt

    def _encode_all(
        self,
        batches: Channel[FromFeeder],
        tokens: Channel[ToWriter],
        results: Channel[ShardResult],
        meter: RunMeter,
        stop: StopRequest,
    ) -> Iterator[ShardResult]:
        """Encodes what the feeder brings, to the last shard it began; gives results as the writer has them."""
        brings_more = True
        with EncodeLanes[ToWriter](num_lanes_for(self._encoder)) as lanes:
            while brings_more or not lanes.is_empty:
                self._obey(stop)
                can_put = brings_more and lanes.has_room
                for encoded in lanes.take_done(wait_seconds=0.0 if can_put else POLL_SECONDS):
                    self._hand_on(encoded, tokens, meter, lanes.num_lanes)
                for result in results.take_all():
                    meter.end(result)
                    yield result
                message = batches.get(timeout_seconds=POLL_SECONDS) if can_put else None
                if isinstance(message, ShardInProgress):
                    meter.begin(message)
                if isinstance(message, FrameBatch):
                    if all(video.is_left for video in message.videos):
                        continue  # it was asked to stop
                    lanes.put(partial(self._encode, message, self._encoder_of(layers_of(message.shard.task.columns))))
                elif message is not None:
                    lanes.put_done(message)
                    brings_more = not isinstance(message, AllEnd)
        while meter.num_in_progress:
            self._obey(stop)
            finished = results.get(timeout_seconds=POLL_SECONDS)
            if finished is not None:
                meter.end(finished)
                yield finished

    def _obey(self, stop: StopRequest) -> None:
        """Where someone has asked to stop: says so once, and stops when the time that is left for it is over."""
        if stop.is_requested and not self._told:
            self._told = True
            self._leave()
            for line in STOPPING:
                self._progress.note(line)
        if stop.is_due:
            raise KeyboardInterrupt

    def _encode(self, batch: FrameBatch, encoder: FrozenEncoder) -> EncodedBatch:
        """Tokens as they are stored; runs in a lane."""
        started = time.perf_counter()
        tokens, columns = encoder.encode(batch.pixels_BCHW), batch.shard.task.columns
        return EncodedBatch(
            shard=batch.shard,
            arrays=self._copier.start(stored_tensors(tokens, columns, self._calibrations)),
            largest=self._copier.start(largest_of(tokens, columns)),
            videos=batch.videos,
            pts_seconds=batch.pts_seconds,
            num_videos=batch.num_videos,
            encode_seconds=time.perf_counter() - started,
            batch_size=encoder.batch_size,
        )

    def _hand_on(self, message: ToWriter, tokens: Channel[ToWriter], meter: RunMeter, num_lanes: int) -> None:
        """What comes out of the lanes goes to the writer, and is counted."""
        if isinstance(message, EncodedBatch):
            message.shard.stage_seconds[ENCODE] += message.encode_seconds / num_lanes
            message.shard.num_frames += len(message.pts_seconds)
            message.shard.batch_size = message.batch_size
            if message.batch_size < self._batch_size:
                self._progress.note(
                    f"out of memory with {self._batch_size} frames at a time: {message.batch_size} from now on; "
                    f"--batch-size {message.batch_size} saves the attempt"
                )
                self._batch_size = message.batch_size
        tokens.put(message)
        if isinstance(message, EncodedBatch | ShardEnd):
            self._progress.advance(message.num_videos, figures=meter.figures())

    def _encoder_of(self, layers: tuple[str, ...]) -> FrozenEncoder:
        """The encoder that gives these layers; commits of one run may be of different ones."""
        if layers not in self._encoders:
            self._encoders[layers] = self._encoder.with_layers(layers)
        return self._encoders[layers]


def run_tasks(
    job: ExtractionJob,
    tasks: Sequence[ShardTask],
    *,
    dask: str | None,
    progress: Progress,
    encoder: FrozenEncoder | None = None,
) -> Iterator[ShardResult]:
    """The result of each task as it is committed, in this process or by the workers that `dask` names.

    Args:
        job: how shards are made.
        tasks: the shards.
        dask: see `vfz.pipeline.engine.dask.run_dask`; None for this process.
        progress: is told of what happens.
        encoder: the job's where this process has built it already.
    """
    if dask is None:
        return _run_here(job, tasks, progress=progress, encoder=encoder)
    from vfz.pipeline.engine.dask import run_dask

    return run_dask(job, tasks, cluster=dask, progress=progress)


def _run_here(
    job: ExtractionJob, tasks: Iterable[ShardTask], *, progress: Progress, encoder: FrozenEncoder | None = None
) -> Iterator[ShardResult]:
    """The result of each task, as it is committed; `encoder` is the job's where it is built already."""
    extractor = ShardExtractor(job, progress=progress, encoder=encoder)
    with stop_on_signals() as stop:
        yield from extractor.extract_all(tasks, stop=stop)
