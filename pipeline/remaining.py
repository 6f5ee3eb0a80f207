"""What an extraction has still to do: commits that are missing from a cache, and videos worth another attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vfz.pipeline.commit import ShardIndex, committed_shards
from vfz.pipeline.contents import Contents
from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.errors import CacheMismatchError
from vfz.pipeline.files import source_digest
from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.plan import Plan, PlannedVideo, extend_plans
from vfz.pipeline.shard import ShardTask

Key = tuple[str, int]


def remaining_tasks(
    folder: Path,
    contents: Contents,
    fingerprint: str,
    records: Sequence[VideoRecord],
    rows: Mapping[Key, LedgerRow],
    *,
    views: int,
    shard_videos: int,
    retry_failed: bool,
) -> list[ShardTask]:
    """The commits still to be made; plans what no plan names yet.

    Args:
        folder: the cache.
        contents: what it is to hold.
        fingerprint: of its recipe.
        records: the videos of the dataset that are wanted.
        rows: the ledger so far.
        views: how many crops of every video are wanted.
        shard_videos: videos per new shard.
        retry_failed: try failed videos once more.

    Raises:
        CacheMismatchError: when a finished video's file is another one now.
        StorageError: when the disk is full.
    """
    commits: dict[str, list[ShardIndex]] = {}
    for index in committed_shards(folder, fingerprint):
        commits.setdefault(index.shard, []).append(index)
    lacking = _lacking((index for of_shard in commits.values() for index in of_shard), rows)
    again = _to_try_again(records, rows, lacking, folder, retry_failed=retry_failed)
    plans = extend_plans(folder / "plan", records, shard_size_videos=shard_videos, views=range(views), again=again)
    paths = {record.id: record.path for record in records}
    attempts = {key: row.attempts for key, row in rows.items()}
    tasks = []
    for plan in plans:
        for shard, videos in plan.shards.items():
            where = {video.id: paths.get(video.id, Path(video.path)) for video in videos}
            tasks += _tasks_of(shard, plan, videos, commits.get(shard, []), contents, where, attempts)
    return tasks


def _tasks_of(
    shard: str,
    plan: Plan,
    videos: tuple[PlannedVideo, ...],
    commits: Sequence[ShardIndex],
    contents: Contents,
    paths: Mapping[str, Path],
    attempts: Mapping[Key, int],
) -> list[ShardTask]:
    """The next commit of a shard: its first, or one with the columns that the others left out."""
    first = next((index for index in commits if index.number == 0), None)
    if first is None:
        return [
            ShardTask(
                shard=shard, plan=plan.number, number=0, columns=contents.columns, videos=videos, paths=paths,
                attempts=attempts,
            )
        ]  # fmt: skip
    tried = {key for index in commits for key in index.column_keys}
    missing = tuple(column for column in contents.columns if column.key not in tried)
    if first.data is None or not missing:
        return []
    ok = {row.key: row for row in first.rows if row.status == "ok"}
    return [
        ShardTask(
            shard=shard,
            plan=plan.number,
            number=1 + max(index.number for index in commits),
            columns=missing,
            videos=tuple(video for video in videos if video.key in ok),
            paths=paths,
            attempts=attempts,
            first_rows=ok,
        )
    ]


def _lacking(indexes: Iterable[ShardIndex], rows: Mapping[Key, LedgerRow]) -> dict[Key, str]:
    """Videos whose later columns could not be made in the shard that counts, and what happened: failed or missing."""
    return {
        row.key: row.status
        for index in indexes
        if index.number
        for row in index.rows
        if row.status != "ok" and row.key in rows and rows[row.key].shard == index.shard
    }


def _to_try_again(
    records: Iterable[VideoRecord],
    rows: Mapping[Key, LedgerRow],
    lacking: Mapping[Key, str],
    folder: Path,
    *,
    retry_failed: bool,
) -> set[Key]:
    """Videos that get another attempt: missing ones that are there now, and failed ones that changed or are asked for.

    Raises:
        CacheMismatchError: when a finished video's file is another one now.
    """
    again = set()
    by_id: dict[str, list[LedgerRow]] = {}
    for row in rows.values():
        by_id.setdefault(row.id, []).append(row)
    for record in records:
        settled = [row for row in by_id.get(record.id, []) if row.status != "pending"]
        if not settled or not record.path.exists():
            continue
        try:
            digest = source_digest(record.path)
        except OSError:
            digest = None  # unreadable now: extraction will say so if it is tried
        for row in settled:
            if row.status == "ok" and digest != row.source_digest:
                raise CacheMismatchError(
                    f"video {record.id!r}: {record.path} is not the file that {folder} was made from; "
                    "give the new one another id, or make another cache with --name"
                )
            status = lacking.get(row.key, row.status)
            if status == "missing" or (status == "failed" and (retry_failed or digest != row.source_digest)):
                again.add(row.key)
    return again
