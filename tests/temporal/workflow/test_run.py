"""Workflows: what a file may say, which stages are done, and that running again does nothing twice."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vfz.cli.main import main
from vfz.pipeline.errors import RunError, UnknownNameError, UsageError
from vfz.pipeline.progress import SilentProgress
from vfz.temporal.run_record import read_run
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.workflow.file import Published, read_workflow, run_folder
from vfz.temporal.workflow.options import RunOptions
from vfz.temporal.workflow.run import run_workflow

WORKFLOWS = Path(__file__).parents[3] / "workflows"
EVERY = sorted(WORKFLOWS.rglob("*.toml"))
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

SHARED = """
[extract]
dataset = "synthetic"
encoder = "demo"
layers = [3]
image-size = 64
num-videos = 24
num-frames = 6
size = 64

[defaults.train-temporal]
core-dim = 16
num-layers = 1
readout-dim = 32
readout-heads = 2
clip-frames = 6
epochs = 1
tensorboard = false

[[train-temporal]]
core = "identity"
paper = { metric = "top1", value = 0.25, source = "a paper, first row" }

[[train-temporal]]
name = "second"
core = "m"

[train-temporal.paper]
metric = "top1"
value = 0.75
source = "a paper, second row"

[defaults.probe]
probe = "linear"

[[probe]]
clip-frames = 6

