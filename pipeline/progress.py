"""What people see of long work and how they stop it: progress, Ctrl-C, and numbers as people read them.

The pipeline knows no terminal: it tells a `Progress` what happens, and the command line passes one that draws.

The first Ctrl-C stops when the current shard is done, but in `GRACE_SECONDS` at the latest; the second stops at once.
Nothing committed is lost either way, and the same command goes on from there.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Protocol


class Progress(Protocol):
    """Receives what happens. All calls come from the thread that started the work."""

    def start(self, task: str, *, total: int, unit: str) -> None:
        """A task begins; the one before it has ended."""

    def advance(self, count: int = 1, *, figures: Mapping[str, float | str] | None = None) -> None:
        """`count` more units are done; `figures` are shown beside the bar (frames/s, loss)."""

    def note(self, text: str) -> None:
        """Something worth a line of its own, such as a failed video."""

    def finish(self) -> None:
        """The task has ended."""


class SilentProgress:
    """The default for Python callers: says nothing."""

    def start(self, task: str, *, total: int, unit: str) -> None:
        """See `Progress`."""

    def advance(self, count: int = 1, *, figures: Mapping[str, float | str] | None = None) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def finish(self) -> None:
        """See `Progress`."""


GRACE_SECONDS = 10.0
STOPPING = (
    f"stopping when the shard in hand is done, in {GRACE_SECONDS:.0f} s at most",
    "Ctrl-C again stops now; the same command goes on from there",
)
"""What people are told, in lines."""


class StopRequest:
    """Whether someone has asked to stop, and until when the current work may go on."""

    def __init__(self) -> None:
        self._deadline: float | None = None

    @property
    def is_requested(self) -> bool:
        """Whether no further shard should be begun."""
        return self._deadline is not None

    @property
    def is_due(self) -> bool:
        """Whether the current shard has had its time."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def request(self) -> None:
        """Asks to stop."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM within the block into a request, the second into a `KeyboardInterrupt`.

    Further SIGINTs are passed over: what the second one has begun to stop (workers, files) is not to be left half-way.
    Another SIGTERM raises again. In any other thread than the main one, which alone may handle signals, nothing ever
    asks to stop.
    """
    stop = StopRequest()
    is_stopping = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if not stop.is_requested:
            stop.request()
        elif not is_stopping or number == signal.SIGTERM:
            is_stopping = True
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def children_pass_over_ctrl_c() -> Iterator[None]:
    """Processes that are started in the block, or by threads started there, never get a SIGINT: it is the parent's.

    A terminal sends Ctrl-C to every process of a command. They inherit which signals are blocked, so there is no moment
    at their start in which they could get one. In this process a SIGINT takes effect at the end of the block.
    """
    resource_tracker.ensure_running()  # otherwise it starts with the first child, and unblocks SIGINT in this thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def human_bytes(count: float) -> str:
    """Bytes as people read them: 1.5 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def human_seconds(seconds: float) -> str:
    """A length of time as people read it: 0.0012 s, 42.5 s, 12 min, 3 h 20 min, 2 days 5 h."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def counted(count: int, noun: str) -> str:
    """A number of things: 1 shard, 2 shards."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
