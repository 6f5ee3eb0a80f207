"""Workflows: what a file may say, which stages are done, and that running again does nothing twice."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vfz.pipeline.errors import RunError, UnknownNameError, UsageError
from vfz.temporal.probes.options import TrainOptions
from vfz.temporal.run_workflow import run_workflow
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.runs import read_run
from vfz.temporal.workflow import RunOptions, read_workflow

WORKFLOWS = Path(__file__).parents[2] / "workflows"
PAPER = sorted((WORKFLOWS / "paper").glob("*.toml"))

WORKFLOW = """
[extract]
dataset = "synthetic"
encoder = "demo"
layers = [3]
image-size = 64
num-videos = 24
num-frames = 6
size = 64

[[train-temporal]]
core = "identity"
core-dim = 16
num-layers = 1
readout-dim = 32
readout-heads = 2
clip-frames = 6
epochs = 1
tensorboard = false

[[train-temporal]]
name = "second"
core = "m"
core-dim = 16
num-layers = 1
readout-dim = 32
readout-heads = 2
clip-frames = 6
epochs = 1
tensorboard = false

[[probe]]
probe = "linear"
clip-frames = 6

[[probe]]
probe = "linear"
temporal = "second"
"""


@pytest.fixture
def workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(WORKFLOW)
    return path


def states(report):
    return [stage.state for stage in report.plan]


def test_a_workflow_is_run_once_and_then_it_is_done(workflow):
    planned = run_workflow(RunOptions(workflow=workflow, dry_run=True))
    assert states(planned) == ["to do"] * 5
    assert not any(Path(name).exists() for name in ("caches", "runs", "data")), "a dry run makes nothing"
    report = run_workflow(RunOptions(workflow=workflow))
    assert len(report.results) == 4
    assert read_run(Path("runs/second")).values["options"]["core"] == "m"
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    again = run_workflow(RunOptions(workflow=workflow))
    assert states(again)[:3] == ["done"] * 3
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before
    assert again.results["train-temporal second"] == report.results["train-temporal second"]
    assert all(result["reused"] for stage, result in again.results.items() if stage.startswith("probe"))


def test_what_is_done_needs_neither_videos_nor_encoder(workflow):
    run_workflow(RunOptions(workflow=workflow))
    Path("data").rename("elsewhere")
    assert states(run_workflow(RunOptions(workflow=workflow)))[:3] == ["done"] * 3


def test_a_run_that_was_stopped_is_continued(workflow):
    run_workflow(RunOptions(workflow=workflow))
    record = Path("runs/second/run.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    assert states(run_workflow(RunOptions(workflow=workflow, dry_run=True)))[2] == "continue"
    run_workflow(RunOptions(workflow=workflow))
    assert read_run(Path("runs/second")).finished


def test_a_run_of_other_options_is_refused_before_anything_is_run(workflow):
    run_workflow(RunOptions(workflow=workflow))
    workflow.write_text(WORKFLOW.replace('core = "m"', 'core = "m"\nlr = 0.5'))
    with pytest.raises(RunError, match=r"runs/second is there .* lr \(run 0.001, now 0.5\); give the run another name"):
        run_workflow(RunOptions(workflow=workflow))


def test_another_extraction_is_not_taken_for_this_one(workflow):
    run_workflow(RunOptions(workflow=workflow))
    workflow.write_text(WORKFLOW.replace("num-videos = 24", "num-videos = 30"))
    assert states(run_workflow(RunOptions(workflow=workflow, dry_run=True)))[0] == "to do"


def test_the_command_shows_the_plan(workflow):
    ran = subprocess.run(
        [sys.executable, "-m", "vfz.cli", "run", workflow, "--dry-run"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.count("to do") == 5
    assert "train-temporal tiny-identity-seed0" in ran.stdout


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("[extract]", "[extrct]"), UnknownNameError, "did you mean extract"),
        (("[extract]", "[[extract]]\ndataset = 'k400'\n[[extract]]"), UsageError, "2 tables .extract."),
        (('core = "m"', 'cor = "m"'), UnknownNameError, "did you mean core"),
        (('name = "second"', 'name = "tiny-identity-seed0"'), UsageError, "two runs into one folder"),
        (('core = "m"', 'core = "m"\ncache = "x"'), UsageError, "leave it out"),
        (("[extract]", "[demo]\nepochs = 1\n[extract]"), UsageError, "no stage of a workflow"),
        (("[extract]", "[paper]\nmetric = 'top1'\n[extract]"), UsageError, "needs metric, value and source"),
        (("[extract]", "[paper]\nmetrc = 'top1'\n[extract]"), UnknownNameError, "did you mean metric"),
    ],
)
def test_a_mistake_in_a_workflow_is_one_clear_line(workflow, change, error, words):
    workflow.write_text(WORKFLOW.replace(*change))
    with pytest.raises(error, match=words):
        read_workflow(workflow)


def test_a_command_of_its_own_is_not_given_one_of_several_tables(workflow):
    with pytest.raises(UsageError, match=r"has 2 tables \[\[train-temporal\]\]; run them all with vfz run"):
        TrainOptions.from_toml(workflow, command="train-temporal")


def test_a_probes_run_may_be_named_by_its_name_alone(workflow):
    assert [probe.temporal for probe in read_workflow(workflow).probes] == [None, Path("runs/second")]


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_the_papers_workflows_aim_at_a_figure_that_their_task_measures(path):
    workflow = read_workflow(path)
    (training,) = workflow.trainings
    assert workflow.extract.layers == training.layers == ("5", "11", "17", "23")
    assert workflow.published.metric == TASKS.get(training.task).headline


def test_the_papers_workflows_of_one_dataset_share_its_cache():
    by_dataset = {}
    for path in PAPER:
        extract = tomllib.loads(path.read_text())["extract"]
        by_dataset.setdefault(extract["name"], []).append(extract)
    assert len(by_dataset) == 5
    assert all(extract == found[0] for found in by_dataset.values() for extract in found)


def test_the_quickstart_is_a_workflow_too():
    workflow = read_workflow(WORKFLOWS / "quickstart.toml")
    assert workflow.trainings[0].name == "quickstart"
    assert workflow.probes[0].temporal == Path("runs/quickstart")
