"""The contract of a store: how one shard's tokens are written once and read at random.

A shard holds the frames of some videos one after the other. A store knows frames, not videos: which frames are whose is
in the ledger rows beside the data. Writers keep a few frames in memory, never the shard. Every store passes
`tests/contracts/store_contract.py`.

Shapes: n frames in one call, F frames of a shard, N tokens (P of them for prefix), D channels.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from vfz.pipeline.errors import EncoderError
from vfz.pipeline.files import storage_errors
from vfz.pipeline.stores.records import PTS_ARRAY, PTS_KEY, ArraySpec, Column, ShardData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

Checksums = Literal["never", "first", "always"]
"""When a reader compares chunks with their crc32c: never, the first time it meets each, or every time."""


class ShardWriter(ABC):
    """Writes one shard, front to back. As a context manager it leaves nothing behind unless it was finished.

    Args:
        folder: made by the writer under a name nobody else uses; must not exist.
        columns: what is stored per frame, keys unique.

    Raises:
        StorageError: here and in every method, when the disk is full or refuses to be written; then call `abort`.
    """

    def __init__(self, folder: Path, columns: Sequence[Column]) -> None:
        if len({column.key for column in columns}) != len(columns) or not columns:
            raise ValueError(f"columns must be some, and all different: {[column.key for column in columns]}")
        self.folder = folder
        self.columns = tuple(columns)
        self._tokens = {column.key: column.array for column in columns}
        self._num_frames = 0
        self._finished = False

    @property
    def num_frames(self) -> int:
        """Frames appended and not rolled back."""
        return self._num_frames

    def append(self, tokens: Mapping[str, NDArray[Any]], pts_seconds: NDArray[np.float64]) -> None:
        """Adds n frames.

        Args:
            tokens: [n, N, D] per column key, in the column's dtype.
            pts_seconds: [n] float64.

        Raises:
            EncoderError: for another shape or dtype, or numbers that are not finite; nothing was added then.
        """
        if tokens.keys() != self._tokens.keys():
            raise EncoderError(f"tokens of {sorted(tokens)} were given; the shard stores {sorted(self._tokens)}")
        num_new = len(pts_seconds)
        for key, spec in self._tokens.items():
            _check(tokens[key], spec, num_new)
        _check(pts_seconds, PTS_ARRAY, num_new)
        with storage_errors(self.folder):
            self._append({**tokens, PTS_KEY: pts_seconds})
        self._num_frames += num_new

    def rollback(self, num_frames: int) -> None:
        """Forgets every frame from `num_frames` on, as if it had never been appended.

        Raises:
            ValueError: when there are fewer than `num_frames`.
        """
        if not 0 <= num_frames <= self._num_frames:
            raise ValueError(f"cannot roll back to {num_frames} frames: the shard has {self._num_frames}")
        with storage_errors(self.folder):
            self._rollback(num_frames)
        self._num_frames = num_frames

    def finish(self) -> ShardData:
        """Writes what is left and flushes every file and folder to the disk; the shard can then be committed.

        Raises:
            ValueError: when there is no frame; call `abort`.
        """
        if self._num_frames == 0:
            raise ValueError("a shard without frames has no data: call abort()")
        with storage_errors(self.folder):
            data = self._finish()
        self._finished = True
        return data

    def abort(self) -> None:
        """Deletes everything written; safe to call at any time and more than once."""
        self._close()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished:
            self.abort()

    @abstractmethod
    def _append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Adds frames that are checked, times included."""

    @abstractmethod
    def _rollback(self, num_frames: int) -> None:
        """Goes back to `num_frames`, which is no more than there are."""

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
        folder: the shard's data.
        data: what the shard's index says about it.
        checksums: when chunks are compared with their crc32c.
    """

    def __init__(self, folder: Path, data: ShardData, *, checksums: Checksums = "first") -> None:
        if checksums not in get_args(Checksums):
            raise ValueError(f"checksums is {checksums!r}; allowed: {', '.join(get_args(Checksums))}")
        self.folder = folder
        self.data = data
        self.checksums = checksums

    @abstractmethod
    def read(self, key: str, frames: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Frames of one array, in any order, repeats allowed.

        Args:
            key: a column's key, or `pts_seconds`.
            frames: [n] frame numbers in the shard.
            out: [n, N, D] (or [n]) in the stored dtype, to be filled; made when None.

        Returns:
            `out`: [n, N, D] for tokens, [n] for times.

        Raises:
            UnknownNameError: when the shard has no such array.
            UsageError: when a frame number is out of range, or `out` has another shape or dtype.
            CacheFormatError: when the data is damaged, shorter than it should be, or gone.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of open files; a later `read` opens them again."""


def _check(array: NDArray[Any], spec: ArraySpec, num_new: int) -> None:
    """Refuses an array that cannot be stored as `spec`."""
    expected = (num_new, *spec.frame_shape)
    if array.shape != expected or array.dtype != spec.dtype:
        raise EncoderError(
            f"{spec.key}: expected {spec.dtype.name} of shape {expected}, got {array.dtype.name} of shape {array.shape}"
        )
    # Frame by frame: the temporaries stay in the processor's cache.
    for number, frame in enumerate(array if spec.frame_shape else array[None]):
        if not _all_finite(frame):
            raise EncoderError(f"{spec.key}: frame {number} of {num_new} holds NaN or infinite numbers")


def _all_finite(values: NDArray[Any]) -> bool:
    if values.dtype == np.float16 and values.flags.c_contiguous and values.size:
        # An exponent of all ones is Inf or NaN; as integers this is 7 times as fast as np.isfinite on float16.
        return int((values.view(np.uint16) & 0x7FFF).max()) < 0x7C00
    return bool(np.isfinite(values).all())
