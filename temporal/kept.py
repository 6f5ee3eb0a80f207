"""What an evaluation keeps in the run: of every video its class and the answer, and what follows from them.

    <run>/evaluations/<cache>-<split>-<digest>.json          what was evaluated, its figures, classes, and videos
                      <cache>-<split>-<digest>-<sha>.npz     arrays of more than one number a video, named by the JSON

The digest is of everything that decides the figures: weights, tokens, videos with their labels, clips, precision. So an
evaluation done again replaces itself, and never one of something else. The JSON is replaced whole, after its arrays.

    format_version, vfz     of the file and of the package
    run, task, core         names
    identity                what the digest is of
    figures                 every metric, with intervals, and what it is a share of; which is the headline
    source                  encoder, layers, parts and precision of the tokens, num_bytes of the caches
    class_names             K names; none where the task has no classes
    classes                 of each class with a video: name, num_videos, num_right, accuracy, low, high (Wilson, 95%)
    videos                  ids; cache, where there are several; then numbers, V of each. classify: label, predicted,
                            confidence. Other tasks: what they keep, or the values of their metrics, video by video
    arrays                  file, sha256, names; null where there are none. classify: probabilities [V, K]

Numbers that are not finite (a video without any box) are null. Imports no torch.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import RunError
from vfz.pipeline.files import canonical_json, make_folder, sha256_hex, write_file_atomic
from vfz.temporal.statistics import Interval, balanced_accuracy, wilson

FORMAT_VERSION = 1
EVALUATIONS_FOLDER = "evaluations"
_MOST_NAME_CHARACTERS = 80
NUM_WORST = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptVideos:
    """Answers to V videos.

    Attributes:
        ids: of the videos.
        caches: which of the caches each is in, by number.
        values: [V, ...] by name.
    """

    ids: tuple[str, ...]
    caches: tuple[int, ...]
    values: Mapping[str, NDArray[Any]]

    @property
    def keys(self) -> list[tuple[int, str]]:
        """What tells the videos apart: an id is unique in its cache only."""
        return list(zip(self.caches, self.ids, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassFigures:
    """What answers to videos say of their K classes.

    Attributes:
        names: of the classes.
        labels_V: class of every video.
        predicted_V: the answers.
        num_present: classes that some video of the caches has, in whatever split.
    """

    names: tuple[str, ...]
    labels_V: NDArray[np.int64]
    predicted_V: NDArray[np.int64]
    num_present: int

    @cached_property
    def num_videos(self) -> NDArray[np.int64]:
        """Videos of every class, K."""
        return np.bincount(self.labels_V, minlength=len(self.names))

    @cached_property
    def num_right(self) -> NDArray[np.int64]:
        """Those of them that got it, K."""
        return np.bincount(self.labels_V[self.labels_V == self.predicted_V], minlength=len(self.names))

    @cached_property
    def balanced(self) -> Interval:
        """Mean over the classes that have a video."""
        return balanced_accuracy(self.labels_V == self.predicted_V, self.labels_V)

    @property
    def top1(self) -> Interval:
        """Share of the videos."""
        return wilson(float((self.labels_V == self.predicted_V).mean()), len(self.labels_V))

    @property
    def majority(self) -> float:
        """What always answering the most frequent class of these videos would get."""
        return float(self.num_videos.max() / len(self.labels_V))

    @property
    def chance(self) -> float:
        """What guessing evenly among the classes that some video has would get."""
        return 1 / max(1, self.num_present)

    def to_dict(self) -> dict[str, float | str]:
        """Plain JSON values, but for the single classes."""
        top1, balanced = self.top1, self.balanced
        return {
            "top1_low": top1.low,
            "top1_high": top1.high,
            "top1_interval": top1.method,
            "balanced_accuracy": balanced.mean,
            "balanced_accuracy_low": balanced.low,
            "balanced_accuracy_high": balanced.high,
            "balanced_accuracy_interval": balanced.method,
            "chance": self.chance,
            "majority": self.majority,
        }

    def each(self) -> list[dict[str, Any]]:
        """Every class that has a video: name, num_videos, num_right, accuracy, and Wilson's low and high."""
        rows = []
        for name, count, right in zip(self.names, self.num_videos.tolist(), self.num_right.tolist(), strict=True):
            if count:
                interval = wilson(right / count, count)
                rows.append(
                    {"name": name, "num_videos": count, "num_right": right, "accuracy": interval.mean,
                     "low": interval.low, "high": interval.high}
                )  # fmt: skip
        return rows

    def worst(self, count: int = NUM_WORST) -> list[dict[str, Any]]:
        """The classes that are right least often, where they are not all right."""
        wrong = [row for row in self.each() if row["num_right"] < row["num_videos"]]
        return sorted(wrong, key=lambda row: (row["accuracy"], -row["num_videos"]))[:count]


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptEvaluation:
    """An evaluation as it lies in the run.

    Attributes:
        run, task, core: names.
        identity: what decides the figures, by name.
        figures: every metric by name, and what it is a share of.
        source: of the tokens: encoder, layers, parts, precision, num_bytes of the caches; decides nothing that the
            identity does not.
        videos: the answers.
        class_names: in label order; empty where the task has no classes.
        classes: figures of each class that has a video.
    """

    run: str
    task: str
    core: str
    identity: Mapping[str, Any]
    figures: Mapping[str, Any]
    source: Mapping[str, Any]
    videos: KeptVideos
    class_names: tuple[str, ...] = ()
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What its files are called."""
        caches = self.identity["caches"]
        several = f"-and-{len(caches) - 1}-more" if len(caches) > 1 else ""
        labels = f"-{_plain(self.identity['labels'])}" if self.identity.get("labels") else ""
        digest = sha256_hex(canonical_json(dict(self.identity)))[:8]
        return f"{_plain(caches[0]['name'])}{several}-{_plain(self.identity['split'])}{labels}-{digest}"


def write_evaluation(folder: Path, kept: KeptEvaluation) -> Path:
    """Put an evaluation into a run's folder; one of the same identity is replaced.

    Returns:
        The JSON file.

    Raises:
        StorageError: when it cannot be written.
    """
    where = make_folder(folder / EVALUATIONS_FOLDER)
    columns = {name: values for name, values in kept.videos.values.items() if values.ndim == 1}
    arrays = {name: values.astype(np.float32) for name, values in kept.videos.values.items() if values.ndim > 1}
    said = _write_arrays(where, kept.stem, arrays) if arrays else None
    record = {
        "format_version": FORMAT_VERSION,
        "vfz": version("vfz"),
        "run": kept.run,
        "task": kept.task,
        "core": kept.core,
        "identity": kept.identity,
        "figures": kept.figures,
        "source": kept.source,
        "class_names": list(kept.class_names),
        "classes": kept.classes,
        "videos": {
            "ids": list(kept.videos.ids),
            **({"cache": list(kept.videos.caches)} if any(kept.videos.caches) else {}),
            **{name: values.tolist() for name, values in columns.items()},
        },
        "arrays": said,
    }
    path = where / f"{kept.stem}.json"
    text = json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file_atomic(path, text.encode("utf-8", "backslashreplace"))
    for old in where.glob(f"{kept.stem}-*.npz"):
        if said is None or old.name != said["file"]:
            old.unlink(missing_ok=True)
    return path


def read_evaluation(path: Path, *, arrays: bool = True) -> KeptEvaluation:
    """An evaluation that a run keeps.

    Args:
        path: of its JSON file.
        arrays: read those of more than one number a video, too.

    Raises:
        RunError: when it is damaged, of another version, or its arrays are not those it was written with.
    """
    again = "vfz evaluate writes it again"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
            raise RunError(f"{path} is not of format version {FORMAT_VERSION}; {again}")
        return _evaluation(record, path.parent, arrays=arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from None


def evaluations_of(folder: Path) -> list[Path]:
    """The evaluations that a run keeps, newest first."""
    found = [path for path in (folder / EVALUATIONS_FOLDER).glob("*.json") if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (-path.stat().st_mtime, path.name))


def _evaluation(record: Mapping[str, Any], folder: Path, *, arrays: bool) -> KeptEvaluation:
    columns = dict(record["videos"])
    ids = tuple(map(str, columns.pop("ids")))
    caches = tuple(map(int, columns.pop("cache", [0] * len(ids))))
    values: dict[str, NDArray[Any]] = {name: _column(numbers) for name, numbers in columns.items()}
    if arrays and record["arrays"] is not None:
        values |= _read_arrays(folder, record["arrays"])
    for name, array in [*values.items(), ("cache", np.array(caches))]:
        if len(array) != len(ids):
            raise ValueError(f"{len(array)} values of {name} for {len(ids)} videos")
    return KeptEvaluation(
        run=str(record["run"]),
        task=str(record["task"]),
        core=str(record["core"]),
        identity=dict(record["identity"]),
        figures=dict(record["figures"]),
        source=dict(record["source"]),
        videos=KeptVideos(ids=ids, caches=caches, values=values),
        class_names=tuple(map(str, record["class_names"])),
        classes=list(record["classes"]),
    )


def _column(numbers: list[Any]) -> NDArray[Any]:
    if all(isinstance(number, int) for number in numbers):
        return np.array(numbers, dtype=np.int64)
    return np.array([math.nan if number is None else number for number in numbers], dtype=np.float64)


def _write_arrays(folder: Path, stem: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    digest = sha256_hex(content)
    name = f"{stem}-{digest[:8]}.npz"
    write_file_atomic(folder / name, content)
    return {"file": name, "sha256": digest, "names": list(arrays)}


def _read_arrays(folder: Path, said: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    name = said["file"]
    if Path(name).name != name:
        raise ValueError(f"its arrays are said to lie in {name!r}, which is no file beside it")
    content = (folder / name).read_bytes()
    if sha256_hex(content) != said["sha256"]:
        raise ValueError(f"{name} is not what was written with it")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in said["names"]}


def _plain(text: str) -> str:
    """Text as a part of a file's name: letters, digits, dots, dashes; the digest tells apart what becomes alike."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:_MOST_NAME_CHARACTERS] or "_"


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value
