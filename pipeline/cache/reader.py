"""From a video and frame numbers to the bytes of every column asked for, copied to where the caller wants them.

`ClipReader` is the hot path of training: a look-up in two dicts, one addition, and a copy per array. Everything else is
done for all clips of a batch before the first of them is copied. Nothing is allocated before the video and its shard
are found.

`OpenShards` opens a shard when it is first read, in the process that reads it; what the shard's indexes say is read and
checked then, and not when the cache is opened. The number of shards with open files is bounded by what the system
allows. Readers stay, so that a chunk's checksum is compared once per process however often its file is closed and
opened. Nothing open is shared over a fork or a pickle.

Shapes: T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

import os
import resource
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from vfz.pipeline.cache.request import (
    ClipLike,
    Columns,
    Frames,
    check_seconds,
    check_video,
    clips_of,
    frame_numbers,
    shown,
)
from vfz.pipeline.cache.tokens import TokenBatch, TokenClip, empty_arrays, empty_batch
from vfz.pipeline.errors import CacheError, CacheFormatError, UsageError
from vfz.pipeline.files import read_checked_json_digest
from vfz.pipeline.format.catalog import check_index
from vfz.pipeline.format.commits import SHARDS, read_shard_index
from vfz.pipeline.stores import STORES, Checksums, ShardReader
from vfz.pipeline.stores.mapped import copy_frames
from vfz.pipeline.stores.metadata import PTS_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.format.header import Contents
    from vfz.pipeline.format.ledger import VideoKey, VideoLookup
    from vfz.pipeline.stores import ShardData
    from vfz.pipeline.stores.base import Copy, FrameNumbers

_ArrayKeys: TypeAlias = Mapping[str, tuple[str, ...]]
"""Keys of a column's arrays, by the key of the column: made once for all clips of a batch."""
_Places: TypeAlias = "Mapping[tuple[ShardReader, int], list[str]]"
"""Keys of arrays, by where they are: a commit's reader, and the video's first frame there."""
_NOT_YET = "not extracted yet; run the same vfz extract again"
_MAX_OPEN_FILES = 1 << 16


