"""`vfz.json`: what a cache is, made once together with everything else that comes before the first shard.

The whole folder is made beside its place under a hidden name and renamed into it. So a cache either is there with its
header and golden frames or is not there, and of several processes that create it at once the first one wins.
"""

from __future__ import annotations

import errno
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import canonical_json, fsync_dir, fsync_tree, sha256_hex, storage_errors, unique_token
from vfz.pipeline.sealed import read_sealed, sealed_bytes
from vfz.pipeline.stores.records import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HEADER = "vfz.json"
_HEADER_KEYS = frozenset({"recipe", "fingerprint", "contents", "provenance"})
_CONTENTS_TYPES: dict[str, type] = {
    "dataset": str,
    "class_names": list,
    "layers": dict,
    "dtype": str,
    "splits": list,
    "views": list,
}


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """The content of `vfz.json`.

    Attributes:
        recipe: what decides a stored number, as plain JSON values.
        fingerprint: SHA-256 of the recipe's canonical JSON.
        contents: `dataset` (its name), `class_names`, `layers` (name: {"patch": [N, D], "prefix": [P, D]}, parts that
            are not stored left out), `dtype`, `splits`, `views`; other keys are kept as they are.
        provenance: who made it with what; decides nothing.
    """

    recipe: Mapping[str, Any]
    fingerprint: str
    contents: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if fingerprint_of(self.recipe) != self.fingerprint:
            raise ValueError(f"the fingerprint {self.fingerprint!r} is not that of the recipe")
        for name, kind in _CONTENTS_TYPES.items():
            if not isinstance(self.contents.get(name), kind):
                raise TypeError(f"contents.{name} is {self.contents.get(name)!r}; a {kind.__name__} is needed")
        if not self.columns:
            raise ValueError("contents.layers is empty; a cache stores at least one part of one layer")

    @property
    def columns(self) -> tuple[Column, ...]:
        """What every shard stores: layers by number, then those with a name; patch before prefix."""
        return tuple(
            Column(layer=layer, part=part, num_tokens=num_tokens, dim=dim, dtype=self.contents["dtype"])
            for layer, parts in sorted(self.contents["layers"].items(), key=_layer_order)
            for part, (num_tokens, dim) in sorted(parts.items())
        )


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's canonical JSON."""
    return sha256_hex(canonical_json(recipe))


def create_cache(
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    contents: Mapping[str, Any],
    provenance: Mapping[str, Any],
    golden: Callable[[Path], None] | None = None,
) -> bool:
    """Creates a cache without shards, unless one is there.

    Args:
        folder: where; its parents are made.
        recipe: what decides a stored number, plain JSON values.
        contents: see `CacheHeader`.
        provenance: anything worth knowing later, plain JSON values.
        golden: called with an existing, empty folder to put the golden frames in. Not called when a cache is there.

    Returns:
        True when this call made the cache; False when one was there, of whatever recipe: compare its header.

    Raises:
        CacheFormatError: when something that is no cache has the name.
        StorageError: when the disk is full or refuses to be written; nothing is left behind.
        TypeError, ValueError: when contents are not as `CacheHeader` needs them.
    """
    if (folder / HEADER).exists():
        return False
    fingerprint = fingerprint_of(recipe)
    CacheHeader(recipe=recipe, fingerprint=fingerprint, contents=contents, provenance=provenance)
    header = sealed_bytes(
        {"recipe": recipe, "fingerprint": fingerprint, "contents": contents, "provenance": provenance}
    )
    temporary = folder.with_name(f".{folder.name}.{unique_token()}.tmp")
    with storage_errors(folder):
        try:
            for name in ("golden", "plan", "shards"):
                (temporary / name).mkdir(parents=True)
            if golden is not None:
                golden(temporary / "golden")
            (temporary / HEADER).write_bytes(header)
            fsync_tree(temporary)
            return _rename_once(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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
    content = read_sealed(path, _HEADER_KEYS)
    try:
        return CacheHeader(**content)
    except (TypeError, ValueError, AttributeError) as error:
        raise CacheFormatError(f"{path} is damaged: {error}") from error


def _layer_order(item: tuple[str, Any]) -> tuple[int, str]:
    """Sorts 2 before 11 before final; JSON text keeps no other order."""
    name = item[0]
    return (int(name), "") if name.isdecimal() else (sys.maxsize, name)


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
