"""Whether the files of finished videos are still those they were made from, without reading all of them at each start.

A file that was written, renamed or linked since the commit of its video has a later time of change (ctime), which no
program can set back. So one question to the file system for each file tells which ones to read. The files of a dataset
that lies elsewhere now are read, too, and the first file of each folder: a folder that was swapped as a whole shows in
no file's time. What slips through (one old file in a swapped folder; files that changed before a cache was copied,
which makes its commits look newer) is still refused when another layer of that video is made.

Cost: 240,000 stats in threads, some seconds on a local disk; 128 KiB of each file that changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from vfz.pipeline.format.commits import committed_paths

if TYPE_CHECKING:
    from pathlib import Path

    from vfz.pipeline.format.ledger import LedgerRow
    from vfz.pipeline.source import VideoSource

CLOCK_SKEW_NS = 3600 * 10**9
"""By how much the clocks of the machines that hold videos and cache may differ."""
MAX_FOLDERS = 256
"""Of how many folders one file is read in any case."""
_NUM_THREADS = 16
_BATCH = 256
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Settled(NamedTuple):
    """A video that was tried, and its rows, one for each view."""

    source: VideoSource
    rows: Sequence[LedgerRow]


class NowThere(NamedTuple):
    """A settled video whose file is there.

    Attributes:
        settled: which.
        is_same: whether each row was made from that file; False, too, where it can no longer be read.
    """

    settled: Settled
    is_same: Sequence[bool]


def recheck(folder: Path, settled: Sequence[Settled]) -> list[NowThere]:
    """Those of the videos whose files are there, compared with what the cache was made from.

    Args:
        folder: the cache.
        settled: videos that were tried.
    """
    committed_ns = _commit_times(folder)
    paths = [os.fspath(video.source.path) for video in settled]
    of_path = list(dict.fromkeys(paths))  # many videos may lie in one tar
    changed_ns = dict(zip(of_path, _in_threads(_changed_ns, of_path), strict=True))
    there = {number: ns for number, path in enumerate(paths) if (ns := changed_ns[path]) is not None}
    drawn = _one_of_each_folder(paths, there)
    suspects = [
        number for number, ns in there.items() if number in drawn or _may_differ(settled[number], ns, committed_ns)
    ]
    digests = dict(zip(suspects, _in_threads(_digest, [settled[number].source for number in suspects]), strict=True))
    return [
        NowThere(
            settled[number],
            [number not in digests or digests[number] == row.source_digest for row in settled[number].rows],
        )
        for number in there
    ]


def _commit_times(folder: Path) -> dict[str, int]:
    """When the first commit of each shard was made, by the clock of the file system."""
    return {shard: path.stat().st_mtime_ns for (shard, number), path in committed_paths(folder).items() if not number}


def _may_differ(video: Settled, changed_ns: int, committed_ns: Mapping[str, int]) -> bool:
    return any(
        changed_ns > committed_ns.get(row.shard, 0) - CLOCK_SKEW_NS or not _is_at(video.source, row.source_path)
        for row in video.rows
    )


def _is_at(source: VideoSource, path: str) -> bool:
    return str(source) == path or str(source.absolute()) == path  # the first is the quicker one to find out


def _one_of_each_folder(paths: Sequence[str], numbers: Iterable[int]) -> set[int]:
    first: dict[str, int] = {}
    for number in numbers:
        first.setdefault(os.path.dirname(paths[number]), number)  # noqa: PTH120 - a quarter of a million times
    return set(islice(first.values(), 0, None, max(1, -(-len(first) // MAX_FOLDERS))))


def _changed_ns(path: str) -> int | None:
    """When a file, or a link to it, was last written, renamed or linked; None where it is not there."""
    try:
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return status.st_ctime_ns
        return max(status.st_ctime_ns, os.stat(path).st_ctime_ns)  # noqa: PTH116 - as above
    except (OSError, ValueError):
        return None


def _digest(source: VideoSource) -> str | None:
    try:
        return source.digest()
    except OSError:
        return None  # unreadable now: extraction will say so if it is tried


def _in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results in order; network storage answers many questions in the time of one."""
    batches = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        done = pool.map(lambda batch: [function(item) for item in batch], batches)
        return [result for batch in done for result in batch]
