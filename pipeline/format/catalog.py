"""The catalog: which videos a cache has, in one file that opens in a second for a quarter of a million.

The plans and the index of every shard are the truth. `index.parquet` holds what they say together, and `index.json`
names the files it was made from. It is a copy for speed and can be made again at any time: when a commit, plan or layer
has come since, or either file is missing, damaged or edited, readers put the table together from plans and indexes
(about 20 s for 240,000 videos) and say nothing. Several processes may write it at the same time: the last one wins, and
is found to be out of date if it missed something.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import (
    checked_json_bytes,
    content_errors,
    read_checked_json,
    read_checked_json_digest,
    sha256_hex,
    write_file_atomic,
)
from vfz.pipeline.format.commits import (
    CommitRows,
    ShardIndex,
    check_commits,
    check_recipe,
    check_row,
    lacking_in,
    read_shard_index,
)
from vfz.pipeline.format.drops import DROPS, Drop, drop_paths
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import Contents, contents_paths
from vfz.pipeline.format.ledger import FOLD_PREFIX, STATUSES, Lacking, LedgerRow, VideoKey, distinct, ledger_table
from vfz.pipeline.format.plan import PLAN, Plan
from vfz.pipeline.recipe import QUANTISED

TABLE = "index.parquet"
SIDE = "index.json"
CATALOG_FILES = (TABLE, SIDE)
SIDE_KEYS = frozenset({"fingerprint", "table", "indexes", "num_plans", "num_contents", "shard_bytes"})
NUM_DROPS = "num_drops"
"""A key of the side file where there are drops: an earlier vfz, which knows none, then makes the table again."""
_Commits = Mapping[str, Sequence[CommitRows]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """What a cache holds, without its tokens.

    Attributes:
        contents: the columns.
        table: as `vfz.pipeline.format.ledger.ledger_table` makes it.
        index_files: those the table was made from, by name.
        shard_bytes: size of each shard's committed data.
        num_plans, num_contents, num_drops: how many files of each kind it was made from.
    """

    contents: Contents
    table: pa.Table
    index_files: Mapping[str, IndexFile]
    shard_bytes: Mapping[str, int]
    num_plans: int
    num_contents: int
    num_drops: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of the committed data on disk."""
        return sum(self.shard_bytes.values())


class IndexFile(NamedTuple):
    """An index file as it was when the catalog was made: the digest it carries, its size, its time of change."""

    digest: str
    num_bytes: int
    mtime_ns: int

    def is_now(self, path: Path) -> bool:
        """Whether `path` still is that file: by size and time; in a cache that was copied, by its digest."""
        num_bytes, mtime_ns = _stat(path)
        if num_bytes != self.num_bytes:
            return False
        return mtime_ns == self.mtime_ns or read_checked_json_digest(path) == self.digest


def open_catalog(cache: CacheFolder) -> Catalog:
    """The catalog as it is now: read where `index.parquet` is up to date, else put together.

    Raises:
        CacheFormatError: when the contents, or (where they are read) a plan or an index, are damaged or contradict
            each other.
    """
    return _read(cache) or build_catalog(cache)


def current_catalog(cache: CacheFolder) -> Catalog:
    """The catalog as it is now, with its files brought up to date.

    Raises:
        CacheFormatError, StorageError: as `write_catalog`.
    """
    return _read(cache) or write_catalog(cache)


def is_current(cache: CacheFolder) -> bool:
    """Whether readers use `index.parquet`: it is there, whole, and made from the files the cache has now.

    Raises:
        CacheFormatError: when the header or the contents are damaged.
    """
    return _read(cache) is not None


def write_catalog(cache: CacheFolder) -> Catalog:
    """Puts the catalog together and writes both its files; for the end of whatever changes a cache.

    Returns:
        The catalog.

    Raises:
        CacheFormatError: when a plan or an index is damaged, or they contradict each other.
        StorageError: when the disk is full or refuses to be written.
    """
    catalog = build_catalog(cache)
    save_catalog(cache, catalog)
    return catalog


