"""Reading ahead: a thread makes the next items while the caller works on this one.

NumPy's copies and torch's kernels let go of the interpreter, so reading overlaps with a training step even on the CPU.
There is one thread, so items come in their own order; how far it is ahead is bounded. On a GPU it works in a stream of
its own and waits there, so that copying a batch to the device does not wait for the step.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_LOOK_SECONDS = 0.1  # how often a thread that waits looks whether it is still wanted


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
