"""The threads of an extraction: stages that end together, lanes that encode, and copies from the encoder's device.

- `Stages` and `Channel`: the stages of a pipeline hand work to one another through bounded channels. The first error of
  any thread stops all of them; so does leaving the context. A stage that waits for room or for work then gets a
  `StoppedError`, unwinds, and what it had open is closed.
- `EncodeLanes`: batches encoded several at a time on the cores of a CPU, handed on in the order they came. A forward
  pass that is split over all cores waits, in each of its layers, for the core that is last; where decoding, resizing
  and writing take a core away for a moment, every other core stands still with it. A lane runs whole batches on cores
  of its own, and does not wait for the others. All lanes have the same number of threads: the convolutions of some CNNs
  differ in the last bits from one number to another (ViTs do not). Up to `MAX_LANES` threads that number is 1, so that
  machines of all such sizes store the same. A GPU has one lane: its work is queued there, and returns before it is
  done.
- `HostCopier`: stored arrays on their way to the CPU while the next batch is computed. On a GPU the copy runs on a
  stream of its own into page-locked memory; on the CPU there is nothing to copy.

Cost: for each lane the activations of one batch, and one more batch that waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder

T = TypeVar("T")
MAX_LANES = 8
"""Each holds the activations of a batch."""
PIECES_PER_LANE = 2
"""Batches in lanes, before and behind them: some wait, so that no lane does."""


class Stages:
    """What the threads of a pipeline share. A context manager: leaving it stops the threads and waits for them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.is_stopped = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Runs `work` in a thread; what it raises stops the pipeline."""
        thread = threading.Thread(target=self._run, args=(work,), name=f"vfz-{name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def error(self) -> BaseException:
        """What stopped the pipeline; for whoever got a `StoppedError` and is not a stage."""
        return self._error or StoppedError()

    def stop(self) -> None:
        """Ends all waiting, now and later."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for this one
            with self.changed:
                self._error = self._error or error
            self.stop()


class Channel(Generic[T]):
    """A queue between two stages.

    Args:
        stages: whose.
        size: how many items may wait; a stage that brings more waits itself.
    """

    def __init__(self, stages: Stages, *, size: int) -> None:
        self._stages, self._size = stages, size
        self._items: deque[T] = deque()

    def put(self, item: T) -> None:
        """Adds an item, when there is room.

        Raises:
            StoppedError: the pipeline ends.
        """
        with self._stages.changed:
            self._stages.changed.wait_for(lambda: self._stages.is_stopped or len(self._items) < self._size)
            self._refuse_when_stopped()
            self._items.append(item)
            self._stages.changed.notify_all()

    def take(self) -> T:
        """The oldest item, when there is one.

        Raises:
            StoppedError: the pipeline ends.
        """
        while (item := self.get(timeout_seconds=None)) is None:
            pass
        return item

    def get(self, *, timeout_seconds: float | None) -> T | None:
        """The oldest item, or None where there is none in time.

        Raises:
            StoppedError: the pipeline ends.
        """
        with self._stages.changed:
            self._stages.changed.wait_for(lambda: self._stages.is_stopped or self._items, timeout_seconds)
            self._refuse_when_stopped()
            if not self._items:
                return None
            self._stages.changed.notify_all()
            return self._items.popleft()

    def take_all(self) -> list[T]:
        """What there is now, without waiting."""
        with self._stages.changed:
            items = list(self._items)
            self._items.clear()
            self._stages.changed.notify_all()
        return items

    def _refuse_when_stopped(self) -> None:
        if self._stages.is_stopped:
            raise StoppedError


class StoppedError(BaseException):
    """The pipeline ends: nothing more is taken or brought. Only for stages; no caller of a pipeline sees it.

    No `Exception`: it may be raised in the middle of a model, whose exceptions are told as faults of the model.
    """


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the time that the block takes to what a stage has worked so far."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


