"""`vfz probe --labels NAME` with several labels a video, and with numbers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, mean_absolute_error, mean_squared_error, r2_score

from vfz.cli.main import main
from vfz.pipeline.errors import UsageError
from vfz.temporal.data.features import ArrayFeatures
from vfz.temporal.probes.fitters import PROBES, ProbeSpec
from vfz.temporal.probes.heads import value_answers
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import read_record
from vfz.temporal.probes.run import probe, probe_all

KINDS = {
    "linear": {},
    "sgd": {"solver": "sgd"},
    "attentive": {},
    "depth 4": {"depth": 4},
    "knn": {"neighbours": (1, 3)},
}


@pytest.fixture
def options(labelled_cache, tmp_path):
    return ProbeOptions(
        cache=labelled_cache.path, labels="sides", clip_frames=6, out=tmp_path / "runs", device="cpu", epochs=4
    )


def of_kind(name, **changes):
    probe_name = {"sgd": "linear", "depth 4": "attentive"}.get(name, name)
    few = {"lrs": (1e-3,), "weight_decays": (0.1,)} if name == "depth 4" else {}
    return {"probe": probe_name, **KINDS[name], **few, **changes}


def kept(report):
    """Answers and truth [V, K] that a result keeps."""
    record = read_record(Path(report.result))
    truth = [[np.nan if x is None else x for x in row] for row in record["videos"]["labels"]]
    return np.array(record["runs"][0]["answers"]), np.array(truth)


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_found_and_reported_as_scikit_learn_reckons_from_what_is_kept(options, name):
    (report,) = probe_all(dataclasses.replace(options, **of_kind(name)))
    answers, truth = kept(report)
    assert ((answers >= 0) & (answers <= 1)).all()
    expected = [average_precision_score(t, a) for a, t in zip(answers.T, truth.T, strict=True)]
    assert report.of_labels["average_precision"] == pytest.approx(expected)
    assert report.value == report.metrics["map"] == pytest.approx(np.mean(expected))
    assert report.baseline == pytest.approx(truth.mean())
    assert report.value > report.baseline
    assert report.low <= report.value <= report.high
    assert report.best_head_on_validation >= report.value - 1e-9
    assert (report.task, report.headline, report.names) == ("multilabel", "map", ("left", "high", "far"))


@pytest.mark.parametrize("name", KINDS)
def test_numbers_are_found_in_their_own_units(options, name):
    lrs = {"lrs": (1e-2, 1e-1)} if name == "sgd" else {}
    (report,) = probe_all(dataclasses.replace(options, labels="places", **of_kind(name, **lrs, epochs=10)))
    answers, truth = kept(report)
    assert np.nanmean(np.abs(answers[:, 0] - 300)) < 60
    assert report.of_labels["r2"] == pytest.approx([r2_score(t, a) for a, t in zip(answers.T, truth.T, strict=True)])
    assert report.metrics["r2"] == pytest.approx(r2_score(truth, answers))
    assert report.metrics["mse"] == pytest.approx(mean_squared_error(truth, answers))
    assert report.of_labels["mae"][1] == pytest.approx(mean_absolute_error(truth[:, 1], answers[:, 1]))
    assert report.value > report.baseline
    assert report.baseline < 0
    assert report.low <= report.high


def test_the_chosen_setting_is_the_best_on_the_held_out_videos(options):
    (report,) = probe_all(dataclasses.replace(options, labels="places", held_out=0.3))
    (run,) = read_record(Path(report.result))["runs"]
    assert report.chosen["held_out_r2"] == max(head["held_out_r2"] for head in run["heads"])
    assert report.chosen["num_held_out"] == round(0.3 * report.num_train)


def test_videos_without_labels_are_left_out_and_counted(options, labelled_cache, capsys):
    (report,) = probe_all(options)
    labels = labelled_cache.label_set
    assert labels is None
    rows = {row.id: row.split for row in labelled_cache.videos}
    named = read_record(Path(report.result))["videos"]["ids"]
    assert report.num_eval_clips == report.num_eval_planned == len(named)
    assert report.num_train + report.num_eval_clips == len(rows) - 2


def test_the_same_is_asked_once_and_several_layers_seeds_and_shares_have_results_of_their_own(options, capsys):
    asked = ["probe", "--cache", options.cache, "--labels", "sides", "--clip-frames", 6, "--out", options.out, "--json"]
    few = [
        *map(str, asked),
        "--probe",
        "knn",
        "--neighbours",
        "1,3",
        "--shots",
        "50%,100%",
        "--seeds",
        "2",
        "--folds",
        "3",
    ]
    assert main(few) == 0
    first = json.loads(capsys.readouterr().out)["probes"]
    assert main(few) == 0
    again = json.loads(capsys.readouterr().out)["probes"]
    assert [one["reused"] for one in first + again] == [False, False, True, True]
    assert [one["value"] for one in again] == [one["value"] for one in first]
    assert first[0]["num_train"] == round(first[1]["num_train"] / 2)
    assert first[0]["num_seeds"] == 2
    assert first[0]["deviation"] is not None


def test_it_is_shown_with_the_interval_the_baseline_and_every_label(options, capsys):
    asked = ["probe", "--cache", options.cache, "--labels", "places", "--clip-frames", 6, "--out", options.out]
    assert main([*map(str, asked)]) == 0
    printed = capsys.readouterr()
    assert "label set 'places' is of kind regression: task regression" in printed.err
    for words in ("R2", "(bootstrap, 95%)", "always the mean", "metres", "degrees", "MSE", "MAE"):
        assert words in printed.out


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "regression"}, "contradicts the label set 'sides', which is of kind multilabel; leave --task out"),
        ({"labels": None, "task": "multilabel"}, r"takes a label set .* by --labels \(.* has places, sides\)"),
        ({"labels": "side"}, "did you mean sides"),
        ({"shots": ("5",)}, "--shots 5 is a number of videos a class, and these labels are no classes"),
        ({"folds": 90}, "90 folds of 35 training videos; give 2 to 35"),
        ({"probe": "knn", "neighbours": (99,)}, "k 99 is more than"),
    ],
)
def test_what_does_not_fit_the_labels_is_refused_in_one_line(options, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        probe_all(dataclasses.replace(options, **changes))
    assert "\n" not in str(caught.value)


def test_a_report_of_classes_says_that_these_are_none_and_kinds_are_compared_apart(options, capsys):
    with pytest.raises(UsageError, match="of kind multilabel; probe_all"):
        probe(options)
    few = dataclasses.replace(options, probe="knn", neighbours=(1, 3))
    asked = [few, dataclasses.replace(few, neighbours=(2,)), dataclasses.replace(few, labels="places")]
    results = [probe_all(one)[0].result for one in asked]
    assert main(["probe", "compare", *results, "--out", str(options.out)]) == 0
    printed = capsys.readouterr().out
    assert "multilabel on test, labels sides" in printed
    assert "regression on test, labels places" in printed


@pytest.mark.parametrize("name", KINDS)
def test_rescaled_heads_answer_rescaled_numbers(name):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 1, 3, 4, 64, generator=generator)
    features = ArrayFeatures(tokens, None)
    changes = of_kind(name)
    kind, spec = PROBES[changes.pop("probe")], ProbeSpec(pool="", epochs=1, label_kind="regression", **changes)
    spec = dataclasses.replace(spec, pool=kind.pools[0])
    values = torch.randn(12, 2, generator=generator)
    values[3, 0] = torch.nan
    grid, _ = kind.make(spec, features, 2, 12).fit_grid(features, values, torch.arange(12), None)
    mean, deviation = torch.tensor([10.0, -3.0]), torch.tensor([2.0, 0.1])
    grids = grid, grid.rescaled(mean, deviation)
    plain, scaled = (value_answers(one, features, torch.arange(12), batch_size=5) for one in grids)
    assert plain.shape[1:] == (12, 2)
    torch.testing.assert_close(scaled, plain * deviation + mean, rtol=1e-4, atol=1e-4)


def test_neighbours_of_whom_a_number_is_not_known_do_not_vote_for_it():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]]).view(4, 1, 1, 1, 2)
    values = torch.tensor([[4.0, torch.nan], [torch.nan, torch.nan], [2.0, torch.nan], [100.0, 7.0]])
    spec = ProbeSpec(pool="mean", neighbours=(3,), temperature=1e6, label_kind="regression")
    features = ArrayFeatures(tokens, None)
    grid, _ = PROBES["knn"].make(spec, features, 2, 4).fit_grid(features, values, torch.arange(4), None)
    answers = value_answers(grid, features, torch.tensor([0]), batch_size=1)
    assert answers[0, 0].tolist() == [pytest.approx(3.0, abs=1e-4), 7.0]  # the second: nobody near knows, so all do
