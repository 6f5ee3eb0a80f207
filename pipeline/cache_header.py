"""`vfz.json`: what a cache is, made once together with everything else that comes before the first shard.

The whole folder is made beside its place under a hidden name and renamed into it. So a cache either is there with its
header and golden frames or is not there, and of several processes that create it at once the first one wins.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import canonical_json, fsync_dir, fsync_tree, sha256_hex, storage_errors, unique_token
from vfz.pipeline.format.header import Contents
from vfz.pipeline.sealed import read_sealed, sealed_bytes, sound_content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HEADER = "vfz.json"
GOLDEN = "golden"
_HEADER_KEYS = frozenset({"recipe", "fingerprint", "contents", "provenance"})


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """The content of `vfz.json`.

    Attributes:
        recipe: what decides a stored number, as plain JSON values.
        fingerprint: SHA-256 of the recipe's canonical JSON.
        contents: what the cache was created with; `vfz.pipeline.format.header.read_contents` gives what it holds now.
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


def precision_of(recipe: Mapping[str, Any]) -> str:
    """The stored precision that a recipe (as plain JSON values) names."""
    return str(recipe["storage"]["precision"])


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe's canonical JSON."""
    return sha256_hex(canonical_json(recipe))


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
            (temporary / HEADER).write_bytes(sealed_bytes({**header, "provenance": provenance}))
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
    with sound_content(path):
        if not isinstance(content["provenance"], dict):
            raise TypeError(f"its provenance is {content['provenance']!r}")
        contents = Contents.from_dict(content["contents"], precision=precision_of(content["recipe"]))
        return CacheHeader(**{**content, "contents": contents})


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
