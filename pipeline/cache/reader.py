"""From a video and frame numbers to the bytes of every column asked for, copied to where the caller wants them.

The hot path of training: a look-up in two dicts, one addition, and a copy per array. Everything else is done for all
clips of a batch before the first of them is copied. Nothing is allocated before the video and its shard are found.

Shapes: T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from vfz.pipeline.stores.copying import copy_all
from vfz.pipeline.stores.metadata import PTS_KEY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vfz.pipeline.format.calibration import Calibration
    from vfz.pipeline.format.ledger_table import VideoLookup
    from vfz.pipeline.open_shards import OpenShards
    from vfz.pipeline.stores import ShardReader
    from vfz.pipeline.stores.base import Copy, FrameNumbers

_ArrayKeys: TypeAlias = Mapping[str, tuple[str, ...]]
"""Keys of a column's arrays, by the key of the column: made once for all clips of a batch."""
_Places: TypeAlias = "Mapping[tuple[ShardReader, int], list[str]]"
"""Keys of arrays, by where they are: a commit's reader, and the video's first frame there."""
_NOT_YET = "not extracted yet; run the same vfz extract again"


class _LocatedClip(NamedTuple):
    """A clip that can be read.

    Attributes:
        position: of the video's row in the ledger.
        video: its id and view.
        frames: [T] in the video.
    """

    position: int
    video: tuple[str, int]
    frames: FrameNumbers


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
        copy_all(later)


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
