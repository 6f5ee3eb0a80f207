"""A process that is killed (-9) right before its n-th operation on files, for any n."""

from __future__ import annotations

import functools
import os
import signal
import traceback
from collections.abc import Callable

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
