"""Readouts: one file per task, from the output of a core to the task's answer.

A new readout is one file with a `Readout`, one line below and one subclass of `ReadoutContract` in the tests.
"""

from __future__ import annotations

import inspect
from typing import Any

from vfz.pipeline.errors import UsageError
from vfz.pipeline.registry import Registry
from vfz.temporal.readouts.base import Readout
from vfz.temporal.readouts.boxes import BoxesReadout
from vfz.temporal.readouts.classify import ClassifyReadout
from vfz.temporal.readouts.depth import DepthReadout
from vfz.temporal.readouts.points import PointsReadout
from vfz.temporal.readouts.pose import PoseReadout

__all__ = ["READOUTS", "Readout", "build_readout"]

READOUTS: Registry[type[Readout]] = Registry("readout")
READOUTS.register("classify", ClassifyReadout)
READOUTS.register("multilabel", ClassifyReadout)
READOUTS.register("regression", ClassifyReadout)
READOUTS.register("boxes", BoxesReadout)
READOUTS.register("points", PointsReadout)
READOUTS.register("depth", DepthReadout)
READOUTS.register("pose", PoseReadout)


def build_readout(task: str, *, dim: int, protocol: str = "streaming", **sizes: int) -> Readout:
    """The readout of `task`, with fresh weights.

    Args:
        task: one of `READOUTS.names()`.
        dim: D, channels of the core's output.
        protocol: `streaming` (an answer per frame) or `clip` (all frames of a clip are answered from all of them).
        **sizes: what the task's readout takes besides; its class says what each is. All but `num_classes` and
            `output_size` have the paper's values as defaults; `num_frames` is needed in clip protocol.

            - `classify`, `multilabel`, `regression`: `num_classes`, `readout_dim`, `num_heads`, `num_frames`
            - `boxes`: `readout_dim`, `num_heads`, `mlp_hidden`
            - `points`: `readout_dim`, `num_heads`, `mlp_hidden`, `num_frames`
            - `depth`: `output_size`, `readout_dim`, `num_heads`, `num_frames`
            - `pose`: `readout_dim`, `mlp_hidden`

    Raises:
        UnknownNameError: when no readout or no protocol has that name.
        UsageError: when the sizes do not fit, one is missing or not the task's; the message says which.
    """
    readout_class: Any = READOUTS[task]
    allowed = {name: parameter.default for name, parameter in inspect.signature(readout_class).parameters.items()}
    del allowed["dim"], allowed["protocol"]
    for name in sizes:
        if name not in allowed:
            raise UsageError(f"the {task} readout has no {name}; its sizes are {', '.join(allowed)}")
    for name, default in allowed.items():
        if default is inspect.Parameter.empty and name not in sizes:
            raise UsageError(f"the {task} readout needs {name}; pass {name}=...")
    for name, size in {"dim": dim, **sizes}.items():
        if size is not None and size < 1:
            raise UsageError(f"{name} is {size}; a readout needs at least 1")
    readout: Readout = readout_class(dim, protocol=protocol, **sizes)
    return readout
