"""`vfz cache convert`: another precision, store or compression for a cache, or a part of it; no encoder, no video.

The new cache has the plans, shards, commits, ledger, label sets and provenance of the old one, as far as the part that
is asked for goes (`convert_selection`); its recipe differs in how tokens are stored, and not at all where the precision
stays: then every stored number is copied bit for bit. Precision only goes down, and only once: tokens rounded a second
time are not those that a recipe with one `converted_from` promises. A video with a token that the new precision cannot
hold (fp16 ends at 65504) fails: nothing of it is stored, and its ledger row says which column.

What is lost against extracting at the lower precision: nothing from fp32 to fp16, whose tokens come out the same. Else
tokens were rounded before, which adds fp16's error of at most 2^-11, or int8's of about 1%, to the new one's, and
calibration sees 48 frames of the cached videos instead of 48 of the dataset's.

The same call again goes on where the last one was stopped, and takes over what the source gained since.

Cost: one read of the old data, with every checksum compared, and one write of the new; memory holds one block of
frames. Measured on two busy cores, with fsync, in MB/s of what is read (`dd` wrote 440 to 1000): fp16 copied to zarr
410 to 440, to webdataset 490 to 580; fp16 to int8 320 to 470, to int4 240 to 290.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.errors import EncoderError, UsageError
from vfz.pipeline.files import writer_lock
from vfz.pipeline.format.catalog import Catalog, write_catalog
from vfz.pipeline.format.commits import new_data_path
from vfz.pipeline.format.drops import copy_drops
from vfz.pipeline.format.folder import cache_name, find_cache
from vfz.pipeline.format.header import fingerprint_of
from vfz.pipeline.format.labels import copy_label_sets
from vfz.pipeline.format.ledger import LedgerRow, LedgerRows, VideoKey
from vfz.pipeline.maintenance.convert_selection import select
from vfz.pipeline.maintenance.convert_source import SourceCache, expand_arrays, open_source
from vfz.pipeline.maintenance.convert_target import TargetCache, converted_recipe, open_target
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.stores import STORES, Column, ShardVideo, ShardWriter
from vfz.pipeline.stores.quantization import largest_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vfz.pipeline.maintenance.convert_selection import SelectedCommit
    from vfz.pipeline.maintenance.convert_source import SourceReader
    from vfz.pipeline.maintenance.options import ConvertOptions

BLOCK_BYTES = 8 * 1024 * 1024
"""How much of the float32 tokens of a video is held at a time; at least one frame."""


def convert(options: ConvertOptions, *, progress: Progress | None = None) -> ConvertReport:
    """Make a cache from another one.

    Only what is committed is converted, so a cache that is not complete may be; call again for the rest.

    Raises:
        UsageError: a precision above the source's, a second lossy conversion, a compression that the store does not
            have, a layer, part, split or video that the source does not have, or a target that is the source or lies
            inside it.
        CacheFormatError: the source is no cache, or damaged; what was committed before is kept.
        CacheIncompleteError: the source has no commit yet.
        CacheMismatchError: the new cache's folder holds something else, or another part of the source.
        StorageError: the disk is full; what was committed before is kept.
    """
    progress = progress or SilentProgress()
    source = open_source(find_cache(options.cache))
    selection = select(source, options)
    recipe = converted_recipe(source, options.precision or source.header.precision)
    name = options.name or _name_of(source)
    new_name = cache_name(name, str(recipe["encoder"]["name"]), fingerprint_of(recipe))
    if "\0" in new_name or new_name != Path(new_name).name:
        raise UsageError(
            f"a cache of {name!r} cannot be called {new_name!r}, which is no folder's name; choose a --name"
        )
    folder = options.out / new_name
    _check_usage(folder, source, options)
    target = open_target(source, folder, recipe, options, selection)
    copy_label_sets(source.path, folder)
    copy_drops(source.path, folder)
    started = time.perf_counter()
    converter = ShardConverter(source=source, target=target, progress=progress)
    done = target.folder.commit_paths()
    selected = list(selection.commits(source, set(target.columns)))
    commits = [commit for commit in selected if (commit.shard, commit.number) not in done]
    _tell_left_out(target, selected, progress)
    if commits:
        progress.start("converting", total=sum(len(commit.rows) for commit in commits), unit="videos")
        for commit in commits:
            converter.convert(commit, _first_rows(target, commit))
        progress.finish()
    catalog = write_catalog(target.folder)
    return _report(source, target, catalog, converter, selection.to_dict(), time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion ended with.

    Attributes:
        source, cache: folders of the old and the new cache.
        fingerprint, store, precision: of the new cache.
        part: what was asked for of the old one, by option; empty for all of it.
        compression: of the new cache's columns, by column key.
        num_ok, num_failed, num_missing, num_pending: videos in the whole new cache, in every view.
        num_frames: frames in the whole new cache.
        source_bytes, cache_bytes: size of the committed data.
        new_commits, new_videos, bytes_read, seconds: done by this call; videos of a first commit are counted.
        unstorable: reason by video id (and view, after the first), of those that failed in this call because the new
            precision cannot hold them.
    """

    source: str
    cache: str
    fingerprint: str
    store: str
    precision: str
    part: dict[str, str]
    compression: dict[str, str]
    num_ok: int
    num_failed: int
    num_missing: int
    num_pending: int
    num_frames: int
    source_bytes: int
    cache_bytes: int
    new_commits: int
    new_videos: int
    bytes_read: int
    seconds: float
    unstorable: dict[str, str] = field(default_factory=dict)


