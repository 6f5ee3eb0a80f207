"""Sizes: which set is chosen, what it decides, that older runs keep theirs; and what a dry run tells of the cost."""

import dataclasses
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.extraction import Notes
from helpers.training import losses_of, small_options

from vfz.cli.main import main
from vfz.pipeline.errors import RunError, UsageError
from vfz.temporal.cores import CORES
from vfz.temporal.model import TemporalModel
from vfz.temporal.run_record import read_run
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.experiment import _MAY_DIFFER, made_otherwise
from vfz.temporal.training.forecast import forecast_training
from vfz.temporal.training.options import SIZES as NAMES
from vfz.temporal.training.options import TrainOptions, option_values
from vfz.temporal.training.sizes import SIZES, chosen_size, sized, smaller
from vfz.temporal.training.train import train_temporal

PAPERS = {"core_dim": None, "num_layers": 4, "num_heads": None, "readout_dim": None, "readout_heads": None}
WITHOUT_SIZES = {
    "core_dim": None, "num_layers": None, "num_heads": None, "readout_dim": None, "readout_heads": None,
}  # fmt: skip


@pytest.fixture
def options(synthetic_cache, tmp_path):
    """A run that names none of its sizes."""
    return small_options(synthetic_cache, tmp_path / "runs", **WITHOUT_SIZES, tensorboard=False, epochs=1)


def test_the_options_offer_the_sets_that_there_are():
    assert tuple(SIZES) == NAMES


@pytest.mark.quick
@pytest.mark.parametrize(
    ("num_clips", "encoder_dim", "size"),
    [
        (36, 1280, "tiny"), (36, 32, "tiny"), (999, 320, "tiny"), (1000, 320, "small"), (6399, 320, "small"),
        (6400, 320, "paper"), (20_479, 1024, "small"), (20_480, 1024, "paper"), (240_000, 1280, "paper"),
    ],
)  # fmt: skip
def test_the_clips_and_the_encoders_width_choose_the_size(num_clips, encoder_dim, size):
    assert chosen_size(encoder_dim=encoder_dim, num_clips=num_clips) == size
    found = sized(TrainOptions(), encoder_dim=encoder_dim, num_clips=num_clips)
    assert found.size == size
    assert found.note.startswith(f"size {size}: chosen for {num_clips} clips of {encoder_dim:,} channels; --size ")


@pytest.mark.quick
@pytest.mark.parametrize("name", ["core_dim", "num_layers", "num_heads", "readout_dim", "readout_heads"])
def test_a_run_that_names_a_size_has_the_papers_others_and_says_nothing(name):
    found = sized(TrainOptions(**{name: 2}), encoder_dim=1280, num_clips=36)
    values = {key: getattr(found.options, key) for key in PAPERS}
    assert (values, found.size, found.note) == (PAPERS | {name: 2}, "paper", None)


@pytest.mark.quick
def test_a_size_that_is_given_beside_a_set_wins_and_the_rest_fits_it():
    found = sized(TrainOptions(size="small", core_dim=100, readout_dim=36), encoder_dim=1280, num_clips=9)
    options = found.options
    assert (options.core_dim, options.num_layers, options.num_heads) == (100, 3, 5)
    assert (options.readout_dim, options.readout_heads) == (36, 6)


@pytest.mark.quick
def test_a_narrower_encoder_keeps_its_width():
    options = sized(TrainOptions(size="tiny"), encoder_dim=48, num_clips=9).options
    assert (options.core_dim, options.num_heads) == (None, 4)


@pytest.mark.quick
@pytest.mark.parametrize("task", TASKS.names())
@pytest.mark.parametrize("size", SIZES)
def test_every_size_makes_a_model_of_every_core_and_task(size, task):
    from vfz.temporal.model import ModelConfig

    for core in CORES.names():
        options = sized(TrainOptions(core=core, task=task, size=size), encoder_dim=96, num_clips=9).options
        readout = {"readout_dim": options.readout_dim, "num_heads": options.readout_heads,
                   "mlp_hidden": options.readout_hidden}  # fmt: skip
        needed = {"num_classes": 3} if TASKS[task].name in {"classify", "multilabel", "regression"} else {}
        needed |= {"output_size": 16} if task == "depth" else {}
        TemporalModel(
            ModelConfig(
                encoder_dim=96, encoder_layers=("3",), parts="all", num_prefix=0, mixer="last", core=core,
                core_dim=options.core_dim or 96, num_layers=options.num_layers, num_heads=options.num_heads, task=task,
                protocol="streaming",
                readout={name: value for name, value in readout.items() if value is not None} | needed,
            )
        )  # fmt: skip


def test_the_size_is_named_in_a_line_and_the_run_records_what_it_stands_for(options):
    notes = Notes()
    train_temporal(options, progress=notes)
    assert "size tiny: chosen for 36 clips of 112 channels; --size paper is the paper's" in notes.lines
    record = read_run(options.out / "run").values
    assert record["size"] == "tiny"
    assert "size" not in record["options"]
    assert (record["options"]["core_dim"], record["options"]["num_layers"]) == (64, 2)
    assert (record["model"]["core_dim"], record["model"]["num_heads"]) == (64, 4)
    assert record["model"]["readout"]["readout_dim"] == 64


def test_the_papers_size_is_recorded_as_before_sizes_had_names(options):
    train_temporal(dataclasses.replace(options, size="paper", core="m"))
    record = read_run(options.out / "run").values["options"]
    assert {name: record[name] for name in PAPERS} == PAPERS
    assert "size" not in record
    assert "dry_run" not in record


