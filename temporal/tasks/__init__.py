"""Tasks: one file each, from a readout's outputs and a batch's targets to a loss and to metrics.

A new task is one file here with a `Task`, the readout of its name in `vfz.temporal.readouts`, one line in each registry
(`TASKS` below, `READOUTS` there), and one subclass of each contract in the tests (`TaskContract`, `ReadoutContract`).

The options of `vfz` list the names, so importing this package imports no task, and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfz.pipeline.registry import Registry

if TYPE_CHECKING:
    from vfz.temporal.tasks.base import Metrics, TargetBatch, Task

__all__ = ["TASKS", "TASK_OF_LABELS", "Metrics", "TargetBatch", "Task", "build_task"]

TASKS: Registry[type[Task[Any]]] = Registry("task")
TASKS.register_place("classify", "vfz.temporal.tasks.classify:ClassifyTask")
TASKS.register_place("multilabel", "vfz.temporal.tasks.multilabel:MultilabelTask")
TASKS.register_place("regression", "vfz.temporal.tasks.regression:RegressionTask")
TASKS.register_place("boxes", "vfz.temporal.tasks.boxes:BoxesTask")
TASKS.register_place("points", "vfz.temporal.tasks.points:PointsTask")
TASKS.register_place("depth", "vfz.temporal.tasks.depth:DepthTask")
TASKS.register_place("pose", "vfz.temporal.tasks.pose:PoseTask")

TASK_OF_LABELS = {"classes": "classify", "multilabel": "multilabel", "regression": "regression"}
"""Of each kind of label set the task that is trained on it; the other tasks take `targets.npz`."""


def build_task(name: str, *, protocol: str = "streaming", **kwargs: Any) -> Task[Any]:
    """The task called `name`.

    Args:
        name: one of `TASKS.names()`.
        protocol: `streaming` or `clip`, as its readout's.
        **kwargs: what the task takes besides (`classify`: `num_classes`, `label_smoothing`; `multilabel`:
            `num_classes`, `target_means`; `regression`: `target_deviations`, too).

    Raises:
        UnknownNameError: when no task or no protocol has that name. UsageError: when the task has no such protocol.
    """
    task_class: Any = TASKS[name]
    task: Task[Any] = task_class(protocol=protocol, **kwargs)
    return task


def __getattr__(name: str) -> object:
    """The contract's classes, imported on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vfz.temporal.tasks import base

    return getattr(base, name)
