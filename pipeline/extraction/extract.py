"""`vfz extract`: a dataset and an encoder in, a cache out.

The same call again continues: finished shards are never redone, videos that are new or were missing before go into a
new plan, and when nothing is left it says so. What was committed stays committed, whatever happens after.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.decoding.pool import default_num_workers
from vfz.pipeline.engine import run_tasks
from vfz.pipeline.engine.metrics import RunTotals
from vfz.pipeline.errors import CacheMismatchError, TooManyFailuresError
from vfz.pipeline.extract_report import ExtractReport, make_report
from vfz.pipeline.extraction.estimate import check_space, estimate_work
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.extraction.resume import complete_shards, remaining_tasks
from vfz.pipeline.extraction.setup import open_or_create
from vfz.pipeline.format.catalog import is_current, write_catalog
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.ledger_table import lacking_rows
from vfz.pipeline.job import ExtractionJob, ShardTask
from vfz.pipeline.prepare import prepare
from vfz.pipeline.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder


def extract(options: ExtractOptions, *, progress: Progress | None = None) -> ExtractReport:
    """Run a frozen encoder over a dataset and cache the tokens.

    Raises:
        UsageError: a wrong option. DatasetError: no videos. EncoderError: no weights. CacheMismatchError: the cache
        has another recipe, or a video's file changed. StorageError: the disk is full. TooManyFailuresError: more
        videos failed than allowed. In every case what was committed before is kept.
    """
    progress = progress or SilentProgress()
    asked = prepare(options, progress)
    destination = open_or_create(options, asked.dataset, asked.encoder, asked.recipe, asked.records)
    folder = destination.folder
    cache = FeatureCache(folder, allow_incomplete=True)
    before = {row.key: row for row in cache.videos}
    _check_same_videos(folder, before.values(), asked.everything, asked.dataset, progress)
    views = options.views or 1 + max((row.view for row in before.values()), default=0)

    complete = complete_shards(cache, destination.contents)

    def remaining() -> list[ShardTask]:
        return remaining_tasks(
            folder,
            destination.contents,
            asked.recipe.fingerprint,
            asked.records,
            before,
            complete=complete,
            views=views,
            shard_videos=options.shard_videos,
            retry_failed=options.retry_failed,
        )

    tasks = remaining()
    work = estimate_work(tasks, asked.recipe.frames, folder=folder, rows=before.values(), present=asked.present)
    check_space(work, folder, force=options.force)
    tasks = asked.share.of(tasks)
    started = time.perf_counter()
    tried = {video.key for task in tasks for video in task.videos}
    failures = _Failures(folder=folder, allowed=_allowed_failures(options, len(asked.present)))
    totals = RunTotals()
    job = ExtractionJob(
        cache=folder,
        encoder=asked.request,
        num_workers=options.decode_workers or default_num_workers(asked.encoder.device, options.num_processes),
        time_limit_seconds=options.video_timeout,
    )
    try:
        failures.add(row for row in [*before.values(), *lacking_rows(cache.table())] if row.key not in tried)
        while tasks:
            lost = _make_shards(job, tasks, options, destination.encoder, totals, failures, progress)
            # Where another process was first and added other columns, ours are still to be made.
            tasks = [task for task in asked.share.of(remaining()) if task.shard in lost] if lost else []
    except TooManyFailuresError as error:
        error.report = make_report(folder, totals, time.perf_counter() - started)
        raise
    if not is_current(folder):
        write_catalog(folder)
    return make_report(folder, totals, time.perf_counter() - started)


def _make_shards(
    job: ExtractionJob,
    tasks: Sequence[ShardTask],
    options: ExtractOptions,
    encoder: FrozenEncoder,
    totals: RunTotals,
    failures: _Failures,
    progress: Progress,
) -> set[str]:
    """Makes the shards and counts them; returns those that another process was first with.

    Raises:
        TooManyFailuresError: more videos failed than allowed; no further shard is made.
    """
    progress.start("extracting", total=sum(len(task.videos) for task in tasks), unit="videos")
    lost = set()
    for result in run_tasks(job, tasks, dask=options.dask, progress=progress, encoder=encoder):
        totals.add(result)
        failures.add(result.rows)
        if not result.committed:
            lost.add(result.task.shard)
    progress.finish()
    return lost


def _check_same_videos(
    folder: Path, rows: Collection[LedgerRow], everything: list[VideoRecord], dataset: VideoDataset, progress: Progress
) -> None:
    """Refuse to mix two datasets that happen to have the same name; tell of videos that are gone.

    Raises:
        CacheMismatchError: when the cache holds videos, and none of them is in the dataset.
    """
    here = {record.id for record in everything}
    gone = [row.id for row in rows if row.id not in here]
    if rows and len(gone) == len(rows):
        raise CacheMismatchError(
            f"{folder} holds {len(rows)} videos and none of them is in {dataset.root}: that is another dataset of the "
            "same name; give this one another --name"
        )
    if gone:
        progress.note(
            f"{len(gone)} videos of the cache are no longer in {dataset.root} (first: {gone[0]}); "
            "the cache keeps them, so a video that was moved or renamed is in it twice"
        )


def _allowed_failures(options: ExtractOptions, num_present: int) -> int:
    return max(10, num_present // 100) if options.max_failures is None else options.max_failures


@dataclass
class _Failures:
    """The failed videos of a cache, counted as they come."""

    folder: Path
    allowed: int
    rows: list[LedgerRow] = field(default_factory=list)

    def add(self, rows: Iterable[LedgerRow]) -> None:
        """Counts those of the rows that failed.

        Raises:
            TooManyFailuresError: when there are more than allowed.
        """
        self.rows += [row for row in rows if row.status == "failed"]
        if len(self.rows) > self.allowed:
            first = self.rows[0]
            raise TooManyFailuresError(
                f"{len(self.rows)} videos failed, {self.allowed} are allowed; first: {first.id!r}: {first.reason}; "
                f"{self.folder} keeps what was finished: mend the videos, or go on with a larger --max-failures"
            )
