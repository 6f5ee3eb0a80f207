"""Looking at the processes that a test started, through /proc."""

import contextlib
import os
import time
from pathlib import Path


def children_of(pid=None):
    """The ids of the living children of a process, this one by default."""
    found = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if state_of(child) not in {"Z", ""}]


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