class EncodeLanes(Generic[T]):
    """Work done in lanes. A context manager: leaving it waits for the work in progress; an error breaks that off.

    Args:
        num_lanes: how many pieces are worked on at a time; they share the threads that torch has now.

    Attributes:
        num_lanes: the same.
    """

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes, self._num_threads = num_lanes, torch.get_num_threads()
        self._pieces: deque[_Piece[T]] = deque()  # in order
        self._waiting: queue.SimpleQueue[_Piece[T] | None] = queue.SimpleQueue()
        self._lanes = [threading.Thread(target=self._run, name="vfz-encode", daemon=True) for _ in range(num_lanes)]

    def __enter__(self) -> Self:
        for lane in self._lanes:
            lane.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for lane in self._lanes:
                if error is not None:
                    _break_off(lane)
            for _ in self._lanes:
                self._waiting.put(None)
            for lane in self._lanes:
                lane.join()
        finally:
            torch.set_num_threads(self._num_threads)  # the lanes' number has become that of all threads to come

    @property
    def has_room(self) -> bool:
        """Whether one more piece of work may be put in now."""
        return sum(piece.work is not None for piece in self._pieces) < PIECES_PER_LANE * self.num_lanes

    @property
    def is_empty(self) -> bool:
        """Whether all there was has been taken."""
        return not self._pieces

    def put(self, work: Callable[[], T]) -> None:
        """One more piece, to be done in a lane."""
        piece = _Piece(work=work)
        self._pieces.append(piece)
        self._waiting.put(piece)

    def put_done(self, result: T) -> None:
        """What is no work, but keeps its place in the order."""
        self._pieces.append(_Piece(result=result))

    def take_done(self, *, wait_seconds: float = 0.0) -> Iterator[T]:
        """Results in order, as far as they are there.

        Args:
            wait_seconds: how long to wait for the oldest where it is not done.

        Raises:
            whatever the work raised.
        """
        if self._pieces:
            self._pieces[0].done.wait(wait_seconds)
        while self._pieces and self._pieces[0].done.is_set():
            piece = self._pieces.popleft()
            if piece.error is not None:
                raise piece.error
            yield cast("T", piece.result)

    def _run(self) -> None:
        """One lane."""
        torch.set_num_threads(max(1, self._num_threads // self.num_lanes))
        with contextlib.suppress(StoppedError):
            while (piece := self._waiting.get()) is not None:
                piece.run()


def num_lanes_for(encoder: FrozenEncoder) -> int:
    """How many batches an encoder works on at a time. A compiled model does one: compilers are not made for more."""
    if encoder.device.type != "cpu" or encoder.is_compiled:
        return 1
    num_threads = torch.get_num_threads()
    # As many lanes as leave the fewest threads without one.
    return max(range(1, min(MAX_LANES, num_threads) + 1), key=lambda lanes: (num_threads // lanes * lanes, lanes))


class _Piece(Generic[T]):
    """Work and its outcome; without work it is done already."""

    def __init__(self, *, work: Callable[[], T] | None = None, result: T | None = None) -> None:
        self.work, self.result = work, result
        self.error: Exception | None = None
        self.done = threading.Event()
        if work is None:
            self.done.set()

    def run(self) -> None:
        """Does the work."""
        try:
            self.result = cast("Callable[[], T]", self.work)()
        except StoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again where the result is taken
            self.error = error
        self.done.set()


def _break_off(thread: threading.Thread) -> None:
    """Raises a `StoppedError` in another thread, between two steps of Python: after the current kernel, say.

    A second Ctrl-C takes effect in 0.2 s with it; without, when the current batch is done: 25 s for 32 frames by a
    ViT-S on two busy cores.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(StoppedError))


class HostCopier:
    """Starts copies from one device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: Mapping[str, torch.Tensor]) -> HostCopy:
        """Begins to copy; the tensors may be given up by the caller at once."""
        if self._stream is None:
            return HostCopy({key: tensor.cpu() for key, tensor in tensors.items()}, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        copies = {}
        with torch.cuda.stream(self._stream):
            for key, tensor in tensors.items():
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[key] = copy.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)  # its memory is not given to others before the copy is made
            event = self._stream.record_event()
        return HostCopy(copies, event)


class HostCopy:
    """Tensors being copied to the CPU; `wait` gives them. Started by `HostCopier.start`.

    Args:
        tensors: on the CPU, to be filled by the time of `event`.
        event: None where they are filled already.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], event: torch.cuda.Event | None) -> None:
        self._tensors, self._event = tensors, event

    def wait(self) -> dict[str, NDArray[Any]]:
        """The arrays, when they are there."""
        if self._event is not None:
            self._event.synchronize()
        return {key: tensor.numpy() for key, tensor in self._tensors.items()}
