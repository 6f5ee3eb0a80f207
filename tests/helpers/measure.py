"""What something costs: bytes that really come from the disk, the most memory of tensors, seconds."""

import os
import statistics
import time
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


def peak_bytes(function):
    """Peak of what `function` allocates on the CPU in this thread, beyond what was there before."""
    from torch.profiler import ProfilerActivity, profile

    function()  # what is allocated once, such as `.grad`, and library start-up
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    records = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = peak = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        taken += record.nbytes()
        peak = max(peak, taken)
    assert peak > 0
    return peak


def seconds_of(*functions, rounds=7):
    """Median seconds of each function, measured in turn so that a slow moment of the machine meets all of them."""
    taken = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for times, function in zip(taken, functions, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]
