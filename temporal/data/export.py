"""`vfz cache export`: pooled features of a cache in one file, for pandas, DuckDB, R or NumPy.

Parquet: a row has `id`, `split`, `view`, `label` and `class_name` (null where there is none), which frames it is of,
and `features`, a list of E float32 numbers. A row of `mean` or `cls` is of a whole video, and has `num_frames`,
`first_seconds` and `last_seconds`; one of `frame` or `last` is of one frame, and has `frame` and `pts_seconds`. With a
label set of several labels or of numbers there is a list `targets` of K float32 numbers (NaN: not known). What made the
numbers stands in the metadata of the schema, under `vfz`, as JSON. An id that is no Unicode is its JSON after a NUL.

NPZ: `features [M, E]`, and of `frame` also `video [M]`, `frame [M]` and `pts_seconds [M]`; of the V videos `ids`,
`splits`, `views`, `labels` (-1 where there is none), and of other pools than `frame` (where M = V) the same numbers as
above; `class_names [K]`, `targets [V, K]` and `vfz`. No member is pickled.

Rows come in the order of the cache, view by view. Memory holds a row group (16 MB) and a few frames of one video,
however many there are; NPZ also holds what it says of videos. The file is written beside its place and renamed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.config import check_out_file
from vfz.pipeline.errors import StorageError, UsageError
from vfz.pipeline.files import fsync_dir, fsync_file, make_folder, storage_errors, unique_token
from vfz.pipeline.format.folder import find_cache
from vfz.pipeline.format.labels import NO_SPLIT
from vfz.pipeline.format.ledger import LedgerRow, to_utf8
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.data.options import ExportOptions
from vfz.temporal.data.pooling import PooledRows, PooledVideos
from vfz.temporal.data.videos import check_view, parts_of

_GROUP_BYTES = 16 * 1024 * 1024
_OF_FRAMES = ("frame", "last")
"""Pools of which a row is one frame."""


def export_features(options: ExportOptions, *, progress: Progress | None = None) -> ExportReport:
    """Write pooled features of a cache to a file.

    Raises:
        UsageError: a layer, part, split or view that the cache does not have, no CLS token, or a file that is there.
        CacheError: the cache cannot be opened, or is damaged.
        StorageError: the disk is full; nothing is left under the file's name.
    """
    progress = progress or SilentProgress()
    check_out_file(options.out, force=options.force)
    cache = FeatureCache(find_cache(options.cache, how="as CACHE"), labels=options.labels)
    pooled = PooledVideos(cache, layers=options.layers, parts=options.parts, pool=options.pool)
    videos = _videos(cache, pooled, options)
    about = _about(cache, pooled, options)
    table = _Table(cache=cache, pooled=pooled, pool=options.pool, videos=videos, about=about)
    write = _write_parquet if options.file_format == "parquet" else _write_npz
    progress.start("exporting", total=len(videos), unit="videos")
    with _whole_file(options.out) as file:
        num_rows = write(file, table, progress)
    progress.finish()
    return ExportReport(
        path=str(options.out),
        format=str(options.file_format),
        pool=options.pool,
        layers=pooled.layers,
        num_videos=len(videos),
        num_rows=num_rows,
        width=pooled.width,
        num_bytes=options.out.stat().st_size,
    )


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        path, format, num_bytes: the file.
        pool, layers: what is in it.
        num_videos, num_rows: videos (once per view), and rows.
        width: E, numbers of a row.
    """

    path: str
    format: str
    pool: str
    layers: tuple[str, ...]
    num_videos: int
    num_rows: int
    width: int
    num_bytes: int


def _videos(cache: FeatureCache, pooled: PooledVideos, options: ExportOptions) -> list[LedgerRow]:
    """The rows of the ledger that are wanted, view by view, in the order of the cache."""
    for split in options.splits or ():
        cache.ok_videos(split)  # says what is like it
    for view in options.views:
        check_view(cache, view)
    videos = [
        row
        for view in dict.fromkeys(options.views)
        for row in cache.ok_videos(view=view, layers=pooled.layers, parts=parts_of(pooled.parts))
        if options.splits is None or row.split in options.splits
    ]
    if not videos:
        raise UsageError(f"no video of {cache.path} has these tokens; vfz cache info {cache.path} tells what it has")
    return videos


def _about(cache: FeatureCache, pooled: PooledVideos, options: ExportOptions) -> str:
    """What made the numbers, as JSON."""
    return json.dumps(
        {
            "cache": cache.path.resolve().name,
            "fingerprint": cache.fingerprint,
            "encoder": cache.recipe["encoder"]["name"],
            "layers": list(pooled.layers),
            "parts": pooled.parts,
            "pool": options.pool,
            "labels": options.labels,
            "class_names": list(cache.class_names),
            "target_names": list(_target_names(cache)),
        }
    )


def _target_names(cache: FeatureCache) -> Sequence[str]:
    """Of a label set of several labels or of numbers: their names."""
    return cache.label_set.names if cache.label_set is not None and cache.label_set.kind != "classes" else ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """What is written."""

    cache: FeatureCache
    pooled: PooledVideos
    pool: str
    videos: Sequence[LedgerRow]
    about: str

    def rows(self, progress: Progress) -> Iterator[PooledRows]:
        """All rows, some at a time."""
        for video in self.videos:
            yield from self.pooled.of(video)
            progress.advance()

    def class_name(self, video: LedgerRow) -> str | None:
        """None where it has no class."""
        names = self.cache.class_names
        return names[video.label] if video.label is not None and 0 <= video.label < len(names) else None


