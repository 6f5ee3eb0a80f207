"""What a run leaves for people and programs: metrics.jsonl, TensorBoard events, a picture."""

import dataclasses
import errno
import json
import os
import time

import numpy as np
import pytest
import torch
from helpers.training import lines_of, losses_of, small_options
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from vfz.pipeline.errors import RunError, RunInterruptedError, StorageError
from vfz.pipeline.progress import StopRequest
from vfz.temporal.training.logs import RunLog, draw_curves, epoch_means, read_metrics
from vfz.temporal.training.train import train_temporal


def events_of(run, tag):
    """(step, value) of every TensorBoard event."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs", eval_every=1)


def test_events_and_lines_say_the_same(options):
    train_temporal(options)
    run = options.out / "run"
    steps = lines_of(run, "step")
    assert events_of(run, "step/loss") == [(line["step"], pytest.approx(line["loss"])) for line in steps]
    assert events_of(run, "eval/top1") == [
        (line["step"], pytest.approx(line["top1"])) for line in lines_of(run, "eval")
    ]
    assert [line["epoch"] for line in lines_of(run, "epoch")] == [1, 2, 3]


def test_an_evaluation_says_what_it_is_a_share_of(options):
    train_temporal(options)
    for line in lines_of(options.out / "run", "eval"):
        assert line["num_eval_videos"] == line["num_clips"] == 12
        assert line["num_eval_missing"] == 0
        assert line["split"] == "test"


def test_evaluation_comes_as_often_as_asked_and_at_the_end(options):
    train_temporal(dataclasses.replace(options, eval_every=2))
    assert [line["epoch"] for line in lines_of(options.out / "run", "eval")] == [2, 3]


def test_there_may_be_no_events(options):
    train_temporal(dataclasses.replace(options, tensorboard=False))
    assert not (options.out / "run" / "tensorboard").exists()


def test_the_curves_are_a_picture(options):
    train_temporal(options)
    with Image.open(options.out / "run" / "curves.png") as picture:
        assert picture.width > 3 * picture.height > 300
        assert len(picture.convert("RGB").getcolors(picture.width * picture.height)) > 50


def coloured(run, colour, *, within):
    """How many pixels of the picture have a colour, between two shares of its width."""
    with Image.open(run / "curves.png") as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    left, right = (round(share * pixels.shape[1]) for share in within)
    return int((abs(pixels[:, left:right] - colour).sum(-1) < 30).sum())


GREEN, ORANGE = (44, 160, 44), (255, 127, 14)
METRIC, LEARNING_RATE = (1 / 3, 2 / 3), (2 / 3, 1)


def test_a_run_of_a_single_step_has_points_to_be_seen(options):
    train_temporal(dataclasses.replace(options, epochs=1, batch_size=36))
    assert coloured(options.out / "run", ORANGE, within=LEARNING_RATE) > 10
    assert coloured(options.out / "run", GREEN, within=METRIC) > 10


def test_the_mean_of_an_epoch_is_drawn_in_the_middle_of_its_steps(options):
    train_temporal(options)
    lines = lines_of(options.out / "run", "epoch")
    assert epoch_means(lines) == [(middle, line["train_loss"]) for middle, line in zip((3, 8, 13), lines, strict=True)]


def test_a_title_that_is_no_mathematics_and_values_that_are_not_finite_are_drawn(tmp_path):
    """The name of a cache's folder, by which a run is called, may be anything."""
    with RunLog(tmp_path, tensorboard=False) as log:
        log.write("step", step=1, loss=1.0, lr=0.1)
        log.write("epoch", step=1, train_loss=1.0)
        log.write("eval", step=1, split="val", abs_rel=float("nan"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["abs_rel"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    draw_curves(tmp_path, headline="abs_rel", higher_is_better=False, title=r"a$b\frac行$" + 200 * "x")
    assert coloured(tmp_path, ORANGE, within=LEARNING_RATE) > 10


def test_steps_that_are_done_again_are_in_the_log_once(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("step", step=1, loss=1.0)
        size = log.sync()
        log.write("step", step=2, loss=2.0)
        log.write("step", step=3, loss=3.0)
    wait_a_second()
    with RunLog(tmp_path) as log:
        log.cut(size, step=1)
        log.write("step", step=2, loss=20.0)
    assert [line["loss"] for line in read_metrics(tmp_path, "step")] == [1.0, 20.0]
    assert events_of(tmp_path, "step/loss") == [(1, 1.0), (2, 20.0)]


def wait_a_second():
    """Readers order event files by the second in their names, and within it as text, in which 10 comes before 9."""
    time.sleep(1.1)


def test_a_run_stopped_at_the_end_of_every_epoch_has_every_event_once(options, monkeypatch):
    """An epoch and its evaluation have the number of the step before them."""
    options = dataclasses.replace(options, epochs=2, batch_size=36)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        for resume in (False, True):
            with pytest.raises(RunInterruptedError):
                train_temporal(dataclasses.replace(options, resume=resume))
            wait_a_second()
    train_temporal(dataclasses.replace(options, resume=True))
    run = options.out / "run"
    for kind, value in (("step", "loss"), ("epoch", "train_loss"), ("eval", "top1")):
        lines = [(line["step"], pytest.approx(line[value])) for line in lines_of(run, kind)]
        assert events_of(run, f"{kind}/{value}") == lines


def test_what_was_logged_between_a_checkpoint_and_a_kill_is_there_once(tmp_path):
    """Killed after the evaluation: the checkpoint is from before the epoch's line."""
    with RunLog(tmp_path) as log:
        log.write("step", step=1, loss=1.0)
        log.write("step", step=2, loss=2.0)
        size = log.sync()
        log.write("epoch", step=2, train_loss=1.5)
        log.write("eval", step=2, top1=0.5)
    wait_a_second()
    with RunLog(tmp_path) as log:
        log.cut(size, step=2)
        log.write("epoch", step=2, train_loss=1.5)
        log.write("eval", step=2, top1=0.5)
    assert [line["step"] for line in read_metrics(tmp_path, "epoch")] == [2]
    assert events_of(tmp_path, "step/loss") == [(1, 1.0), (2, 2.0)]
    assert events_of(tmp_path, "epoch/train_loss") == [(2, 1.5)]
    assert events_of(tmp_path, "eval/top1") == [(2, 0.5)]


def test_the_time_of_an_epoch_that_was_stopped_is_all_that_was_spent_on_it(options, monkeypatch):
    options = dataclasses.replace(options, epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        with pytest.raises(RunInterruptedError):
            train_temporal(options)
    spent = torch.load(options.out / "run" / "checkpoint.pt", weights_only=True)["position"]["epoch_seconds"]
    report = train_temporal(dataclasses.replace(options, resume=True))
    (line,) = lines_of(options.out / "run", "epoch")
    assert report.epoch_seconds == (line["seconds"],)
    assert line["seconds"] > spent > 0


def test_a_log_that_lost_lines_is_not_cut(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("step", step=1, loss=1.0)
        size = log.sync()
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(RunError, match="was shortened"):
            log.cut(size, step=1)


def test_the_losses_of_an_epoch_are_its_mean(options):
    """Steps of 8, 8, 8, 8 and 4 clips."""
    train_temporal(dataclasses.replace(options, epochs=1))
    run, weights = options.out / "run", [8, 8, 8, 8, 4]
    mean = sum(loss * clips for loss, clips in zip(losses_of(run), weights, strict=True)) / 36
    assert lines_of(run, "epoch")[0]["train_loss"] == pytest.approx(mean)


def test_a_disk_that_is_full_for_tensorboards_thread_is_one_line(tmp_path, monkeypatch, capfd):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_and_sync():
        with RunLog(tmp_path) as log:
            for step in range(1, 50):
                log.write("step", step=step, loss=1.0)
                log.sync()
                monkeypatch.setattr(RecordWriter, "write", full)

    with pytest.raises(StorageError, match=r"tensorboard: no space left on device; free some space"):
        write_and_sync()
    assert "Traceback" not in capfd.readouterr().err
