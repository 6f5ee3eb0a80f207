"""Runs that are stopped and go on: by a kill, by Ctrl-C, in the middle of an epoch, with all that has a state."""

import dataclasses
import os
import shutil
import signal

import pytest
import torch
from helpers.processes import wait_until
from helpers.training import arguments_of, lines_of, small_options, start
from safetensors.torch import load_file

from vfz.cli.main import main
from vfz.pipeline.errors import RunError, RunInterruptedError, UsageError
from vfz.pipeline.progress import StopRequest
from vfz.temporal.run_record import read_run
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.train import train_temporal

# Dropout draws random numbers; a moving average and a checkpoint at every second step are states to keep.
CHANGES = {"epochs": 12, "dropout": 0.3, "ema": 0.9, "checkpoint_steps": 2, "eval_every": 6}


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs", **CHANGES)


@pytest.fixture(scope="module")
def whole(synthetic_cache, tmp_path_factory):
    """The same run, never stopped."""
    out = tmp_path_factory.mktemp("whole")
    train_temporal(small_options(synthetic_cache, out, **CHANGES))
    return out / "run"


def check_same(run, whole):
    """Every loss, evaluation and weight is the same, bit for bit."""
    assert lines_of(run, "step") == lines_of(whole, "step")
    assert lines_of(run, "eval") == lines_of(whole, "eval")
    one, other = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def has_steps(run, number):
    """Whether that many steps are done, in a run that may have only just begun."""
    return (run / "metrics.jsonl").exists() and len(lines_of(run, "step")) >= number


def test_a_run_killed_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_happened(options, whole):
    run = options.out / "run"
    process = start(options)
    wait_until(lambda: has_steps(run, 8) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was to be killed before its end"
    assert not read_run(run).finished
    with pytest.raises(RunError, match="not been trained to its end"):
        load_model(run)
    position = torch.load(run / "checkpoint.pt", weights_only=True)["position"]
    assert position["step"] % 2 == 0 or position["epoch_step"] == 5
    train_temporal(dataclasses.replace(options, resume=True))
    check_same(run, whole)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 129)])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_says_how_to_go_on(options, whole, number, exit_code):
    options = dataclasses.replace(options, checkpoint_steps=0)
    run = options.out / "run"
    process = start(options)
    wait_until(lambda: has_steps(run, 8) or process.poll() is not None)
    process.send_signal(number)
    _, shown = process.communicate()
    assert process.returncode == exit_code
    assert "vfz: error: stopped as asked after step" in shown
    assert ("stopping after the step or evaluation at work" in shown) == (number != signal.SIGHUP)
    assert "--resume goes on" in shown
    train_temporal(dataclasses.replace(options, resume=True))
    assert lines_of(run, "step") == lines_of(whole, "step")


def test_a_run_stopped_again_and_again_is_still_the_same(options, monkeypatch):
    """At every step of two epochs in turn, at their ends too."""
    options = dataclasses.replace(options, epochs=2, accumulate=2, checkpoint_steps=0)
    train_temporal(dataclasses.replace(options, name="whole"))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        for resume in [False] + [True] * 9:
            with pytest.raises(RunInterruptedError):
                train_temporal(dataclasses.replace(options, resume=resume))
    train_temporal(dataclasses.replace(options, resume=True))
    check_same(options.out / "run", options.out / "whole")


def test_a_run_stopped_before_its_first_checkpoint_begins_again(options):
    options = dataclasses.replace(options, epochs=1)
    train_temporal(options)
    run = options.out / "run"
    record = run / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    expected = lines_of(run, "step")
    train_temporal(dataclasses.replace(options, resume=True))
    assert lines_of(run, "step") == expected


