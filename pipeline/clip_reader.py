"""From a video and frame numbers to the bytes of every column asked for, copied to where the caller wants them.

The hot path of training: a look-up in two dicts, one addition, and a copy per array. Some 15 µs per clip beside the
copies.

Shapes: T frames of a clip, N tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import CacheError, CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.stores.records import PTS_KEY, Column

if TYPE_CHECKING:
    from vfz.pipeline.ledger_table import VideoLookup
    from vfz.pipeline.open_shards import OpenShards
    from vfz.pipeline.stores import ShardReader

Frames: TypeAlias = slice | Sequence[int] | NDArray[np.integer[Any]]
Columns: TypeAlias = Mapping[tuple[str, str], Column]
"""By (layer, part)."""
ArrayKeys: TypeAlias = Mapping[str, tuple[str, ...]]
"""Keys of a column's arrays, by the key of the column: made once for all clips of a batch."""
_NOT_YET = "not extracted yet; run the same vfz extract again"


class ClipLike(Protocol):
    """A clip that `FeatureCache.read_batch` takes: a video, a view of it, and which of its frames."""

    @property
    def id(self) -> str:
        """The video."""

    @property
    def view(self) -> int:
        """Which crop."""

    @property
    def frames(self) -> Frames:
        """Its frames, as `FeatureCache.read` takes them."""


class LocatedClip(NamedTuple):
    """A clip that can be read.

    Attributes:
        position: of the video's row in the ledger.
        video: its id and view.
        frame_numbers: [T] in the video.
    """

    position: int
    video: tuple[str, int]
    frame_numbers: NDArray[np.int64]


def select_columns(
    columns: Columns, layers: Sequence[int | str] | None, parts: Sequence[str] | None, *, where: str
) -> Columns:
    """The columns of some layers and parts; a part may be absent from some of the layers, not from all.

    Args:
        columns: all there are.
        layers: None means all.
        parts: None means all that each layer has.
        where: the cache, for messages.

    Raises:
        UnknownNameError: for a layer or part that is not there.
    """
    if layers is None and parts is None:
        return columns
    known = list(dict.fromkeys(layer for layer, _ in columns))
    chosen = known if layers is None else [str(layer) for layer in layers]
    for layer in chosen:
        if layer not in known:
            raise UnknownNameError("layer", layer, known, hint=f"({where} has {', '.join(known)})")
    cached = {part for layer, part in columns if layer in chosen}
    for part in parts or ():
        if part not in cached:
            raise UnknownNameError(f"part of layers {', '.join(chosen)} in {where}", part, cached)
    return {
        (layer, part): column
        for wanted in chosen
        for (layer, part), column in columns.items()
        if layer == wanted and (parts is None or part in parts)
    }


def array_keys(columns: Columns) -> ArrayKeys:
    """The arrays to read for some columns."""
    return {column.key: tuple(spec.key for spec in column.arrays) for column in columns.values()}


class ClipReader:
    """Reads clips of the videos of a ledger out of the shards of its cache."""

    def __init__(self, lookup: VideoLookup, shards: OpenShards) -> None:
        self._lookup, self._shards = lookup, shards

    def locate(self, video_id: str, view: int, frames: Frames | None) -> LocatedClip:
        """Looks a clip up; None means all frames.

        Raises:
            UnknownNameError: there is no such video.
            UsageError: not in that view, or it does not have these frames.
            CacheError: it has no tokens; says why.
        """
        position = self._lookup.position(video_id, view)
        if not self._lookup.is_ok[position]:
            row = self._lookup.row(position)
            raise CacheError(f"video {video_id!r} has no tokens: {row.status}: {row.reason or _NOT_YET}")
        numbers = _frame_numbers(frames, self._lookup.num_frames[position], video_id)
        return LocatedClip(position, (video_id, view), numbers)

    def frames_within(self, clip: LocatedClip, seconds: tuple[float, float], column_key: str) -> LocatedClip:
        """Those frames of a clip whose times lie in [start, end); the column says in which commit they are looked up.

        Raises:
            UsageError: when there are none; says where they lie.
        """
        start, end = seconds
        pts_seconds = np.empty(len(clip.frame_numbers))
        shard = self._lookup.shard(clip.position)
        reader, frame_start = self._place(shard, column_key, clip)
        _read(reader, clip.frame_numbers + frame_start, {PTS_KEY: pts_seconds}, clip, shard)
        inside = (pts_seconds >= start) & (pts_seconds < end)
        if not inside.any():
            raise UsageError(
                f"video {clip.video[0]!r} has no frame from {start} up to {end} s; its {len(pts_seconds)} frames lie "
                f"at {pts_seconds.min():.3f} to {pts_seconds.max():.3f} s"
            )
        return clip._replace(frame_numbers=clip.frame_numbers[inside])

    def read(
        self,
        clip: LocatedClip,
        keys: ArrayKeys,
        arrays: Mapping[str, NDArray[Any]],
        pts_seconds: NDArray[np.float64],
    ) -> None:
        """Copies a clip's frames and their times to where they are wanted.

        Args:
            clip: which frames.
            keys: what of them.
            arrays: [T, ...] for every array, by key; filled.
            pts_seconds: [T]; filled.

        Raises:
            CacheError: the video has no tokens of a column; says why.
            CacheFormatError: the data is damaged; says which.
        """
        shard = self._lookup.shard(clip.position)
        by_place: dict[tuple[ShardReader, int], dict[str, NDArray[Any]]] = {}
        for column_key, keys_of_column in keys.items():
            # Every commit of a shard has the same times: the first gives them.
            wanted = by_place.setdefault(
                self._place(shard, column_key, clip), {} if by_place else {PTS_KEY: pts_seconds}
            )
            wanted.update({key: arrays[key] for key in keys_of_column})
        for (reader, start), wanted in by_place.items():
            _read(reader, clip.frame_numbers + start if start else clip.frame_numbers, wanted, clip, shard)

    def _place(self, shard: str, column_key: str, clip: LocatedClip) -> tuple[ShardReader, int]:
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


def _read(
    reader: ShardReader,
    in_shard: NDArray[np.int64],
    wanted: Mapping[str, NDArray[Any]],
    clip: LocatedClip,
    shard: str,
) -> None:
    try:
        reader.read_into(in_shard, wanted)
    except CacheFormatError as error:
        raise CacheFormatError(f"video {clip.video[0]!r}, shard {shard}: {error}") from error


def _frame_numbers(frames: Frames | None, num_video_frames: int, video_id: str) -> NDArray[np.int64]:
    """[T] frame numbers of a video, all in range."""
    if frames is None:
        return np.arange(num_video_frames)
    if isinstance(frames, slice):
        return np.arange(*frames.indices(num_video_frames))
    if (
        isinstance(frames, range)
        and frames
        and 0 <= min(frames[0], frames[-1]) <= max(frames[0], frames[-1]) < num_video_frames
    ):
        return np.arange(frames.start, frames.stop, frames.step)  # the usual clip, in a fifth of the time
    numbers = np.asarray(frames)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise UsageError(f"frames is {frames!r}; a slice, whole numbers or None is needed")
    numbers = numbers.astype(np.int64, copy=False)
    lowest, highest = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
    if numbers.size and not 0 <= lowest <= highest < num_video_frames:
        raise UsageError(
            f"video {video_id!r} has the frames 0 to {num_video_frames - 1}; {lowest} to {highest} requested"
        )
    return numbers
