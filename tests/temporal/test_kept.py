"""What an evaluation keeps in the run: any answers come back as they were; nothing is replaced by something else."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.training import small_options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import RunError
from vfz.temporal.kept import (
    ClassFigures,
    KeptEvaluation,
    KeptVideos,
    evaluations_of,
    read_evaluation,
    write_evaluation,
)
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.train import train_temporal

IDENTITY = {"caches": [{"name": "k400-vit-0123456789ab"}], "split": "val", "labels": None}
numbers = st.floats(allow_nan=True, allow_infinity=False, width=32)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def videos(draw):
    """Answers to a few videos: whole numbers, numbers that may be NaN, and arrays."""
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    size = len(ids)
    values = {
        "label": np.array(draw(st.lists(st.integers(-1, 9), min_size=size, max_size=size)), dtype=np.int64),
        "miou": np.array(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=np.float64),
    }
    if draw(st.booleans()):
        flat = draw(st.lists(numbers, min_size=3 * size, max_size=3 * size))
        values["probabilities"] = np.array(flat, dtype=np.float32).reshape(size, 3)
    caches = tuple(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    return KeptVideos(ids=tuple(ids), caches=caches, values=values)


def kept_of(answers, **changes):
    return KeptEvaluation(
        **{"run": "r", "task": "classify", "core": "gru", "identity": IDENTITY, "figures": {"top1": 0.5}, "source": {},
           "videos": answers} | changes
    )  # fmt: skip


@pytest.mark.quick
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=videos(), split=names)
def test_what_was_kept_is_read_again(tmp_path, answers, split):
    path = write_evaluation(tmp_path, kept_of(answers, identity=IDENTITY | {"split": split}))
    assert path.parent == tmp_path / "evaluations"
    found = read_evaluation(path)
    assert (found.videos.ids, found.videos.caches) == (answers.ids, answers.caches)
    assert found.videos.values.keys() == answers.values.keys()
    for name, values in answers.values.items():
        np.testing.assert_array_equal(found.videos.values[name], values)
    assert found.identity == IDENTITY | {"split": split}
    assert found.figures == {"top1": 0.5}


ANSWERS = KeptVideos(
    ids=("a", "b"), caches=(0, 0), values={"label": np.array([0, 1]), "probabilities": np.full((2, 3), 1 / 3)}
)


def test_the_same_evaluation_replaces_itself_and_never_another(tmp_path):
    first = write_evaluation(tmp_path, kept_of(ANSWERS))
    other = write_evaluation(tmp_path, kept_of(ANSWERS, identity=IDENTITY | {"segments": 4}))
    assert first != other
    changed = dataclasses.replace(ANSWERS, values=ANSWERS.values | {"probabilities": np.zeros((2, 3))})
    assert write_evaluation(tmp_path, kept_of(changed)) == first
    assert not read_evaluation(first).videos.values["probabilities"].any()
    assert read_evaluation(other).videos.values["probabilities"].all()
    assert len(list(first.parent.iterdir())) == 4, "two of each: no array is left behind"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("videos"),
        lambda record: record["videos"]["ids"].append("c"),
        lambda record: record["videos"].update(label=["x", "y"]),
        lambda record: record["arrays"].update(file="../secret.npz"),
        lambda record: record["arrays"].update(sha256="0" * 64),
        lambda record: record["arrays"].update(file="gone.npz"),
        lambda record: record.update(format_version=99),
        lambda record: record.update(class_names=None),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, change):
    path = write_evaluation(tmp_path, kept_of(ANSWERS))
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="vfz evaluate writes it again") as caught:
        read_evaluation(path)
    assert "\n" not in str(caught.value)


def test_figures_of_classes_are_those_of_each_class():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 3]), np.array([0, 0, 0, 1, 1, 0, 0])
    figures = ClassFigures(names=("a", "b", "c", "d"), labels_V=labels, predicted_V=predicted, num_present=3)
    assert figures.balanced.mean == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert [(row["name"], row["num_right"], row["num_videos"]) for row in figures.each()] == [
        ("a", 3, 4), ("b", 1, 2), ("d", 0, 1),
    ]  # fmt: skip
    assert [row["name"] for row in figures.worst(2)] == ["d", "b"]
    assert (figures.chance, figures.majority) == (pytest.approx(1 / 3), pytest.approx(4 / 7))


@pytest.fixture(scope="module")
def run(synthetic_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    train_temporal(small_options(synthetic_cache, out, epochs=1, clip_frames=3))
    return out / "run"


def evaluate_json(run, cache, capsys, *flags):
    assert main(["evaluate", str(run), "--cache", str(cache.path), "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_keeps_its_last_evaluation_and_evaluating_again_finds_it_the_same(run, synthetic_cache, capsys):
    (path,) = evaluations_of(run)
    before = read_evaluation(path)
    printed = evaluate_json(run, synthetic_cache, capsys)
    assert printed["kept"] == str(path)
    kept = read_evaluation(path)
    for name, values in before.videos.values.items():
        np.testing.assert_allclose(kept.videos.values[name], values, rtol=1e-5)  # of batches of another size
    rows = {row.id: row.label for row in FeatureCache(synthetic_cache.path).ok_videos("test")}
    assert dict(zip(kept.videos.ids, kept.videos.values["label"].tolist(), strict=True)) == rows
    np.testing.assert_allclose(kept.videos.values["probabilities"].sum(axis=1), 1, rtol=1e-5)
    right = kept.videos.values["predicted"] == kept.videos.values["label"]
    assert right.mean() == pytest.approx(printed["top1"])
    assert sum(row["num_right"] for row in printed["classes"]) == right.sum()
    assert printed["top1_low"] <= printed["top1"] <= printed["top1_high"]
    assert printed["balanced_accuracy_low"] <= printed["balanced_accuracy"] <= printed["balanced_accuracy_high"]
    assert printed["chance"] == pytest.approx(1 / 6)
    assert printed["few_videos"] is True
    assert json.loads((run / "run.json").read_text())["result"]["balanced_accuracy"] == printed["balanced_accuracy"]


def test_other_clips_and_splits_are_kept_beside_and_the_report_names_the_worst_classes(run, synthetic_cache, capsys):
    first = evaluate_json(run, synthetic_cache, capsys)["kept"]
    assert main(["evaluate", str(run), "--cache", str(synthetic_cache.path), "--segments", "3"]) == 0
    shown = capsys.readouterr().out
    assert "top5" not in shown, "of six classes five answers say little"
    for words in ("balanced accuracy", "worst classes", "always the most frequent class", "so few say little"):
        assert words in shown
    train = evaluate_json(run, synthetic_cache, capsys, "--split", "train")
    assert len({first, train["kept"], *map(str, evaluations_of(run))}) == 3
    assert Path(train["kept"]).name.startswith(f"{synthetic_cache.path.name}-train-")
    assert "few_videos" not in train
    assert all(read_evaluation(path).class_names for path in evaluations_of(run))


def test_other_tasks_keep_their_metrics_of_every_video(synthetic_cache, tmp_path):
    report = train_temporal(small_options(synthetic_cache, tmp_path, epochs=1, task="boxes", clip_frames=3))
    kept = read_evaluation(Path(report.kept)).videos
    boxes, miou = kept.values["num_boxes"], kept.values["miou"]
    assert len(kept.ids) == 12
    assert float(np.nansum(miou * boxes) / boxes.sum()) == pytest.approx(report.evaluation.value)
    again = evaluate(EvaluateOptions(run=report.run, cache=synthetic_cache.path, segments=2))
    several = read_evaluation(Path(again.kept)).videos.values
    assert several["num_clips"].sum() == again.evaluation.metrics["num_clips"] > kept.values["num_clips"].sum()


def test_a_run_that_cannot_be_written_is_evaluated_all_the_same(run, synthetic_cache, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "evaluations")
    (copy / "evaluations").write_text("in the way")
    assert main(["evaluate", str(copy), "--cache", str(synthetic_cache.path)]) == 0
    printed = capsys.readouterr()
    assert "the answers are not kept" in printed.err
    assert "top1" in printed.out
