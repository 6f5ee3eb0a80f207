"""`vfz extract`: a dataset and an encoder in, a cache out.

The same call again continues: finished shards are never redone, videos that are new or were missing before go into a
new plan, and when nothing is left it says so. What was committed stays committed, whatever happens after.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.commit import committed_paths
from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.destination import make_recipe, open_or_create
from vfz.pipeline.devices import choose_device
from vfz.pipeline.encoder import load_encoder
from vfz.pipeline.encoder_weights import check_name
from vfz.pipeline.errors import CacheMismatchError, TooManyFailuresError, UsageError
from vfz.pipeline.files import source_digest
from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.options import ExtractOptions
from vfz.pipeline.plan import extend_plans
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.runners.local import run_local
from vfz.pipeline.shard import ShardExtractor, ShardTask

STORE = "zarr"


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction ended with.

    Attributes:
        cache: the cache's folder.
        num_ok, num_failed, num_missing: videos in the whole cache.
        num_frames: frames in the whole cache.
        cache_bytes: size of the committed data.
        num_tried, new_videos, new_frames, seconds: done by this call: videos tried, those of them that went well, their
            frames, and the time from decoding to commit.
        failures: reason by video id, of the whole cache.
    """

    cache: str
    fingerprint: str
    num_ok: int
    num_failed: int
    num_missing: int
    num_frames: int
    cache_bytes: int
    num_tried: int
    new_videos: int
    new_frames: int
    seconds: float
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """Rate of this call, decoding to commit; 0 where nothing was left to do."""
        return self.new_frames / self.seconds if self.new_frames else 0.0


def extract(options: ExtractOptions, *, progress: Progress | None = None) -> ExtractReport:
    """Run a frozen encoder over a dataset and cache the tokens.

    Raises:
        UsageError: a wrong option. DatasetError: no videos. EncoderError: no weights. CacheMismatchError: the cache
        has another recipe, or a video's file changed. StorageError: the disk is full. TooManyFailuresError: more
        videos failed than allowed. In every case what was committed before is kept.
    """
    progress = progress or SilentProgress()
    check_name(options.encoder)  # a slip of the pen is told before videos are listed or rendered
    dataset = _open_dataset(options, progress)
    everything = dataset.videos()
    records = _choose_splits(everything, dataset, options.splits)
    encoder = load_encoder(
        options.encoder,
        layers=options.layers,
        image_size=options.image_size,
        weights=options.weights,
        random_weights=options.random_weights,
        seed=options.seed or 0,
        device=choose_device(options.device),
        autocast=options.autocast,
        batch_size=options.batch_size,
    )
    recipe = make_recipe(encoder, options, dataset)
    folder = open_or_create(options, dataset, encoder, recipe, records)
    before = FeatureCache(folder, allow_incomplete=True).videos
    _check_same_videos(folder, before, everything, dataset, progress)
    tasks = _plan(folder, before, records, options)
    started = time.perf_counter()
    extractor = ShardExtractor(
        cache=folder,
        encoder=encoder,
        recipe=recipe,
        store=STORE,
        progress=progress,
    )
    new_rows: list[LedgerRow] = []
    tried = {video.key for task in tasks for video in task.videos}
    failed = [row for row in before if row.status == "failed" and row.key not in tried]
    allowed = _allowed_failures(options, everything)
    _check_failures(failed, allowed, folder)
    if tasks:
        progress.start("extracting", total=len(tried), unit="videos")
        for rows in run_local(extractor, tasks):
            new_rows += rows
            failed += [row for row in rows if row.status == "failed"]
            _check_failures(failed, allowed, folder)
        progress.finish()
    return _report(folder, new_rows, time.perf_counter() - started)


