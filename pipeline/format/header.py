"""What a cache holds so far: the dataset's name and classes, the kind of store, and the columns.

`vfz.json` says what the cache was created with and never changes. A layer or part added later is one more file,
`contents/<n>.json`, that holds the whole contents from then on. Like plans they are numbered and written once, so
processes that add columns at the same time cannot undo each other's, and a kill leaves the contents as they were.
Splits, views and videos are not listed: the plans name them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import make_folder
from vfz.pipeline.recipe import STORE_NAMES
from vfz.pipeline.sealed import read_sealed, sound_content, write_sealed_once
from vfz.pipeline.stores.metadata import Column

if TYPE_CHECKING:
    from pathlib import Path

    from vfz.pipeline.cache_header import CacheHeader

CONTENTS = "contents"
_NAME = re.compile(r"([1-9][0-9]*)\.json")
_KEYS = frozenset({"dataset", "class_names", "store", "layers", "golden"})
_GOLDEN_NAME = re.compile(r"[A-Za-z0-9_-]+\.npz")
_COLUMN_KEYS = frozenset({"num_tokens", "dim", "compression", "calibration_sha256"})


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a cache holds.

    Attributes:
        dataset: its name.
        class_names: in label order.
        store: name in `vfz.pipeline.stores.STORES`.
        columns: what every shard stores: layers by number, then those with a name; patch before prefix.
        calibrations: SHA-256 of `calibration/<layer>.<part>.json` by column key; columns without calibration left out.
        golden: SHA-256 of the files in `golden/` by name.
    """

    dataset: str
    class_names: tuple[str, ...]
    store: str
    columns: tuple[Column, ...]
    calibrations: Mapping[str, str]
    golden: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.store not in STORE_NAMES:
            raise ValueError(f"contents.store {self.store!r} is none of {', '.join(STORE_NAMES)}")
        if not self.columns:
            raise ValueError("contents.layers is empty; a cache stores at least one part of one layer")
        if odd := self.calibrations.keys() - {column.key for column in self.columns}:
            raise ValueError(f"contents name calibrations of columns that are not there: {sorted(odd)}")
        if odd := {name for name in self.golden if not _GOLDEN_NAME.fullmatch(name)}:
            raise ValueError(f"contents name golden files outside golden/ or that are no .npz: {sorted(odd)}")
        texts = (self.dataset, *self.class_names, *self.calibrations.values(), *self.golden.values())
        if any(type(text) is not str for text in texts):
            raise TypeError(f"contents: the dataset, its classes and the digests are texts: {texts}")

    @property
    def layers(self) -> dict[str, dict[str, tuple[int, int]]]:
        """{layer: {"patch": (N, D), "prefix": (P, D)}}; parts that are not stored are left out."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for column in self.columns:
            found.setdefault(column.layer, {})[column.part] = (column.num_tokens, column.dim)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the precision is the recipe's and is left out."""
        layers: dict[str, dict[str, Any]] = {}
        for column in self.columns:
            layers.setdefault(column.layer, {})[column.part] = {
                "num_tokens": column.num_tokens,
                "dim": column.dim,
                "compression": column.compression,
                "calibration_sha256": self.calibrations.get(column.key),
            }
        return {
            "dataset": self.dataset,
            "class_names": list(self.class_names),
            "store": self.store,
            "layers": layers,
            "golden": dict(self.golden),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, precision: str) -> Contents:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, KeyError, AttributeError: when the values are not of that form.
        """
        if values.keys() != _KEYS:
            raise ValueError(f"contents have the fields {sorted(values)}, expected {sorted(_KEYS)}")
        if type(values["class_names"]) is not list:
            raise TypeError(f"contents.class_names is {values['class_names']!r}; a list is expected")
        columns, calibrations = [], {}
        for layer, parts in values["layers"].items():
            for part, found in parts.items():
                if found.keys() != _COLUMN_KEYS:
                    raise ValueError(f"contents.layers.{layer}.{part} is {found}; expected {sorted(_COLUMN_KEYS)}")
                column = Column(
                    layer=layer,
                    part=part,
                    num_tokens=found["num_tokens"],
                    dim=found["dim"],
                    precision=precision,
                    compression=found["compression"],
                )
                columns.append(column)
                if found["calibration_sha256"] is not None:
                    calibrations[column.key] = found["calibration_sha256"]
        return cls(
            dataset=values["dataset"],
            class_names=tuple(values["class_names"]),
            store=values["store"],
            columns=sorted_columns(columns),
            calibrations=calibrations,
            golden=dict(values["golden"].items()),
        )

    def with_columns(
        self, columns: tuple[Column, ...], *, calibrations: Mapping[str, str], golden: Mapping[str, str]
    ) -> Contents:
        """These contents and more columns; those that are there already stay as they are."""
        known = {column.key for column in self.columns}
        new = [column for column in columns if column.key not in known]
        return replace(
            self,
            columns=sorted_columns([*self.columns, *new]),
            calibrations={**{column.key: calibrations[column.key] for column in new}, **self.calibrations},
            golden={**self.golden, **golden},
        )


def sorted_columns(columns: list[Column]) -> tuple[Column, ...]:
    """Columns in the order they are stored: layer 2 before 11 before final, patch before prefix."""

    def order(column: Column) -> tuple[bool, int, str, str]:
        numbered = column.layer.isdecimal()
        return not numbered, int(column.layer) if numbered else 0, column.layer, column.part

    return tuple(sorted(columns, key=order))


def contents_paths(cache_folder: Path) -> list[Path]:
    """The files `contents/<n>.json`, oldest first. Cheap: none is opened.

    Raises:
        CacheFormatError: when a number is left out.
    """
    folder = cache_folder / CONTENTS
    if not folder.is_dir():
        return []
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise CacheFormatError(f"{folder} holds the numbers {sorted(found)}; one is missing: restore it")
    return [found[number] for number in sorted(found)]


def read_contents(cache_folder: Path, header: CacheHeader) -> Contents:
    """What the cache holds now: the last `contents/<n>.json`, or what it was created with.

    Raises:
        CacheFormatError: when a file is missing or damaged.
    """
    paths = contents_paths(cache_folder)
    return read_contents_file(paths[-1], header.precision) if paths else header.contents


def add_columns(
    cache_folder: Path,
    header: CacheHeader,
    columns: tuple[Column, ...],
    *,
    calibrations: Mapping[str, str],
    golden: Mapping[str, str],
) -> Contents:
    """Makes columns part of the cache, together with any other process that does the same.

    Args:
        cache_folder: the cache.
        header: its header.
        columns: what to add; those that are there already are left alone.
        calibrations: SHA-256 of the calibration file of each column, by key.
        golden: SHA-256 of each new file in `golden/`, by name.

    Returns:
        The contents after that.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    while True:
        paths = contents_paths(cache_folder)
        current = read_contents_file(paths[-1], header.precision) if paths else header.contents
        if not {column.key for column in columns} - {column.key for column in current.columns}:
            return current
        wanted = current.with_columns(columns, calibrations=calibrations, golden=golden)
        path = make_folder(cache_folder / CONTENTS) / f"{len(paths) + 1}.json"
        write_sealed_once(path, wanted.to_dict())  # another process's file may win: look again


def read_contents_file(path: Path, precision: str) -> Contents:
    """One `contents/<n>.json`.

    Raises:
        CacheFormatError: when it is missing or damaged.
    """
    content = read_sealed(path, _KEYS)
    with sound_content(path):
        return Contents.from_dict(content, precision=precision)
