"""From a video and frame numbers to the bytes of every column asked for, copied to where the caller wants them.

The hot path of training: a look-up in two dicts, one addition, and a copy per array. Some 15 µs per clip beside the
copies. Nothing is allocated before the video and its shard are found.

Shapes: T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from vfz.pipeline.errors import CacheError, CacheFormatError, UsageError
from vfz.pipeline.read_request import (
    ClipLike,
    Columns,
    Frames,
    check_seconds,
    check_video,
    clips_of,
    frame_numbers,
    shown,
)
from vfz.pipeline.stores.records import PTS_KEY
from vfz.pipeline.token_clip import TokenBatch, TokenClip, empty_arrays, empty_batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vfz.pipeline.calibration import Calibration
    from vfz.pipeline.ledger_table import VideoLookup
    from vfz.pipeline.open_shards import OpenShards
    from vfz.pipeline.stores import ShardReader

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
        frame_numbers: [T] in the video.
    """

    position: int
    video: tuple[str, int]
    frame_numbers: NDArray[np.int64]


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
        length = len(clip.frame_numbers)
        arrays, pts_seconds = empty_arrays((length,), columns), np.empty(length)
        self._copy(clip, places, {**arrays, PTS_KEY: pts_seconds})
        return TokenClip(
            columns=columns,
            calibrations=self._calibrations,
            arrays=arrays,
            video_id=video_id,
            view=view,
            frame_numbers=clip.frame_numbers,
            pts_seconds=pts_seconds,
        )

    def read_times(self, video_id: str, view: int, columns: Columns) -> NDArray[np.float64]:
        """Presentation times of all frames of one video; see `FeatureCache.pts_seconds`."""
        clip = self._locate(video_id, view, None)
        shard, keys = self._lookup.shard(clip.position), _array_keys(columns)
        # Every commit of a shard has the same times; the video may lack some columns, not all.
        there = (key for key in keys if self._shards.find(shard, key, clip.video) is not None)
        return self._times(clip, next(there, next(iter(keys))))

    def read_batch(
        self, clips: Sequence[tuple[str, Frames] | ClipLike], columns: Columns, out: TokenBatch | None
    ) -> TokenBatch:
        """Clips of one length, each copied to its place in the batch; see `FeatureCache.read_batch`."""
        if not isinstance(out, TokenBatch | None):
            raise UsageError(f"out is {shown(out)}; buffers made by new_batch() are needed")
        wanted = [self._locate(*clip) for clip in clips_of(clips)]
        lengths = sorted({len(clip.frame_numbers) for clip in wanted})
        if len(lengths) != 1:
            raise UsageError(f"clips of {lengths} frames were given; a batch has clips of one length, and at least one")
        keys = _array_keys(columns)
        if out is None:
            for clip in wanted:
                self._places(clip, keys)
            out = empty_batch(len(wanted), lengths[0], columns, self._calibrations)
        batch = out.first([clip.video for clip in wanted], num_frames=lengths[0], columns=columns)
        arrays = {**batch.arrays, PTS_KEY: batch.pts_seconds}
        for number, clip in enumerate(wanted):
            # Found again: the shards that are open at a time are bounded, those of a batch are not.
            places = self._places(clip, keys)
            self._copy(clip, places, {key: array[number] for key, array in arrays.items()})
            batch.frame_numbers[number] = clip.frame_numbers
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
        return clip._replace(frame_numbers=clip.frame_numbers[inside])

    def _times(self, clip: _LocatedClip, column_key: str) -> NDArray[np.float64]:
        """Times [T] of a clip, from the commit that has that column."""
        pts_seconds = np.empty(len(clip.frame_numbers))
        place = self._place(self._lookup.shard(clip.position), column_key, clip)
        self._copy(clip, {place: [PTS_KEY]}, {PTS_KEY: pts_seconds})
        return pts_seconds

    def _places(self, clip: _LocatedClip, keys: _ArrayKeys) -> _Places:
        """Where the arrays of a clip and its times are.

        Raises:
            CacheError: the video has no tokens of a column; says why.
            CacheFormatError: an index is damaged.
        """
        shard = self._lookup.shard(clip.position)
        places: dict[tuple[ShardReader, int], list[str]] = {}
        for column_key, keys_of_column in keys.items():
            # Every commit of a shard has the same times: the first gives them.
            wanted = places.setdefault(self._place(shard, column_key, clip), [] if places else [PTS_KEY])
            wanted += keys_of_column
        return places

    def _place(self, shard: str, column_key: str, clip: _LocatedClip) -> tuple[ShardReader, int]:
        """Where a column of a video is: its reader, and its first frame there."""
        place = self._shards.find(shard, column_key, clip.video)
        if place is not None:
            return place
        reason = self._lookup.lacking(clip.position).get(column_key)
        if reason is None:
            raise CacheFormatError(
                f"video {clip.video[0]!r}: shard {shard} has no {column_key} of it; run vfz cache verify"
            )
        raise CacheError(f"video {clip.video[0]!r} has no {column_key}: {reason or _NOT_YET}")

    def _copy(self, clip: _LocatedClip, places: _Places, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copies a clip's frames and their times to where they are wanted.

        Args:
            clip: which frames.
            places: what of them, and where it is.
            arrays: [T, ...] for every array, by key; filled.

        Raises:
            CacheFormatError: the data is damaged; says which.
        """
        for (reader, start), keys in places.items():
            in_shard = clip.frame_numbers + start if start else clip.frame_numbers
            try:
                reader.read_into(in_shard, {key: arrays[key] for key in keys})
            except CacheFormatError as error:
                shard = self._lookup.shard(clip.position)
                raise CacheFormatError(f"video {clip.video[0]!r}, shard {shard}: {error}") from error


def _array_keys(columns: Columns) -> _ArrayKeys:
    return {column.key: tuple(spec.key for spec in column.arrays) for column in columns.values()}