def _open_dataset(options: ExtractOptions, progress: Progress) -> VideoDataset:
    started = False

    def on_progress(_done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start("rendering", total=total, unit="videos")
            started = True
        progress.advance()

    # --seed is the dataset's where it has one, and the random weights' in any case
    synthetic = options.dataset == "synthetic"
    dataset = open_dataset(
        options.dataset,
        root=options.root,
        num_videos=options.num_videos,
        num_frames=options.num_frames,
        size=options.size,
        seed=options.seed if synthetic or not options.random_weights else None,
        on_progress=on_progress,
    )
    if started:
        progress.finish()
    return dataset


def _choose_splits(
    records: list[VideoRecord], dataset: VideoDataset, wanted: tuple[str, ...] | None
) -> list[VideoRecord]:
    present = sorted({record.split for record in records})
    for split in wanted or ():
        if split not in present:
            raise UsageError(f"--splits {split!r} is not in {dataset.root}; it has {', '.join(present)}")
    return [record for record in records if wanted is None or record.split in wanted]


def _check_same_videos(
    folder: Path, rows: list[LedgerRow], everything: list[VideoRecord], dataset: VideoDataset, progress: Progress
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


def _plan(
    folder: Path, before: list[LedgerRow], records: list[VideoRecord], options: ExtractOptions
) -> list[ShardTask]:
    """The shards still to be written."""
    rows = {row.id: row for row in before}
    again = _to_try_again(records, rows, folder, retry_failed=options.retry_failed)
    plans = extend_plans(folder / "plan", records, shard_size_videos=options.shard_videos, again=again)
    committed = {shard for shard, _ in committed_paths(folder)}
    paths = {record.id: record.path for record in records}
    attempts = {row.id: row.attempts for row in before}
    return [
        ShardTask(
            shard=shard,
            plan=plan.number,
            videos=videos,
            paths={video.id: paths.get(video.id, Path(video.path)) for video in videos},
            attempts=attempts,
        )
        for plan in plans
        for shard, videos in plan.shards.items()
        if shard not in committed
    ]


def _allowed_failures(options: ExtractOptions, everything: list[VideoRecord]) -> int:
    if options.max_failures is not None:
        return options.max_failures
    return max(10, sum(record.path.exists() for record in everything) // 100)


def _to_try_again(
    records: Iterable[VideoRecord], rows: dict[str, LedgerRow], folder: Path, *, retry_failed: bool
) -> set[tuple[str, int]]:
    """Videos that get another attempt: missing ones that are there now, and failed ones that changed or are asked for.

    Raises:
        CacheMismatchError: when a finished video's file is another one now.
    """
    again = set()
    for record in records:
        row = rows.get(record.id)
        if row is None or row.status == "pending" or not record.path.exists():
            continue
        try:
            digest = source_digest(record.path)
        except OSError:
            digest = None  # unreadable now: extraction will say so if it is tried
        if row.status == "ok" and digest != row.source_digest:
            raise CacheMismatchError(
                f"video {record.id!r}: {record.path} is not the file that {folder} was made from; "
                "give the new one another id, or make another cache with --name"
            )
        if row.status == "missing" or (row.status == "failed" and (retry_failed or digest != row.source_digest)):
            again.add(row.key)
    return again


def _check_failures(failed: list[LedgerRow], allowed: int, folder: Path) -> None:
    if len(failed) > allowed:
        raise TooManyFailuresError(
            f"{len(failed)} videos failed, {allowed} are allowed; first: {failed[0].id}: {failed[0].reason}; "
            f"{folder} keeps what was finished: mend the videos, or go on with a larger --max-failures"
        )


def _report(folder: Path, new_rows: list[LedgerRow], seconds: float) -> ExtractReport:
    cache = FeatureCache(folder)
    count = Counter(row.status for row in cache.videos)
    return ExtractReport(
        cache=str(folder),
        fingerprint=cache.fingerprint,
        num_ok=count["ok"],
        num_failed=count["failed"],
        num_missing=count["missing"],
        num_frames=sum(row.num_frames for row in cache.videos),
        cache_bytes=cache.num_bytes,
        num_tried=len(new_rows),
        new_videos=sum(row.status == "ok" for row in new_rows),
        new_frames=sum(row.num_frames for row in new_rows),
        seconds=seconds,
        failures={row.id: row.reason for row in cache.videos if row.reason},
    )
