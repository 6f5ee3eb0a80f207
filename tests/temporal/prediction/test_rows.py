"""Answers as rows of CSV and lines of JSON, for every task."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfz.temporal.prediction.rows import NUMBERS, FrameAnswer, Prediction, Rows

pytestmark = pytest.mark.quick

SCORES = {"cat": 0.2, "dog": 0.5, "owl": 0.3}
FAILED = Prediction(video="b.mp4", scores={}, error="b.mp4: no frame")


def table(rows, *predictions):
    """The rows as a reader of CSV gives them back."""
    text = rows.csv_line(rows.header()) + "".join(rows.text(one, ".csv") for one in predictions)
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_likeliest_classes_come_first_and_never_more_than_there_are():
    prediction = Prediction(video="a.mp4", scores=SCORES)
    assert table(Rows("classify", SCORES), prediction, FAILED) == [
        {"video": "a.mp4", "class": "dog", "probability": "0.5", "error": ""},
        {"video": "b.mp4", "class": "", "probability": "", "error": "b.mp4: no frame"},
    ]
    (row,) = table(Rows("classify", SCORES, top_k=9), prediction)
    assert [row[name] for name in ("class", "class_2", "class_3")] == ["dog", "owl", "cat"]
    assert "class_4" not in row
    values = Rows("classify", SCORES, top_k=2, probabilities=True).values(prediction)
    assert values["top"] == [{"class": "dog", "probability": 0.5}, {"class": "owl", "probability": 0.3}]
    assert values["probabilities"] == SCORES


@pytest.mark.parametrize(
    ("task", "mark", "key"), [("multilabel", "p", "probabilities"), ("regression", "value", "values")]
)
def test_labels_and_targets_have_a_column_each(task, mark, key):
    rows, prediction = Rows(task, SCORES, top_k=3), Prediction(video="a.mp4", scores=SCORES)
    assert table(rows, prediction)[0] == {
        "video": "a.mp4", f"{mark}(cat)": "0.2", f"{mark}(dog)": "0.5", f"{mark}(owl)": "0.3", "error": "",
    }  # fmt: skip
    assert rows.values(prediction) == {"video": "a.mp4", key: SCORES, "error": None}


@pytest.mark.parametrize(("task", "thing"), [("pose", None), ("boxes", 3), ("points", 0)])
def test_frames_have_a_row_each_and_stand_together_in_a_line_of_json(task, thing):
    numbers = tuple(float(number) for number in range(len(NUMBERS[task])))
    frame = FrameAnswer(clip=0, thing=thing, pts_seconds=0.5, numbers=numbers)
    prediction = Prediction(video="a.mp4", scores={}, frames=(frame, frame))
    rows = Rows(task, ())
    first, _, failed = table(rows, prediction, FAILED)
    assert failed["error"]
    assert [float(first[name]) for name in NUMBERS[task]] == list(numbers)
    line = json.loads(rows.text(prediction, ".jsonl"))["frames"][0]
    assert {name: str(value) for name, value in line.items()} | {"video": "a.mp4", "error": ""} == first


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, unique=True), st.text())
def test_whatever_names_are_called_they_come_back_from_both_formats(names, video):
    video = video.replace("\r", "").replace("\0", "").encode("utf-8", "ignore").decode()
    names = [name.replace("\r", " ").replace("\0", " ") for name in names]
    scores = dict.fromkeys(names, 1 / len(names))
    rows, prediction = Rows("classify", list(scores)), Prediction(video=video, scores=scores)
    (row,) = table(rows, prediction)
    assert (row["video"], row["class"]) == (video, next(iter(scores)))
    assert json.loads(rows.text(prediction, ".jsonl"))["video"] == video
