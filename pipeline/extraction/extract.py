"""`vfz extract`: a dataset and an encoder in, a cache out, and a report of what came of it.

The same call again continues: finished shards are never redone, videos that are new or were missing before go into a
new plan, and when nothing is left it says so. What was committed stays committed, whatever happens after.

The report says what is in the cache now, what this call did, how fast, and what went wrong. Failures are told by kind:
"moov atom not found" a thousand times is one line and not a thousand. A reason names its video and says where it broke,
so no two are the same text; without the video's names and with every number replaced, those of one kind are.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.datasets.base import Gaps
from vfz.pipeline.datasets.text import clean
from vfz.pipeline.decoding.pool import default_num_workers
from vfz.pipeline.engine.extractor import run_tasks
from vfz.pipeline.engine.metrics import RunTotals, bottleneck_of, busy_shares
from vfz.pipeline.engine.tasks import ExtractionJob, ShardTask
from vfz.pipeline.errors import CacheMismatchError, TooManyFailuresError
from vfz.pipeline.extraction.destination import label_command, open_or_create
from vfz.pipeline.extraction.estimate import check_space, estimate_work, shard_size
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.extraction.resume import complete_shards, remaining_tasks
from vfz.pipeline.extraction.setup import Prepared, prepare
from vfz.pipeline.format.catalog import Catalog, current_catalog, open_catalog
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.ledger import LedgerRow, LedgerRows, lacking_rows
from vfz.pipeline.progress import Progress, SilentProgress, counted

if TYPE_CHECKING:
    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.extraction.listing import Listing

VIDEO, NUMBER = "VIDEO", "N"
"""What stands in a kind for the video's name and for a number."""
_NUMBER = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?(?!\w)")


