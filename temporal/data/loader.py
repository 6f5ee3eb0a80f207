"""From a cache (or the encoder itself) to batches of clips: `ClipLoader`, read ahead by a thread.

A clip is T frames of one video. Which clips make up a batch depends on the seed and the epoch alone: neither on how
many processes share a batch, nor on reading ahead, nor on where an epoch is taken up again. All draws of an epoch are
made before its first batch (`vfz.temporal.data.sampling.EpochPlan`); a batch is a slice of them, so that taking an
epoch up at any batch costs nothing.

One thread makes the next batches while the caller works on this one, so batches keep their order; how many it is ahead
is bounded. NumPy's copies and torch's kernels release the interpreter, so reading overlaps with a training step even on
the CPU. On a GPU the thread works in a CUDA stream of its own and waits there, so that copying a batch to the device
does not wait for the step.

Shapes: B clips of a batch, T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.pipeline.format.ledger import LedgerRow
from vfz.temporal.data.sampling import Augmentation, ClipRule, EpochPlan, evaluation_plan, shuffled_plan, training_plan
from vfz.temporal.data.targets import ClipTargets
from vfz.temporal.data.tokens import ClipRequest, TokenSource
from vfz.temporal.data.videos import ClipVideo

T = TypeVar("T")
_LOOK_SECONDS = 0.1  # how often a thread that waits looks whether it is still wanted


class ClipLoader:
    """Batches of clips of some videos, in an order that depends on seed and epoch only.

    Args:
        source: reads tokens.
        videos: `clip_videos(...)`, or rows of a single cache.
        rule: which frames make a clip.
        batch_size: clips of a batch, of all ranks together.
        device: where batches are to be.
        seed: of everything that is drawn.
        augmentation: how training clips are varied.
        targets: fills `ClipBatch.targets`; checked for all videos at once.
        rank, world_size: this process's share of every batch: clips rank, rank + world_size, ...
        num_ahead: batches that a thread reads ahead; 0 reads each when it is asked for.

    Raises:
        UsageError: for sizes or a rank that cannot be, or token dropout that does not fit the task.
        DatasetError: a video has no targets, or of another length.
    """

    def __init__(
        self,
        source: TokenSource,
        videos: Sequence[ClipVideo] | Sequence[LedgerRow],
        *,
        rule: ClipRule,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        targets: ClipTargets | None = None,
        rank: int = 0,
        world_size: int = 1,
        num_ahead: int = 2,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"batches of {batch_size} clips for rank {rank} of {world_size}; 1 or more clips, and ranks from 0 on"
            )
        self._source, self._rule = source, rule
        self._videos = [video if isinstance(video, ClipVideo) else ClipVideo(rows=(video,)) for video in videos]
        self._batch_size, self._device, self._seed = batch_size, device, seed
        self._augmentation = augmentation or Augmentation()
        self._targets, self._rank, self._world_size, self._num_ahead = targets, rank, world_size, num_ahead
        if targets is not None:
            self._augmentation.check_task(targets.task)
            targets.check(self._videos)

    @property
    def num_clips(self) -> int:
        """Clips in an epoch of one clip a video, of all ranks together."""
        return len(self._videos)

    @property
    def num_batches(self) -> int:
        """Batches in such an epoch; the last may be smaller."""
        return -(-len(self._videos) // self._batch_size)

    def training_epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[ClipBatch]:
        """Every video once, shuffled, each clip varied as the augmentation says.

        Args:
            epoch: which; the order of each is another.
            start_batch: leave out the batches before that one, at no cost: those that follow are the same.
        """
        plan = training_plan(len(self._videos), self._augmentation, seed=self._seed, epoch=epoch)
        return self._batches(plan, start_batch, self._augmentation.stride_factors)

    def shuffled(self, epoch: int) -> Iterator[ClipBatch]:
        """Every video once, shuffled, each clip centred and of the first view."""
        return self._batches(shuffled_plan(len(self._videos), seed=self._seed, epoch=epoch))

    def in_order(self, *, num_segments: int = 1, all_views: bool = False) -> Iterator[ClipBatch]:
        """Every video in turn; with one segment and view, one centred clip of each.

        Args:
            num_segments: clips of each video and view, evenly spaced from its start to its end.
            all_views: clips of each view that the video has; else of the first.

        Clips of one video follow each other, perhaps into the next batch; `indices_B` says which belong together.
        """
        if num_segments < 1:
            raise UsageError(f"{num_segments} clips of each video are none; give 1 or more")
        return self._batches(evaluation_plan([len(v.rows) if all_views else 1 for v in self._videos], num_segments))

    def _batches(self, plan: EpochPlan, start_batch: int = 0, factors: tuple[int, ...] = (1,)) -> Iterator[ClipBatch]:
        num_batches = -(-len(plan.videos) // self._batch_size)
        made = (self._load(plan, number, factors) for number in range(start_batch, num_batches))
        for batch in prefetched(made, num_ahead=self._num_ahead, device=self._device):
            _use_on_current_stream(batch, self._device)
            yield batch

    def _load(self, plan: EpochPlan, number: int, factors: tuple[int, ...]) -> ClipBatch:
        """This rank's share of a batch."""
        clips = np.arange(number * self._batch_size, min((number + 1) * self._batch_size, len(plan.videos)))
        share = clips[self._rank :: self._world_size]
        weight = len(share) * self._world_size / len(clips)
        if not len(share):
            share = clips[:1]
        requests = [self._request(plan, clip, factors) for clip in share]
        tokens = self._source.read_clips(requests, self._device)
        layers_BTND = tokens.layers_BTND
        if (generator := plan.dropout_generator(number)) is not None:
            layers_BTND = self._drop_tokens(layers_BTND, generator)
        labels = [-1 if request.video.label is None else request.video.label for request in requests]
        targets = self._targets.for_clips(requests, tokens.pts_seconds_BT) if self._targets else {}
        return ClipBatch(
            layers_BTND=layers_BTND,
            labels_B=torch.tensor(labels, dtype=torch.int64, device=self._device),
            indices_B=torch.from_numpy(plan.videos[share].astype(np.int64)),
            video_ids=tuple(request.id for request in requests),
            frame_mask_BT=torch.from_numpy(np.stack([request.mask for request in requests])).to(self._device),
            pts_seconds_BT=torch.from_numpy(tokens.pts_seconds_BT).to(self._device),
            targets=targets,
            weight=weight,
        )

    def _request(self, plan: EpochPlan, clip: int, factors: tuple[int, ...]) -> ClipRequest:
        video = self._videos[plan.videos[clip]]
        row = video.rows[int(plan.views[clip] * len(video.rows))]
        times = None if self._rule.step_seconds is None else self._source.pts_seconds(row, video.cache)
        if len(factors) > 1:
            fitting = [f for f in factors if self._rule.fits(row.num_frames, factor=f, pts_seconds=times)]
            factors = tuple(fitting) or (min(factors),)
        frames = self._rule.choose(
            row.num_frames,
            position=float(plan.positions[clip]),
            factor=factors[int(plan.factors[clip] * len(factors))],
            pts_seconds=times,
        )
        return ClipRequest(video=row, frames=frames.numbers, mask=frames.mask, cache=video.cache)

    def _drop_tokens(self, layers_BTND: list[Tensor], generator: np.random.Generator) -> list[Tensor]:
        kept = self._augmentation.kept_tokens(layers_BTND[0].shape[2], self._source.num_prefix, generator)
        kept_N = torch.from_numpy(kept).to(self._device)
        return [tokens_BTND.index_select(2, kept_N) for tokens_BTND in layers_BTND]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """A batch on the device.

    Attributes:
        layers_BTND: float32 tokens, one tensor per encoder layer.
        labels_B: class indices (int64); -1 where a video has none.
        indices_B: positions of the clips' videos in the loader's list (int64, on the CPU).
        video_ids: for messages.
        frame_mask_BT: bool; False where a short video has ended and its last frame is repeated.
        pts_seconds_BT: presentation times (float64).
        targets: of the loader's task by name, see `vfz.temporal.data.targets`; empty without.
        weight: what a mean over these clips counts in a mean over all ranks' means, so that it is the mean over the
            whole batch: 1 where all ranks have as many. 0 where a last batch has fewer clips than there are ranks and
            this rank got none: it is given one of the others', which counts nothing.
    """

    layers_BTND: list[Tensor]
    labels_B: Tensor
    indices_B: Tensor
    video_ids: tuple[str, ...]
    frame_mask_BT: Tensor
    pts_seconds_BT: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0


