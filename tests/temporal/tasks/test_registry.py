"""Tasks by name: every one keeps the contract, and what is asked for wrongly is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from contracts.subclasses import subclasses_in
from contracts.task_contract import TaskContract

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal import tasks
from vfz.temporal.tasks import TASKS, build_task
from vfz.temporal.tasks.base import Task


def test_every_registered_task_is_held_to_the_contract():
    contracts = {cls for cls in subclasses_in(Path(__file__).parent, TaskContract) if hasattr(cls, "task")}
    assert {cls.task for cls in contracts} == set(TASKS.names())


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown task 'box'; did you mean boxes"):
        build_task("box")


@pytest.mark.parametrize("name", ["boxes", "pose"])
def test_a_task_without_a_clip_protocol_says_so(name):
    with pytest.raises(UsageError, match=f"task {name} has no clip protocol; use streaming"):
        build_task(name, protocol="clip")


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown protocol 'clips'; did you mean clip"):
        build_task("depth", protocol="clips")


def test_only_the_last_frame_is_needed_where_only_it_is_used():
    assert build_task("classify", num_classes=3).last_frame_only
    assert not build_task("classify", protocol="clip", num_classes=3).last_frame_only
    assert not any(build_task(name).last_frame_only for name in ("boxes", "points", "depth", "pose"))


def test_naming_the_tasks_loads_neither_numpy_nor_torch():
    code = (
        "import sys, vfz.temporal.tasks as t; assert 'pose' in t.TASKS; assert not {'numpy', 'torch'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", ["data.loader", "training.evaluate", "probes.run"])
def test_what_reads_clips_and_measures_loads_no_timm(module):
    code = f"import sys, vfz.temporal.{module}; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_names_the_contract():
    assert tasks.Task is Task
    with pytest.raises(AttributeError, match="no attribute 'Tasks'"):
        _ = tasks.Tasks
