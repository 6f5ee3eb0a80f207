"""Reading a mapped file at random: as fast as a copy, and only the bytes asked for leave the disk.

What the readers of both stores share:

- `MappedFile`. Bytes that are in memory come fastest out of a mapping: one copy, no system call (preadv of a window of
  2.5 MB took 1.8 times as long, of 0.15 MB as long, of 12 KB 0.3 times). But for a page that is not there the kernel
  reads ahead around it: 6 times the bytes wanted in windows of 2.5 MB, 50 times in single frames, in 3 and 28 times the
  time. Told not to (MADV_RANDOM) it fetches page by page, 8 times slower. So `fetch` is called before a copy: it asks
  which pages are missing (mincore, 3 µs per window) and has the disk bring exactly those ranges at once
  (MADV_WILLNEED): as fast as preadv, and 1.00 times the bytes. Asking for them without asking what is missing made
  batches take 1.16 to 1.31 times as long. What was there a moment ago is not asked about again: that would be 1.01 to
  1.14 times, for small tokens 1.4. All of it costs batches that are in memory 0 to 6%.
- `MappedShardReader`. It checks requests, and opens and forgets files; 3 µs per read. Open arrays belong to the process
  that opened them and to the reader until it is closed; a thread that is reading keeps its own hold of them.
- `copy_frames`. A large copy is made by np.positive on unsigned numbers: the same bytes as by np.copyto, through
  numpy's vector loop and not through memcpy. That one goes around the processor's cache where a copy is large, and is
  slow where frames begin at odd addresses, as in a Zarr shard. On an AMD EPYC windows of 1.2 to 6.6 MB took 0.88 to
  0.95 times as long, out of a Zarr shard 0.78 to 0.82 times, and batches of 16 of them 0.74 to 0.97 times; windows of
  0.3 MB 1.05 to 1.14 times.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.stores.base import Checksums, Copy, FrameNumbers, ShardReader

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from vfz.pipeline.stores.metadata import ArraySpec, ShardData


RESTORE = "restore it from a copy or extract the shard again"
"""What to do about damaged data."""
_PAGE_BYTES = mmap.PAGESIZE
_AHEAD_BYTES = 128 * 1024
"""Asked for in one call: Linux cuts a longer request off at the disk's read-ahead, which is rarely less than this."""

_READY_SECONDS = 5.0
"""For so long a page that was in memory, or on its way there, is taken to be there still."""

