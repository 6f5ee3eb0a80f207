"""Batches encoded several at a time on the cores of a CPU, handed on in the order they came.

A forward pass that is split over all cores waits, in each of its layers, for the core that is last; where decoding,
resizing and writing take a core away for a moment, every other core stands still with it. Here each lane runs whole
batches on cores of its own, and lanes do not wait for each other.

All lanes have the same number of threads: the convolutions of some CNNs differ in the last bits from one number to
another (ViTs do not). Up to `MAX_LANES` threads that number is 1, so that machines of all such sizes store the same.

A GPU has one lane: its work is queued there, and returns before it is done.

Cost: the activations of one batch per lane, and one batch more that waits, for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

import torch

from vfz.pipeline.stages import StoppedError

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder

MAX_LANES = 8
"""Each holds the activations of a batch."""
PIECES_PER_LANE = 2
"""Batches in lanes, before and behind them: some wait, so that no lane does."""

T = TypeVar("T")


def num_lanes_for(encoder: FrozenEncoder) -> int:
    """How many batches an encoder works on at a time. A compiled model does one: compilers are not made for more."""
    if encoder.device.type != "cpu" or encoder.is_compiled:
        return 1
    num_threads = torch.get_num_threads()
    # As many lanes as leave the fewest threads without one.
    return max(range(1, min(MAX_LANES, num_threads) + 1), key=lambda lanes: (num_threads // lanes * lanes, lanes))


class EncodeLanes(Generic[T]):
    """Work done in lanes; a context manager, which waits for what is in hand, and breaks it off where an error ends it.

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
    """Raises a `StoppedError` in another thread, between two steps of Python: after the kernel in hand, say."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(StoppedError))
