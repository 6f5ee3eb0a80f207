"""Processes of a test: looking at them through /proc, and killing one right before its n-th operation on files."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def children_of(pid=None):
    """The ids of the living children of a process, this one by default."""
    found = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if state_of(child) not in {"Z", ""}]


def decoders_of(pid=None):
    """The ids of its living decode processes; what multiprocessing has started for another test is none of them."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "vfz.pipeline.decoding.worker" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def state_of(pid):
    """`R`, `S`, `T`, `Z`, ...; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def bytes_written_by(pid):
    """All that a process has ever written, into pipes too."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def wait_until(condition, seconds=60):
    """Returns when `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def wait_until_steady(figure, seconds=60, steady=0.5):
    """The value of `figure()` once it has not changed for a while."""
    deadline = time.monotonic() + seconds
    value, since = figure(), time.monotonic()
    while time.monotonic() - since < steady:
        assert time.monotonic() < deadline, "it never came to rest"
        time.sleep(0.02)
        if (now := figure()) != value:
            value, since = now, time.monotonic()
    return value


# --- killed (-9) before any operation ---

OPERATIONS = ("fdatasync", "fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink")
"""Between any two of these the files of a cache are in a state of their own."""


def killed_before(operation: int, action: Callable[[], object]) -> bool:
    """Runs `action` in a process of its own; whether it was killed, which it is not when it needs fewer operations."""
    pid = os.fork()
    if pid == 0:
        try:
            _arm(operation)
            action()
        except BaseException:  # noqa: BLE001 - nothing of the test must go on in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _arm(operation: int) -> None:
    count = 0

    def counted(function, *args, **kwargs):
        nonlocal count
        count += 1
        if count == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    for name in OPERATIONS:
        setattr(os, name, functools.partial(counted, getattr(os, name)))
