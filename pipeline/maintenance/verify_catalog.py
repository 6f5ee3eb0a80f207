"""Whether `index.parquet` and its seal are undamaged, up to date and right.

Readers pass over a catalogue that is not, so nothing of it makes a cache unreadable; `vfz cache repair` writes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.format.catalog import CATALOG_FILES, PLAN, SIDE, TABLE, build_catalog, read_side
from vfz.pipeline.format.commits import SHARDS, committed_paths
from vfz.pipeline.format.header import CONTENTS
from vfz.pipeline.maintenance.verify.metadata import LINK, CacheState, short
from vfz.pipeline.maintenance.verify.report import Problem, Severity
from vfz.pipeline.sealed import read_sealed_digest


def check_catalog(state: CacheState) -> Iterator[Problem]:
    """The catalogue against its seal, and against what it was made from."""
    there = [name for name in CATALOG_FILES if (state.path / name).exists()]
    if len(there) < len(CATALOG_FILES):
        if state.indexes or there:
            gone = next(name for name in CATALOG_FILES if name not in there)
            yield _problem(gone, "it is not there: opening the cache takes longer", severity="note")
        return
    if links := [name for name in there if (state.path / name).is_symlink()]:
        yield _problem(links[0], LINK)
        return
    try:
        side = read_side(state.path)
    except CacheFormatError as error:
        yield _problem(SIDE, short(error, state.path / SIDE))
        return
    if _is_stale(state, side):
        yield _problem(TABLE, "it is out of date: the cache has changed since, and opens more slowly", severity="note")
    elif text := _check_table(state, side):
        yield _problem(TABLE, text)


def _is_stale(state: CacheState, side: Mapping[str, Any]) -> bool:
    """Whether commits, plans or contents have come or gone since."""
    paths = {path.name: path for path in committed_paths(state.path).values()}
    counts = [
        sum(name.startswith(f"{folder}/") for name in state.named if (state.path / name).exists())
        for folder in (PLAN, CONTENTS)
    ]
    if paths.keys() != side["indexes"].keys() or counts != [side["num_plans"], side["num_contents"]]:
        return True
    unreadable = {f"{shard}.{number}.index.json" for shard, number in state.unreadable}
    return any(
        read_sealed_digest(paths[name]) != known.digest
        for name, known in side["indexes"].items()
        if name not in unreadable
    )


def _check_table(state: CacheState, side: Mapping[str, Any]) -> str:
    """What is wrong with the table of a catalogue that is up to date."""
    path = state.path / TABLE
    if sha256_file(path) != side["table"]["sha256"]:
        return "it was changed after it was written: its sha256 does not match"
    if state.header is None or side["fingerprint"] != state.header.fingerprint:
        return "" if state.header is None else "it was made for another recipe: it was copied from another cache"
    if any((state.path / name).is_symlink() for name in state.named):
        return ""  # told of, and not followed
    try:
        expected = build_catalog(state.path, state.header)
    except CacheFormatError:
        return ""  # something else is damaged, and told of
    try:
        found = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"it cannot be read: {error}"
    if not found.equals(expected.table) or dict(expected.shard_bytes) != side["shard_bytes"]:
        return f"it is not what {PLAN}/ and {SHARDS}/ say together"
    return ""


def _problem(name: str, text: str, *, severity: Severity = "damage") -> Problem:
    return Problem(file=name, text=text, severity=severity, remedy="rebuild")