def test_a_run_that_goes_on_keeps_its_size_whatever_would_be_chosen_now(options, monkeypatch):
    whole = dataclasses.replace(options, name="whole", epochs=2, core="m")
    train_temporal(whole)
    stopped = dataclasses.replace(whole, name="stopped")
    with monkeypatch.context() as patch:
        patch.setattr("vfz.temporal.training.loop.Trainer._evaluate", _stops)
        with pytest.raises(KeyboardInterrupt):
            train_temporal(dataclasses.replace(stopped, eval_every=1))
    record = json.loads((options.out / "stopped" / "run.json").read_text())
    record["options"]["eval_every"] = 0
    (options.out / "stopped" / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("vfz.temporal.training.sizes.FEW_CLIPS", 1)  # as if there were many clips now
    train_temporal(dataclasses.replace(stopped, resume=True))
    assert losses_of(options.out / "stopped") == losses_of(options.out / "whole")
    with pytest.raises(RunError, match=r"is finished"):
        train_temporal(dataclasses.replace(stopped, resume=True))


def _stops(*_):
    raise KeyboardInterrupt


@pytest.mark.quick
def test_a_run_from_before_sizes_goes_on_with_a_line_that_names_none_and_not_with_another_size():
    cache = SimpleNamespace(path="c", fingerprint="f", ledger_digest="l", recipe={}, provenance={}, label_set=None)
    then = option_values(TrainOptions(core="m", num_layers=4), without=_MAY_DIFFER)
    record = {"options": then, "model": {"encoder_dim": 320}, "cache": {"fingerprint": "f", "ledger_digest": "l"}}
    assert made_otherwise(record, TrainOptions(core="m"), (cache,)) == []
    assert made_otherwise(record, TrainOptions(core="m", size="paper"), (cache,)) == []
    differing = made_otherwise(record, TrainOptions(core="m", size="tiny"), (cache,))
    assert "core_dim (run None, now 64)" in differing
    assert "num_layers (run 4, now 2)" in differing


def test_a_size_that_there_is_none_of_is_told_with_those_there_are(capsys):
    assert main(["train-temporal", "--size", "huge"]) == 2
    assert "--size 'huge' is not allowed; choose from tiny, small, paper" in capsys.readouterr().err


def test_a_dry_run_tells_what_the_run_takes_and_writes_nothing(options, capsys, monkeypatch):
    monkeypatch.setattr("vfz.temporal.training.forecast.MEASURED_SECONDS", 0.2)
    before = sorted(options.out.parent.rglob("*"))
    line = ["train-temporal", "--cache", str(options.cache[0]), "--out", str(options.out), "--clip-frames", "6",
            "--batch-size", "8", "--epochs", "4", "--eval-every", "2", "--dry-run"]  # fmt: skip
    assert main([*line, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "size tiny: chosen for 36 clips of 112 channels" in printed.err
    assert sorted(options.out.parent.rglob("*")) == before
    assert (found["clips_per_epoch"], found["steps_per_epoch"], found["num_steps"]) == (36, 5, 20)
    assert (found["num_eval_videos"], found["num_evaluations"]) == (12, 2)
    assert found["num_parameters"] == sum(found["parameters"].values()) > 100_000
    assert found["parameters"]["projection"] == 112 * 64 + 64
    assert found["num_measured"] >= 1
    assert found["epoch_seconds"] == pytest.approx(5 * found["step_seconds"])
    assert found["total_seconds"] == pytest.approx(20 * found["step_seconds"] + 2 * found["evaluation_seconds"])
    assert found["memory_bytes"] > 0
    assert {"--core-dim 64", "--size tiny"} & found["smaller"].keys() == set(), "it is as small already"
    assert {"--num-layers 1", "--accumulate 2", "--checkpointing"} <= found["smaller"].keys()
    assert main([*line, "--size", "small"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^an epoch +.* s: 36 clips in 5 steps$", shown, flags=re.MULTILINE)
    assert re.search(r"^in all +.*: 20 steps and 2 evaluations$", shown, flags=re.MULTILINE)
    assert "--size tiny" in shown
    assert sorted(options.out.parent.rglob("*")) == before


def test_a_dry_run_is_refused_where_the_run_would_be(options):
    train_temporal(dataclasses.replace(options, core="m"))
    with pytest.raises(RunError, match=r"exists; continue it with --resume, or choose another --name"):
        forecast_training(dataclasses.replace(options, core="m"))
    with pytest.raises(UsageError, match="5 attention heads do not divide 112 channels"):
        forecast_training(dataclasses.replace(options, num_heads=5, name="other"))


@pytest.mark.quick
def test_what_would_make_a_run_smaller_is_what_applies_to_it():
    def offered(**given):
        found = sized(TrainOptions(**given), encoder_dim=1280, num_clips=36)
        return [option for option, _ in smaller(found, encoder_dim=1280)]

    assert offered(size="paper") == [
        "--size tiny", "--size small", "--core-dim 640", "--num-layers 2", "--clip-frames 8", "--accumulate 2",
        "--checkpointing", "--token-dropout 0.5",
    ]  # fmt: skip
    assert offered(core_dim=64, core="identity", accumulate=16, clip_frames=4, task="points") == []
    assert offered(core_dim=96, num_layers=1, checkpointing=True, batch_size=12, accumulate=2) == [
        "--core-dim 64", "--clip-frames 8", "--accumulate 3", "--token-dropout 0.5",
    ]  # fmt: skip


def test_two_processes_tell_a_dry_run_once(options, tmp_path):
    """Under torchrun, which starts processes that must measure as many steps."""
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vfz.cli",
         "train-temporal", "--cache", options.cache[0], "--core", "m", "--clip-frames", "6", "--dry-run", "--json"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["clips_per_epoch"] == 36
    assert list(tmp_path.iterdir()) == []