class ClipReader:
    """Reads clips of the videos of a ledger out of the shards of its cache.

    Args:
        lookup: finds videos.
        shards: finds their data.
        calibrations: of quantised columns, by column key.
    """

    def __init__(self, lookup: VideoLookup, shards: OpenShards, calibrations: Mapping[str, Calibration]) -> None:
        self._lookup, self._shards, self._calibrations = lookup, shards, calibrations

    def read_clip(
        self, video_id: str, view: int, columns: Columns, *, frames: Frames | None, seconds: tuple[float, float] | None
    ) -> TokenClip:
        """Some frames of one video, or of them those with start <= time < end; see `FeatureCache.read`."""
        if seconds is not None:
            check_seconds(seconds, frames)
        clip, keys = self._locate(video_id, view, frames), _array_keys(columns)
        if seconds is not None:
            clip = self._frames_within(clip, seconds, next(iter(keys)))
        places = self._places(clip, keys)
        length = len(clip.frames)
        arrays, pts_seconds = empty_arrays((length,), columns), np.empty(length)
        self._copy([(clip, places, {**arrays, PTS_KEY: pts_seconds})])
        return TokenClip(
            columns=columns,
            calibrations=self._calibrations,
            arrays=arrays,
            video_id=video_id,
            view=view,
            frame_numbers=np.asarray(clip.frames, np.int64),
            pts_seconds=pts_seconds,
        )

    def read_times(self, video_id: str, view: int, columns: Columns) -> NDArray[np.float64]:
        """Presentation times of all frames of one video; see `FeatureCache.pts_seconds`."""
        clip = self._locate(video_id, view, None)
        keys = [column.key for column in columns.values()]
        # Every commit of a shard has the same times; the video may lack some columns, not all.
        found = self._shards.find(self._lookup.shard(clip.position), keys, clip.video)
        there = (key for key, place in zip(keys, found, strict=True) if place is not None)
        return self._times(clip, next(there, keys[0]))

    def read_batch(
        self, clips: Sequence[tuple[str, Frames] | ClipLike], columns: Columns, out: TokenBatch | None
    ) -> TokenBatch:
        """Clips of one length, each copied to its place in the batch; see `FeatureCache.read_batch`."""
        if not isinstance(out, TokenBatch | None):
            raise UsageError(f"out is {shown(out)}; buffers made by new_batch() are needed")
        wanted = [self._locate(*clip) for clip in clips_of(clips)]
        lengths = sorted({len(clip.frames) for clip in wanted})
        if len(lengths) != 1:
            raise UsageError(f"clips of {lengths} frames were given; a batch has clips of one length, and at least one")
        keys = _array_keys(columns)
        if out is None:
            for clip in wanted:
                self._places(clip, keys)
            out = empty_batch(len(wanted), lengths[0], columns, self._calibrations)
        batch = out.first([clip.video for clip in wanted], num_frames=lengths[0], columns=columns)
        arrays = {**batch.arrays, PTS_KEY: batch.pts_seconds}
        numbers = range(len(wanted))
        # Some at a time, and found again: the shards that are open are bounded, those of a batch are not.
        for start in range(0, len(wanted), self._shards.max_open):
            self._copy(
                (wanted[number], self._places(wanted[number], keys), {key: arrays[key][number] for key in arrays})
                for number in numbers[start : start + self._shards.max_open]
            )
        _fill_frame_numbers(batch.frame_numbers, [clip.frames for clip in wanted])
        return batch

    def _locate(self, video_id: str, view: int, frames: Frames | None) -> _LocatedClip:
        """Looks a clip up; None means all frames.

        Raises:
            UnknownNameError: there is no such video.
            UsageError: not in that view, or it does not have these frames.
            CacheError: it has no tokens; says why.
        """
        check_video(video_id, view)
        position = self._lookup.position(video_id, view)
        if not self._lookup.is_ok[position]:
            row = self._lookup.row(position)
            raise CacheError(f"video {video_id!r} has no tokens: {row.status}: {row.reason or _NOT_YET}")
        numbers = frame_numbers(frames, self._lookup.num_frames[position], video_id)
        return _LocatedClip(position, (video_id, view), numbers)

    def _frames_within(self, clip: _LocatedClip, seconds: tuple[float, float], column_key: str) -> _LocatedClip:
        """Those frames of a clip whose times lie in [start, end); the column says in which commit they are looked up.

        Raises:
            UsageError: when there are none; says where they lie.
        """
        start, end = seconds
        pts_seconds = self._times(clip, column_key)
        inside = (pts_seconds >= start) & (pts_seconds < end)
        if not inside.any():
            raise UsageError(
                f"video {clip.video[0]!r} has no frame from {start} up to {end} s; its {len(pts_seconds)} frames lie "
                f"at {pts_seconds.min():.3f} to {pts_seconds.max():.3f} s"
            )
        return clip._replace(frames=np.asarray(clip.frames, np.int64)[inside])

    def _times(self, clip: _LocatedClip, column_key: str) -> NDArray[np.float64]:
        """Times [T] of a clip, from the commit that has that column."""
        pts_seconds = np.empty(len(clip.frames))
        ((place, _),) = self._places(clip, {column_key: ()}).items()
        self._copy([(clip, {place: [PTS_KEY]}, {PTS_KEY: pts_seconds})])
        return pts_seconds

    def _places(self, clip: _LocatedClip, keys: _ArrayKeys) -> _Places:
        """Where the arrays of a clip and its times are.

        Raises:
            CacheError: the video has no tokens of a column; says why.
            CacheFormatError: an index is damaged.
        """
        shard = self._lookup.shard(clip.position)
        places: dict[tuple[ShardReader, int], list[str]] = {}
        found = self._shards.find(shard, keys, clip.video)
        for (column_key, keys_of_column), place in zip(keys.items(), found, strict=True):
            if place is None:
                raise self._lacks(clip, shard, column_key)
            # Every commit of a shard has the same times: the first gives them.
            wanted = places.setdefault(place, [] if places else [PTS_KEY])
            wanted += keys_of_column
        return places

    def _lacks(self, clip: _LocatedClip, shard: str, column_key: str) -> CacheError:
        """The error for a video without a column."""
        reason = self._lookup.lacking(clip.position).get(column_key)
        if reason is None:
            return CacheFormatError(
                f"video {clip.video[0]!r}: shard {shard} has no {column_key} of it; run vfz cache verify"
            )
        return CacheError(f"video {clip.video[0]!r} has no {column_key}: {reason or _NOT_YET}")

    def _copy(self, clips: Iterable[tuple[_LocatedClip, _Places, Mapping[str, NDArray[Any]]]]) -> None:
        """Copies clips' frames and their times to where they are wanted.

        Args:
            clips: which frames; what of them, and where it is; [T, ...] for every array, by key, to be filled.

        Raises:
            CacheFormatError: the data is damaged; says which.
        """
        later: list[Copy] = []
        for clip, places, arrays in clips:
            for (reader, start), keys in places.items():
                try:
                    reader.read_into(_shifted(clip.frames, start), {key: arrays[key] for key in keys}, later)
                except CacheFormatError as error:
                    shard = self._lookup.shard(clip.position)
                    raise CacheFormatError(f"video {clip.video[0]!r}, shard {shard}: {error}") from error
        for out, frames in later:
            copy_frames(out, frames)