def _write_parquet(file: IO[bytes], table: _Table, progress: Progress) -> int:
    """Row group by row group; returns how many rows."""
    names = _target_names(table.cache)
    fields: list[tuple[str, Any]] = [
        ("id", pa.string()),
        ("split", pa.string()),
        ("view", pa.int32()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
    ]
    if table.pool in _OF_FRAMES:
        fields += [("frame", pa.int64()), ("pts_seconds", pa.float64())]
    else:
        fields += [("num_frames", pa.int64()), ("first_seconds", pa.float64()), ("last_seconds", pa.float64())]
    fields += [("targets", pa.list_(pa.float32(), len(names)))] if names else []
    fields.append(("features", pa.list_(pa.float32(), table.pooled.width)))
    schema = pa.schema(fields, metadata={"vfz": table.about})
    num_rows, held, held_bytes = 0, list[Any](), 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for found in table.rows(progress):
            held.append(pa.record_batch([_column(table, found, field) for field in schema], schema=schema))
            num_rows, held_bytes = num_rows + len(found.vectors_ME), held_bytes + found.vectors_ME.nbytes
            if held_bytes >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(held))
                held, held_bytes = [], 0
        if held:
            writer.write_table(pa.Table.from_batches(held))
    return num_rows


def _column(table: _Table, found: PooledRows, field: Any) -> Any:
    """A column of some rows of one video, [M]."""
    video, num_rows, targets = found.video, len(found.vectors_ME), _target_names(table.cache)
    arrays: dict[str, Any] = {"frame": found.frames, "pts_seconds": found.pts_seconds}
    if field.name in arrays:
        return pa.array(arrays[field.name], field.type)
    if field.name == "features":
        return _lists(found.vectors_ME)
    if field.name == "targets":
        return _lists(np.repeat(table.cache.targets_of([video.id]), num_rows, axis=0)) if targets else None
    class_name = table.class_name(video)
    values = {
        "id": to_utf8(video.id),
        "split": to_utf8(video.split) if video.split != NO_SPLIT else None,
        "view": video.view,
        "label": video.label,
        "class_name": None if class_name is None else to_utf8(class_name),
        "num_frames": video.num_frames,
        "first_seconds": found.pts_seconds[0],
        "last_seconds": found.pts_seconds[-1],
    }
    return pa.array([values[field.name]] * num_rows, field.type)


def _lists(values_MK: NDArray[np.float32]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_MK.reshape(-1)), values_MK.shape[1])


def _write_npz(file: IO[bytes], table: _Table, progress: Progress) -> int:
    """Member by member, the large ones as they come; returns how many rows."""
    videos, of_frame = table.videos, table.pool == "frame"
    num_rows = sum(video.num_frames for video in videos) if of_frame else len(videos)
    spans: list[tuple[int, float, float]] = []  # of other pools: frame, first and last time

    def vectors() -> Iterator[NDArray[Any]]:
        for found in table.rows(progress):
            if not of_frame:
                spans.append((int(found.frames[-1]), found.pts_seconds[0], found.pts_seconds[-1]))
            yield found.vectors_ME

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_member(archive, "features", np.float32, (num_rows, table.pooled.width), vectors())
        if of_frame:
            counts = [video.num_frames for video in videos]
            numbers = (np.full(count, number) for number, count in enumerate(counts))
            times = (table.cache.pts_seconds(video.id, video.view) for video in videos)
            _write_member(archive, "video", np.int64, (num_rows,), numbers)
            _write_member(archive, "frame", np.int64, (num_rows,), (np.arange(count) for count in counts))
            _write_member(archive, "pts_seconds", np.float64, (num_rows,), times)
        for name, values in chain(_of_videos(table), _of_spans(table, spans)):
            _write_member(archive, name, values.dtype, values.shape, [values])
    return num_rows


def _of_videos(table: _Table) -> Iterator[tuple[str, NDArray[Any]]]:
    videos = table.videos
    yield "ids", np.array([video.id for video in videos], dtype=np.str_)
    yield "splits", np.array([video.split for video in videos], dtype=np.str_)
    yield "views", np.array([video.view for video in videos], dtype=np.int64)
    labels = [-1 if video.label is None else video.label for video in videos]
    yield "labels", np.array(labels, dtype=np.int64)
    yield "class_names", np.array(table.cache.class_names, dtype=np.str_)
    if _target_names(table.cache):
        yield "targets", table.cache.targets_of([video.id for video in videos])
    yield "vfz", np.array(table.about, dtype=np.str_)


def _of_spans(table: _Table, spans: Sequence[tuple[int, float, float]]) -> Iterator[tuple[str, NDArray[Any]]]:
    if table.pool == "last":
        yield "frame", np.array([frame for frame, _, _ in spans], dtype=np.int64)
        yield "pts_seconds", np.array([last for _, _, last in spans])
    elif spans:
        yield "num_frames", np.array([video.num_frames for video in table.videos], dtype=np.int64)
        yield "first_seconds", np.array([first for _, first, _ in spans])
        yield "last_seconds", np.array([last for _, _, last in spans])


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]
) -> None:
    """One array of the archive, in parts along its first axis."""
    dtype = np.dtype(dtype)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(cast("Any", member), header)
        for part in parts:
            member.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when all of it is written and safe on the disk."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{unique_token()}.tmp")
    with storage_errors(path):
        try:
            with temporary.open("xb") as file:
                yield file
            fsync_file(temporary)
            temporary.replace(path)
            fsync_dir(path.parent)
        except pa.ArrowException as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