def _name_of(source: SourceCache) -> str:
    """What the cache was named when it was made; the dataset's name where its folder was renamed since."""
    header = source.header
    own = source.folder.path.resolve().name
    end = cache_name("", str(header.recipe["encoder"]["name"]), header.fingerprint)
    return own.removesuffix(end) if own.endswith(end) and own != end else source.contents.dataset


def _check_usage(folder: Path, source: SourceCache, options: ConvertOptions) -> None:
    """Refuses what cannot work, before anything is made."""
    inside = source.path.resolve()
    if inside == folder.resolve():
        raise UsageError(
            f"{folder} is the cache that is converted: its precision stays, so the new cache would have the same name; "
            "choose another --out, --name or --precision"
        )
    if inside in folder.resolve().parents:
        raise UsageError(f"{folder} lies in the cache that is converted; choose another --out or --name")
    store = options.store or source.contents.store
    if options.compression not in {"auto", "none"} and not STORES[store].compresses:
        raise UsageError(
            f"--compression {options.compression}: the {store} store keeps plain arrays; leave it out, or choose "
            "--store zarr"
        )


def _first_rows(target: TargetCache, commit: SelectedCommit) -> dict[VideoKey, LedgerRow]:
    """What the new cache's first commit of a shard says of its videos, for a commit that adds columns to it."""
    if commit.number == 0:
        return {}
    first = target.folder.read_commit(target.folder.commit_paths()[commit.shard, 0])
    return {row.key: row for row in first.rows}


def _tell_left_out(target: TargetCache, commits: Sequence[SelectedCommit], progress: Progress) -> None:
    """Says which videos got tokens in the source after the new cache had committed that they have none."""
    paths = target.folder.commit_paths()
    left = [
        row.id
        for commit in commits
        if commit.retried and (commit.shard, commit.number) in paths
        for row in target.folder.read_commit(paths[commit.shard, commit.number]).rows
        if row.key in commit.retried and row.status != "ok"
    ]
    if left:
        progress.note(
            f"{len(left)} videos (first: {left[0]}) failed in these layers before and have them in the source now; "
            "this cache keeps saying that they failed: convert into another --name to have them"
        )


def _report(
    source: SourceCache,
    target: TargetCache,
    catalog: Catalog,
    converter: ShardConverter,
    part: dict[str, str],
    seconds: float,
) -> ConvertReport:
    rows = LedgerRows(catalog.table)
    count = Counter(row.status for row in rows)
    return ConvertReport(
        source=str(source.path),
        cache=str(target.folder.path),
        fingerprint=target.folder.header.fingerprint,
        store=target.contents.store,
        precision=target.precision,
        part=part,
        compression={column.key: column.compression for column in target.contents.columns},
        num_ok=count["ok"],
        num_failed=count["failed"],
        num_missing=count["missing"],
        num_pending=count["pending"],
        num_frames=sum(row.num_frames for row in rows),
        source_bytes=sum(index.data.num_bytes for index in source.commits if index.data is not None),
        cache_bytes=catalog.num_bytes,
        new_commits=converter.num_commits,
        new_videos=converter.num_videos,
        bytes_read=converter.num_bytes_read,
        seconds=seconds,
        unstorable=dict(converter.unstorable),
    )


