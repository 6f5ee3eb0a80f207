"""What a comparison says of probes and runs, worked by hand."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from vfz.pipeline.errors import UsageError
from vfz.temporal.comparison.charts import curve_chart, layer_chart
from vfz.temporal.comparison.compare import compare, compare_groups
from vfz.temporal.comparison.report import against_table, render_page, results_table
from vfz.temporal.comparison.results import Curve, Result
from vfz.temporal.statistics import bootstrap_interval, paired_bootstrap, paired_bootstrap_of

pytestmark = pytest.mark.quick

NAMES = ("left", "right", "up")
LABELS = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2}


def result(name, predictions, **changes):
    right = [LABELS[video] == predicted for video, predicted in predictions.items()]
    values = {
        "path": Path(name), "kind": "linear", "encoder": "vit", "layers": ("11",), "precision": "fp16", "core": None,
        "split": "test", "figure": bootstrap_interval(right), "num_planned": 7, "num_parameters": 3,
        "num_core_parameters": 0, "seconds": 1.0, "cache_bytes": 10, "best_head_on_validation": 0.5,
        "class_names": NAMES, "labels": {video: LABELS[video] for video in predictions}, "predictions": predictions,
    }  # fmt: skip
    return Result(name=name, **(values | changes))


@pytest.fixture
def worse():
    return result("worse", {"a": 0, "b": 1, "c": 0, "d": 0, "e": 2, "f": 2})


@pytest.fixture
def better():
    return result("better", {"a": 0, "b": 0, "c": 1, "d": 0, "e": 2, "f": 1})


def test_pairs_that_are_confused_most_come_first(worse):
    assert worse.confusion_matrix.tolist() == [[1, 1, 0], [2, 0, 0], [0, 0, 2]]
    assert worse.worst_pairs() == [("right", "left", 2, 2), ("left", "right", 1, 2)]


def test_a_probe_is_tested_against_the_baseline_on_the_same_videos(worse, better):
    against = compare([worse, better]).against["better"]
    assert against.num_videos == 6
    assert (against.test.num_only_first, against.test.num_only_second) == (2, 1)
    assert against.difference.difference == pytest.approx(1 / 6)
    assert {change.name: change.change for change in against.classes} == {"left": 0.5, "right": 0.5, "up": -0.5}


def test_only_videos_that_both_answered_for_count(worse):
    fewer = result("fewer", {"b": 0, "c": 1})
    against = compare([worse, fewer]).against["fewer"]
    assert against.num_videos == 2
    assert against.difference.difference == 1.0


def test_settings_stand_on_a_logarithmic_axis_and_epochs_do_not():
    def marks(x_name, values):
        svg = curve_chart([Curve(name="line", x_name=x_name, y_name="top-1", points=tuple((x, 0.5) for x in values))])
        return re.search(r'(?s)<g id="matplotlib.axis_1">.*?<g id="matplotlib.axis_2">', svg)[0]

    assert "<!-- $\\mathdefault{10^{-4}}$ -->" in marks("lr", (5e-3, 1e-3, 1e-4))
    assert ">1000</text>" in marks("epoch", range(1, 2001))
    assert ">2</text>" in marks("epoch", (1, 2, 3))
    assert "1.5" not in re.findall(r">([^<]+)</text>", marks("epoch", (1, 2, 3)))


def test_the_baseline_may_be_named(worse, better):
    comparison = compare([worse, better], baseline="better")
    assert list(comparison.against) == ["worse"]
    assert comparison.against["worse"].difference.difference == pytest.approx(-1 / 6)


@pytest.mark.parametrize(
    ("others", "baseline", "words"),
    [
        ([], None, "1 result to compare"),
        ([result("worse", {"a": 0})], None, "two of the results are called worse"),
        ([result("other", {"a": 0})], "best", "--baseline best is none of what is compared; choose from other, worse"),
        ([result("other", {"a": 0}, class_names=("left", "right", "down"))], None, "other classes"),
        ([result("other", {"a": 0}, labels={"a": 1})], None, "'a' is of class right in other and of left in worse"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_clear_line(worse, others, baseline, words):
    with pytest.raises(UsageError, match=words):
        compare([worse, *others], baseline=baseline)


def test_probes_of_other_videos_are_not_compared(worse):
    other = result("other", {"a": 0})
    strange = Result(**(vars(other) | {"labels": {"z": 0}, "predictions": {"z": 0}}))
    with pytest.raises(UsageError, match="no video in common"):
        compare([worse, strange])


def test_accuracy_by_layer_is_drawn_where_there_are_several(worse, better):
    assert layer_chart([worse, better]) is None
    svg = layer_chart([worse, result("layer 2", better.predictions, layers=("2",))])
    assert svg.startswith("<svg")
    assert ">2<" in svg.replace("\n", "")


def test_names_of_others_are_text_in_the_page(worse):
    hostile = result("<script>alert(1)</script>", {"a": 1, "b": 0}, class_names=("$\\frac$", "<b>", "&"))
    base = result("base", {"a": 0, "b": 0}, class_names=("$\\frac$", "<b>", "&"))
    curve = Curve(name="$x", x_name="lr", y_name="<i>", points=((1e-5, 0.1), (0.1, 0.5)))
    page = render_page([compare([base, Result(**(vars(hostile) | {"curves": (curve,)}))])])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page


def run_of(name, outcomes, **changes):
    """A run of a task without classes, whose headline is less where it is better."""
    figure = bootstrap_interval([value for value in outcomes.values() if math.isfinite(value)])
    values = {
        "kind": "run", "task": "depth", "headline": "abs_rel", "higher_is_better": False, "is_share": False,
        "figure": figure, "core": name, "class_names": (), "labels": {}, "predictions": {}, "outcomes": outcomes,
        "epoch_seconds": 2.0, "seconds": None, "best_head_on_validation": None, "size": "tiny",
    }  # fmt: skip
    return dataclasses.replace(result(name, {"a": 0}), **(values | changes))


def test_splits_and_tasks_are_apart_and_what_fits_none_is_left_out_with_the_reason(worse, better):
    strange = result("strange", {"a": 0}, labels={"a": 1})
    results = [worse, result("val", {"a": 0}, split="val"), strange, better, run_of("gru", {"a": 0.5})]
    groups, left_out = compare_groups(results)
    assert [group.title for group in groups] == ["classify on test", "classify on val", "depth on test"]
    assert [result.name for result in groups[0].results] == ["worse", "better"]
    assert [(one.name, "is of class right in strange" in one.reason) for one in left_out] == [("strange", True)]


def test_results_of_another_dataset_have_a_comparison_of_their_own_whichever_comes_first(worse, better):
    def of_cities(name):
        return result(name, {"a": 0, "b": 1}, class_names=("Rome", "Oslo", "Lima"))

    lone = result("lone", {"a": 0}, class_names=("x", "y", "z"))
    groups, left_out = compare_groups([lone, of_cities("one"), worse, of_cities("two"), better])
    assert [[one.name for one in group.results] for group in groups] == [["one", "two"], ["worse", "better"]]
    assert [group.title for group in groups] == ["classify on test", "classify on test, others with worse"]
    assert [one.name for one in left_out] == ["lone"]
    groups, left_out = compare_groups([worse, lone], baseline="lone")
    assert [group.baseline for group in groups] == ["lone"]
    assert "has other classes with lone" in left_out[0].reason


def test_the_baseline_is_that_of_its_own_group_only(worse, better):
    groups, _ = compare_groups([worse, better, result("val", {"a": 0}, split="val")], baseline="better")
    assert [group.baseline for group in groups] == ["better", "val"]


def test_other_tasks_are_compared_by_what_every_video_reached():
    one = run_of("one", {"a": 0.5, "b": 0.25, "c": math.nan})
    other = run_of("other", {"b": 0.5, "a": 0.5, "c": 1.0})
    comparison = compare([one, other])
    against = comparison.against["other"]
    assert (against.num_videos, against.test) == (2, None)
    assert against.difference.difference == pytest.approx(0.125)
    shown = [cell.text for cell in against_table(comparison).rows[0]]
    assert shown[:3] == ["other", "2", "+0.125"]
    table = results_table(comparison)
    assert "abs_rel (lower is better)" in table.columns
    assert {"size", "an epoch"} < set(table.columns)
    assert not {"best head on validation", "balanced", "time", "clips"} & set(table.columns), "empty ones are left out"


@pytest.mark.parametrize("truth_of_other", [1.0, 2.0])
def test_numbers_of_a_video_are_compared_by_the_figure_of_all(truth_of_other):
    def regression(name, answers, truth):
        values = {key: (np.array([a]), np.array([t])) for key, a, t in zip("abcd", answers, truth, strict=True)}
        changes = {"task": "regression", "headline": "r2", "outcomes": {}, "values": values}
        return dataclasses.replace(run_of(name, {"a": 1.0}), **changes)

    truth = [0.0, 1.0, 2.0, 3.0]
    one = regression("one", truth, truth)
    other = regression("other", [1.5] * 4, [0.0, truth_of_other, 2.0, 3.0])
    groups, left_out = compare_groups([one, other])
    if truth_of_other == 2.0:
        assert "have other targets" in left_out[0].reason
    else:
        assert groups[0].against["other"].difference.difference == pytest.approx(-1.0)


def test_the_bootstrap_of_a_difference_of_figures_is_that_of_means_where_they_are_means():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 40))
    expected = paired_bootstrap(first, second)
    found = paired_bootstrap_of(
        lambda weights: weights @ first / 40, lambda weights: weights @ second / 40, 40, num_resamples=10_000
    )
    assert found.difference == pytest.approx(expected.difference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
