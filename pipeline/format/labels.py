"""Label sets: what the videos of a cache are called, apart from its tokens: `labels/<name>/<n>.json`.

Plans and commits hold the labels and splits that a cache was extracted with, and never change. A label set stands
beside them: other classes, several labels a video, numbers, or other splits of the same videos. A cache may have any
number of sets, each under a name; a set that is replaced gets the next number, and the latest counts. Every file is
written once (checked JSON, linked into place), so of several writers each gets a number of its own, and a kill leaves
the sets as they were. Which set is meant is said by whoever opens the cache; nothing is read or listed otherwise.

A set names videos by id, so it holds for all their views. Ids of videos that the cache does not have do no harm.

Cost: one file, read whole when it is asked for: a second or two and 12 MB for a quarter of a million videos.

Shapes: V videos, K classes, labels or target columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vfz.pipeline.config import check_folder_name
from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.files import (
    canonical_json,
    content_errors,
    make_folder,
    read_checked_json,
    sha256_hex,
    write_checked_json_once,
)
from vfz.pipeline.format.ledger import FOLD_PREFIX, to_utf8

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LABELS = "labels"
LabelKind = Literal["classes", "multilabel", "regression"]
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
Label = int | frozenset[int] | tuple[float, ...]
"""Of one video: a class, the numbers of its labels, or K numbers (NaN where one is not known), as the kind says."""
NO_SPLIT = ""
"""The split of a video that a set with splits does not name: it is in none."""

_KEYS = frozenset({"kind", "names", "source", "videos", "labels", "splits", "folds"})
_FILE_NAME = re.compile(r"([1-9][0-9]*)\.json")


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What the videos of a cache are called, under one name.

    Attributes:
        name: of the set.
        kind: `classes` (one a video), `multilabel` (any number of labels a video) or `regression` (K numbers a video).
        names: of the K classes in label order, of the labels, or of the target columns.
        labels: of each video, by id; those without a label are left out.
        splits: the split of each video, by id; None where the set says nothing of splits.
        folds: the split of each video in each fold, by name of the fold and id.
        source: where it came from, for people.
        number: of its file; 0 where it has none yet.
    """

    name: str
    kind: LabelKind
    names: tuple[str, ...]
    labels: Mapping[str, Label]
    splits: Mapping[str, str] | None = None
    folds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        check_folder_name(self.name)
        if self.kind not in LABEL_KINDS:
            raise ValueError(f"the kind {self.kind!r} is none of {', '.join(LABEL_KINDS)}")
        texts = [*self.names, self.source, *self.labels, *self.folds]
        for of_video in (self.splits or {}, *self.folds.values()):
            texts += [*of_video, *of_video.values()]
            if NO_SPLIT in of_video.values():
                raise ValueError("a split has no name; leave videos out that are in none")
        if any(type(text) is not str for text in texts):
            raise TypeError("names, ids and splits are texts")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"a name comes twice: {', '.join(sorted(self.names))}")
        check = {"classes": self._is_class, "multilabel": self._is_labels, "regression": self._is_numbers}[self.kind]
        if odd := next((item for item in self.labels.items() if not check(item[1])), None):
            raise ValueError(f"video {odd[0]!r} has {odd[1]!r}, which is none of {len(self.names)} {self.kind}")

    def _is_class(self, label: Label) -> bool:
        return type(label) is int and 0 <= label < len(self.names)

    def _is_labels(self, label: Label) -> bool:
        return type(label) is frozenset and all(map(self._is_class, label))

    def _is_numbers(self, label: Label) -> bool:
        return (
            type(label) is tuple
            and len(label) == len(self.names)
            and all(type(number) is float and not math.isinf(number) for number in label)
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what it says: kind, names, labels, splits and folds; not of its name or where it came from."""
        values = self.to_dict()
        return sha256_hex(canonical_json({key: value for key, value in values.items() if key != "source"}))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order; none where targets are numbers."""
        return () if self.kind == "regression" else self.names

    @property
    def ids(self) -> list[str]:
        """Every video that it says something of, sorted."""
        return sorted({*self.labels, *(self.splits or ()), *(key for fold in self.folds.values() for key in fold)})

    def targets_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """What `multilabel` and `regression` sets say of videos, float32 [V, K]: 0 or 1, or numbers; NaN is not known.

        Raises:
            UsageError: when the set has classes; each video has one label then.
        """
        if self.kind == "classes":
            raise UsageError(f"the label set {self.name!r} has classes, one a video; targets are of the other kinds")
        targets_VK = np.full((len(ids), len(self.names)), np.nan, dtype=np.float32)
        for row, video_id in enumerate(ids):
            label = self.labels.get(video_id)
            if isinstance(label, frozenset):
                targets_VK[row] = 0
                targets_VK[row, list(label)] = 1
            elif isinstance(label, tuple):
                targets_VK[row] = label
        return targets_VK

    def apply(self, table: pa.Table) -> pa.Table:
        """A ledger whose labels are those of the set; splits and folds, too, where it has them.

        Videos that it does not name have no label; where it has splits, their split is `NO_SPLIT`. Other kinds than
        `classes` leave the column `label` empty.
        """
        ids = self.ids
        places = pc.index_in(table["id"], pa.array(map(to_utf8, ids), pa.string()))
        classes = [self.labels.get(video_id) if self.kind == "classes" else None for video_id in ids]
        table = _with(table, "label", pa.array(classes, pa.int64()).take(places))
        if self.splits is not None:
            table = _with(table, "split", pc.fill_null(_splits(self.splits, ids).take(places), NO_SPLIT))
        if self.folds:
            table = table.drop_columns([name for name in table.column_names if name.startswith(FOLD_PREFIX)])
        for fold, of_video in sorted(self.folds.items()):
            table = table.append_column(FOLD_PREFIX + fold, _splits(of_video, ids).take(places))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, a list entry per video; None is not known, and in `splits` and `folds` in none."""
        ids = self.ids
        return {
            "kind": self.kind,
            "names": list(self.names),
            "source": self.source,
            "videos": ids,
            "labels": [_to_json(self.labels.get(video_id)) for video_id in ids],
            "splits": None if self.splits is None else list(map(self.splits.get, ids)),
            "folds": {name: list(map(fold.get, ids)) for name, fold in self.folds.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str, number: int) -> LabelSet:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: when the values are not of that form.
        """
        ids, kind = values["videos"], values["kind"]
        lists = [ids, values["labels"], *values["folds"].values()]
        lists += [] if values["splits"] is None else [values["splits"]]
        if any(type(one) is not list or len(one) != len(ids) for one in [values["names"], *lists][1:]):
            raise ValueError("there is not one label and one split for each video")
        if ids != sorted(set(ids)):
            raise ValueError("its videos are not sorted, or one comes twice")
        found = {key: _from_json(label, kind) for key, label in zip(ids, values["labels"], strict=True)}
        return cls(
            name=name,
            kind=kind,
            names=tuple(values["names"]),
            labels={key: label for key, label in found.items() if label is not None},
            splits=None if values["splits"] is None else _known(ids, values["splits"]),
            folds={fold: _known(ids, splits) for fold, splits in values["folds"].items()},
            source=values["source"],
            number=number,
        )


def label_set_names(cache_folder: Path) -> tuple[str, ...]:
    """The label sets of a cache, in alphabetical order. Cheap: none is opened."""
    folder = cache_folder / LABELS
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if _is_name(path.name) and label_set_paths(path)))