[[probe]]
temporal = "second"
"""
"""The same stages, what they share written once, with a figure for each training."""


@pytest.fixture
def workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(WORKFLOW)
    return path


@pytest.fixture
def shared(workflow):
    workflow.write_text(SHARED)
    return workflow


class StopsBefore(SilentProgress):
    """A Ctrl-C when a stage is about to begin."""

    def __init__(self, stage):
        self.stage = stage

    def note(self, text):
        if text == self.stage:
            raise KeyboardInterrupt


def states(report):
    return [stage.state for stage in report.plan]


def files_and_times():
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}


def test_what_several_tables_share_may_be_written_once(workflow, shared):
    shared = read_workflow(shared)
    workflow.write_text(WORKFLOW)
    written_out = read_workflow(workflow)
    assert shared.trainings == written_out.trainings
    assert shared.probes == written_out.probes
    assert shared.extract == written_out.extract


@pytest.mark.parametrize("key", ["core-dim", "core_dim"])
def test_what_a_table_says_itself_wins_over_the_defaults(shared, key):
    shared.write_text(SHARED.replace('core = "m"', f'core = "m"\n{key} = 32'))
    assert [training.core_dim for training in read_workflow(shared).trainings] == [16, 32]


def test_a_command_of_its_own_reads_the_defaults_too_and_no_papers_figure(tmp_path):
    path = tmp_path / "one.toml"
    figure = 'paper = { metric = "top1", value = 0.5, source = "a paper" }'
    path.write_text(f'[defaults.train-temporal]\ncore = "m"\nepochs = 3\n[train-temporal]\nepochs = 4\n{figure}\n')
    options = TrainOptions.from_toml(path, command="train-temporal", overrides={"seed": 5})
    assert (options.core, options.epochs, options.seed) == ("m", 4, 5)


def test_a_workflow_stopped_between_two_trainings_goes_on_with_the_second(shared):
    with pytest.raises(KeyboardInterrupt):
        run_workflow(RunOptions(workflow=shared), progress=StopsBefore("train-temporal second"))
    before = files_and_times()
    assert states(run_workflow(RunOptions(workflow=shared, dry_run=True))) == ["done", "done", *["to do"] * 3]
    report = run_workflow(RunOptions(workflow=shared))
    assert states(report) == ["done", "done", *["to do"] * 3]
    assert read_run(Path("runs/second")).finished
    assert {path: files_and_times()[path] for path in before} == before


def test_only_some_trainings_are_run_by_name_or_core_with_the_probes_of_them(shared):
    report = run_workflow(RunOptions(workflow=shared, only=("m",)))
    assert list(report.results) == ["train-temporal second", "probe linear of second"]
    assert [stage.stage for stage in report.plan] == [
        "extract synthetic", "train-temporal second", "probe linear of second",
    ]  # fmt: skip
    assert not Path("runs/tiny-identity-seed0").exists()
    assert [figure.training for figure in report.figures] == ["second"]
    by_name = run_workflow(RunOptions(workflow=shared, only=("second",)))
    assert states(by_name)[:2] == ["done", "done"]
    assert states(run_workflow(RunOptions(workflow=shared, dry_run=True))) == ["done", "to do", "done", *["to do"] * 2]


def test_only_takes_several_and_offers_the_nearest_name(shared):
    workflow = read_workflow(shared)
    assert workflow.only(("second", "identity")).trainings == workflow.trainings
    assert workflow.only(("identity",)).probes == ()
    with pytest.raises(UnknownNameError, match=r"unknown training in .*tiny.toml 'secnd'; did you mean second"):
        workflow.only(("m", "secnd"))


def test_another_trainings_run_folder_is_not_looked_at_when_it_is_not_asked_for(shared):
    run_workflow(RunOptions(workflow=shared, only=("m",)))
    shared.write_text(SHARED.replace('core = "m"', 'core = "m"\nlr = 0.5'))
    assert states(run_workflow(RunOptions(workflow=shared, only=("identity",), dry_run=True))) == ["done", "to do"]
    with pytest.raises(RunError, match="runs/second is there"):
        run_workflow(RunOptions(workflow=shared))


def test_every_training_has_its_figure_beside_what_was_measured(shared):
    planned = run_workflow(RunOptions(workflow=shared, dry_run=True))
    assert [(figure.published.value, figure.measured) for figure in planned.figures] == [(0.25, None), (0.75, None)]
    report = run_workflow(RunOptions(workflow=shared))
    assert [figure.measured for figure in report.figures] == [
        report.results["train-temporal tiny-identity-seed0"]["top1"],
        report.results["probe linear of second"]["top1"],  # as with [paper]: the last that has it
    ]
    assert (report.published, report.measured) == (None, None)


def test_a_figure_of_the_whole_file_is_told_as_before(workflow):
    workflow.write_text('[paper]\nmetric = "top1"\nvalue = 0.5\nsource = "a paper"\n' + WORKFLOW)
    report = run_workflow(RunOptions(workflow=workflow))
    assert report.published == Published(metric="top1", value=0.5, source="a paper")
    assert report.measured == report.results["probe linear of second"]["top1"]
    assert report.figures == ()


@pytest.mark.parametrize("change", [('core = "m"', 'core = "mm"'), ('core = "m"', 'core = "m"\nmixer = "laast"')])
def test_a_core_or_mixer_that_there_is_none_of_is_refused_before_the_first_training(shared, change):
    shared.write_text(SHARED.replace(*change))
    words = r"tiny.toml: \[\[train-temporal\]\] number 2: (unknown core 'mm'; did you mean|`mixer` 'laast' is not)"
    with pytest.raises(UsageError, match=words):
        run_workflow(RunOptions(workflow=shared))
    assert not Path("caches").exists()


def test_a_workflow_is_run_once_and_then_it_is_done(workflow):
    planned = run_workflow(RunOptions(workflow=workflow, dry_run=True))
    assert states(planned) == ["to do"] * 5
    assert not any(Path(name).exists() for name in ("caches", "runs", "data")), "a dry run makes nothing"
    report = run_workflow(RunOptions(workflow=workflow))
    assert len(report.results) == 4
    assert read_run(Path("runs/second")).values["options"]["core"] == "m"
    before = files_and_times()
    again = run_workflow(RunOptions(workflow=workflow))
    assert states(again)[:3] == ["done"] * 3
    assert files_and_times() == before
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


def test_the_command_shows_measured_and_published_of_every_training(shared, capsys):
    assert main(["run", str(shared), "--only", "identity"]) == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[0] == "tiny: measured and published"
    assert last[1].split() == ["training", "metric", "measured", "published", "source"]
    assert last[2].startswith("tiny-identity-seed0")
    assert last[2].endswith("0.25  a paper, first row")
    assert main(["run", str(shared), "--dry-run", "--json", "--only", "second,identity"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["workflow"] == "tiny"
    assert [(figure["training"], figure["published"]["value"]) for figure in printed["figures"]] == [
        ("tiny-identity-seed0", 0.25), ("second", 0.75),
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (("defaults.train-temporal", "default.train-temporal"), UnknownNameError, "did you mean defaults"),
        (("[defaults.probe]", "[defaults.prob]"), UnknownNameError, r"table in \[defaults\] of .* did you mean probe"),
        (("[defaults.probe]", "[defaults.extract]"), UnknownNameError, r"table in \[defaults\] of .*'extract'"),
        (("[defaults.probe]", "[[defaults.probe]]"), UsageError, r"write \[defaults.probe\]"),
        (("[defaults.train-temporal]", "[[defaults]]"), UsageError, r"has tables \[\[defaults\]\]"),
        (("epochs = 1", "epoch = 1"), UnknownNameError, r"key in \[defaults.train-temporal\] of .*tiny.toml 'epoch'"),
        (("epochs = 1", "epochs = 0"), UsageError, r"tiny.toml: \[defaults.train-temporal\]: `epochs` 0 is too small"),
        (("epochs = 1", "cache = 'x'"), UsageError, "leave it out"),
        (('core = "m"', 'cor = "m"'), UnknownNameError, r"key in \[\[train-temporal\]\] number 2 of .*tiny.toml 'cor'"),
        (('core = "m"', "lr = -1"), UsageError, r"tiny.toml: \[\[train-temporal\]\] number 2: `lr` -1.0 is too small"),
        (('temporal = "second"', "sweap = true"), UnknownNameError, r"key in \[\[probe\]\] number 2 of .*'sweap'"),
        (("image-size", "imag-size"), UnknownNameError, r"key in \[extract\] of .*tiny.toml 'imag-size'"),
        (('metric = "top1"\n', 'metrc = "top1"\n'), UnknownNameError, r"paper of \[\[train-temporal\]\] number 2"),
        (("value = 0.25", "value = true"), UsageError, r"number 1 value is True; it needs metric, value and source"),
        (("[train-temporal.paper]", "[[train-temporal.paper]]"), UsageError, "number 2 is there several times"),
        (("epochs = 1", "paper = {}"), UnknownNameError, r"key in \[defaults.train-temporal\] .*'paper'"),
        (("[extract]", "[paper]\nmetric='a'\nvalue=1\nsource='b'\n[extract]"), UsageError, "leave one of them out"),
    ],
)
def test_a_mistake_is_told_with_file_table_and_key(shared, change, error, words):
    shared.write_text(SHARED.replace(*change))
    with pytest.raises(error, match=words):
        read_workflow(shared)


def test_a_command_of_its_own_is_not_given_one_of_several_tables(workflow):
    with pytest.raises(UsageError, match=r"has 2 tables \[\[train-temporal\]\]; run them all with vfz run"):
        TrainOptions.from_toml(workflow, command="train-temporal")


def test_a_probes_run_may_be_named_by_its_name_alone(workflow):
    assert [probe.temporal for probe in read_workflow(workflow).probes] == [None, Path("runs/second")]


@pytest.mark.parametrize("path", EVERY, ids=[path.stem for path in EVERY])
def test_every_workflow_that_is_handed_out_is_planned_without_its_videos(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = run_workflow(RunOptions(workflow=path, dry_run=True))
    assert set(states(report)) == {"to do"}
    assert len(report.plan) == 1 + len(read_workflow(path).trainings) + len(read_workflow(path).probes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_the_papers_figures_are_for_cores_of_the_papers_size(path):
    for training in read_workflow(path).trainings:
        assert training.size == "paper"
        assert (training.core_dim, training.num_layers, training.readout_dim) == (None, None, None)


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_the_papers_workflows_aim_at_figures_that_their_task_measures(path):
    workflow = read_workflow(path)
    assert [training.name for training in workflow.trainings] == [
        f"paper-{path.stem}-{training.core}" for training in workflow.trainings
    ]
    for training in workflow.trainings:
        figure = workflow.figures[run_folder(training)]
        assert figure.metric == TASKS[training.task].headline
        assert workflow.extract.layers == training.layers == ("5", "11", "17", "23")
        assert workflow.only([training.core]).trainings == (training,)


def test_the_papers_table_has_22_figures_of_five_data_sets():
    assert sum(len(read_workflow(path).figures) for path in PAPER) == 22
    assert len({read_workflow(path).extract.name for path in PAPER}) == len(PAPER) == 5


def test_the_quickstart_is_a_workflow_too():
    workflow = read_workflow(WORKFLOWS / "quickstart.toml")
    assert workflow.trainings[0].name == "quickstart"
    assert workflow.probes[0].temporal == Path("runs/quickstart")


ALL = """
[extract]
dataset = "synthetic"
encoder = "demo"
layers = [2, 3]
image-size = 64
num-videos = 24
num-frames = 6
size = 64