class ShardConverter:
    """Converts commits of one cache into commits of another.

    Attributes:
        num_commits, num_videos, num_bytes_read: done so far; videos are those of first commits that have tokens.
        unstorable: reason by video id (and view, after the first), of those that the new precision cannot hold.
    """

    def __init__(self, *, source: SourceCache, target: TargetCache, progress: Progress) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._columns = {column.key: column for column in source.contents.columns}
        self._started = time.perf_counter()
        self.num_commits = self.num_videos = self.num_bytes_read = 0
        self.unstorable: dict[str, str] = {}

    def convert(self, commit: SelectedCommit, first_rows: Mapping[VideoKey, LedgerRow]) -> None:
        """Make one commit, unless no video is left for it or another process is first.

        Args:
            commit: what it is made of.
            first_rows: rows of the new cache's first commit of that shard, where this one adds columns to it. Videos
                that failed there are left out here.

        Raises:
            CacheFormatError: when the source's data is damaged; nothing of the commit is left.
            StorageError: when the disk is full; nothing of the commit is left.
        """
        rows = [row for row in commit.rows if not first_rows or first_rows[row.key].status == "ok"]
        if not rows:
            return
        columns = [self._target.columns[key] for key in commit.column_keys]
        store = STORES[self._target.contents.store]
        path = new_data_path(self._target.folder.path, commit.shard, store.suffix)
        with writer_lock(path), store.writer(path, columns) as writer:
            converted = self._write(commit, rows, writer)
            data = writer.finish() if writer.num_frames else None
            committed = self._target.folder.commit(
                replace(
                    commit.index,
                    number=commit.number,
                    fingerprint=self._target.folder.header.fingerprint,
                    calibration_digest=self._target.contents.calibration_digest(columns),
                    data=data,
                    rows=tuple(converted),
                    column_keys=commit.column_keys,
                ),
            )
        if committed:
            self.num_commits += 1
            self.num_videos += sum(row.status == "ok" for row in converted if commit.number == 0)
            before = {row.key: row.status for row in rows}
            self.unstorable |= {_name(row): row.reason for row in converted if row.status != before[row.key]}

    def _write(self, commit: SelectedCommit, rows: list[LedgerRow], writer: ShardWriter) -> list[LedgerRow]:
        """Every video that has tokens, one after the other; returns the rows as they are now."""
        converted = []
        columns = [self._columns[key] for key in commit.column_keys]
        with ExitStack() as opened:
            readers: dict[int, SourceReader] = {}
            for row in rows:
                if row.status == "ok":
                    origin = commit.origins[row.key]
                    if origin.number not in readers:
                        readers[origin.number] = opened.enter_context(self._source.reader(origin))
                    row = self._write_video(row, columns, readers[origin.number], writer)
                converted.append(row)
                self._progress.advance(figures=self._figures())
        return converted

    def _write_video(
        self, row: LedgerRow, columns: list[Column], reader: SourceReader, writer: ShardWriter
    ) -> LedgerRow:
        """One video; returns its row, failed when it cannot be stored."""
        start = writer.num_frames
        writer.begin_video(ShardVideo(id=row.id, view=row.view, split=row.split, label=row.label))
        for frames in _blocks(row, columns):
            found = {column: reader.arrays(column, frames) for column in columns}
            self.num_bytes_read += sum(array.nbytes for arrays in found.values() for array in arrays.values())
            stored = {column: self._target.stored(column, arrays, self._source) for column, arrays in found.items()}
            try:
                writer.append(
                    {key: array for arrays in stored.values() for key, array in arrays.items()},
                    reader.pts_seconds(frames),
                )
            except EncoderError as error:
                writer.drop_video()
                return self._failed(row, found, stored, frames, error)
        return replace(row, frame_start=start)

    def _failed(
        self,
        row: LedgerRow,
        found: Mapping[Column, Mapping[str, NDArray[Any]]],
        stored: Mapping[Column, Mapping[str, NDArray[Any]]],
        frames: NDArray[np.int64],
        error: EncoderError,
    ) -> LedgerRow:
        """The row of a video whose tokens are not finite as they would be stored; anything else is a bug."""
        for column, arrays in stored.items():
            for key, array in arrays.items():
                if array.dtype.kind != "f" or np.isfinite(array).all():
                    continue
                bad = np.isfinite(array).all(axis=(1, 2)).argmin()
                of_frame = {name: values[bad : bad + 1] for name, values in found[column].items()}
                tokens = expand_arrays(column, of_frame, self._source.calibrations.get(column.key))
                reason = (
                    f"{key}, frame {int(frames[bad]) - row.frame_start}: a token is too large for "
                    f"{self._target.precision} and cannot be converted from {self._source.header.precision}; the "
                    f"largest value is {float(largest_of(tokens)):.6g}, and "
                    f"{'int8 holds it' if self._target.precision == 'fp16' else 'the old cache keeps it'}"
                )
                self._progress.note(f"failed: {row.id!r}: {reason}")
                return replace(row, status="failed", reason=reason, num_frames=0, frame_start=0, duration_seconds=0.0)
        raise error

    def _figures(self) -> dict[str, float | str]:
        return {"MB/s": self.num_bytes_read / 1e6 / (time.perf_counter() - self._started)}


def _blocks(row: LedgerRow, columns: list[Column]) -> Iterator[NDArray[np.int64]]:
    """The frames of a video, some at a time, by their number in the shard."""
    frame_bytes = sum(4 * column.num_tokens * column.dim for column in columns)
    size = max(1, BLOCK_BYTES // frame_bytes)
    for start in range(0, row.num_frames, size):
        yield row.frame_start + np.arange(start, min(start + size, row.num_frames))


def _name(row: LedgerRow) -> str:
    return f"{row.id} (view {row.view})" if row.view else row.id
