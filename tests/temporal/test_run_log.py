"""What a run leaves for people and programs: metrics.jsonl, TensorBoard events, a picture."""

import dataclasses

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import lines_of, losses_of, small_options

from vfz.pipeline.errors import RunError
from vfz.temporal.train import train_temporal
from vfz.temporal.training.run_log import RunLog, read_metrics


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


def test_steps_that_are_done_again_are_in_the_log_once(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("step", step=1, loss=1.0)
        size = log.sync()
        log.write("step", step=2, loss=2.0)
        log.write("step", step=3, loss=3.0)
    with RunLog(tmp_path) as log:
        log.cut(size, step=1)
        log.write("step", step=2, loss=20.0)
    assert [line["loss"] for line in read_metrics(tmp_path, "step")] == [1.0, 20.0]
    assert events_of(tmp_path, "step/loss") == [(1, 1.0), (2, 20.0)]


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
