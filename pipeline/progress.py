"""What people see of long work and how they stop it: progress, Ctrl-C, and numbers as people read them.

The pipeline knows no terminal: it tells a `Progress` what happens, and the command line passes one that draws.

The first Ctrl-C closes the current shard with the videos that are done, in `GRACE_SECONDS` at most; the second stops at
once. A terminal that is closed (SIGHUP) does what the first one does. Nothing committed is lost in any case, and the
same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Protocol

from vfz.pipeline.errors import HangUp, RunInterruptedError


class Progress(Protocol):
    """Receives what happens. All calls but `note` come from the thread that started the work."""

    def start(self, task: str, *, total: int, unit: str) -> None:
        """A task begins; the one before it has ended."""

    def advance(self, count: int = 1, *, figures: Mapping[str, float | str] | None = None) -> None:
        """`count` more units are done; `figures` are shown beside the bar (frames/s, loss)."""

    def doing(self, what: str) -> None:
        """What is being done from now on, where nothing can be counted: `importing torch`; until a task begins."""

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

    def doing(self, what: str) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def finish(self) -> None:
        """See `Progress`."""


GRACE_SECONDS = 30.0
STOPPING = (
    f"stopping: the videos that are done are being stored, in {GRACE_SECONDS:.0f} s at most",
    "Ctrl-C again stops now; the same command goes on from there",
)
"""What people are told, in lines."""


class StopRequest:
    """Whether someone has asked to stop, and until when the current work may go on."""

    def __init__(self, tell: Callable[[], object] | None = None) -> None:
        self._tell = tell
        self._deadline: float | None = None

    @property
    def is_requested(self) -> bool:
        """Whether no further shard should be begun."""
        return self._deadline is not None

    @property
    def is_due(self) -> bool:
        """Whether what was in hand has had its time."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def request(self, *, silently: bool = False) -> None:
        """Asks to stop. `tell` is called in a thread: what it needs may be in use where a signal came."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS
            if self._tell is not None and not silently:
                threading.Thread(target=self._tell).start()


@contextmanager
def stop_on_signals(tell: Callable[[], object] | None = None) -> Iterator[StopRequest]:
    """Turns the first SIGINT, SIGTERM or SIGHUP in the block into a request, another one into a `KeyboardInterrupt`.

    Further SIGINTs are passed over: what the second one has begun to stop (workers, files) is not to be left half-way.
    Another SIGTERM raises again. A SIGHUP, which a terminal that is closed may send more than once, only requests, and
    is passed over where it was before (`nohup`). In any other thread than the main one, which alone may handle signals,
    nothing ever asks to stop.

    Args:
        tell: called at the first SIGINT or SIGTERM, in a thread of its own, to say at once what is finished first.

    Raises:
        HangUp: at the end of the block, however it ends, after a SIGHUP; a `RunInterruptedError` gets its exit code.
    """
    stop = StopRequest(tell)
    is_stopping = is_hung_up = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping, is_hung_up
        if number == signal.SIGHUP:
            is_hung_up = True
            stop.request(silently=True)
        elif not stop.is_requested:
            stop.request()
        elif is_importing(frame):  # it comes again when that may be over
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        elif not is_stopping or number == signal.SIGTERM:
            is_stopping = True
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *_hang_up_unless_ignored()]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    except KeyboardInterrupt:
        if not is_hung_up:
            raise
    except RunInterruptedError as error:
        error.exit_code = HangUp.exit_code if is_hung_up else error.exit_code
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP and is_hung_up else handler)
    if is_hung_up:
        raise HangUp


def _hang_up_unless_ignored() -> list[signal.Signals]:
    return [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]


def is_importing(frame: FrameType | None) -> bool:
    """Whether a signal has come in the middle of an import: modules in C may swallow what is raised there, or abort."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


@contextmanager
def children_pass_over_ctrl_c() -> Iterator[None]:
    """Processes started in the block, or by threads started there, never get a SIGINT or SIGHUP: it is the parent's.

    A terminal sends both to every process of a command. They inherit which signals are blocked, so there is no moment
    at their start in which they could get one. In this process they take effect at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # it would start with the first child, and unblock SIGINT here
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
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
