"""Whether the writer of some data still lives.

Data without an index is either being written now or was left by a writer that died. Every writer therefore holds a lock
(flock) on `shards/<name of its data>.lock` from before the first byte until after the commit. The system lets go of it
when the process ends, however it ends, so a lock that can be taken proves that the writer is gone: also on another
machine, where the file system shares locks (NFS since version 3 with lockd, Lustre with `-o flock`).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vfz.pipeline.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_SUFFIX = ".lock"


def lock_path(data_path: Path) -> Path:
    """The lock that stands for the writer of that data."""
    return data_path.with_name(data_path.name + LOCK_SUFFIX)


@contextmanager
def writer_lease(data_path: Path) -> Iterator[None]:
    """Says that this process is writing `data_path`, as long as the block runs.

    Raises:
        StorageError: when the lock cannot be made.
    """
    path = lock_path(data_path)
    unlocked = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        file = unlocked.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            unlocked.rename(path)  # nobody sees it before it is locked
        except OSError:
            unlocked.unlink(missing_ok=True)
            file.close()
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def writer_is_gone(data_path: Path) -> bool:
    """Whether no process writes that data any more."""
    try:
        return not lock_is_held(lock_path(data_path))
    except FileNotFoundError:
        return True  # the lock is made before the data and removed after it was committed or deleted


def lock_is_held(path: Path) -> bool:
    """Whether a living process holds that lock.

    Raises:
        FileNotFoundError: when it is gone.
    """
    # NFS locks a file for one process alone only where that may write it.
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