def read_label_set(cache_folder: Path, name: str) -> LabelSet:
    """The latest of that name.

    Raises:
        UnknownNameError: when the cache has none of that name; says which it has.
        CacheFormatError: when its file is damaged; `write_label_set` replaces it.
    """
    if not isinstance(name, str):
        raise UsageError(f"labels is {name!r}; the name of a label set is needed, or None")
    known = label_set_names(cache_folder)
    if name not in known:
        how = f"`vfz cache label {cache_folder} --from FILE --name NAME` adds one"
        if not known:
            raise UsageError(f"{cache_folder} has no label set {name!r}, and no other; {how}")
        raise UnknownNameError("label set", name, known, hint=f"(in {cache_folder}); {how}")
    return read_label_file(label_set_paths(cache_folder / LABELS / name)[-1])


def read_label_file(path: Path) -> LabelSet:
    """One `labels/<name>/<n>.json`.

    Raises:
        CacheFormatError: when it is missing or damaged.
    """
    try:
        values = read_checked_json(path, _KEYS)
        with content_errors(path):
            return LabelSet.from_dict(values, name=path.parent.name, number=int(path.stem))
    except CacheFormatError as error:
        text = str(error).removesuffix("; restore it or extract again")
        raise CacheFormatError(f"{text}; restore it or make it again with `vfz cache label`") from error