_mincore = ctypes.CDLL(None, use_errno=True).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class MappedFile:
    """A whole file, read-only, in the process that opened it. Unmapped when nothing refers to its bytes any more.

    Args:
        path: the file.
        num_bytes: its size as it was committed.

    Attributes:
        path: the file.
        bytes: all of it.

    Raises:
        CacheFormatError: when the file is gone, cannot be read or has another size.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size != num_bytes or not num_bytes:
                    raise CacheFormatError(f"{path} has {status.st_size} bytes, {num_bytes} were written; {RESTORE}")
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheFormatError(f"cannot read {path}: {error.strerror}; {RESTORE}") from error
        self.bytes.madvise(mmap.MADV_RANDOM)
        self._address = int(np.frombuffer(self.bytes, np.uint8).__array_interface__["data"][0])
        self._ready, self._ready_until = bytearray(), 0.0  # a byte per page
        # Of a file that one may not write, mincore says that all of it is in memory.
        self._pages_are_told = status.st_uid == os.geteuid() or os.access(path, os.W_OK)

    def __len__(self) -> int:
        return len(self.bytes)

    def fetch(self, start: int, end: int) -> None:
        """Has the disk bring bytes `start` to `end` that are not in memory, and no others; does not wait for them."""
        first, last = start // _PAGE_BYTES, -(-end // _PAGE_BYTES)
        if time.monotonic() > self._ready_until:
            self._ready = bytearray(-(-len(self.bytes) // _PAGE_BYTES))
            self._ready_until = time.monotonic() + _READY_SECONDS
        elif 0 not in self._ready[first:last]:
            return
        start = first * _PAGE_BYTES
        if start < end and not self._is_in_memory(start, end):
            for piece in range(start, end, _AHEAD_BYTES):
                self.bytes.madvise(mmap.MADV_WILLNEED, piece, min(_AHEAD_BYTES, end - piece))
        self._ready[first:last] = b"\1" * (last - first)

    def _is_in_memory(self, start: int, end: int) -> bool:
        if not self._pages_are_told:
            return False
        pages = bytearray((end - start + _PAGE_BYTES - 1) // _PAGE_BYTES)
        told = _mincore(self._address + start, end - start, ctypes.byref(ctypes.c_char.from_buffer(pages)))
        return told == 0 and 0 not in pages


class OpenArray(Protocol):
    """An array whose file is open."""

    def window(self, window: slice) -> NDArray[Any] | None:
        """Frames of a window (at least one, all in range), fetched and checked, where they lie; None if apart."""

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:
        """Copies `frames` (at least one, all in range; `window` where they are one) to `out`."""


class MappedShardReader(ShardReader):
    """Reads arrays that lie in mapped files; a subclass says how an array is opened."""

    def __init__(self, path: Path, data: ShardData, *, checksums: Checksums = "first") -> None:
        super().__init__(path, data, checksums=checksums)
        self._specs = {spec.key: spec for spec in data.arrays}
        self._num_frames = data.num_frames
        self._pid = os.getpid()
        self._open: dict[str, OpenArray] = {}
        # Outlives `close`: a chunk is checked once per reader and process, however often its file is opened.
        self._verified: dict[str, bytearray] = {}

    def read(self, key: str, frames: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `ShardReader.read`."""
        checked, window = self._checked(frames)
        if out is None:
            spec = self._spec(key)
            out = np.empty((len(checked), *spec.frame_shape), spec.dtype)
        array = self._array_for(key, len(checked), out)
        if len(checked):
            array.read(np.asarray(checked, np.int64), window, out)
        return out

    def read_into(self, frames: FrameNumbers, outs: Mapping[str, NDArray[Any]], later: list[Copy]) -> None:
        """See `ShardReader.read_into`; the frames are looked at once for all arrays."""
        frames, window = self._checked(frames)
        for key, out in outs.items():
            try:
                array = self._array_for(key, len(frames), out)
                source = array.window(window) if window is not None and len(frames) else None
                if source is not None:
                    later.append((out, source))
                elif len(frames):
                    array.read(np.asarray(frames, np.int64), window, out)
            except CacheFormatError as error:
                raise CacheFormatError(f"{key}: {error}") from error

    def _checked(self, frames: FrameNumbers) -> tuple[FrameNumbers, slice | None]:
        """The frames, all in range, and the window they are, if they are one."""
        if isinstance(frames, range) and frames and frames.step > 0:
            window: slice | None = slice(frames.start, frames[-1] + 1, frames.step)
        else:
            frames = np.asarray(frames, dtype=np.int64)
            window = as_slice(frames)
        lowest, highest = (window.start, window.stop - 1) if window else (np.min(frames), np.max(frames))
        if lowest < 0 or highest >= self._num_frames:
            raise UsageError(
                f"{self.path}: frames {lowest} to {highest} requested; the shard has frames 0 to {self._num_frames - 1}"
            )
        return frames, window

    def _array_for(self, key: str, num_frames: int, out: NDArray[Any]) -> OpenArray:
        """The open array, when so many frames of it fit `out`."""
        spec = self._spec(key)
        if out.shape != (shape := (num_frames, *spec.frame_shape)) or out.dtype != spec.dtype:
            raise UsageError(f"{key}: out is {out.dtype} {out.shape}; {spec.dtype} {shape} is needed")
        return self._opened(spec)

    def _spec(self, key: str) -> ArraySpec:
        spec = self._specs.get(key)
        if spec is None:
            raise UnknownNameError("array", key, self._specs)
        return spec

    def close(self) -> None:
        """Forgets the open files; they are unmapped when the last read of them is done."""
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "data": self.data, "checksums": self.checksums}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["data"], checksums=state["checksums"])  # type: ignore[misc]

    def _opened(self, spec: ArraySpec) -> OpenArray:
        if self._pid != os.getpid():  # after a fork: files are opened and checked by the process that reads them
            self.close()
            self._verified, self._pid = {}, os.getpid()
        opened = self._open  # another thread may close the reader at any moment
        array = opened.get(spec.key)
        if array is None:
            array = opened[spec.key] = self._open_array(spec)
        return array

    @abstractmethod
    def _open_array(self, spec: ArraySpec) -> OpenArray:
        """Opens an array.

        Raises:
            CacheFormatError: when it is not there as the index says.
        """


def as_slice(frames: NDArray[np.int64]) -> slice | None:
    """The frames as a window with a step, if they are one; the slice ends right after the last frame."""
    numbers = frames.tolist()
    if not numbers:
        return slice(0, 0, 1)
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    window = range(numbers[0], numbers[-1] + 1, step) if step > 0 else None
    return slice(window.start, window.stop, step) if window and numbers == list(window) else None


_LARGE_BYTES = 512 * 1024


def copy_frames(out: NDArray[Any], frames: NDArray[Any]) -> None:
    """`np.copyto(out, frames)` for arrays of one shape and dtype, faster where they are large."""
    if out.nbytes < _LARGE_BYTES:
        np.copyto(out, frames)
    else:
        unsigned = f"u{out.itemsize}"
        np.positive(frames.view(unsigned), out=out.view(unsigned))
