"""Where the labels of `vfz cache label` come from: a file with a line a video, a folder of classes, or a dataset.

    CSV, TSV    a header, then rows: the video in `id`, `path`, `video` or `filename`; `label`, or `labels` (several,
                with `;` or `|` between them), or the numeric columns that `--columns` names; `split`
    JSON        a list of such rows, or {video: label}, {video: [labels]}, {video: [numbers]}, {video: row}
    folder      `<class>/<video>` or `<split>/<class>/<video>`, as `vfz extract --dataset folder` takes it
    dataset     whatever `vfz extract --dataset NAME --root FROM` takes

Text is cleaned as that of datasets is. An empty `label` or number is not known; empty `labels` are none. Videos are
named as people name them; `label.py` finds them in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.annotations import number_classes
from vfz.pipeline.datasets.splits import SPLITS
from vfz.pipeline.datasets.text import Place, clean, column_names, read_csv, read_json
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.pipeline.files import sha256_file, text_of_name

if TYPE_CHECKING:
    from vfz.pipeline.decoding.base import VideoSource
    from vfz.pipeline.format.labels import Label, LabelKind

VIDEO_COLUMNS = ("id", "path", "video", "filename")
SEPARATORS = (";", "|")
_UNKNOWN = {"", "nan", "na", "null", "none"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLine:
    """What a source says of one video.

    Attributes:
        place: where it says so, for messages.
        video: the id, path or name of the file, as it is written.
        label: None where there is none.
        split: None where there is none.
        folds: its split in each fold, by name.
        source: the file itself, where the source is videos.
    """

    place: str
    video: str
    label: Label | None
    split: str | None
    folds: Mapping[str, str] = field(default_factory=dict)
    source: VideoSource | None = None


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """What a source says.

    Attributes:
        kind: of its labels; None where it says nothing of labels.
        names: of classes, labels or target columns.
        lines: one a video; of multi-label files several may be of one.
        has_splits: whether it says something of splits.
        text: which source, in a few words, with the digest of a file.
        how: how it was read, where there was a choice; may be empty.
    """

    kind: LabelKind | None
    names: tuple[str, ...]
    lines: Sequence[LabelLine]
    has_splits: bool
    text: str
    how: str = ""


def read_source(
    path: Path, *, dataset: str | None, kind: LabelKind | None, columns: Sequence[str] | None, separator: str | None
) -> LabelSource:
    """Reads a source of labels.

    Args:
        path: a file or folder.
        dataset: the kind of dataset that it is; None for a file of rows, or a folder of classes.
        kind: of the labels; None takes it from the columns.
        columns: those with numbers to predict.
        separator: what stands between labels; None takes `;` or `|`, whichever there is.

    Raises:
        UsageError: it is not there, or an option does not go with it.
        DatasetError: it has a mistake; says the file and the line.
    """
    if not path.exists():
        raise UsageError(f"--from {path} does not exist; give a CSV, TSV or JSON file, or a folder of classes")
    if dataset is not None or path.is_dir():
        if columns or kind not in {None, "classes"}:
            raise UsageError(f"--from {path} holds videos of classes; --columns and --kind are for a CSV or JSON file")
        return _of_dataset(path, dataset or "folder")
    rows = list(_json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path, columns))
    if not rows:
        raise DatasetError(f"{path} names no video; write a line for each")
    has_splits = any("split" in row.values for row in rows)
    text = f"{text_of_name(path.name)}, sha256 {sha256_file(path)[:12]}"
    if columns:
        if kind not in {None, "regression"}:
            raise UsageError(f"--kind {kind}: the numbers of --columns are of --kind regression; leave one of them out")
        names = tuple(map(clean, columns))
        lines = [row.line(_numbers(row, names)) for row in rows]
        return LabelSource(kind="regression", names=names, lines=lines, has_splits=has_splits, text=text)
    if kind == "multilabel" or any("labels" in row.values for row in rows):
        if kind == "classes":
            raise UsageError(f"{path} has several labels a video; leave --kind classes out, or call its column 'label'")
        names, lines, between = _several(rows, separator)
        how = f"labels between {between!r}" if between else ""
        return LabelSource(kind="multilabel", names=names, lines=lines, has_splits=has_splits, text=text, how=how)
    if any("label" in row.values for row in rows):
        labels = [row.text("label") or None for row in rows]
        names, numbers = number_classes((row.place, label) for row, label in zip(rows, labels, strict=True))
        lines = [row.line(None if label is None else numbers[label]) for row, label in zip(rows, labels, strict=True)]
        return LabelSource(kind="classes", names=names, lines=lines, has_splits=has_splits, text=text)
    if not has_splits:
        raise DatasetError(f"{path} has no column label, labels or split; name one so, or --columns with numbers")
    return LabelSource(kind=None, names=(), lines=[row.line(None) for row in rows], has_splits=True, text=text)


class _Row(NamedTuple):
    """A row of a file: of JSON its values may be numbers and lists."""

    place: Place
    video: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A value as text, empty where there is none.

        Raises:
            DatasetError: it is neither a text nor a whole number.
        """
        return _text(self.values.get(name), self.place, name)

    def line(self, label: Label | None) -> LabelLine:
        """What it says, with the label that was made of it."""
        return LabelLine(place=str(self.place), video=self.video, label=label, split=self.text("split") or None)


