"""A cache of a few random tokens, made through the public functions, without videos or an encoder.

    plans = new_cache(folder, precision="int8")      # header, calibrations, plan; no shard
    fill_cache(folder, bad=("v3",))                  # every planned shard that is not committed yet
    add_layer(folder, "23")                          # contents/<n>.json: the layer is there, its tokens are not
    fill_cache(folder, number=1, layers=("23",))     # a second commit of every shard
    make_large_cache(folder, 250_000)                # header and catalog alone, for opening it

Tokens of a video depend on its id, the column and the seed alone: `video_tokens` gives them again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.format.calibration import Calibration, write_calibration
from vfz.pipeline.format.catalog import Catalog, IndexFile, save_catalog
from vfz.pipeline.format.commits import ShardIndex, commit_shard, committed_paths, new_data_path, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import Contents, create_cache, fingerprint_of
from vfz.pipeline.format.ledger import LedgerRow, ledger_table
from vfz.pipeline.format.plan import Plan, extend_plans, read_plans
from vfz.pipeline.recipe import QUANTISED
from vfz.pipeline.stores import STORES, Column, ShardVideo

DIM = 8
NUM_TOKENS = {"patch": 4, "prefix": 1}


def recipe_of(precision: str = "fp16") -> dict[str, Any]:
    """A recipe (not a whole one) of that precision."""
    return {
        "encoder": {"name": "test", "image_size": 32},
        "frames": {"fps": 6.0},
        "storage": {"precision": precision},
    }


def columns_of(precision: str = "fp16", layers: Sequence[str] = ("2", "11"), *, dim: int = DIM) -> tuple[Column, ...]:
    """Patch and prefix tokens of the layers."""
    return tuple(
        Column(layer=layer, part=part, num_tokens=num_tokens, dim=dim, precision=precision)
        for layer in layers
        for part, num_tokens in NUM_TOKENS.items()
    )


RECIPE = recipe_of()
FINGERPRINT = fingerprint_of(RECIPE)
COLUMNS = columns_of()


def calibration_of(column: Column) -> Calibration:
    """A calibration whose channels all differ."""
    channels = np.arange(column.dim)
    return Calibration(
        column=column.key,
        num_frames=16,
        offset=tuple((channels / 8 - 0.5).tolist()),
        std=tuple((0.75 + channels / column.dim / 2).tolist()),
        precision_error=0.0,
        compression_ratios={},
    )


def contents_of(folder: Path, columns: Sequence[Column] = COLUMNS, *, store: str = "zarr") -> Contents:
    """Contents of these columns; their calibrations are written to `folder`."""
    return Contents(
        dataset="tiny",
        class_names=("left", "right"),
        store=store,
        columns=tuple(columns),
        calibrations={
            column.key: write_calibration(folder, column, calibration_of(column)).digest for column in columns
        },
        golden={},
    )


def records(num_videos: int, *, folds: bool = False) -> list[VideoRecord]:
    """`v0`, `v1`, ...: every third one in `val`; with `folds` also in `fold1` (v0 to v2 are its test split)."""
    return [
        VideoRecord(
            id=f"v{n}",
            source=VideoSource(path=Path(f"/videos/v{n}.mp4")),
            split="val" if n % 3 == 2 else "train",
            label=n % 2,
            folds={"fold1": "test" if n < 3 else "train"} if folds else {},
        )
        for n in range(num_videos)
    ]


def new_cache(
    folder: Path,
    num_videos: int = 6,
    shard_size_videos: int = 2,
    *,
    precision: str = "fp16",
    store: str = "zarr",
    layers: Sequence[str] = ("2", "11"),
    dim: int = DIM,
    folds: bool = False,
    views: Sequence[int] = (0,),
) -> tuple[Plan, ...]:
    """A cache with its header, calibrations and plan, and no shard."""
    columns = columns_of(precision, layers, dim=dim)
    create_cache(
        folder,
        recipe=recipe_of(precision),
        provenance={"host": "here"},
        fill=lambda inside: contents_of(inside, columns, store=store),
    )
    return extend_plans(
        folder / "plan", records(num_videos, folds=folds), shard_size_videos=shard_size_videos, views=views
    )


def add_layer(folder: Path, layer: str) -> Contents:
    """Makes a layer part of the contents; no shard has its tokens yet."""
    cache = CacheFolder(folder)
    dim = cache.header.contents.columns[0].dim
    columns = columns_of(cache.header.precision, (layer,), dim=dim)
    return cache.add_columns([write_calibration(folder, column, calibration_of(column)) for column in columns], {})


def num_frames_of(video_id: str) -> int:
    """Frames that `video_tokens` has of a video."""
    return 3 + int(video_id[1:])


def video_tokens(
    video_id: str, seed: int = 0, *, columns: Sequence[Column] = COLUMNS
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tokens per column key (float16 numbers, so that fp16 and fp32 store them as they are), and times, of a video."""
    num_frames = num_frames_of(video_id)
    tokens = {}
    for column in columns:
        rng = np.random.default_rng([int(video_id[1:]), seed, zlib.crc32(column.key.encode())])
        tokens[column.key] = rng.standard_normal((num_frames, column.num_tokens, column.dim)).astype(np.float16)
    return tokens, np.arange(num_frames) / 6


