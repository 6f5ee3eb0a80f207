"""Which device a command runs on, and how many CPU cores it may use."""

from __future__ import annotations

import os

import torch

from vfz.pipeline.errors import UsageError


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one, else the CPU; anything else is a torch device.

    Raises:
        UsageError: when there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name!r} is not here ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    return device


def device_for(name: str, number: int) -> str:
    """The device of one of several processes: they take the GPUs of the machine in turn, or each the one that it sees.

    Args:
        name: the device asked for; one with a number, such as `cuda:1`, is taken at its word.
        number: of the process, from 0.
    """
    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if name in {"auto", "cuda"} and count else name


def num_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
