"""What an extraction has still to do: commits that are missing from a cache, and videos worth another attempt.

The files of finished videos must still be those they were made from, and not all can be read at each start. A file that
was written, renamed or linked since the commit of its video has a later time of change (ctime), which no program can
set back. So one question to the file system for each file tells which ones to read. The files of a dataset that lies
elsewhere now are read, too, and the first file of each folder: a folder that was swapped as a whole shows in no file's
time. What slips through (one old file in a swapped folder; files that changed before a cache was copied, which makes
its commits look newer) is still refused when another layer of that video is made.

Cost: the plans are read, and indexes, which are most of a cache's JSON, of those shards only that may lack a column.
240,000 stats in threads take some seconds on a local disk; 128 KiB are read of each file that changed.
"""

from __future__ import annotations

import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pyarrow.compute as pc

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.engine.tasks import ShardTask
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.files import name_of_text
from vfz.pipeline.format.commits import ShardIndex
from vfz.pipeline.format.drops import Drop, write_drop
from vfz.pipeline.format.header import Contents
from vfz.pipeline.format.ledger import LedgerRow, VideoKey
from vfz.pipeline.format.plan import PlannedVideo, ShardSize
from vfz.pipeline.stores import Column

if TYPE_CHECKING:
    from vfz.pipeline.format.catalog import Catalog
    from vfz.pipeline.format.folder import CacheFolder

CLOCK_SKEW_NS = 3600 * 10**9
"""By how much the clocks of the machines that hold videos and cache may differ."""
DAY_NS = 86400 * 10**9
MAX_FOLDERS = 256
"""Of how many folders one file is read in any case."""
_NUM_THREADS = 16
_BATCH = 256
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def remaining_tasks(
    cache: CacheFolder,
    contents: Contents,
    records: Sequence[VideoRecord],
    rows: Mapping[VideoKey, LedgerRow],
    *,
    complete: Collection[str],
    views: int,
    shard_videos: ShardSize,
    retry_failed: bool,
    replace_changed: bool = False,
    preview: bool = False,
) -> list[ShardTask]:
    """The commits still to be made; plans what no plan names yet.

    Args:
        cache: the cache.
        contents: what it is to hold.
        records: the videos of the dataset that are wanted.
        rows: the ledger so far.
        complete: shards that need no look at their commits, `complete_shards`.
        views: how many crops of every video are wanted.
        shard_videos: videos per new shard, or what says how many. As a number it must be that of the shards which are
            planned and not begun.
        retry_failed: try failed videos once more.
        replace_changed: make finished videos again whose file is another one now; nobody reads the old ones from then
            on.
        preview: write no plan and no drop.

    Raises:
        UsageError: when shards of another size are planned already.
        CacheMismatchError: when a finished video's file is another one now, and is not to be replaced.
        CacheFormatError: when a plan or an index is damaged.
        StorageError: when the disk is full.
    """
    commits: dict[str, list[Path]] = {}
    for (shard, _), path in cache.commit_paths().items():
        commits.setdefault(shard, []).append(path)
    if isinstance(shard_videos, int):
        _check_size_of_planned(cache, shard_videos, commits)
    dropped = {video_id for video_id, drop in cache.drops().items() if drop.kind == "dropped"}
    again, changed = _to_try_again(
        records, rows, cache, dropped=dropped, retry_failed=retry_failed, replace_changed=replace_changed
    )
    if changed and not preview:
        _drop_replaced(cache, changed)
    again |= _left_by_closed_shards(cache, rows, commits)
    dropped -= {row.id for row in changed}
    wanted = [record for record in records if record.id not in dropped]  # not in another view either
    plans = cache.extend_plans(wanted, shard_size_videos=shard_videos, views=range(views), again=again, preview=preview)
    sources = {record.id: record.source for record in records}
    drops = cache.drops()
    tasks = []
    for plan in plans:
        for shard, videos in plan.shards.items():
            if shard in complete:
                continue
            first = ShardTask(
                shard=shard,
                plan=plan.number,
                number=0,
                columns=contents.columns,
                videos=videos,
                sources={video.id: sources.get(video.id, _planned_source(video)) for video in videos},
                attempts={video.key: rows[video.key].attempts for video in videos if video.key in rows},
            )
            of_shard = [cache.read_commit(path) for path in commits.get(shard, ())]
            is_read = [not (drop := drops.get(video.id)) or drop.videos[video.id] < plan.number for video in videos]
            if not of_shard:
                tasks.append(first)
            elif any(is_read):
                read = replace(first, videos=tuple(compress(videos, is_read)))
                tasks += _additions(read, of_shard, retry_failed=retry_failed)
    return tasks