def save_catalog(cache: CacheFolder, catalog: Catalog) -> None:
    """Writes a catalog's two files, each whole or not at all; readers believe neither without the other.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(catalog.table, sink, compression="zstd")
    table = sink.getvalue().to_pybytes()
    side = {
        "fingerprint": cache.header.fingerprint,
        "table": _about(table),
        "indexes": {name: list(file) for name, file in catalog.index_files.items()},
        "num_plans": catalog.num_plans,
        "num_contents": catalog.num_contents,
        "shard_bytes": dict(catalog.shard_bytes),
        **({NUM_DROPS: catalog.num_drops} if catalog.num_drops else {}),
    }
    write_file_atomic(cache.path / TABLE, table)
    write_file_atomic(cache.path / SIDE, checked_json_bytes(side))


def build_catalog(cache: CacheFolder) -> Catalog:
    """The catalog put together from contents, plans and every index.

    Raises:
        CacheFormatError: when one of them is damaged, or they contradict each other.
    """
    # In this order: whatever an index names was there before it, also while other processes commit.
    paths = cache.commit_paths()
    files = {path.name: IndexFile(read_checked_json_digest(path), *_stat(path)) for path in paths.values()}
    num_contents = len(contents_paths(cache.path))
    contents = cache.contents()
    commits: dict[str, list[CommitRows]] = {}
    shard_bytes: dict[str, int] = {}
    for (shard, _), path in paths.items():
        index = read_shard_index(path)
        check_index(path, index, cache.header.fingerprint, contents)
        commits.setdefault(shard, []).append(CommitRows(index.number, index.plan, index.rows, index.column_keys))
        shard_bytes[shard] = shard_bytes.get(shard, 0) + (index.data.num_bytes if index.data else 0)
    num_drops = len(drop_paths(cache.path))
    drops = cache.drops()
    plans = cache.plans()
    rows, lacking = _merge(cache.path, plans, commits, [column.key for column in contents.columns], drops)
    return Catalog(
        contents=contents,
        table=ledger_table(list(rows.values()), lacking),
        index_files=files,
        shard_bytes=shard_bytes,
        num_plans=len(plans),
        num_contents=num_contents,
        num_drops=num_drops,
    )


def check_index(path: Path, index: ShardIndex, fingerprint: str, contents: Contents) -> None:
    """Refuses a commit that does not belong to this cache.

    Raises:
        CacheFormatError: for another recipe, columns the cache does not have, or another calibration.
    """
    check_recipe(path, index, fingerprint)
    known = {column.key: column for column in contents.columns}
    for key in index.column_keys:
        if key not in known:
            raise CacheFormatError(
                f"{path}: shard {index.shard} has {key}, which is not in the contents of the cache; restore contents/"
            )
    if index.data is None:
        return
    for column in index.data.columns:
        if column != known[column.key]:
            raise CacheFormatError(f"{path}: shard {index.shard} has {column}, the cache {known[column.key]}")
    names = ", ".join(column.key for column in index.data.columns if column.precision in QUANTISED)
    try:
        expected = contents.calibration_digest(index.data.columns)
    except KeyError as error:
        raise CacheFormatError(f"{path}: the contents of the cache name no calibration of {error}") from error
    if index.calibration_digest != expected:
        raise CacheFormatError(
            f"{path}: the calibration of {names} is not the one this shard was quantised with; restore vfz.json and "
            "contents/ from the copy the shard belongs to"
        )


def _merge(
    folder: Path,
    plans: Sequence[Plan],
    commits: _Commits,
    column_keys: Sequence[str],
    drops: Mapping[str, Drop],
) -> tuple[dict[VideoKey, LedgerRow], dict[VideoKey, Lacking]]:
    """The row of every planned video, as committed first or pending, and what it lacks.

    The latest plan wins, unless it has no tokens of a video and an earlier one has that no drop hides.
    """
    rows: dict[VideoKey, LedgerRow] = {}
    lacking: dict[VideoKey, Lacking] = {}
    planned = set()
    for plan in plans:
        for shard, videos in plan.shards.items():
            planned.add(shard)
            of_shard = commits.get(shard, ())
            check_commits(folder, shard, of_shard, plan.number, videos)
            if of_shard:
                found = {row.key: row for row in of_shard[0].rows}
            else:
                before = {video.key: rows[video.key].attempts for video in videos if video.key in rows}
                with content_errors(folder / PLAN / f"{plan.number}.json"):
                    found = {video.key: video.pending_row(shard, attempts=before.get(video.key, 0)) for video in videos}
                    for row in found.values():
                        check_row(row)
            hidden = {key: drop for key in found if (drop := drops.get(key[0])) and drop.hides(found[key], plan.number)}
            found |= {key: drop.hidden(found[key]) for key, drop in hidden.items()}
            # Another attempt that has not succeeded hides no tokens that are there.
            is_ok = {key for key in found if key in rows and rows[key].status == "ok"}
            found = {key: row for key, row in found.items() if row.status == "ok" or key not in is_ok}
            rows.update(found)
            for key in found:
                lacking.pop(key, None)
            lacks = lacking_in(of_shard, column_keys)
            lacking.update({key: what for key, what in lacks.items() if key in found and key not in hidden})
    if unplanned := commits.keys() - planned:
        raise CacheFormatError(f"{folder}: no plan names the shards {sorted(unplanned)}; restore plan/")
    return rows, lacking


def _read(cache: CacheFolder) -> Catalog | None:
    """The catalog out of `index.parquet`; None where that is not up to date, or not there, or damaged."""
    paths = {path.name: path for path in cache.commit_paths().values()}
    num_contents = len(contents_paths(cache.path))
    contents = cache.contents()
    try:
        side = read_side(cache.path)
        data = (cache.path / TABLE).read_bytes()
    except (CacheFormatError, OSError):
        return None
    files = side["indexes"]
    num_plans = sum(1 for _ in (cache.path / PLAN).glob("*.json"))
    num_drops = len(drop_paths(cache.path))
    if side[NUM_DROPS] > num_drops:
        raise CacheFormatError(f"{cache.path / DROPS} {lost_drops(side[NUM_DROPS], num_drops)}; restore it from a copy")
    counts = [side["num_plans"], side["num_contents"], side[NUM_DROPS]]
    same_recipe = side["fingerprint"] == cache.header.fingerprint
    if not same_recipe or files.keys() != paths.keys() or counts != [num_plans, num_contents, num_drops]:
        return None
    if side["table"] != _about(data) or not all(file.is_now(paths[name]) for name, file in files.items()):
        return None
    try:
        # One thread: a pool of threads would have to survive forks.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError):
        return None
    known = {"index_files": files, "shard_bytes": side["shard_bytes"], "num_plans": num_plans, "num_drops": num_drops}
    return Catalog(contents=contents, table=table, num_contents=num_contents, **known) if _is_ledger(table) else None


def read_side(folder: Path) -> dict[str, Any]:
    """What `index.json` says, with an `IndexFile` by name under `indexes`; `num_drops` is 0 where it is not said.

    Raises:
        CacheFormatError: when it is not there, damaged or of another form.
    """
    try:
        side = read_checked_json(folder / SIDE, SIDE_KEYS) | {NUM_DROPS: 0}
    except CacheFormatError as error:
        try:
            side = read_checked_json(folder / SIDE, SIDE_KEYS | {NUM_DROPS})
        except CacheFormatError:
            raise error from None
    with content_errors(folder / SIDE):
        side["indexes"] = {name: IndexFile(*values) for name, values in side["indexes"].items()}
        kinds = {tuple(map(type, file)) for file in side["indexes"].values()}
        if kinds - {(str, int, int)} or set(map(type, side["shard_bytes"].values())) - {int}:
            raise TypeError("its files are [digest, bytes, time], its shards have whole numbers of bytes")
        if side["table"].keys() != {"sha256", "num_bytes"}:
            raise ValueError(f"of the table it says {side['table']}, expected sha256 and num_bytes")
    return side


def lost_drops(known: int, num_drops: int) -> str:
    """What is wrong with `drops/` where the side file knows of more: the videos would be read again."""
    return f"has {num_drops} records, {SIDE} knows of {known}: videos that were dropped would be read again"


def _is_ledger(table: pa.Table) -> bool:
    """Whether a table has the columns of `ledger_table`, of these types, and values wherever rows have them."""
    names, folds = table.schema.names, [name for name in table.schema.names if name.startswith(FOLD_PREFIX)]
    own = [field for field in table.schema if field.name not in folds]
    if len(set(names)) != len(names) or own != list(ledger_table([], {}).schema):
        return False
    keys, reasons = table["lacking"], table["lacking_reasons"]
    values = [table[field.name] for field in own if field.name not in {"label", "source_digest"}]
    return (
        all(table.schema.field(name).type == pa.string() for name in folds)
        and not any(array.null_count for array in (*values, pc.list_flatten(keys), pc.list_flatten(reasons)))
        and pc.list_value_length(keys).equals(pc.list_value_length(reasons))
        and set(distinct(table, "status")) <= {*STATUSES}
    )


def _about(table: bytes) -> dict[str, Any]:
    """What the side file says of the table's file."""
    return {"sha256": sha256_hex(table), "num_bytes": len(table)}


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of change. A thousand times per opening: `Path.stat` takes three times as long."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise CacheFormatError(f"cannot read {path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns
