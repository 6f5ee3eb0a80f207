"""Tasks: one file each, from a readout's outputs and a batch's targets to a loss and to metrics.

A new task is one file with a `Task`, one line below, one subclass of `TaskContract` in the tests, and the readout of
its name.
"""

from __future__ import annotations

from typing import Any

from vfz.pipeline.registry import Registry
from vfz.temporal.tasks.base import Task
from vfz.temporal.tasks.boxes import BoxesTask
from vfz.temporal.tasks.classify import ClassifyTask
from vfz.temporal.tasks.depth import DepthTask
from vfz.temporal.tasks.points import PointsTask
from vfz.temporal.tasks.pose import PoseTask

__all__ = ["TASKS", "Task", "build_task"]

TASKS: Registry[type[Task[Any]]] = Registry("task")
TASKS.register("classify", ClassifyTask)
TASKS.register("boxes", BoxesTask)
TASKS.register("points", PointsTask)
TASKS.register("depth", DepthTask)
TASKS.register("pose", PoseTask)


def build_task(name: str, *, protocol: str = "streaming", **kwargs: Any) -> Task[Any]:
    """The task called `name`.

    Args:
        name: one of `TASKS.names()`.
        protocol: `streaming` or `clip`, as its readout's.
        **kwargs: what the task takes besides (`classify`: `num_classes`, `label_smoothing`).

    Raises:
        UnknownNameError: when no task or no protocol has that name. UsageError: when the task has no such protocol.
    """
    task_class: Any = TASKS.get(name)
    task: Task[Any] = task_class(protocol=protocol, **kwargs)
    return task