def _use_on_current_stream(batch: ClipBatch, device: torch.device) -> None:
    """Tells the allocator that the caller's stream uses these tensors, which another stream made."""
    if device.type != "cuda":
        return
    stream = torch.cuda.current_stream(device)
    small = (batch.labels_B, batch.frame_mask_BT, batch.pts_seconds_BT)
    for tensor in (*batch.layers_BTND, *small, *batch.targets.values()):
        if tensor.is_cuda:
            tensor.record_stream(stream)


def prefetched(items: Iterable[T], *, num_ahead: int, device: torch.device) -> Iterator[T]:
    """The same items, made by a thread that is at most `num_ahead` items ahead; 0 makes them here.

    What making an item raises is raised when that item is asked for. Leaving early, by closing the iterator or letting
    go of it, stops the thread.

    Args:
        items: gone through once.
        num_ahead: how many finished items may wait.
        device: what the items' tensors are on. They are ready for use, but tensors of a GPU belong to another stream:
            call `record_stream` on them.
    """
    if num_ahead < 1:
        yield from items
        return
    reader = _Reader(items, num_ahead, device)
    try:
        while (item := reader.next()) is not None:
            yield item[0]
    finally:
        reader.stop()


class _Reader(Generic[T]):
    """The thread and the queue between it and the caller."""

    def __init__(self, items: Iterable[T], num_ahead: int, device: torch.device) -> None:
        self._items, self._device = items, device
        # An item in a tuple, what making it raised, or None: the end.
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(num_ahead)
        self._stopped = threading.Event()
        # A daemon: it must not keep a process alive whose main thread has given up.
        self._thread = threading.Thread(target=self._run, name="vfz-prefetch", daemon=True)
        self._thread.start()

    def next(self) -> tuple[T] | None:
        """The next item, or None at the end."""
        outcome = self._queue.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with _stream_of_its_own(self._device) as wait:
                for item in self._items:
                    wait()
                    self._put((item,))
                    if self._stopped.is_set():
                        return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            self._put(error)

    def _put(self, outcome: tuple[T] | BaseException | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(outcome, timeout=_LOOK_SECONDS)
                return


@contextlib.contextmanager
def _stream_of_its_own(device: torch.device) -> Iterator[Callable[[], None]]:
    """A CUDA stream for this thread, and what waits for all that was begun in it; on other devices nothing."""
    if device.type != "cuda":
        yield lambda: None
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream.synchronize
