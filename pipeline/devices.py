"""Which device a command runs on, and how many CPU cores it may use. torch is imported when a device is chosen."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Refuse what is no device, or none of this machine as far as that shows without torch.

    Raises:
        UsageError: says which there are.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    most = _most_gpus() if name.startswith("cuda") else None
    if most is not None and int(found[1] or 0) >= most:
        raise _no_such_gpu(name, most)


def _most_gpus() -> int | None:
    """How many GPUs there can be here at the most; None where only torch can tell."""
    others = ("/dev/kfd", "/dev/dxg", "/dev/nvgpu", "/dev/nvhost-gpu")  # AMD's, Windows' and boards with a GPU inside
    if any(Path(path).exists() for path in others):
        return None
    cards = Path("/proc/driver/nvidia/gpus")
    if cards.is_dir():
        return len(list(cards.iterdir()))
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    return None


def _no_such_gpu(name: str, count: int) -> UsageError:
    return UsageError(f"--device {name!r} is not here ({count} GPUs found); use auto or cpu")


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one, else the CPU; anything else is a torch device.

    Where it is the CPU, memory that this process frees from now on is kept for what it makes next.

    Raises:
        UsageError: when there is no such device here.
    """
    device = _device_called(name)
    if device.type == "cpu":
        _keep_freed_memory()
    return device


def _device_called(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _no_such_gpu(name, torch.cuda.device_count())
    return device


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGE = 2**30


def _keep_freed_memory() -> None:
    """Keep what tensors were in, and have it in pages of 2 MB: half of an encoder's time on a CPU is page faults else.

    glibc maps a large tensor anew each time, and the kernel clears each of its pages of 4 kB as it is touched. Other
    libraries of C have no such threshold. torch reads its variable with the first tensor: a notebook may be too late.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, _LARGE)


def device_for(name: str, number: int) -> str:
    """The device of one of several processes: they take the GPUs of the machine in turn, or each the one that it sees.

    Args:
        name: the device asked for; one with a number, such as `cuda:1`, is taken at its word.
        number: of the process, from 0.
    """
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if name in {"auto", "cuda"} and count else name


def num_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
