"""Ctrl-C: once to stop when the shard in hand is done, twice to stop at once.

Nothing committed is lost either way, and the same command goes on from there. The wait is short: a shard that is not
done in `GRACE_SECONDS` is given up.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 10.0
STOPPING = (
    f"stopping when the shard in hand is done, in {GRACE_SECONDS:.0f} s at most",
    "Ctrl-C again stops now; the same command goes on from there",
)
"""What people are told, in lines."""


class StopRequest:
    """Whether someone has asked to stop, and until when the work in hand may go on."""

    def __init__(self) -> None:
        self._deadline: float | None = None

    @property
    def is_requested(self) -> bool:
        """Whether no further shard should be begun."""
        return self._deadline is not None

    @property
    def is_due(self) -> bool:
        """Whether the shard in hand has had its time."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def request(self) -> None:
        """Asks to stop."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM within the block into a request, the second into a `KeyboardInterrupt`.

    In any other thread than the main one, which alone may handle signals, nothing ever asks to stop.
    """
    stop = StopRequest()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_requested:
            raise KeyboardInterrupt
        stop.request()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