def test_there_must_be_a_run_to_resume(options):
    with pytest.raises(UsageError, match="no run"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_a_finished_run_is_not_resumed(options):
    options = dataclasses.replace(options, epochs=1)
    train_temporal(options)
    with pytest.raises(RunError, match="is finished; there is nothing to resume"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_a_run_is_not_resumed_with_other_options_but_with_another_way_of_keeping_checkpoints(options):
    options = dataclasses.replace(options, epochs=1)
    train_temporal(options)
    record = options.out / "run" / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(RunError, match=r"lr \(run 0.001, now 0.1\)"):
        train_temporal(dataclasses.replace(options, resume=True, lr=0.1))
    train_temporal(dataclasses.replace(options, resume=True, checkpoint_steps=7, tensorboard=False))


def test_a_damaged_checkpoint_is_one_clear_line(options):
    options = dataclasses.replace(options, epochs=1)
    train_temporal(options)
    run = options.out / "run"
    (run / "run.json").write_text((run / "run.json").read_text().replace('"finished": true', '"finished": false'))
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match="is damaged or of another vfz; delete the run"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_metrics_that_lost_lines_are_not_resumed(options, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        with pytest.raises(RunInterruptedError):
            train_temporal(options)
    (options.out / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="was shortened"):
        train_temporal(dataclasses.replace(options, resume=True))


# A run of 3 epochs that goes on to 6: a second leg of the learning rate. Evaluated at the ends of both only.
LONGER = {"epochs": 6, "dropout": 0.3, "ema": 0.9, "eval_every": 0, "resume": True}


@pytest.fixture(scope="module")
def finished(synthetic_cache, tmp_path_factory):
    """A finished run of 3 epochs, to be copied."""
    out = tmp_path_factory.mktemp("finished")
    train_temporal(small_options(synthetic_cache, out, **LONGER | {"epochs": 3, "resume": False}))
    return out / "run"


@pytest.fixture
def longer(synthetic_cache, finished, tmp_path):
    """Options that continue a copy of it."""
    shutil.copytree(finished, tmp_path / "runs" / "run")
    return small_options(synthetic_cache, tmp_path / "runs", **LONGER)


@pytest.fixture(scope="module")
def continued(synthetic_cache, finished, tmp_path_factory):
    """The run continued in one go."""
    out = tmp_path_factory.mktemp("continued")
    shutil.copytree(finished, out / "run")
    train_temporal(small_options(synthetic_cache, out, **LONGER))
    return out / "run"


def test_more_epochs_go_on_from_where_a_finished_run_ended(finished, continued):
    before, after = lines_of(finished, "step"), lines_of(continued, "step")
    assert after[: len(before)] == before
    assert [line["step"] for line in after] == list(range(1, 6 * 5 + 1))
    assert [line["epoch"] for line in lines_of(continued, "eval")] == [3, 6]
    assert lines_of(continued, "eval")[0] == lines_of(finished, "eval")[0]
    record = read_run(continued).values
    assert record["continued"] == [{"from": 3, "to": 6}]
    assert record["options"]["epochs"] == 6
    assert "continuing" not in record
    assert [len(list(run.glob("evaluations/*.json"))) for run in (finished, continued)] == [1, 2]


def test_the_learning_rate_begins_anew_over_the_epochs_that_were_added(continued):
    rates = [line["lr"] for line in lines_of(continued, "step")]
    assert rates[:15] == rates[15:], "warm-up and cosine of three epochs, twice"
    assert max(rates) == rates[4], "the end of the warm-up"


def test_a_continued_run_that_is_interrupted_is_as_if_it_had_not_been(longer, finished, continued, monkeypatch):
    run = longer.out / "run"
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        for _ in range(3):
            with pytest.raises(RunInterruptedError):
                train_temporal(longer)
    assert load_model(run)[1].finished, "until it is done, it is the run of three epochs"
    assert read_run(run).values["continuing"] == [6]
    train_temporal(longer)
    check_same(run, continued)
    assert "continuing" not in read_run(run).values


def test_more_epochs_may_be_asked_for_before_a_run_is_finished(longer, continued, monkeypatch):
    """It is then as if it had been finished first."""
    options = dataclasses.replace(longer, epochs=3, resume=False, name="other")
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        with pytest.raises(RunInterruptedError):
            train_temporal(options)
        with pytest.raises(RunInterruptedError):
            train_temporal(dataclasses.replace(longer, name="other"))
    train_temporal(dataclasses.replace(longer, name="other"))
    check_same(longer.out / "other", continued)


def test_what_cannot_be_continued_says_why_on_the_command_line(longer, capsys):
    def refused(options):
        assert main(arguments_of(options)) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "--epochs 2 is fewer than the 3 of" in refused(dataclasses.replace(longer, epochs=2))
    assert "finished; there is nothing to resume: --epochs with more than its 3 goes on" in refused(
        dataclasses.replace(longer, epochs=3)
    )
    line = refused(dataclasses.replace(longer, lr=0.1))
    assert "lr (run 0.001, now 0.1)" in line
    assert "epochs (" not in line
    (longer.out / "run" / "checkpoint.pt").unlink()
    assert "kept no checkpoint (--no-keep-checkpoint, or an older vfz)" in refused(longer)


def test_a_run_that_keeps_no_checkpoint_leaves_none(longer):
    options = dataclasses.replace(longer, name="other", epochs=1, resume=False, keep_checkpoint=False)
    train_temporal(options)
    assert not (options.out / "other" / "checkpoint.pt").exists()