def label_set_paths(set_folder: Path) -> list[Path]:
    """The files of one set, `labels/<name>`, oldest first. Cheap: none is opened."""
    if not set_folder.is_dir():
        return []
    found = {int(match[1]): path for path in set_folder.iterdir() if (match := _FILE_NAME.fullmatch(path.name))}
    return [found[number] for number in sorted(found)]


def write_label_set(cache_folder: Path, labels: LabelSet) -> LabelSet:
    """Adds a set, or a newer one of that name; where the latest says the same already, nothing is written.

    A damaged one is replaced like any other.

    Args:
        cache_folder: the cache.
        labels: its number is not looked at.

    Returns:
        The set as it stands in the cache, with its number.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    folder = make_folder(cache_folder / LABELS / labels.name)
    while True:
        paths = label_set_paths(folder)
        latest = _readable(paths[-1]) if paths else None
        if latest is not None and latest.digest == labels.digest:
            return latest
        number = 1 + (int(paths[-1].stem) if paths else 0)
        if write_checked_json_once(folder / f"{number}.json", labels.to_dict()):
            return replace(labels, number=number)
        # Another process took that number: the next round sees its set.


def copy_label_sets(source: Path, target: Path) -> None:
    """Takes over the files of another cache's label sets; those that are there by name and number stay.

    Raises:
        CacheFormatError: when a file cannot be read or is damaged.
        StorageError: when the disk is full or refuses to be written.
    """
    for name in label_set_names(source):
        folder = target / LABELS / name
        there = {path.name for path in label_set_paths(folder)}
        for path in label_set_paths(source / LABELS / name):
            if path.name not in there:
                labels = read_label_file(path)
                write_checked_json_once(make_folder(folder) / path.name, labels.to_dict())


def _readable(path: Path) -> LabelSet | None:
    try:
        return read_label_file(path)
    except CacheFormatError:
        return None  # `vfz cache verify` tells of it


def num_in_splits(splits: Iterable[str]) -> dict[str, int]:
    """How many videos each split has, by name in order."""
    counts: dict[str, int] = {}
    for split in splits:
        counts[split] = counts.get(split, 0) + 1
    return dict(sorted(counts.items()))


def _is_name(name: str) -> bool:
    try:
        check_folder_name(name)
    except UsageError:
        return False
    return True


def _known(ids: Sequence[str], splits: Collection[str | None]) -> dict[str, str]:
    return {key: split for key, split in zip(ids, splits, strict=True) if split is not None}


def _to_json(label: Label | None) -> Any:
    if isinstance(label, frozenset):
        return sorted(label)
    if isinstance(label, tuple):
        return [None if math.isnan(number) else number for number in label]
    return label


def _from_json(label: Any, kind: str) -> Label | None:
    if label is None or kind == "classes":
        return label  # type: ignore[no-any-return] # checked where the set is made
    if type(label) is not list:
        raise TypeError(f"a label is {label!r}; a list is expected")
    if kind == "multilabel":
        if label != sorted(set(label)):
            raise ValueError(f"labels {label!r} are not sorted, or one comes twice")
        return frozenset(label)
    return tuple(math.nan if number is None else number for number in label)


def _splits(splits: Mapping[str, str], ids: Sequence[str]) -> pa.Array:
    """The split of each video as a ledger keeps it; null where it is in none."""
    kept = {split: to_utf8(split) for split in set(splits.values())}
    return pa.array([kept.get(splits.get(video_id, NO_SPLIT)) for video_id in ids], pa.string())


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)