def _drop_replaced(cache: CacheFolder, changed: Collection[LedgerRow]) -> None:
    """Records that nobody is to read these rows any more; before the next plan, so that a kill leaves no mix."""
    plan_of = {shard: plan.number for plan in cache.plans() for shard in plan.shards}
    known = cache.drops()
    last: dict[str, int] = {}
    for row in changed:
        last[row.id] = max(last.get(row.id, 0), plan_of[row.shard])
    new = {
        key: plan
        for key, plan in last.items()
        if key not in known or known[key].kind == "dropped" or known[key].videos[key] < plan
    }
    if new:
        why = "its file is another one now; the same vfz extract makes it again"
        write_drop(cache.path, Drop.now("replaced", new, why=why))


def _left_by_closed_shards(
    cache: CacheFolder, rows: Mapping[VideoKey, LedgerRow], commits: Mapping[str, Sequence[Path]]
) -> dict[VideoKey, str]:
    """Videos of shards that were closed before them, since someone asked to stop; such a shard stays as it is.

    The commits say so themselves: rows that were read before may be older than a commit of another process.
    """
    shards = {row.shard for row in rows.values() if row.status == "pending" and row.shard in commits}
    firsts = [cache.read_commit(commits[shard][0]) for shard in sorted(shards)]
    return {row.key: row.shard for index in firsts for row in index.rows if row.status == "pending"}


def _check_size_of_planned(cache: CacheFolder, shard_videos: int, commits: Collection[str]) -> None:
    """Refuses to go on with other shards than those that are planned: other processes may be making them."""
    for plan in cache.plans():
        if plan.shards.keys() <= set(commits):
            continue
        of_view: dict[int, list[int]] = {}
        for videos in plan.shards.values():
            of_view.setdefault(videos[0].view, []).append(len(videos))
        if any({*sizes[:-1]} - {shard_videos} or sizes[-1] > shard_videos for sizes in of_view.values()):
            size = max(max(sizes) for sizes in of_view.values())
            raise UsageError(
                f"--shard-videos {shard_videos}: {cache.path} has planned its videos in shards of {size}, and some of "
                "these are still to be made; leave the option out to go on"
            )


def _planned_source(video: PlannedVideo) -> VideoSource:
    return VideoSource(path=Path(name_of_text(video.path)))


def complete_shards(catalog: Catalog, contents: Contents) -> frozenset[str]:
    """The committed shards of a cache whose ok videos all have every column of `contents`."""
    if {column.key for column in contents.columns} - {column.key for column in catalog.contents.columns}:
        return frozenset()
    table = catalog.table
    pending = pc.equal(table["status"], "pending")
    lacks = pc.greater(pc.list_value_length(table["lacking"]), 0)
    to_do = table.filter(pc.or_(pending, lacks))["shard"].unique().to_pylist()
    return frozenset(table["shard"].unique().to_pylist()).difference(to_do)


def _additions(first: ShardTask, commits: Sequence[ShardIndex], *, retry_failed: bool) -> list[ShardTask]:
    """The commits that bring the videos of a shard the columns they do not have yet.

    Columns that came to the cache after the shard, and those that could not be made for a video and may be now: its
    file was missing and is there again, or another attempt is asked for.
    """
    ok = {row.key: row for row in commits[0].rows if row.status == "ok"}
    outcomes: dict[tuple[VideoKey, str], list[str]] = defaultdict(list)
    for index in commits:
        for row in index.rows:
            for column_key in index.column_keys:
                outcomes[row.key, column_key].append(row.status)
    missing: dict[tuple[Column, ...], list[PlannedVideo]] = {}
    for video in first.videos:
        if video.key not in ok:
            continue
        columns = tuple(
            column
            for column in first.columns
            if _is_wanted(outcomes[video.key, column.key], first.sources[video.id], retry_failed=retry_failed)
        )
        if columns:
            missing.setdefault(columns, []).append(video)
    number = 1 + max(index.number for index in commits)
    return [
        replace(first, number=number + place, columns=columns, videos=tuple(videos), first_rows=ok)
        for place, (columns, videos) in enumerate(missing.items())
    ]


