"""What readers share that open arrays one by one: the checks of a request, and when files are opened and forgotten.

Opened arrays belong to the process that opened them and to the reader until it is closed; a thread that is reading
keeps its own hold of them. Cost: 3 µs per read.
"""

from __future__ import annotations

import os
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


class OpenArray(Protocol):
    """An array whose file is open."""

    def window(self, window: slice) -> NDArray[Any] | None:
        """Frames of a window (at least one, all in range), fetched and checked, where they lie; None when apart."""

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:
        """Copies `frames` (at least one, all in range; `window` where they are one) to `out`."""


class MappedShardReader(ShardReader):
    """A reader that says how an array is opened, and leaves the rest to this class."""

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
    """The window with a step that `frames` is, if it is one; the slice ends right after the last frame."""
    numbers = frames.tolist()
    if not numbers:
        return slice(0, 0, 1)
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    window = range(numbers[0], numbers[-1] + 1, step) if step > 0 else None
    return slice(window.start, window.stop, step) if window and numbers == list(window) else None
