"""Caches with everything a cache can have, made through the public functions, without videos or an encoder.

Two views, a prefix part, groups of channels, an odd number of channels, failed and missing videos, golden frames,
calibrations, and a layer added later: in every store and precision. Tokens follow from the video's name.

At the end: copies of them to be damaged, each kind made once.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.files import writer_lock
from vfz.pipeline.format.calibration import CalibratedColumn, Calibration, calibrate, write_calibration
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import ShardIndex, committed_paths, new_data_path, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.golden import FrameSample, write_golden_frames, write_golden_tokens
from vfz.pipeline.format.header import Contents, create_cache
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.plan import PlannedVideo, extend_plans
from vfz.pipeline.recipe import QUANTISED, EncoderSpec, FrameSpec, Recipe, StorageSpec, ViewSpec
from vfz.pipeline.stores import STORES, Column, ShardVideo
from vfz.pipeline.stores.quantization import PRECISION_VERSION, to_stored

FIRST = (("2", "patch", 4, 160), ("2", "prefix", 1, 160), ("5", "patch", 3, 33))
"""Layer, part, N, D of the columns that `build` makes; D = 160 is two groups, 33 is odd."""
LATER = (("final", "patch", 2, 8),)
"""Of the columns that `grow` adds."""
FAILED, MISSING = "v2.broken", "v3/gone"
VIDEO_IDS = ("v0", "v1", FAILED, "v4", MISSING, "v5")
FPS = 6.0


def recipe_of(precision: str) -> Recipe:
    """A recipe as extraction makes it."""
    quantised = precision in QUANTISED
    return Recipe(
        encoder=EncoderSpec(
            name="built_patch16_8.for_tests",
            weights_sha256="5eed" * 16,
            random_weights=True,
            image_size=8,
            crop_fraction=1.0,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            preprocess_version=1,
            layers_version=1,
            final_norm=True,
            autocast="float32",
        ),
        frames=FrameSpec(fps=FPS, decoder="none", decoder_version=1),
        views=ViewSpec(),
        storage=StorageSpec(
            precision=precision,
            precision_version=PRECISION_VERSION[precision],
            calibration_seed=0 if quantised else None,
            calibration_frames=48 if quantised else None,
        ),
    )


def num_frames_of(video_id: str) -> int:
    """3 to 6."""
    return 3 + zlib.crc32(video_id.encode()) % 4


def tokens_of(video_id: str, view: int, column: Column) -> np.ndarray:
    """float32 [F, N, D]: noise about channel means, with a few outlier channels, as a norm layer gives."""
    rng = np.random.default_rng(zlib.crc32(f"{video_id} {view} {column.key}".encode()))
    channels = np.random.default_rng(column.dim)
    spread = np.exp(channels.normal(0, 0.5, column.dim)) * np.where(np.arange(column.dim) % 31 == 7, 20, 1)
    shape = (num_frames_of(video_id), column.num_tokens, column.dim)
    return (rng.standard_normal(shape) * spread + channels.normal(0, 1, column.dim)).astype(np.float32)


def columns_of(shapes: Sequence[tuple[str, str, int, int]], precision: str) -> list[Column]:
    """Columns without compression."""
    return [
        Column(layer=layer, part=part, num_tokens=num_tokens, dim=dim, precision=precision)  # type: ignore[arg-type]
        for layer, part, num_tokens, dim in shapes
    ]


def build(
    folder: Path,
    *,
    store: str = "zarr",
    precision: str = "fp16",
    compression: str = "auto",
    video_ids: Sequence[str] = VIDEO_IDS,
    views: Sequence[int] = (0, 1),
    shard_videos: int = 3,
    shapes: Sequence[tuple[str, str, int, int]] = FIRST,
    extra: Mapping[tuple[str, str], np.ndarray] | None = None,
    leave_out: Collection[str] = (),
) -> Path:
    """A cache whose shards hold their first commit, but those in `leave_out`.

    Args:
        folder: where.
        store, precision, compression: as options of an extraction.
        video_ids, views, shard_videos: what is planned.
        shapes: columns, as in `FIRST`.
        extra: what is added to the tokens of (video id, column key).
        leave_out: shards that are planned only.
    """
    columns = columns_of(shapes, precision)
    create_cache(
        folder,
        recipe=recipe_of(precision).to_dict(),
        provenance={"root": "/videos", "encoder_request": {"name": "built"}, "versions": {"vfz": "0"}},
        fill=lambda inside: _fill(inside, columns, store, compression, video_ids),
    )
    plan_and_commit(folder, video_ids, views=views, shard_videos=shard_videos, extra=extra, leave_out=leave_out)
    return folder


def plan_and_commit(
    folder: Path,
    video_ids: Sequence[str] = VIDEO_IDS,
    *,
    views: Sequence[int] = (0, 1),
    shard_videos: int = 3,
    extra: Mapping[tuple[str, str], np.ndarray] | None = None,
    leave_out: Collection[str] = (),
) -> None:
    """Plans what is not planned, and makes the first commit of every shard without one."""
    records = [
        VideoRecord(
            id=video_id,
            source=VideoSource(path=Path(f"/videos/{video_id}.mp4")),
            split="val" if n % 3 == 2 else "train",
            label=n % 2,
        )
        for n, video_id in enumerate(video_ids)
    ]
    columns = CacheFolder(folder).header.contents.columns
    for plan in extend_plans(folder / "plan", records, shard_size_videos=shard_videos, views=views):
        for shard, videos in plan.shards.items():
            path = folder / "shards" / f"{shard}.0.index.json"
            if shard not in leave_out and not path.exists():
                commit(folder, plan.number, shard, 0, columns, videos, extra or {})


def grow(
    folder: Path,
    *,
    shapes: Sequence[tuple[str, str, int, int]] = LATER,
    extra: Mapping[tuple[str, str], np.ndarray] | None = None,
    compression: str = "auto",
) -> None:
    """Adds columns to a cache, one more commit to each of its shards."""
    cache = CacheFolder(folder)
    columns = columns_of(shapes, cache.header.precision)
    ids = [video.id for video in cache.plans()[0].shards["00000"]]
    calibrated = _calibrate(folder, columns, cache.contents().store, compression, ids)
    cache.add_columns(calibrated, _golden_arrays(calibrated, ids))
    for plan in cache.plans():
        for shard, videos in plan.shards.items():
            commit(folder, plan.number, shard, 1, tuple(new.column for new in calibrated), videos, extra or {})


def commit(
    folder: Path,
    plan: int,
    shard: str,
    number: int,
    columns: Sequence[Column],
    videos: Sequence[PlannedVideo],
    extra: Mapping[tuple[str, str], np.ndarray],
) -> None:
    """Writes one commit."""
    cache = CacheFolder(folder)
    contents = cache.contents()
    calibrations = cache.calibrations(contents)
    store = STORES[contents.store]
    path = new_data_path(folder, shard, store.suffix)
    rows = []
    with writer_lock(path), store.writer(path, columns) as writer:
        for video in videos:
            ok = video.id not in {FAILED, MISSING}
            if not ok and number:
                continue
            rows.append(_row(video, shard, ok=ok, frame_start=writer.num_frames if ok else 0))
            if ok:
                writer.begin_video(ShardVideo(id=video.id, view=video.view, split=video.split, label=video.label))
                arrays: dict[str, np.ndarray] = {}
                for column in columns:
                    tokens = tokens_of(video.id, video.view, column) + extra.get((video.id, column.key), np.float32(0))
                    arrays |= store_tokens(tokens, column, calibrations[column.key])
                writer.append(arrays, np.arange(num_frames_of(video.id)) / FPS)
        data = writer.finish() if writer.num_frames else None
        if rows:
            index = ShardIndex(
                shard=shard,
                number=number,
                plan=plan,
                fingerprint=cache.header.fingerprint,
                calibration_digest=contents.calibration_digest(columns),
                data=data,
                rows=tuple(rows),
                column_keys=tuple(column.key for column in columns),
            )
            assert cache.commit(index)


def store_tokens(tokens: np.ndarray, column: Column, calibration: Calibration) -> dict[str, np.ndarray]:
    """Stored arrays by array key."""
    stored = to_stored(torch.from_numpy(tokens), column.precision, calibration.stats)
    arrays = {column.payload.key: stored.payload.numpy()}
    if column.scale is not None:
        arrays[column.scale.key] = stored.scale.numpy()
    return arrays


def _fill(folder: Path, columns: Sequence[Column], store: str, compression: str, video_ids: Sequence[str]) -> Contents:
    calibrated = _calibrate(folder, columns, store, compression, video_ids)
    ids = tuple(_golden_ids(video_ids))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8), np.uint8)
    sample = FrameSample(pixels_MCHW=torch.from_numpy(pixels), video_ids=ids, pts_seconds=(0.0,) * 16)
    golden = write_golden_frames(folder, sample)
    golden |= write_golden_tokens(folder, _golden_arrays(calibrated, video_ids))
    return Contents.of(calibrated, dataset="built", class_names=("left", "right"), store=store, golden=golden)


def _calibrate(
    folder: Path, columns: Sequence[Column], store: str, compression: str, video_ids: Sequence[str]
) -> list[CalibratedColumn]:
    calibrated = []
    for column in columns:
        sample = np.concatenate([tokens_of(video_id, 0, column) for video_id in video_ids])
        column, calibration = calibrate(
            replace(column, compression="none"),
            torch.from_numpy(sample),
            requested_compression=compression,
            compresses=STORES[store].compresses,
        )
        calibrated.append(write_calibration(folder, column, calibration))
    return calibrated


def _golden_ids(video_ids: Sequence[str]) -> list[str]:
    """16 videos that have tokens, some of them several times."""
    ok = [video_id for video_id in video_ids if video_id not in {FAILED, MISSING}]
    return list(np.resize(ok, 16).tolist())


def _golden_arrays(columns: Sequence[CalibratedColumn], video_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Tokens of the first frames of the golden videos, 16 in all."""
    arrays: dict[str, np.ndarray] = {}
    for new in columns:
        tokens = np.concatenate([tokens_of(video_id, 0, new.column)[:1] for video_id in _golden_ids(video_ids)])
        arrays |= store_tokens(tokens, new.column, new.calibration)
    return arrays


