"""What really comes from the disk: files put out of memory, and the bytes this process then has read."""

import os
from pathlib import Path


def evict(path):
    """Writes a file, or every file of a folder, to the disk and asks the kernel to forget its pages."""
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_from_disk():
    """Bytes this process had read from the disk so far, by page faults and read-ahead too; None where nobody counts."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def can_evict(folder):
    """Whether the file system of `folder` forgets pages when asked, and the kernel counts what it reads again."""
    file = folder / "evicted"
    file.write_bytes(os.urandom(1 << 20))
    evict(file)
    before = bytes_from_disk()
    file.read_bytes()
    file.unlink()
    return before is not None and bytes_from_disk() - before >= 1 << 20
