"""What a cache is and what it holds: `vfz.json` and `contents/<n>.json`.

`vfz.json` is made once, together with everything else that comes before the first shard, and never changes. The whole
folder is made beside its place under a hidden name and renamed into it. So a cache either is there with its header and
golden frames or is not there, and of several processes that create it at once the first one wins.

A layer or part added later is one more file, `contents/<n>.json`, that holds the whole contents from then on: the
dataset's name and classes, the kind of store, and the columns. Like plans these files are numbered and written once, so
processes that add columns at the same time cannot undo each other's, and a kill leaves the contents as they were.
Splits, views and videos are not listed: the plans name them.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import (
    canonical_json,
    checked_json_bytes,
    content_errors,
    fsync_dir,
    fsync_tree,
    read_checked_json,
    sha256_hex,
    storage_errors,
    unique_token,
)
from vfz.pipeline.recipe import QUANTISED, STORE_NAMES
from vfz.pipeline.stores.metadata import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from vfz.pipeline.format.calibration import CalibratedColumn

HEADER = "vfz.json"
CONTENTS = "contents"
GOLDEN = "golden"
_HEADER_KEYS = frozenset({"recipe", "fingerprint", "contents", "provenance"})
_CONTENTS_KEYS = frozenset({"dataset", "class_names", "store", "layers", "golden"})
_COLUMN_KEYS = frozenset({"num_tokens", "dim", "compression", "calibration_sha256"})
_CONTENTS_NAME = re.compile(r"([1-9][0-9]*)\.json")
_GOLDEN_NAME = re.compile(r"[A-Za-z0-9_-]+\.npz")


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """The content of `vfz.json`.

    Attributes:
        recipe: what decides a stored number, as plain JSON values.
        fingerprint: SHA-256 of the recipe's canonical JSON.
        contents: what the cache was created with; `CacheFolder.contents` gives what it holds now.
        provenance: who made it with what; decides nothing.
    """

    recipe: Mapping[str, Any]
    fingerprint: str
    contents: Contents
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if fingerprint_of(self.recipe) != self.fingerprint:
            raise ValueError(f"the fingerprint {self.fingerprint!r} is not that of the recipe")

    @property
    def precision(self) -> str:
        """How tokens are stored: fp32, fp16, int8 or int4."""
        return precision_of(self.recipe)


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
        if values.keys() != _CONTENTS_KEYS:
            raise ValueError(f"contents have the fields {sorted(values)}, expected {sorted(_CONTENTS_KEYS)}")
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

    @classmethod
    def of(
        cls,
        columns: Sequence[CalibratedColumn],
        *,
        dataset: str,
        class_names: tuple[str, ...],
        store: str,
        golden: Mapping[str, str],
    ) -> Contents:
        """The contents of a new cache."""
        return cls(
            dataset=dataset,
            class_names=class_names,
            store=store,
            columns=sorted_columns([new.column for new in columns]),
            calibrations={new.column.key: new.digest for new in columns},
            golden=golden,
        )

    def with_columns(self, columns: Sequence[CalibratedColumn], *, golden: Mapping[str, str]) -> Contents:
        """These contents and more columns; those that are there already stay as they are.

        Args:
            columns: what is added.
            golden: SHA-256 of each new file in `golden/`, by name.
        """
        known = {column.key for column in self.columns}
        new = [found for found in columns if found.column.key not in known]
        return replace(
            self,
            columns=sorted_columns([*self.columns, *(found.column for found in new)]),
            calibrations={**{found.column.key: found.digest for found in new}, **self.calibrations},
            golden={**self.golden, **golden},
        )

    def calibration_digest(self, columns: Iterable[Column]) -> str | None:
        """What a shard's index says of the calibrations its columns were quantised with; None for floating point.

        Raises:
            KeyError: when the contents name no calibration of a quantised column.
        """
        digests = {column.key: self.calibrations[column.key] for column in columns if column.precision in QUANTISED}
        return sha256_hex(canonical_json(digests)) if digests else None


def create_cache(
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any],
    fill: Callable[[Path], Contents],
) -> bool:
    """Creates a cache without shards, unless one is there.

    Args:
        folder: where; its parents are made.
        recipe: what decides a stored number, plain JSON values.
        provenance: anything worth knowing later, plain JSON values.
        fill: called with the new folder, in which `golden` and `calibration` are empty folders, to put in what comes
            before the first shard; returns what the cache holds. Not called when a cache is there.

    Returns:
        True when this call made the cache; False when one was there, of whatever recipe: compare its header.

    Raises:
        CacheFormatError: when something that is no cache has the name.
        StorageError: when the disk is full or refuses to be written; nothing is left behind.
    """
    if (folder / HEADER).exists():
        return False
    temporary = folder.with_name(f".{folder.name}.{unique_token()}.tmp")
    with storage_errors(folder):
        try:
            for name in (GOLDEN, "calibration", "plan", "shards"):
                (temporary / name).mkdir(parents=True)
            contents = fill(temporary)
            header = {"recipe": recipe, "fingerprint": fingerprint_of(recipe), "contents": contents.to_dict()}
            (temporary / HEADER).write_bytes(checked_json_bytes({**header, "provenance": provenance}))
            fsync_tree(temporary)
            return _rename_once(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _rename_once(temporary: Path, folder: Path) -> bool:
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        if (folder / HEADER).exists():
            return False
        raise CacheFormatError(
            f"{folder} exists and is not a cache (no {HEADER}); move it away or choose another --out or --name"
        ) from error
    fsync_dir(folder.parent)
    return True


def read_header(folder: Path) -> CacheHeader:
    """Reads and checks `vfz.json`.

    Raises:
        CacheFormatError: when the folder is no cache, or the header is of another version, damaged or edited.
    """
    if not folder.is_dir():
        raise CacheFormatError(f"{folder} is not a folder; a cache is made by `vfz extract`")
    path = folder / HEADER
    if not path.is_file():
        raise CacheFormatError(f"{folder} is not a cache: it has no {HEADER}; a cache is made by `vfz extract`")
    content = read_checked_json(path, _HEADER_KEYS)
    with content_errors(path):
        if not isinstance(content["provenance"], dict):
            raise TypeError(f"its provenance is {content['provenance']!r}")
        contents = Contents.from_dict(content["contents"], precision=precision_of(content["recipe"]))
        return CacheHeader(**{**content, "contents": contents})


def read_contents_file(path: Path, precision: str) -> Contents:
    """One `contents/<n>.json`.

    Raises:
        CacheFormatError: when it is missing or damaged.
    """
    content = read_checked_json(path, _CONTENTS_KEYS)
    with content_errors(path):
        return Contents.from_dict(content, precision=precision)


def contents_paths(cache_folder: Path) -> list[Path]:
    """The files `contents/<n>.json`, oldest first. Cheap: none is opened.

    Raises:
        CacheFormatError: when a number is left out.
    """
    folder = cache_folder / CONTENTS
    if not folder.is_dir():
        return []
    found = {int(match[1]): path for path in folder.iterdir() if (match := _CONTENTS_NAME.fullmatch(path.name))}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise CacheFormatError(f"{folder} holds the numbers {sorted(found)}; one is missing: restore it")
    return [found[number] for number in sorted(found)]


def sorted_columns(columns: list[Column]) -> tuple[Column, ...]:
    """Columns in the order they are stored: layer 2 before 11 before final, patch before prefix."""

    def order(column: Column) -> tuple[bool, int, str, str]:
        numbered = column.layer.isdecimal()
        return not numbered, int(column.layer) if numbered else 0, column.layer, column.part

    return tuple(sorted(columns, key=order))


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's canonical JSON."""
    return sha256_hex(canonical_json(recipe))


def precision_of(recipe: Mapping[str, Any]) -> str:
    """The stored precision that a recipe (as plain JSON values) names."""
    return str(recipe["storage"]["precision"])