def _row(video: PlannedVideo, shard: str, *, ok: bool, frame_start: int) -> LedgerRow:
    status = "ok" if ok else "failed" if video.id == FAILED else "missing"
    return LedgerRow(
        id=video.id,
        view=video.view,
        split=video.split,
        label=video.label,
        status=status,  # type: ignore[arg-type]
        reason={"ok": "", "failed": "no picture in it", "missing": f"no file {video.path}"}[status],
        attempts=0 if status == "missing" else 1,
        num_frames=num_frames_of(video.id) if ok else 0,
        frame_start=frame_start,
        shard=shard,
        source_digest=None if status == "missing" else "0" * 64,
        source_path=video.path,
        duration_seconds=num_frames_of(video.id) / FPS if ok else 0.0,
        folds=video.folds,
    )


# --- copies to be damaged ---

KINDS = (("zarr", "fp16"), ("zarr", "int4"), ("webdataset", "fp32"), ("webdataset", "int8"))
"""Store and precision."""


class Originals:
    """Builds each kind of cache once and copies it as often as it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def copy(self, target: Path, store: str = "zarr", precision: str = "fp16") -> Path:
        """A cache of two plans' worth of commits: four shards, each with a second commit of one more layer."""
        original = self._folder / f"{store}-{precision}"
        if not original.exists():
            build(original, store=store, precision=precision)
            grow(original)
            write_catalog(CacheFolder(original))
        return Path(shutil.copytree(original, target))


def files_of(path: Path) -> dict[str, bytes]:
    """Every file by its name in the cache."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def flip(file: Path, place: int, bit: int = 3) -> None:
    """Changes one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def data_path(path: Path, shard: str, number: int = 0) -> Path:
    """The data of a commit."""
    return path / "shards" / read_shard_index(committed_paths(path)[shard, number]).data.name


@contextmanager
def writer_process(data: Path, content: bytes = b"half"):
    """A living process that holds the lock of `data`, of which it has written something."""
    code = (
        "import sys; from pathlib import Path; from vfz.pipeline.files import writer_lock\n"
        "data = Path(sys.argv[1])\n"
        "with writer_lock(data):\n"
        f"    data.write_bytes({content!r}); print('writing', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.communicate()
