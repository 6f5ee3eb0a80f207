"""The contract of a store: how one shard's tokens are written once and read at random.

A shard holds the frames of some videos one after the other. It is written video by video and read by frame: which
frames are whose is in the index beside the data. Writers keep a few frames in memory, never the shard. Every store
passes `tests/contracts/store_contract.py`.

Shapes: n frames in one call, F frames of a shard, N tokens (P of them for prefix), D channels.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

import numpy as np

from vfz.pipeline.errors import EncoderError
from vfz.pipeline.files import storage_errors
from vfz.pipeline.stores.metadata import PTS_ARRAY, PTS_KEY, ArraySpec, Column, ShardData, ShardVideo, StoredVideo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

Checksums = Literal["never", "first", "always"]
"""When a reader compares chunks with their crc32c: never, the first time it meets each, or every time."""
FrameNumbers: TypeAlias = "range | NDArray[np.int64]"
"""Numbers of frames in any order; a range where they form one, since nothing has to be searched in it."""
Copy: TypeAlias = "tuple[NDArray[Any], NDArray[Any]]"
"""Target and source of a copy: arrays of one shape and dtype; the source lies in a mapped file."""


class ShardWriter(ABC):
    """Writes one shard, front to back. As a context manager it leaves nothing behind unless it was finished.

        with writer_type(new_data_path(cache, "00012", suffix), columns) as writer:
            writer.begin_video(ShardVideo(id="v1", view=0, split="train", label=3))
            writer.append(arrays, pts_seconds)  # as often as frames come
            data = writer.finish()

    Args:
        path: the folder or file that is made, under a name nobody else uses; must not exist.
        columns: what is stored per frame, keys unique.

    Raises:
        StorageError: here and in every method, when the disk is full or refuses to be written; then call `abort`.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        if len({column.key for column in columns}) != len(columns) or not columns:
            raise ValueError(f"columns must be some, and all different: {[column.key for column in columns]}")
        self.path = path
        self.columns = tuple(columns)
        self._specs = {spec.key: spec for column in columns for spec in column.arrays}
        self._videos: list[ShardVideo] = []
        self._counts: list[int] = []  # frames of each video
        self._in_video = False  # one was begun and not dropped
        self._finished = False

    @property
    def num_frames(self) -> int:
        """Frames appended and not dropped."""
        return sum(self._counts)

    def begin_video(self, video: ShardVideo) -> None:
        """Frames from now on are this video's.

        Raises:
            ValueError: when the video before has no frame (drop it), or this one is in the shard already.
        """
        self._refuse_when_finished()
        if self._counts and not self._counts[-1]:
            raise ValueError(f"video {self._videos[-1].id!r} has no frame: call drop_video()")
        if any((video.id, video.view) == (other.id, other.view) for other in self._videos):
            raise ValueError(f"video {video.id!r}, view {video.view}, is in the shard already")
        with storage_errors(self.path):
            self._begin_video(video)
        self._videos.append(video)
        self._counts.append(0)
        self._in_video = True

    def append(self, arrays: Mapping[str, NDArray[Any]], pts_seconds: NDArray[np.float64]) -> None:
        """Adds n frames to the video begun last; nothing can be added after it was dropped.

        Args:
            arrays: [n, ...] per array key of every column, in the array's dtype.
            pts_seconds: [n] float64.

        Raises:
            EncoderError: for another shape or dtype, or numbers that are not finite; nothing was added then.
            ValueError: when no video was begun.
        """
        self._refuse_when_finished()
        if not self._in_video:
            raise ValueError("frames of no video: call begin_video() first")
        if arrays.keys() != self._specs.keys():
            raise EncoderError(f"tokens of {sorted(arrays)} were given; the shard stores {sorted(self._specs)}")
        num_new = len(pts_seconds)
        for key, spec in self._specs.items():
            _check(arrays[key], spec, num_new)
        _check(pts_seconds, PTS_ARRAY, num_new)
        with storage_errors(self.path):
            self._append({**arrays, PTS_KEY: pts_seconds})
        self._counts[-1] += num_new

    def drop_video(self) -> None:
        """Forgets the video begun last, as if it had never been begun; those before it are complete and stay.

        Raises:
            ValueError: when none was begun since the last drop.
        """
        self._refuse_when_finished()
        if not self._in_video:
            raise ValueError("there is no video to drop")
        with storage_errors(self.path):
            self._drop_video(self.num_frames - self._counts[-1])
        del self._videos[-1], self._counts[-1]
        self._in_video = False

    def finish(self) -> ShardData:
        """Writes what is left and flushes every file and folder to the disk; the shard can then be committed.

        Raises:
            ValueError: when there is no frame, or none of the last video; call `abort` or `drop_video`.
        """
        self._refuse_when_finished()
        if not self._counts or not self._counts[-1]:
            raise ValueError("a shard or video without frames has no data: call abort() or drop_video()")
        with storage_errors(self.path):
            data = self._finish()
        self._finished = True
        return data

    def abort(self) -> None:
        """Deletes everything written; safe to call at any time and more than once."""
        self._close()
        remove_data(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            self.abort()

    def _refuse_when_finished(self) -> None:
        if self._finished:
            raise ValueError(f"{self.path} is finished: nothing can be added, dropped or finished again")

    @property
    def _stored_videos(self) -> tuple[StoredVideo, ...]:
        """What the index says of the videos."""
        counted = zip(self._videos, self._counts, strict=True)
        return tuple(StoredVideo(id=video.id, view=video.view, num_frames=count) for video, count in counted)

    @abstractmethod
    def _begin_video(self, video: ShardVideo) -> None:
        """Called before the frames of each video; the one before is complete."""

    @abstractmethod
    def _append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Adds frames that are checked, times included."""

    @abstractmethod
    def _drop_video(self, num_frames: int) -> None:
        """Goes back to before the video begun last; `num_frames` are left."""

    @abstractmethod
    def _finish(self) -> ShardData:
        """Completes and flushes a shard of at least one frame."""

    @abstractmethod
    def _close(self) -> None:
        """Lets go of files and threads; more than once if asked."""


class ShardReader(ABC):
    """Reads one shard at random. Opens files when first needed, in the process that needs them.

    It may be pickled, may cross a fork, and may be closed by one thread while another reads.

    Args:
        path: the shard's data, a folder or a file.
        data: what the shard's index says about it.
        checksums: when chunks are compared with their crc32c.
    """

    def __init__(self, path: Path, data: ShardData, *, checksums: Checksums = "first") -> None:
        if checksums not in get_args(Checksums):
            raise ValueError(f"checksums is {checksums!r}; allowed: {', '.join(get_args(Checksums))}")
        self.path = path
        self.data = data
        self.checksums = checksums

    @abstractmethod
    def read(self, key: str, frames: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Frames of one array, in any order, repeats allowed.

        Args:
            key: of one of the columns' arrays, or `pts_seconds`.
            frames: [n] frame numbers in the shard.
            out: [n, ...] in the stored dtype, to be filled; made when None.

        Returns:
            `out`: [n, N, D] for tokens (int4: [n, N, ceil(D/2)]), [n, N, G] for scales, [n] for times.

        Raises:
            UnknownNameError: when the shard has no such array.
            UsageError: when a frame number is out of range, or `out` has another shape or dtype.
            CacheFormatError: when the data is damaged, shorter than it should be, or gone.
        """

    @abstractmethod
    def read_into(self, frames: FrameNumbers, outs: Mapping[str, NDArray[Any]], later: list[Copy]) -> None:
        """The same frames of several arrays.

        Args:
            frames: [n] frame numbers in the shard.
            outs: by array key, as `out` of `read`; filled one after the other.
            later: where no more than a copy is left to do, that copy is appended here instead of made.

        Raises:
            UnknownNameError, UsageError: as `read`.
            CacheFormatError: as `read`; names the array.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of open files; a later `read` opens them again."""


def remove_data(path: Path) -> None:
    """Deletes a shard's data, folder or file, if it is there; of a symbolic link the link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no number of a float array is NaN or infinite."""
    if values.dtype == np.float16 and values.flags.c_contiguous and values.size:
        # An exponent of all ones is Inf or NaN; as integers this is 7 times as fast as np.isfinite on float16.
        return int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00
    return bool(np.isfinite(values).all())


def _check(array: NDArray[Any], spec: ArraySpec, num_new: int) -> None:
    """Refuses an array that cannot be stored as `spec`."""
    expected = (num_new, *spec.frame_shape)
    if array.shape != expected or array.dtype != spec.dtype:
        raise EncoderError(
            f"{spec.key}: expected {spec.dtype.name} of shape {expected}, got {array.dtype.name} of shape {array.shape}"
        )
    if spec.dtype.kind != "f":
        return
    # Frame by frame: the temporaries stay in the processor's cache.
    for number, frame in enumerate(array if spec.frame_shape else array[None]):
        if not all_finite(frame):
            raise EncoderError(f"{spec.key}: frame {number} of {num_new} holds NaN or infinite numbers")