def _text(value: Any, place: Place, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DatasetError(f"{place}: the {name} {value!r} is neither a text nor a whole number")
    return clean(str(value))


def _csv_rows(path: Path, columns: Sequence[str] | None) -> Iterator[_Row]:
    there = column_names(path)
    key = next((name for name in VIDEO_COLUMNS if name in there), None)
    if key is None:
        named = ", ".join(map(repr, sorted(there)))
        raise DatasetError(f"{path}, line 1: no column {', '.join(VIDEO_COLUMNS)} among {named}; one says which video")
    label = [] if columns else ["labels" if "labels" in there else "label"]
    numbers = [clean(name).casefold() for name in columns or ()]
    for place, values in read_csv(path, required=(key, *numbers), optional=("split", *label)):
        yield _Row(place, _video(values[key], place), values)


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        found: Any = read_json(path, dict)
        items = [({"id": key}, value) for key, value in found.items()]
    except DatasetError:
        items = [({}, value) for value in read_json(path, list)]
    for number, (known, value) in enumerate(items, start=1):
        place = Place(path, number, "entry")
        if isinstance(value, dict):
            values = known | {clean(name).casefold(): one for name, one in value.items()}
        elif known:
            values = {**known, ("labels" if isinstance(value, list) else "label"): value}
        else:
            raise DatasetError(f'{place}: {value!r} is no row; write {{"id": …, "label": …}}')
        key = next((name for name in VIDEO_COLUMNS if name in values), None)
        if key is None:
            raise DatasetError(f"{place}: no {', '.join(VIDEO_COLUMNS)}; one says which video")
        yield _Row(place, _video(_text(values[key], place, key), place), values)


def _video(text: str, place: Place) -> str:
    if not text:
        raise DatasetError(f"{place}: no video is named")
    return text


def _numbers(row: _Row, names: Sequence[str]) -> tuple[float, ...]:
    """The numbers of a row, NaN where one is not known."""
    values = [row.values.get(name.casefold()) for name in names]
    of_list = row.values.get("labels")
    if isinstance(of_list, list) and values == [None] * len(names):
        if len(of_list) != len(names):
            raise DatasetError(f"{row.place}: {len(of_list)} numbers, --columns names {len(names)}")
        values = of_list
    return tuple(_number(value, row.place, name) for name, value in zip(names, values, strict=True))


def _number(value: Any, place: Place, name: str) -> float:
    if value is None or (isinstance(value, str) and value.strip().casefold() in _UNKNOWN):
        return math.nan
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise DatasetError(f"{place}: {name} is {value!r}, which is no number; leave it empty where it is not known")
    return number


def _several(rows: Sequence[_Row], separator: str | None) -> tuple[tuple[str, ...], list[LabelLine], str]:
    """Names, lines, and what stands between the labels of a line; empty where no line has two."""
    name = "labels" if any("labels" in row.values for row in rows) else "label"
    texts = [row.values.get(name) for row in rows]
    found = [mark for mark in SEPARATORS if any(isinstance(text, str) and mark in text for text in texts)]
    if separator is None and len(found) > 1:
        raise UsageError(f"{rows[0].place.path} has labels with {' and '.join(found)} in them; give --separator")
    between = separator or (found[0] if found else "")
    of_row = [frozenset(_split(text, row.place, between)) for row, text in zip(rows, texts, strict=True)]
    every = {label for labels in of_row for label in labels}
    numbered = all(label.isascii() and label.isdecimal() for label in every)
    names = tuple(sorted(every, key=(lambda label: (int(label), label)) if numbered else None))
    numbers = {label: number for number, label in enumerate(names)}
    lines = [row.line(frozenset(map(numbers.__getitem__, labels))) for row, labels in zip(rows, of_row, strict=True)]
    return names, lines, between


def _split(value: Any, place: Place, between: str) -> Iterable[str]:
    if isinstance(value, list):
        parts = [_text(item, place, "label") for item in value]
    else:
        text = _text(value, place, "labels")
        parts = [clean(part) for part in text.split(between)] if between else [text]
    return [part for part in parts if part]


def _of_dataset(path: Path, kind: str) -> LabelSource:
    dataset = open_dataset(kind, root=path)
    records = dataset.videos()
    splits = {record.split for record in records}
    # The stem of a list is a split only if it is called so.
    has_splits = dataset.has_splits and not (len(splits) == 1 and not splits <= set(SPLITS))
    lines = [
        LabelLine(
            place=str(path),
            video=record.id,
            label=record.label,
            split=record.split if has_splits else None,
            folds=record.folds,
            source=record.source,
        )
        for record in records
    ]
    return LabelSource(
        kind="classes" if dataset.class_names else None,
        names=dataset.class_names,
        lines=lines,
        has_splits=has_splits,
        text=f"{kind} {text_of_name(str(path))}",
    )