def extract(
    options: ExtractOptions, *, progress: Progress | None = None, listing: Listing | None = None
) -> ExtractReport:
    """Run a frozen encoder over a dataset and cache the tokens.

    Args:
        options: what is asked for.
        progress: is told what happens.
        listing: the videos, where `list_videos` has listed them already.

    Raises:
        UsageError: a wrong option. DatasetError: no videos. EncoderError: no weights. CacheMismatchError: the cache
        has another recipe, or a video's file changed. StorageError: the disk is full. TooManyFailuresError: more
        videos failed than allowed. In every case what was committed before is kept.
    """
    progress = progress or SilentProgress()
    prepared = prepare(options, progress, listing)
    destination = open_or_create(options, prepared)
    cache = destination.cache
    catalog = open_catalog(cache)
    before = {row.key: row for row in LedgerRows(catalog.table)}
    prepared = prepared.with_ids_of(row.id for row in before.values())
    prepared = prepared.with_classes_of(destination.contents.class_names)
    _check_same_videos(before.values(), options, prepared, progress)
    views = options.views or 1 + max((row.view for row in before.values()), default=0)

    complete = complete_shards(catalog, destination.contents)

    def remaining() -> list[ShardTask]:
        return remaining_tasks(
            cache,
            destination.contents,
            prepared.records,
            before,
            complete=complete,
            views=views,
            shard_videos=options.shard_videos or shard_size(prepared.recipe.frames, prepared.records, destination),
            retry_failed=options.retry_failed,
            replace_changed=options.replace,
        )

    tasks = remaining()
    work = estimate_work(
        tasks, prepared.recipe.frames, folder=cache.path, rows=before.values(), present=prepared.present
    )
    check_space(work, cache.path, force=options.force)
    tasks = prepared.share.of(tasks)
    started = time.perf_counter()
    tried = {video.key for task in tasks for video in task.videos}
    failures = _Failures(folder=cache.path, allowed=_allowed_failures(options, len(prepared.present)))
    totals = RunTotals()
    job = ExtractionJob(
        cache=cache,
        encoder=prepared.request,
        num_workers=options.decode_workers or default_num_workers(prepared.encoder.device, options.num_processes),
        time_limit_seconds=options.video_timeout,
    )
    try:
        failures.add(row for row in [*before.values(), *lacking_rows(catalog.table)] if row.key not in tried)
        while tasks:
            lost = _make_shards(job, tasks, options, destination.encoder, totals, failures, progress)
            # Where another process was first and added other columns, ours are still to be made.
            tasks = [task for task in prepared.share.of(remaining()) if task.shard in lost] if lost else []
    except TooManyFailuresError as error:
        error.report = make_report(cache, open_catalog(cache), totals, time.perf_counter() - started, prepared.gaps)
        raise
    return make_report(cache, current_catalog(cache), totals, time.perf_counter() - started, prepared.gaps)


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction ended with.

    Attributes:
        cache: the cache's folder.
        num_ok, num_failed, num_missing: videos in the whole cache.
        num_unlabelled: videos of the dataset's splits that are wanted and have no label.
        left_out: files that lie there and are no videos of the dataset, by reason.
        empty_classes: names of the classes that no video has.
        num_lacking: those of the ok ones that have no tokens of a layer that was added later.
        num_pending: those of its plan that no process has done yet.
        num_frames: frames in the whole cache.
        cache_bytes: size of the committed data.
        num_tried, new_videos, new_frames, new_bytes, seconds: done by this call: videos tried, those of them that went
            well, their frames, their size in the cache, and the time from decoding to commit.
        frames_per_second, bytes_per_second: of the new ones; 0 where nothing was left to do.
        batch_size: frames encoded at a time in the end, fewer than asked for where memory did not suffice; None where
            nothing was encoded.
        stages: of this call, by name; empty where nothing was left to do.
        bottleneck: the stage that the others waited for.
        failure_kinds: why videos of the whole cache are not in it, most frequent first.
        failures: the reason in full by video id.
    """

    cache: str
    fingerprint: str
    num_ok: int
    num_failed: int
    num_missing: int
    num_unlabelled: int
    left_out: Mapping[str, int]
    empty_classes: tuple[str, ...]
    num_lacking: int
    num_pending: int
    num_frames: int
    cache_bytes: int
    num_tried: int
    new_videos: int
    new_frames: int
    new_bytes: int
    seconds: float
    frames_per_second: float
    bytes_per_second: float
    batch_size: int | None
    stages: Mapping[str, StageReport]
    bottleneck: str | None
    failure_kinds: tuple[FailureKind, ...]
    failures: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of the pipeline.

    Attributes:
        seconds: how long it was at work, in all processes together that encode; of decoding, on average over the decode
            processes of each.
        busy: the share of the time that it was, 0 to 1.
    """

    seconds: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class FailureKind:
    """Videos that are not in the cache for the same reason.

    Attributes:
        status: failed or missing.
        reason: theirs, without the names and numbers in which they differ.
        num_videos: how many there are.
        example_id, example_reason: one of them, and the reason in full.
    """

    status: str
    reason: str
    num_videos: int
    example_id: str
    example_reason: str


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
    rows: Collection[LedgerRow], options: ExtractOptions, prepared: Prepared, progress: Progress
) -> None:
    """Refuse to mix two datasets that happen to have the same name; tell of videos that are gone or called otherwise.

    Raises:
        CacheMismatchError: when the cache holds videos, and none of them is in the dataset.
    """
    folder, root = prepared.cache.path, prepared.dataset.root
    here = {record.id: record for record in prepared.everything}
    gone = [row.id for row in rows if row.id not in here]
    command = label_command(folder, options, prepared)
    if rows and len(gone) == len(rows):
        raise CacheMismatchError(
            f"{folder} holds {len(rows)} videos and none of them is in {root}: that is another dataset of the same "
            f"name; give this one another --name (where its files are the same, sorted otherwise, {command} gives the "
            "cache their labels)"
        )
    if gone:
        progress.note(
            f"{len(gone)} videos of the cache are no longer in {root} (first: {gone[0]}); "
            "the cache keeps them, so a video that was moved or renamed is in it twice"
        )
    own = prepared.cache.contents().class_names
    new = here.keys() - {row.id for row in rows}
    if new and prepared.dataset.class_names not in {own, tuple(map(clean, own))}:
        progress.note(
            f"{root} has other classes now than {folder} was made with: new videos ({len(new)}) get "
            f"theirs by {command}, once they are in the cache"
        )
    other = [row.id for row in rows if row.id in here and here[row.id].label != row.label]
    other += [row.id for row in rows if row.id in here and here[row.id].split != row.split]
    if other:
        progress.note(
            f"{counted(len(set(other)), 'video')} of the cache have another label or split in {root} now (first: "
            f"{other[0]}); the cache keeps its own: {command} adds these as a label set, or to it"
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


def make_report(cache: CacheFolder, catalog: Catalog, totals: RunTotals, seconds: float, gaps: Gaps) -> ExtractReport:
    """What is in the cache and what this call did.

    Args:
        cache: the cache.
        catalog: what is in it now; another process may be adding to it.
        totals: what this call has done.
        seconds: how long that took.
        gaps: of the dataset.
    """
    videos = LedgerRows(catalog.table)
    count = Counter(row.status for row in videos)
    lacking = lacking_rows(catalog.table)
    busy = (
        busy_shares(totals.stage_seconds, seconds=seconds, num_processes=len(totals.processes))
        if totals.processes
        else {}
    )
    bad = [row for row in [*videos, *lacking] if row.reason]
    return ExtractReport(
        cache=str(cache.path),
        fingerprint=cache.header.fingerprint,
        num_ok=count["ok"],
        num_failed=count["failed"],
        num_missing=count["missing"],
        num_unlabelled=gaps.num_unlabelled,
        left_out=gaps.left_out,
        empty_classes=gaps.empty_classes,
        num_lacking=len({row.key for row in lacking}),
        num_pending=count["pending"],
        num_frames=sum(row.num_frames for row in videos),
        cache_bytes=catalog.num_bytes,
        num_tried=totals.num_tried,
        new_videos=totals.num_ok,
        new_frames=totals.num_frames,
        new_bytes=totals.num_bytes,
        seconds=seconds,
        frames_per_second=totals.num_frames / seconds,
        bytes_per_second=totals.num_bytes / seconds,
        batch_size=totals.batch_size,
        stages={stage: StageReport(seconds=totals.stage_seconds[stage], busy=share) for stage, share in busy.items()},
        bottleneck=bottleneck_of(busy) if busy else None,
        failure_kinds=group_failures(bad),
        failures={row.id: row.reason for row in bad},
    )


def group_failures(rows: Iterable[LedgerRow]) -> tuple[FailureKind, ...]:
    """The kinds of reasons that rows give, the most frequent first; the example is the first video of a kind.

    Args:
        rows: of any status; those without a reason are passed over.
    """
    kinds: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in rows:
        if row.reason:
            kinds.setdefault((row.status, kind_of(row)), []).append(row)
    found = [
        FailureKind(
            status=status,
            reason=reason,
            num_videos=len(of_kind),
            example_id=of_kind[0].id,
            example_reason=of_kind[0].reason,
        )
        for (status, reason), of_kind in kinds.items()
    ]
    return tuple(sorted(found, key=lambda kind: (-kind.num_videos, kind.status, kind.reason)))


def kind_of(row: LedgerRow) -> str:
    """The reason of a row, without the names and numbers that only this video has."""
    path, separator, member = row.source_path.partition("::")
    names = {row.source_path, f"{Path(path).name}{separator}{member}", Path(row.source_path).name}
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    reason = re.sub(rf"(?<!\w)(?:[^\s:]*/)?(?:{any_name})(?!\w)", lambda _: VIDEO, row.reason)
    return _NUMBER.sub(NUMBER, reason).removeprefix(f"{VIDEO}: ")