class _LocatedClip(NamedTuple):
    """A clip that can be read.

    Attributes:
        position: of the video's row in the ledger.
        video: its id and view.
        frames: [T] in the video.
    """

    position: int
    video: VideoKey
    frames: FrameNumbers


def _fill_frame_numbers(numbers_BT: NDArray[np.int64], clips: Sequence[FrameNumbers]) -> None:
    """Writes down the frames of every clip; ranges all at once."""
    ranges = [frames if isinstance(frames, range) else range(0) for frames in clips]
    starts, steps = (
        np.array(values)[:, None] for values in zip(*((one.start, one.step) for one in ranges), strict=True)
    )
    numbers_BT[...] = starts + steps * np.arange(numbers_BT.shape[1])
    for number, frames in enumerate(clips):
        if not isinstance(frames, range):
            numbers_BT[number] = frames


def _shifted(frames: FrameNumbers, start: int) -> FrameNumbers:
    """Frames of a video whose first is `start`, as frames of the shard."""
    if isinstance(frames, range):
        return range(frames.start + start, frames.stop + start, frames.step)
    return frames + start


def _array_keys(columns: Columns) -> _ArrayKeys:
    return {column.key: tuple(spec.key for spec in column.arrays) for column in columns.values()}


class OpenShards:
    """Readers of shards, by video and column.

    Args:
        source: which shards.

    Attributes:
        source: as given.
        max_open: how many shards have open files at a time.
    """

    def __init__(self, source: ShardSource) -> None:
        self.source = source
        self._commits: dict[str, tuple[_Commit, ...]] = {}
        self._names: dict[str, list[tuple[int, str]]] = {}
        for name in source.index_digests:
            shard, number, _ = name.split(".", 2)
            self._names.setdefault(shard, []).append((int(number), name))
        # At most half of the files this process may have open: a child may inherit as many as it opens. A shard has
        # one per array of its columns, and one per commit for the times.
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        columns = source.contents.columns
        files_per_shard = sum(1 + len(column.arrays) for column in columns)
        self.max_open = max(1, min(soft_limit, _MAX_OPEN_FILES) // 2 // files_per_shard)
        self._begin_process()

    def find(self, shard: str, column_keys: Iterable[str], video: VideoKey) -> list[tuple[ShardReader, int] | None]:
        """For each column of a video the reader that has it, and the number of its first frame there; None: none has.

        Args:
            shard: the one its row names.
            column_keys: such as `layer_5/patch`.
            video: its id and view.

        Raises:
            CacheFormatError: when an index of the shard is damaged or none of this cache's.
            CacheError: when it was replaced since the cache was opened.
        """
        found: dict[str, tuple[ShardReader, int]] = {}
        for commit in self._opened(shard):  # the latest wins
            start = commit.starts.get(video)
            if start is not None:
                found |= dict.fromkeys(commit.column_keys, (commit.reader, start))
        return [found.get(key) for key in column_keys]

    def close(self) -> None:
        """Lets go of open files; a later read opens them again."""
        with self._lock:
            while self._open:
                self._close(self._open.popitem()[0])

    def __getstate__(self) -> ShardSource:
        return self.source

    def __setstate__(self, source: ShardSource) -> None:
        self.__init__(source)  # type: ignore[misc]

    def _begin_process(self) -> None:
        """A lock and a list of open shards of this process; what was open before a fork is let go."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, None] = OrderedDict()
        self._pid = os.getpid()
        for shard in self._commits:
            self._close(shard)

    def _opened(self, shard: str) -> tuple[_Commit, ...]:
        """The shard's commits. When too many shards are open, the files of the longest-unused one are closed."""
        if self._pid != os.getpid():
            self._begin_process()
        with self._lock:
            commits = self._commits.get(shard)
            if commits is None:
                commits = self._commits[shard] = self._read(shard)
            self._open[shard] = None
            self._open.move_to_end(shard)
            if len(self._open) > self.max_open:
                self._close(self._open.popitem(last=False)[0])
            return commits

    def _read(self, shard: str) -> tuple[_Commit, ...]:
        source, commits = self.source, []
        for _, name in sorted(self._names.get(shard, ())):
            path = source.path / SHARDS / name
            index = read_shard_index(path)
            if read_checked_json_digest(path) != source.index_digests[name]:
                raise CacheError(f"shard {shard} was replaced since {source.path} was opened: open the cache again")
            check_index(path, index, source.fingerprint, source.contents)
            if (data := index.data) is None:
                continue
            reader = STORES[data.store].reader(
                source.path / SHARDS / data.name, _compact(data), checksums=source.checksums
            )
            starts = {row.key: row.frame_start for row in index.rows if row.status == "ok"}
            commits.append(_Commit(reader=reader, column_keys=frozenset(index.column_keys), starts=starts))
        if not commits:
            raise CacheFormatError(f"{source.path}: shard {shard} has no data; restore it from a copy")
        return tuple(commits)

    def _close(self, shard: str) -> None:
        for commit in self._commits[shard]:
            commit.reader.close()


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """Where shards are, and what they must fit.

    Attributes:
        path: the cache's folder.
        fingerprint: of its recipe.
        contents: its columns.
        index_digests: of the index files that count, by file name.
        checksums: when chunks are compared with theirs.
    """

    path: Path
    fingerprint: str
    contents: Contents
    index_digests: Mapping[str, str]
    checksums: Checksums


@dataclass(frozen=True, kw_only=True)
class _Commit:
    """One commit of a shard: its reader, and where in it each ok video begins."""

    reader: ShardReader
    column_keys: frozenset[str]
    starts: Mapping[VideoKey, int]


def _compact(data: ShardData) -> ShardData:
    """The same with checksums in 4 bytes each: as Python integers those of a large cache would fill gigabytes."""
    try:
        chunks = {key: replace(record, crc32c=array("I", record.crc32c)) for key, record in data.chunks.items()}
    except (TypeError, OverflowError) as error:
        raise CacheFormatError(f"the index of {data.name} holds checksums that are none: {error}") from error
    return replace(data, chunks=chunks)
