"""Label sets of several labels a video, and of numbers, from training to figures that can be worked out again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.training import arguments_of, lines_of, losses_of, small_options, start
from sklearn.metrics import average_precision_score, r2_score

from vfz.cli.main import main
from vfz.pipeline.errors import RunInterruptedError
from vfz.pipeline.progress import StopRequest
from vfz.temporal.kept import read_evaluation
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(labelled_cache, tmp_path):
    return small_options(labelled_cache, tmp_path / "runs", core="identity", epochs=12, lr=3e-3, labels="sides")


def run_json(arguments, capsys):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("labels", "task", "headline", "protocol"),
    [("sides", "multilabel", "map", "streaming"), ("places", "regression", "r2", "clip")],
)
def test_the_kind_of_the_set_chooses_the_task_which_learns(options, capsys, labels, task, headline, protocol):
    arguments = [*arguments_of(options), "--labels", labels, "--protocol", protocol]
    trained = run_json(arguments, capsys)
    assert (trained["task"], trained["headline"]) == (task, headline)
    losses = losses_of(options.out / "run")
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trained[headline] > trained["baseline"]
    again = run_json(["evaluate", options.out / "run"], capsys)
    assert again[headline] == pytest.approx(trained[headline])
    kept = read_evaluation(Path(again["kept"]))
    answers, targets = kept.videos.values["answers"], kept.videos.values["targets"]
    by_hand = {"map": average_precision_score, "r2": r2_score}[headline]
    assert again[headline] == pytest.approx(np.mean([by_hand(t, a) for t, a in zip(targets.T, answers.T, strict=True)]))
    assert again[f"{headline}_low"] <= again[headline] <= again[f"{headline}_high"]
    assert again[f"{headline}_interval"] == "bootstrap"
    constant = np.broadcast_to(trained_mean(options.out / "run"), targets.shape)
    assert again["baseline"] == pytest.approx(
        np.mean([by_hand(t, c) for t, c in zip(targets.T, constant.T, strict=True)])
    )
    assert [row["name"] for row in kept.classes] == list(kept.class_names)
    assert [row["mean"] for row in kept.classes] == pytest.approx(targets.mean(axis=0))


def trained_mean(run):
    return json.loads((run / "run.json").read_text())["labels"]["target_means"]


def test_several_clips_of_a_video_are_answered_by_their_mean(options, capsys):
    run_json(arguments_of(dataclasses.replace(options, labels="places", epochs=2)), capsys)
    several = run_json(["evaluate", options.out / "run", "--segments", 3, "--clip-frames", 2], capsys)
    assert several["num_eval_clips"] == 3 * several["num_eval_videos"]
    assert several["num_clips"] == several["num_eval_videos"]
    assert several["num_eval_unlabelled"] == 1


def test_what_was_answered_is_shown_with_interval_baseline_and_the_least_labels(options, capsys):
    assert main(arguments_of(dataclasses.replace(options, epochs=1))) == 0
    printed = capsys.readouterr()
    assert "label set 'sides' is of kind multilabel: task multilabel" in printed.err
    for words in ("map", "(bootstrap, 95%)", "always the mean", "least of the labels"):
        assert words in printed.out
    assert main(arguments_of(dataclasses.replace(options, epochs=1, labels="places", name="places"))) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert all("metres" in shown[name] and "degrees" in shown[name] for name in ("mse", "mae")), "each in its own units"


def test_a_run_stopped_again_and_again_is_still_the_same_and_other_labels_are_refused(options, monkeypatch, capsys):
    options = dataclasses.replace(options, labels="places", epochs=1, accumulate=2)
    train_temporal(dataclasses.replace(options, name="whole"))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        for resume in (False, True, True):
            with pytest.raises(RunInterruptedError):
                train_temporal(dataclasses.replace(options, resume=resume))
    assert main(arguments_of(dataclasses.replace(options, labels="sides", resume=True))) == 1
    assert "the labels" in capsys.readouterr().err
    train_temporal(dataclasses.replace(options, resume=True))
    assert losses_of(options.out / "run") == losses_of(options.out / "whole")
    one, other = (lines_of(options.out / name, "eval") for name in ("run", "whole"))
    assert one == other


def test_micro_batches_and_processes_train_as_one_does(options):
    """Of clips of which not everything is known, so that parts of a step weigh differently."""
    options = dataclasses.replace(options, labels="places", epochs=2, tensorboard=False)
    alone = train_temporal(dataclasses.replace(options, name="alone")).evaluation
    train_temporal(dataclasses.replace(options, name="parts", accumulate=4))
    process = start(dataclasses.replace(options, name="ranks"), torchrun=2)
    assert process.wait(200) == 0, process.stderr.read()
    process.stderr.close()
    for name in ("parts", "ranks"):
        assert losses_of(options.out / name) == pytest.approx(losses_of(options.out / "alone"), abs=1e-5)
        (line,) = lines_of(options.out / name, "eval")
        assert line["r2"] == pytest.approx(alone.value, abs=1e-4)
        assert line["num_eval_videos"] == alone.num_videos


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regression"}, "--task regression contradicts the label set 'sides', which is of kind multilabel"),
        ({"task": "multilabel", "labels": None}, "name it by --labels"),
        ({"label_smoothing": 0.1}, "--label-smoothing belongs to --task classify, this is multilabel"),
        ({"targets": (__file__,)}, "multilabel takes the labels of the cache"),
        ({"labels": "side"}, "did you mean sides"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused_in_one_line(options, changes, words, capsys):
    assert main(arguments_of(dataclasses.replace(options, **changes))) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert not options.out.exists()


def test_a_run_is_not_evaluated_on_labels_of_another_kind(options, capsys):
    assert main([*arguments_of(dataclasses.replace(options, epochs=1)), "--json"]) == 0
    assert main(["evaluate", str(options.out / "run"), "--labels", "places"]) == 2
    assert "has 2 regression" in capsys.readouterr().err


def test_a_run_and_a_probe_of_one_label_set_are_compared_by_the_figure_of_all_videos(options, capsys):
    trained = run_json([*arguments_of(options), "--epochs", "1"], capsys)
    line = ["probe", "--cache", *options.cache, "--labels", "sides", "--out", options.out, "--name", "tokens"]
    probed = run_json([*line, "--clip-frames", "6"], capsys)
    compared = run_json(["compare", options.out / "run", options.out / "tokens", "--out", options.out], capsys)
    (group,) = compared["groups"]
    assert (group["task"], group["labels"], group["baseline"]) == ("multilabel", "sides", "run")
    for row, value in zip(group["results"], (trained["map"], probed["value"]), strict=True):
        assert row["value"] == pytest.approx(value, abs=1e-6)
        assert row["low"] <= row["value"] <= row["high"]
    difference = group["against"]["tokens"]["difference"]
    assert difference["difference"] == pytest.approx(probed["value"] - trained["map"], abs=1e-6)
    assert difference["low"] <= difference["difference"] <= difference["high"]