def _is_wanted(outcomes: Sequence[str], source: VideoSource, *, retry_failed: bool) -> bool:
    """Whether a video has no tokens of a column and an attempt at them is due.

    Args:
        outcomes: of the attempts so far, in the order of the commits.
        source: where the video is.
        retry_failed: as in `remaining_tasks`.
    """
    if "ok" in outcomes:
        return False
    return not outcomes or (source.exists() and (retry_failed or outcomes[-1] == "missing"))


def _to_try_again(
    records: Iterable[VideoRecord],
    rows: Mapping[VideoKey, LedgerRow],
    cache: CacheFolder,
    *,
    dropped: Collection[str],
    retry_failed: bool,
    replace_changed: bool,
) -> tuple[dict[VideoKey, str], list[LedgerRow]]:
    """Videos that get another attempt: missing ones that are there now, and failed ones that changed or are asked for.

    Each with the shard that says so. Those that someone dropped stay out, unless another file is to replace them.

    Returns:
        Them, and the rows of those that are replaced.

    Raises:
        CacheMismatchError: when a finished video's file is another one now, and is not to be replaced.
    """
    by_id: dict[str, list[LedgerRow]] = {}
    for row in rows.values():
        if row.status != "pending":
            by_id.setdefault(row.id, []).append(row)
    tried = [TriedVideo(record.source, by_id[record.id]) for record in records if record.id in by_id]
    again, changed = {}, []
    for (source, of_video), is_same in compare_sources(cache, tried):
        for row, same in zip(of_video, is_same, strict=True):
            if row.status == "ok" and not same and not replace_changed:
                raise CacheMismatchError(
                    f"video {row.id!r}: {source} is not the file that {cache.path} was made from; --replace encodes it "
                    "again; or give the new one another id, or make another cache with --name"
                )
            if not same and (row.status == "ok" or row.id in dropped) and replace_changed:
                changed.append(row)
                again[row.key] = row.shard
            elif row.id not in dropped and (
                row.status == "missing" or (row.status == "failed" and (retry_failed or not same))
            ):
                again[row.key] = row.shard
    return again, changed


def compare_sources(cache: CacheFolder, tried: Sequence[TriedVideo]) -> list[ComparedVideo]:
    """Those of the videos whose files are there, compared with what the cache was made from.

    Args:
        cache: the cache.
        tried: videos that were tried.
    """
    committed_ns = _commit_times(cache)
    paths = [os.fspath(video.source.path) for video in tried]
    of_path = list(dict.fromkeys(paths))  # many videos may lie in one tar
    changed_ns = dict(zip(of_path, _in_threads(_changed_ns, of_path), strict=True))
    there = {number: ns for number, path in enumerate(paths) if (ns := changed_ns[path]) is not None}
    drawn = _one_of_each_folder(paths, there)
    suspects = [
        number for number, ns in there.items() if number in drawn or _may_differ(tried[number], ns, committed_ns)
    ]
    digests = dict(zip(suspects, _in_threads(_digest, [tried[number].source for number in suspects]), strict=True))
    return [
        ComparedVideo(
            tried[number],
            [number not in digests or digests[number] == row.source_digest for row in tried[number].rows],
        )
        for number in there
    ]


class TriedVideo(NamedTuple):
    """A video that was tried, and its rows, one for each view."""

    source: VideoSource
    rows: Sequence[LedgerRow]


class ComparedVideo(NamedTuple):
    """A tried video whose file is there.

    Attributes:
        video: which.
        is_same: whether each row was made from that file; False, too, where it can no longer be read.
    """

    video: TriedVideo
    is_same: Sequence[bool]


def _commit_times(cache: CacheFolder) -> dict[str, int]:
    """When the first commit of each shard was made, by the clock of the file system.

    One that is a day in the future is left out: the clock was set back, and videos that are changed now seem older.
    """
    times = {shard: path.stat().st_mtime_ns for (shard, number), path in cache.commit_paths().items() if not number}
    return {shard: time_ns for shard, time_ns in times.items() if time_ns <= time.time_ns() + DAY_NS}


def _may_differ(video: TriedVideo, changed_ns: int, committed_ns: Mapping[str, int]) -> bool:
    return any(
        changed_ns > committed_ns.get(row.shard, 0) - CLOCK_SKEW_NS or not _is_at(video.source, row.source_path)
        for row in video.rows
    )


def _is_at(source: VideoSource, path: str) -> bool:
    path = name_of_text(path)
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
