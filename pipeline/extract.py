"""`vfz extract`: a dataset and an encoder in, a cache out.

The same call again continues: finished shards are never redone, videos that are new or were missing before go into a
new plan, and when nothing is left it says so. What was committed stays committed, whatever happens after.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.cache_header import create_cache, read_header
from vfz.pipeline.commit import committed_paths
from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import VideoDataset, VideoRecord
from vfz.pipeline.devices import choose_device
from vfz.pipeline.encoder import FrozenEncoder, load_encoder
from vfz.pipeline.encoder_layers import LAYERS_VERSION
from vfz.pipeline.errors import CacheMismatchError, TooManyFailuresError, UsageError
from vfz.pipeline.files import source_digest
from vfz.pipeline.golden import write_golden
from vfz.pipeline.ledger import LedgerRow
from vfz.pipeline.options import ExtractOptions
from vfz.pipeline.plan import extend_plans
from vfz.pipeline.precision import STORED_DTYPES
from vfz.pipeline.preprocess import PREPROCESS_VERSION
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.runners.local import run_local
from vfz.pipeline.shard import ShardExtractor, ShardTask, columns_of
from vfz.pipeline.spec import EncoderSpec, FrameSpec, Recipe, StorageSpec, ViewSpec, describe_difference
from vfz.pipeline.video import DECODER, DECODER_VERSION

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
    dataset = _open_dataset(options, progress)
    everything = dataset.videos()
    records = _choose_splits(everything, dataset, options.splits)
    recipe = make_recipe(encoder, options, dataset)
    folder = _open_folder(options, dataset, encoder, recipe, records)
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
    if tasks:
        tried = {video.key for task in tasks for video in task.videos}
        failed = [row for row in before if row.status == "failed" and row.key not in tried]
        allowed = _allowed_failures(options, everything)
        _check_failures(failed, allowed, folder)
        progress.start("extracting", total=len(tried), unit="videos")
        for rows in run_local(extractor, tasks):
            new_rows += rows
            failed += [row for row in rows if row.status == "failed"]
            _check_failures(failed, allowed, folder)
        progress.finish()
    return _report(folder, new_rows, time.perf_counter() - started)


def make_recipe(encoder: FrozenEncoder, options: ExtractOptions, dataset: VideoDataset) -> Recipe:
    """The recipe of what `options` ask for with this encoder."""
    preprocess = encoder.preprocess
    return Recipe(
        encoder=EncoderSpec(
            name=encoder.name,
            weights_sha256=encoder.weights_sha256,
            random_weights=encoder.random_weights,
            image_size=preprocess.image_size,
            crop_fraction=preprocess.crop_fraction,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            preprocess_version=PREPROCESS_VERSION,
            layers_version=LAYERS_VERSION,
            final_norm=True,
            autocast=options.autocast,
        ),
        frames=FrameSpec(
            fps=options.fps or dataset.default_fps,
            start_seconds=options.start_seconds,
            end_seconds=options.end_seconds,
            decoder=DECODER,
            decoder_version=DECODER_VERSION,
        ),
        views=ViewSpec(),
        storage=StorageSpec(precision=options.precision),
    )


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


def _open_folder(
    options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder, recipe: Recipe, records: list[VideoRecord]
) -> Path:
    """The cache's folder, made where it is not there; refused where it holds something else."""
    name = f"{options.name or dataset.name}-{encoder.name.split('.')[0]}-{recipe.fingerprint[:12]}"
    folder = options.cache or options.out / name
    layers = _layer_shapes(encoder, options.precision)
    if options.cache is not None and not folder.is_dir():
        raise UsageError(f"--cache {folder} is not a cache; leave it out to make a new one under {options.out}/")
    if not folder.exists():
        contents = {
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "layers": layers,
            "dtype": STORED_DTYPES[options.precision],
            "splits": sorted({record.split for record in records}),
            "views": [0],
        }
        create_cache(
            folder,
            recipe=recipe.to_dict(),
            contents=contents,
            provenance=_provenance(options, dataset, encoder),
            golden=lambda inside: write_golden(inside, records, encoder, recipe),
        )
    header = read_header(folder)
    if header.recipe != recipe.to_dict():
        lines = "; ".join(describe_difference(header.recipe, recipe.to_dict()))
        raise CacheMismatchError(f"{folder} holds tokens of another recipe: {lines}; use another --name or --out")
    if header.contents["layers"] != layers:
        raise UsageError(
            f"{folder} holds the layers {', '.join(header.contents['layers'])}, {', '.join(layers)} were asked for; "
            "layers cannot be added to a cache yet: ask for the same, or give another --name"
        )
    if header.contents["class_names"] != list(dataset.class_names):
        raise CacheMismatchError(
            f"{folder} was made with the classes {', '.join(header.contents['class_names'][:8])}, the dataset now has "
            f"{', '.join(dataset.class_names[:8])}: labels would not agree; give another --name"
        )
    return folder


def _layer_shapes(encoder: FrozenEncoder, precision: str) -> dict[str, dict[str, list[int]]]:
    layers: dict[str, dict[str, list[int]]] = {layer: {} for layer in encoder.layers}
    for column in columns_of(encoder, precision):
        layers[column.layer][column.part] = [column.num_tokens, column.dim]
    return layers


def _provenance(options: ExtractOptions, dataset: VideoDataset, encoder: FrozenEncoder) -> dict[str, Any]:
    """What does not decide a number but is good to know, and what it takes to build the encoder again."""
    return {
        "root": str(dataset.root.absolute()),
        "encoder_request": {
            "name": options.encoder,
            "weights": str(options.weights.resolve()) if options.weights else None,
            "random_weights": options.random_weights,
            "seed": options.seed or 0,
            "batch_size": options.batch_size,
        },
        "weights_source": encoder.weights_source,
        "weights_license": encoder.license,
        "versions": {name: version(name) for name in ("vfz", "torch", "timm", "av", "zarr")},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": str(encoder.device),
    }


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