[[convert]]
name = "int8"
precision = "int8"
layers = [3]

[defaults.train-temporal]
core = "m"
clip-frames = 6
epochs = 1
tensorboard = false

[[train-temporal]]
name = "first"
layers = [3]

[[train-temporal]]
name = "second"
cache = "int8"

[[evaluate]]
run = "second"
cache = "int8"
split = "train"

[[probe]]
temporal = "first"
name = "of-first"

[compare]
baseline = "first"

[[predict]]
run = "second"
cache = "int8"
split = "test"

[[predict]]
probe = "of-first"
videos = "data/synthetic-24x6-64px-seed0/test"
top-k = 2
"""
"""Every stage that a file may have."""


def test_every_stage_runs_in_order_and_the_command_ends_with_a_table_of_them(workflow, capsys):
    workflow.write_text(ALL)
    assert main(["run", str(workflow)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: what came of it"
    assert lines[1].split()[:4] == ["stage", "result", "metric", "value"]
    titles = [
        "extract synthetic", "convert to int8", "train-temporal first", "train-temporal second",
        "evaluate second on train", "probe of-first", "compare tiny-comparison", "predict by second",
        "predict by of-first",
    ]  # fmt: skip
    rows = lines[2:]
    assert [row.split("  ")[0] for row in rows] == titles
    assert all(re.search(r" made +top1 +[\d.]+ +[\d.]+ to [\d.]+ +[\d.]+ +runs/", row) for row in rows[2:7])
    assert all(re.search(r" made +num_answered +6 +[\d.]+ +runs/tiny-predictions-\d.csv$", row) for row in rows[7:])
    assert read_run(Path("runs/second")).values["cache"]["recipe"]["storage"]["precision"] == "int8"
    assert read_run(Path("runs/first")).values["cache"]["recipe"]["storage"]["precision"] == "fp16"
    assert Path("runs/tiny-predictions-2.csv").read_text().splitlines()[0].count("class") == 2
    compared = json.loads(Path("runs/tiny-comparison/comparison.json").read_text())
    assert compared["baseline"] == "first"
    before = files_and_times()
    assert main(["run", str(workflow), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in again["stages"]] == titles
    results = [stage["result"] for stage in again["stages"]]
    assert results == [*["was there"] * 4, "made", "was there", "made", *["was there"] * 2]
    assert [stage["state"] for stage in again["plan"]] == [*["done"] * 4, *["to do"] * 5]
    assert all(stage["seconds"] >= 0 and Path(stage["where"]).exists() for stage in again["stages"])
    evaluated = again["stages"][4]
    assert evaluated["metric"] == "top1"
    assert evaluated["low"] <= evaluated["value"] == again["results"][titles[4]]["top1"] <= evaluated["high"]
    changed = {path for path, time in files_and_times().items() if before.get(path) != time}
    assert {path.parts[1] for path in changed} == {"second", "tiny-comparison"}, "these replace themselves"


def test_answers_are_made_again_where_another_run_or_other_videos_are_asked_about(workflow):
    workflow.write_text(ALL)
    first = run_workflow(RunOptions(workflow=workflow)).stages[-2:]
    workflow.write_text(ALL.replace('split = "test"', 'split = "train"').replace("top-k = 2", "top-k = 3"))
    again = run_workflow(RunOptions(workflow=workflow)).stages[-2:]
    assert [stage.result for stage in (*first, *again)] == ["made"] * 4
    assert [stage.value for stage in (*first, *again)] == [6, 6, 18, 6]
    assert [stage.where for stage in first] == [stage.where for stage in again]


def test_only_keeps_what_is_made_of_a_training_and_the_cache_it_is_trained_on(workflow):
    workflow.write_text(ALL)
    whole = read_workflow(workflow)
    assert [stage.title for stage in whole.only(("second",)).stages] == [
        "extract synthetic", "convert to int8", "train-temporal second", "evaluate second on train",
        "predict by second",
    ]  # fmt: skip
    assert [stage.title for stage in whole.only(("first",)).stages] == [
        "extract synthetic", "train-temporal first", "probe of-first", "predict by of-first",
    ]  # fmt: skip


def test_another_conversion_is_not_taken_for_this_one(workflow):
    workflow.write_text(ALL.partition("[defaults")[0])
    run_workflow(RunOptions(workflow=workflow))
    assert states(run_workflow(RunOptions(workflow=workflow, dry_run=True))) == ["done", "done"]
    workflow.write_text(workflow.read_text().replace('name = "int8"', 'name = "other"'))
    assert states(run_workflow(RunOptions(workflow=workflow, dry_run=True))) == ["done", "to do"]


def test_stages_of_one_kind_are_told_apart(workflow):
    workflow.write_text(SHARED.replace('temporal = "second"', "clip-frames = 3"))
    titles = [stage.title for stage in read_workflow(workflow).stages if stage.command == "probe"]
    assert titles == ["probe linear of tokens (1)", "probe linear of tokens (2)"]


def test_a_training_that_is_stopped_says_what_goes_on_with_it(workflow, monkeypatch, capsys):
    workflow.write_text(WORKFLOW.partition("[[train-temporal]]")[0])
    run_workflow(RunOptions(workflow=workflow))
    workflow.write_text(WORKFLOW.partition("[[probe]]")[0])
    monkeypatch.setattr("vfz.pipeline.progress.StopRequest.is_requested", True)
    assert main(["run", str(workflow)]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"vfz: error: {workflow}: [[train-temporal]] number 1: stopped as asked after step 1 ")
    assert said.endswith("has a checkpoint: the same vfz run goes on")
    assert "--resume" not in said


def test_a_training_that_fails_names_the_key_to_change(workflow, capsys):
    wild = 'core = "gru"\nlr = 1e30\nclip-grad = 0\nwarmup-epochs = 0'
    workflow.write_text(WORKFLOW.replace('core = "m"', wild).replace("epochs = 1", "epochs = 9"))
    assert main(["run", str(workflow), "--only", "gru"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{workflow}: [[train-temporal]] number 2: the loss is " in said
    assert "lower `lr`, or clip gradients by `clip-grad`" in said
