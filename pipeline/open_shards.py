"""The shards of a cache, each opened when it is first read, in the process that reads it.

What a shard's indexes say is read and checked then, and not before: opening a cache touches none of them. The number of
shards with open files is bounded by what the system allows; readers stay, so that a chunk's checksum is compared once
per process however often its file is closed and opened. Nothing open is shared over a fork or a pickle.
"""

from __future__ import annotations

import os
import resource
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfz.pipeline.errors import CacheError, CacheFormatError
from vfz.pipeline.format.catalog import check_index
from vfz.pipeline.format.commits import SHARDS, read_shard_index
from vfz.pipeline.sealed import read_sealed_digest
from vfz.pipeline.stores import Checksums, ShardReader, get_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from vfz.pipeline.format.header import Contents
    from vfz.pipeline.stores import ShardData

_MAX_OPEN_FILES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """Where shards are, and what they must fit.

    Attributes:
        path: the cache's folder.
        fingerprint: of its recipe.
        contents: its columns.
        index_digests: of the index files that count, by file name.
        checksums: when chunks are compared with theirs.
    """

    path: Path
    fingerprint: str
    contents: Contents
    index_digests: Mapping[str, str]
    checksums: Checksums


@dataclass(frozen=True, kw_only=True)
class _Commit:
    """One commit of a shard: its reader, and where in it each ok video begins."""

    reader: ShardReader
    column_keys: frozenset[str]
    starts: Mapping[tuple[str, int], int]


class OpenShards:
    """Readers of shards, by video and column.

    Args:
        source: which shards.

    Attributes:
        source: as given.
        max_open: how many shards have open files at a time.
    """

    def __init__(self, source: ShardSource) -> None:
        self.source = source
        self._commits: dict[str, tuple[_Commit, ...]] = {}
        self._names: dict[str, list[tuple[int, str]]] = {}
        for name in source.index_digests:
            shard, number, _ = name.split(".", 2)
            self._names.setdefault(shard, []).append((int(number), name))
        # At most half of the files this process may have open: a child may inherit as many as it opens. A shard has
        # one per array of its columns, and one per commit for the times.
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        columns = source.contents.columns
        files_per_shard = sum(1 + len(column.arrays) for column in columns)
        self.max_open = max(1, min(soft_limit, _MAX_OPEN_FILES) // 2 // files_per_shard)
        self._begin_process()

    def find(
        self, shard: str, column_keys: Iterable[str], video: tuple[str, int]
    ) -> list[tuple[ShardReader, int] | None]:
        """For each column of a video the reader that has it, and the number of its first frame there; None: none has.

        Args:
            shard: the one its row names.
            column_keys: such as `layer_5/patch`.
            video: its id and view.

        Raises:
            CacheFormatError: when an index of the shard is damaged or none of this cache's.
            CacheError: when it was replaced since the cache was opened.
        """
        found: dict[str, tuple[ShardReader, int]] = {}
        for commit in self._opened(shard):  # the latest wins
            start = commit.starts.get(video)
            if start is not None:
                found |= dict.fromkeys(commit.column_keys, (commit.reader, start))
        return [found.get(key) for key in column_keys]

    def close(self) -> None:
        """Lets go of open files; a later read opens them again."""
        with self._lock:
            while self._open:
                self._close(self._open.popitem()[0])

    def __getstate__(self) -> ShardSource:
        return self.source

    def __setstate__(self, source: ShardSource) -> None:
        self.__init__(source)  # type: ignore[misc]

    def _begin_process(self) -> None:
        """A lock and a list of open shards of this process; what was open before a fork is let go."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, None] = OrderedDict()
        self._pid = os.getpid()
        for shard in self._commits:
            self._close(shard)

    def _opened(self, shard: str) -> tuple[_Commit, ...]:
        """The shard's commits; closes the files of the shard not used for longest when too many are open."""
        if self._pid != os.getpid():
            self._begin_process()
        with self._lock:
            commits = self._commits.get(shard)
            if commits is None:
                commits = self._commits[shard] = self._read(shard)
            self._open[shard] = None
            self._open.move_to_end(shard)
            if len(self._open) > self.max_open:
                self._close(self._open.popitem(last=False)[0])
            return commits

    def _read(self, shard: str) -> tuple[_Commit, ...]:
        source, commits = self.source, []
        for _, name in sorted(self._names.get(shard, ())):
            path = source.path / SHARDS / name
            index = read_shard_index(path)
            if read_sealed_digest(path) != source.index_digests[name]:
                raise CacheError(f"shard {shard} was replaced since {source.path} was opened: open the cache again")
            check_index(path, index, source.fingerprint, source.contents)
            if (data := index.data) is None:
                continue
            reader = get_store(data.store).reader(
                source.path / SHARDS / data.name, _compact(data), checksums=source.checksums
            )
            starts = {row.key: row.frame_start for row in index.rows if row.status == "ok"}
            commits.append(_Commit(reader=reader, column_keys=frozenset(index.column_keys), starts=starts))
        if not commits:
            raise CacheFormatError(f"{source.path}: shard {shard} has no data; restore it from a copy")
        return tuple(commits)

    def _close(self, shard: str) -> None:
        for commit in self._commits[shard]:
            commit.reader.close()


def _compact(data: ShardData) -> ShardData:
    """The same with checksums in 4 bytes each: as Python integers those of a large cache would fill gigabytes."""
    try:
        chunks = {key: replace(record, crc32c=array("I", record.crc32c)) for key, record in data.chunks.items()}
    except (TypeError, OverflowError) as error:
        raise CacheFormatError(f"the index of {data.name} holds checksums that are none: {error}") from error
    return replace(data, chunks=chunks)