def stored_arrays(tokens: dict[str, np.ndarray], columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """Tokens per column key to what a shard stores of them, by array key."""
    arrays: dict[str, np.ndarray] = {}
    for column in columns:
        if column.precision not in QUANTISED:
            arrays[column.key] = tokens[column.key].astype(column.payload.dtype)
            continue
        import torch

        from vfz.pipeline.stores.quantization import to_stored

        tokens_FND = torch.from_numpy(tokens[column.key]).float()
        stored = to_stored(tokens_FND, column.precision, calibration_of(column).stats)
        arrays[column.key] = stored.payload.numpy()
        arrays[f"{column.key}_scale"] = stored.scale.numpy()
    return arrays


def expected_tokens(video_id: str, column: Column, seed: int = 0) -> np.ndarray:
    """Float32 tokens [F, N, D] as they come back from storage."""
    tokens = video_tokens(video_id, seed, columns=(column,))[0]
    if column.precision not in QUANTISED:
        return tokens[column.key].astype(np.float32)
    import torch

    from vfz.pipeline.stores.quantization import expand

    arrays = stored_arrays(tokens, (column,))
    payload, scale = (torch.from_numpy(arrays[spec.key]) for spec in column.arrays)
    stats = calibration_of(column).stats
    return expand(payload, scale, precision=column.precision, stats=stats, dim=column.dim).numpy()


def prepare_shard(
    folder: Path,
    plan: Plan,
    shard: str,
    *,
    bad: Sequence[str] = (),
    seed: int = 0,
    number: int = 0,
    layers: Sequence[str] | None = None,
) -> ShardIndex:
    """Writes the data of a shard; the videos in `bad` have failed. Not committed.

    Args:
        folder: the cache, of any precision and store.
        plan, shard: whose videos.
        bad: ids of videos that fail.
        seed: of the tokens.
        number: 0, or that of a later commit: of the videos that were ok in commit 0.
        layers: what is stored; None means all layers of the contents.
    """
    cache = CacheFolder(folder)
    contents = cache.contents()
    columns = [column for column in contents.columns if layers is None or column.layer in layers]
    videos = plan.shards[shard]
    if number:
        first = read_shard_index(committed_paths(folder)[shard, 0])
        was_ok = {row.key for row in first.rows if row.status == "ok"}
        videos = tuple(video for video in videos if video.key in was_ok)
    rows = []
    store = STORES[contents.store]
    with store.writer(new_data_path(folder, shard, store.suffix), columns) as writer:
        for video in videos:
            ok = video.id not in bad
            frame_start = writer.num_frames if ok else 0
            if ok:
                tokens, pts_seconds = video_tokens(video.id, seed, columns=columns)
                writer.begin_video(ShardVideo(id=video.id, view=video.view, split=video.split, label=video.label))
                writer.append(stored_arrays(tokens, columns), pts_seconds)
            rows.append(
                LedgerRow(
                    id=video.id,
                    view=video.view,
                    split=video.split,
                    label=video.label,
                    status="ok" if ok else "failed",
                    reason="" if ok else "no picture in it",
                    attempts=1,
                    num_frames=num_frames_of(video.id) if ok else 0,
                    frame_start=frame_start,
                    shard=shard,
                    source_digest="0" * 64,
                    source_path=video.path,
                    duration_seconds=1.0 if ok else 0.0,
                    folds=video.folds,
                )
            )
        data = writer.finish() if writer.num_frames else None
    return ShardIndex(
        shard=shard,
        number=number,
        plan=plan.number,
        fingerprint=cache.header.fingerprint,
        calibration_digest=contents.calibration_digest(columns),
        data=data,
        rows=tuple(rows),
        column_keys=tuple(column.key for column in columns),
    )


def fill_cache(
    folder: Path,
    *,
    bad: Sequence[str] = (),
    seed: int = 0,
    number: int = 0,
    layers: Sequence[str] | None = None,
) -> None:
    """Commits every planned shard that has no commit of that number yet; arguments as in `prepare_shard`."""
    for plan in read_plans(folder / "plan"):
        for shard in plan.shards:
            if (shard, number) not in committed_paths(folder):
                commit_shard(
                    folder, prepare_shard(folder, plan, shard, bad=bad, seed=seed, number=number, layers=layers)
                )


def make_large_cache(folder: Path, num_videos: int, *, shard_videos: int = 64) -> None:
    """A cache of any number of videos as far as opening it is concerned: header, catalog, and empty files for the rest.

    Every 50th video failed, and every 100th lacks layer 11; a tenth is in `val`. Plans and indexes are there by name
    only, so whoever opens one of them fails.
    """
    new_cache(folder, num_videos=1)
    rows, lacking = [], {}
    for number in range(num_videos):
        digest = hashlib.sha256(number.to_bytes(4, "little")).hexdigest()
        ok = number % 50 != 7
        row = LedgerRow(
            id=f"{'val' if number % 10 == 9 else 'train'}/class {number % 400}/{digest[:11]}_{number:06d}",
            view=0,
            split="val" if number % 10 == 9 else "train",
            label=number % 400,
            status="ok" if ok else "failed",
            reason="" if ok else "no picture in it",
            attempts=1,
            num_frames=60 if ok else 0,
            frame_start=60 * (number % shard_videos) if ok else 0,
            shard=f"{number // shard_videos:05d}",
            source_digest=digest,
            source_path=f"/data/kinetics/train/class {number % 400}/{digest[:11]}_{number:06d}.mp4",
            duration_seconds=9.8333 if ok else 0.0,
        )
        rows.append(row)
        if number % 100 == 3:
            lacking[row.key] = {"layer_11/patch": "failed: gone", "layer_11/prefix": "failed: gone"}
    files, shards = {}, sorted({row.shard for row in rows})
    for shard in shards:
        path = folder / "shards" / f"{shard}.0.index.json"
        path.touch()
        files[path.name] = IndexFile("0" * 64, 0, path.stat().st_mtime_ns)
    (folder / "plan/0.json").write_bytes(b"")
    cache = CacheFolder(folder)
    catalog = Catalog(
        contents=cache.header.contents,
        table=ledger_table(rows, lacking),
        index_files=files,
        shard_bytes=dict.fromkeys(shards, 10**9),
        num_plans=1,
        num_contents=0,
    )
    save_catalog(cache, catalog)
