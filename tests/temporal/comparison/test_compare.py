"""What a comparison says of probes, worked by hand."""

import re
from pathlib import Path

import pytest

from vfz.pipeline.errors import UsageError
from vfz.temporal.comparison.charts import curve_chart, layer_chart
from vfz.temporal.comparison.compare import Curve, ProbeResult, compare
from vfz.temporal.comparison.report import render_page
from vfz.temporal.statistics import bootstrap_interval

pytestmark = pytest.mark.quick

NAMES = ("left", "right", "up")
LABELS = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2}


def result(name, predictions, **changes):
    right = [LABELS[video] == predicted for video, predicted in predictions.items()]
    values = {
        "path": Path(name), "probe": "linear", "encoder": "vit", "layers": ("11",), "precision": "fp16", "core": None,
        "split": "test", "top1": bootstrap_interval(right), "num_planned": 7, "num_parameters": 3,
        "num_core_parameters": 0, "seconds": 1.0, "cache_bytes": 10, "best_head_on_validation": 0.5,
        "class_names": NAMES, "labels": {video: LABELS[video] for video in predictions}, "predictions": predictions,
    }  # fmt: skip
    return ProbeResult(name=name, **(values | changes))


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
        ([], None, "1 probe to compare"),
        ([result("worse", {"a": 0})], None, "two of the probes are called worse"),
        ([result("other", {"a": 0})], "best", "--baseline best is none of the compared probes"),
        ([result("other", {"a": 0}, class_names=("left", "right", "down"))], None, "other classes"),
        ([result("other", {"a": 0}, labels={"a": 1})], None, "'a' is of class right in other and of left in worse"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_clear_line(worse, others, baseline, words):
    with pytest.raises(UsageError, match=words):
        compare([worse, *others], baseline=baseline)


def test_probes_of_other_videos_are_not_compared(worse):
    other = result("other", {"a": 0})
    strange = ProbeResult(**(vars(other) | {"labels": {"z": 0}, "predictions": {"z": 0}}))
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
    page = render_page(compare([base, ProbeResult(**(vars(hostile) | {"curves": (curve,)}))]))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page
