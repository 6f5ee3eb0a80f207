"""Readouts: one file per task, from the output of a core to the task's answer.

A new readout is one file with a `Readout`, one line below and one subclass of `ReadoutContract` in the tests.
"""

from __future__ import annotations

from typing import Any

from vfz.temporal.readouts.base import Readout
from vfz.temporal.readouts.classify import ClassifyReadout
from vfz.temporal.registry import Registry

__all__ = ["READOUTS", "Readout", "build_readout"]

READOUTS: Registry[type[Readout]] = Registry("readout")
READOUTS.register("classify", ClassifyReadout)


def build_readout(task: str, *, dim: int, protocol: str = "streaming", **kwargs: Any) -> Readout:
    """The readout of `task`, with fresh weights.

    Args:
        task: one of `READOUTS.names()`.
        dim: D, channels of the core's output.
        protocol: `streaming` (an answer per frame) or `clip` (one answer per clip).
        **kwargs: what the task's readout takes besides (`classify`: `num_classes`, `readout_dim`, `num_heads`,
            `num_frames`).

    Raises:
        UnknownNameError: when no readout or no protocol has that name.
        UsageError: when the sizes do not fit; the message says which.
    """
    readout_class: Any = READOUTS.get(task)
    readout: Readout = readout_class(dim, protocol=protocol, **kwargs)
    return readout
