"""Answers as rows, written as they come: CSV for tables, JSON lines for programs.

A row is one video; in CSV a row of poses, boxes or points is one frame. Every row ends in `error`, which is empty where
there is an answer. Text is written as it is, quoted by the csv module; what shows it on a terminal escapes it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_DIGITS = 8
"""Of numbers in CSV and JSON, behind the point."""
NUMBERS = {
    "pose": ("x_metres", "y_metres", "z_metres", *(f"r{row}{column}" for row in "123" for column in "123")),
    "boxes": ("centre_x", "centre_y", "width", "height"),
    "points": ("x", "y", "visibility"),
}
"""Of the tasks that answer frames, the numbers of one, in their order."""
_THINGS = {"boxes": ("object",), "points": ("point",)}


@dataclass(frozen=True, kw_only=True)
class FrameAnswer:
    """What was said of one frame, or of one thing in it.

    Attributes:
        clip: which of the video's.
        thing: which object or point of it, as its targets number them; None for poses.
        pts_seconds: of the frame.
        numbers: as `NUMBERS` names them. pose: how the camera stands as that of the frame before sees it. boxes and
            points: in units of the crop that the encoder saw; visibility is a probability.
    """

    clip: int
    thing: int | None = None
    pts_seconds: float
    numbers: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was said of one video.

    Attributes:
        video: its path, or its id in the cache.
        scores: classify, multilabel: the probability of each class or label; regression: the value of each target; by
            name, in their order. Means over the video's clips.
        frames: pose, boxes, points: of every frame of every clip; pose: but for the first, which has none before it.
        error: why there is no answer; empty where there is one.
    """

    video: str
    scores: Mapping[str, float]
    frames: tuple[FrameAnswer, ...] = ()
    error: str = ""

    def likeliest(self, count: int = 1) -> list[tuple[str, float]]:
        """The names with the greatest scores, and these; the first of equals first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])[:count]


class Rows:
    """Predictions as rows of one format.

    Args:
        task: of the predictor.
        names: of its classes, labels or targets.
        top_k: classify: so many of the likeliest classes.
        probabilities: classify: of all classes.
    """

    def __init__(self, task: str, names: Sequence[str], *, top_k: int = 1, probabilities: bool = False) -> None:
        self._task, self._names = task, tuple(names)
        self._top_k, self._all = min(top_k, len(self._names)), probabilities

    def header(self) -> list[str]:
        """The names of the columns of CSV."""
        if self._task in NUMBERS:
            return ["video", "clip", *_THINGS.get(self._task, ()), "pts_seconds", *NUMBERS[self._task], "error"]
        if self._task != "classify":
            mark = "p" if self._task == "multilabel" else "value"
            return ["video", *(f"{mark}({name})" for name in self._names), "error"]
        best = [f"{what}{'' if place == 1 else f'_{place}'}" for place in range(1, self._top_k + 1)
                for what in ("class", "probability")]  # fmt: skip
        return ["video", *best, *(f"p({name})" for name in self._names if self._all), "error"]

    def cells(self, prediction: Prediction) -> Iterator[list[Any]]:
        """The rows of CSV that a prediction is."""
        if prediction.error:
            yield [prediction.video, *[""] * (len(self.header()) - 2), prediction.error]
        elif self._task in NUMBERS:
            for frame in prediction.frames:
                yield [prediction.video, *self._of_frame(frame).values(), ""]
        else:
            best = [cell for name, score in self._best(prediction) for cell in (name, _short(score))]
            scores = prediction.scores.values() if self._all or self._task != "classify" else ()
            yield [prediction.video, *best, *map(_short, scores), ""]

    def values(self, prediction: Prediction) -> dict[str, Any]:
        """What a line of JSON says of a prediction."""
        if prediction.error:
            return {"video": prediction.video, "error": prediction.error}
        scores = {name: _short(score) for name, score in prediction.scores.items()}
        answer: dict[str, Any]
        if self._task in NUMBERS:
            answer = {"frames": [self._of_frame(frame) for frame in prediction.frames]}
        elif self._task != "classify":
            answer = {"probabilities" if self._task == "multilabel" else "values": scores}
        else:
            best = [{"class": name, "probability": _short(score)} for name, score in self._best(prediction)]
            answer = {**best[0], **({"top": best} if self._top_k > 1 else {})}
            answer |= {"probabilities": scores} if self._all else {}
        return {"video": prediction.video, **answer, "error": None}

    def csv_line(self, cells: Sequence[Any]) -> str:
        """One row of CSV, with its end of line; bytes of a name that are no UTF-8 are escaped."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue().encode("utf-8", "backslashreplace").decode()

    def text(self, prediction: Prediction, suffix: str) -> str:
        """All that is written of a prediction into a file of that ending."""
        if suffix == ".jsonl":
            return json.dumps(self.values(prediction), ensure_ascii=False) + "\n"
        return "".join(self.csv_line(cells) for cells in self.cells(prediction))

    def _of_frame(self, frame: FrameAnswer) -> dict[str, Any]:
        thing = dict.fromkeys(_THINGS.get(self._task, ()), frame.thing)
        numbers = dict(zip(NUMBERS[self._task], map(_short, frame.numbers), strict=True))
        return {"clip": frame.clip, **thing, "pts_seconds": _short(frame.pts_seconds), **numbers}

    def _best(self, prediction: Prediction) -> list[tuple[str, float]]:
        return prediction.likeliest(self._top_k) if self._task == "classify" else []


def _short(value: float) -> float:
    return round(float(value), _DIGITS)
