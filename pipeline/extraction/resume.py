"""What an extraction has still to do: commits that are missing from a cache, and videos worth another attempt.

Cost: the plans are read and every file is asked for its times (see `vfz.pipeline.recheck`). Indexes, which are most of
a cache's JSON, are read of those shards only that may lack a column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.errors import CacheMismatchError
from vfz.pipeline.format.commits import ShardIndex, committed_paths, read_commit
from vfz.pipeline.format.header import Contents
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.plan import Plan, PlannedVideo, extend_plans
from vfz.pipeline.job import ShardTask
from vfz.pipeline.recheck import Settled, recheck
from vfz.pipeline.source import VideoSource
from vfz.pipeline.stores import Column

if TYPE_CHECKING:
    from vfz.pipeline.cache.feature_cache import FeatureCache

Key = tuple[str, int]


def complete_shards(cache: FeatureCache, contents: Contents) -> frozenset[str]:
    """The committed shards of a cache whose ok videos all have every column of `contents`."""
    if {column.key for column in contents.columns} - {column.key for column in cache.contents.columns}:
        return frozenset()
    table = cache.table()
    pending = pc.equal(table["status"], "pending")
    lacks = pc.greater(pc.list_value_length(table["lacking"]), 0)
    to_do = table.filter(pc.or_(pending, lacks))["shard"].unique().to_pylist()
    return frozenset(table["shard"].unique().to_pylist()).difference(to_do)


def remaining_tasks(
    folder: Path,
    contents: Contents,
    fingerprint: str,
    records: Sequence[VideoRecord],
    rows: Mapping[Key, LedgerRow],
    *,
    complete: Collection[str],
    views: int,
    shard_videos: int,
    retry_failed: bool,
    plan_videos: Callable[..., tuple[Plan, ...]] = extend_plans,
) -> list[ShardTask]:
    """The commits still to be made; plans what no plan names yet.

    Args:
        folder: the cache.
        contents: what it is to hold.
        fingerprint: of its recipe.
        records: the videos of the dataset that are wanted.
        rows: the ledger so far.
        complete: shards that need no look at their commits, `complete_shards`.
        views: how many crops of every video are wanted.
        shard_videos: videos per new shard.
        retry_failed: try failed videos once more.
        plan_videos: `extend_plans`, or `preview_plans` to write nothing.

    Raises:
        CacheMismatchError: when a finished video's file is another one now.
        CacheFormatError: when a plan or an index is damaged.
        StorageError: when the disk is full.
    """
    commits: dict[str, list[Path]] = {}
    for (shard, _), path in committed_paths(folder).items():
        commits.setdefault(shard, []).append(path)
    again = _to_try_again(records, rows, folder, retry_failed=retry_failed)
    plans = plan_videos(folder / "plan", records, shard_size_videos=shard_videos, views=range(views), again=again)
    sources = {record.id: record.source for record in records}
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
                sources={video.id: sources.get(video.id, VideoSource(path=Path(video.path))) for video in videos},
                attempts={video.key: rows[video.key].attempts for video in videos if video.key in rows},
            )
            of_shard = [read_commit(path, fingerprint) for path in commits.get(shard, ())]
            tasks += _additions(first, of_shard, retry_failed=retry_failed) if of_shard else [first]
    return tasks


def _additions(first: ShardTask, commits: Sequence[ShardIndex], *, retry_failed: bool) -> list[ShardTask]:
    """The commits that bring the videos of a shard the columns they do not have yet.

    Columns that came to the cache after the shard, and those that could not be made for a video and may be now: its
    file was missing and is there again, or another attempt is asked for.
    """
    ok = {row.key: row for row in commits[0].rows if row.status == "ok"}
    outcomes: dict[tuple[Key, str], list[str]] = defaultdict(list)
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
    rows: Mapping[Key, LedgerRow],
    folder: Path,
    *,
    retry_failed: bool,
) -> set[Key]:
    """Videos that get another attempt: missing ones that are there now, and failed ones that changed or are asked for.

    Raises:
        CacheMismatchError: when a finished video's file is another one now.
    """
    by_id: dict[str, list[LedgerRow]] = {}
    for row in rows.values():
        if row.status != "pending":
            by_id.setdefault(row.id, []).append(row)
    settled = [Settled(record.source, by_id[record.id]) for record in records if record.id in by_id]
    again = set()
    for (source, of_video), is_same in recheck(folder, settled):
        for row, same in zip(of_video, is_same, strict=True):
            if row.status == "ok" and not same:
                raise CacheMismatchError(
                    f"video {row.id!r}: {source} is not the file that {folder} was made from; "
                    "give the new one another id, or make another cache with --name"
                )
            if row.status == "missing" or (row.status == "failed" and (retry_failed or not same)):
                again.add(row.key)
    return again
