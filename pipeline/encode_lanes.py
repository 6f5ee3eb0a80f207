"""Batches encoded several at a time on the cores of a CPU, handed on in the order they came.

A forward pass that is split over all cores waits, in each of its layers, for the core that is last; where decoding,
resizing and writing take a core away for a moment, every other core stands still with it. Here each lane runs whole
batches on cores of its own, and lanes do not wait for each other. With one thread or many, on one lane or several, the
tokens of a batch are the same bits.

A GPU has one lane: its work is queued there, and returns before it is done.

Cost: the activations of one batch per lane, and at most one batch more that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import torch

if TYPE_CHECKING:
    from vfz.pipeline.encoder import FrozenEncoder

MAX_LANES = 4
"""Each holds the activations of a batch."""

T = TypeVar("T")


def num_lanes_for(encoder: FrozenEncoder) -> int:
    """How many batches an encoder works on at a time. A compiled model does one: compilers are not made for more."""
    if encoder.device.type != "cpu" or encoder.is_compiled:
        return 1
    return min(MAX_LANES, torch.get_num_threads())


class EncodeLanes(Generic[T]):
    """Work done in lanes; a context manager, which waits for the pieces in hand and drops those that wait.

    Args:
        num_lanes: how many pieces are worked on at a time; they share the threads that torch has now.

    Attributes:
        num_lanes: the same.
    """

    def __init__(self, num_lanes: int) -> None:
        self.num_lanes, self._num_threads = num_lanes, torch.get_num_threads()
        self._executor = ThreadPoolExecutor(
            num_lanes,
            thread_name_prefix="vfz-encode",
            initializer=torch.set_num_threads,
            initargs=(max(1, self._num_threads // num_lanes),),
        )
        self._pieces: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self._num_threads)  # the lanes' number has become that of all threads to come

    def put(self, work: Callable[[], T]) -> None:
        """One more piece, to be done in a lane."""
        self._pieces.append(self._executor.submit(work))

    def put_done(self, result: T) -> None:
        """What is no work, but keeps its place in the order."""
        piece: Future[T] = Future()
        piece.set_result(result)
        self._pieces.append(piece)

    def take_done(self) -> Iterator[T]:
        """Results in order, as far as they are there; waits for the oldest while a piece more than lanes is in hand.

        Raises:
            whatever the work raised.
        """
        while self._pieces:
            num_unfinished = sum(not piece.done() for piece in self._pieces)
            if num_unfinished <= self.num_lanes and not self._pieces[0].done():
                return
            yield self._pieces.popleft().result()

    def take_all(self) -> Iterator[T]:
        """The results of all pieces in order, when they are there.

        Raises:
            whatever the work raised.
        """
        while self._pieces:
            yield self._pieces.popleft().result()
