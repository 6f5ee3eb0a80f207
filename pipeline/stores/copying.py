"""Copies out of a mapped file into a batch: the fastest way, found by trying.

All give the same bytes, and which is quickest depends on the processor. Windows of 16 frames of 201x384 float16 took on
an AMD EPYC 118 µs as one memcpy of 2.5 MB, 94 µs as one per frame and 131 µs by torch's vectorised loop; on another
machine a memcpy per frame was a fifth slower than torch where frames lie at odd addresses, as in a Zarr shard. So the
first large copies of a process take turns, and the rest go the way that was fastest: nothing is copied twice.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vfz.pipeline.stores.base import Copy

    Way = Callable[[NDArray[Any], NDArray[Any]], None]

_LARGE_BYTES = 256 * 1024
_PIECE_BYTES = 896 * 1024
"""Of a larger piece memcpy goes around the processor's cache: with glibc from 3/4 of a thread's share of it on."""
_NUM_TRIALS = 16
"""Of each way. The fourth best counts: many others meet pages that are not mapped yet, or a busy moment."""
_IMPORTED_BY = os.getpid()


def copy_all(copies: Sequence[Copy]) -> None:
    """Makes the copies that `ShardReader.read_into` left to do.

    One after the other, with nothing between them: what else a read needs takes half of its 20 µs per clip when it is
    done for many clips in a row, since the megabytes of a copy push its code out of the processor's cache.
    """
    for out, frames in copies:
        copy_frames(out, frames)


def copy_frames(out: NDArray[Any], frames: NDArray[Any]) -> None:
    """`np.copyto(out, frames)` for frames [n, ...] that lie in a mapped file, each without gaps."""
    if out.nbytes < _LARGE_BYTES or not out.flags.c_contiguous:
        np.copyto(out, frames)
    else:
        _FASTEST[frames.flags.c_contiguous].copy(out, frames)


def _in_pieces(out: NDArray[Any], frames: NDArray[Any]) -> None:
    step = max(1, _PIECE_BYTES // frames[0].nbytes)
    for start in range(0, len(frames), step):
        np.copyto(out[start : start + step], frames[start : start + step])


def _by_torch(out: NDArray[Any], frames: NDArray[Any]) -> None:
    torch = sys.modules["torch"]
    # torch warns of memory that may not be written, which it only reads here: an array that does not say so.
    source = np.asarray(_Rows(frames))
    torch.from_numpy(out.reshape(len(frames), -1).view(np.uint8)).copy_(torch.from_numpy(source))


def _torch_may_copy() -> bool:
    """Not where it is not loaded anyway, nor in a forked child with several threads.

    There its OpenMP would wait for threads that the fork has not taken along.
    """
    torch = sys.modules.get("torch")
    return torch is not None and (os.getpid() == _IMPORTED_BY or torch.get_num_threads() == 1)


class _Fastest:
    """Some ways to copy, and how long a byte took by each."""

    def __init__(self, *ways: Way) -> None:
        self._seconds_per_byte: dict[Way, list[float]] = {way: [] for way in ways}
        self._ranking: list[Way] = []

    def copy(self, out: NDArray[Any], frames: NDArray[Any]) -> None:
        """Copies, by the way that has had the fewest trials or, after them, by the fastest."""
        for way in self._ranking or sorted(self._seconds_per_byte, key=self._num_trials):
            if way is not _by_torch or _torch_may_copy():
                break
        if self._ranking:
            way(out, frames)
            return
        started = time.perf_counter()
        way(out, frames)
        self._seconds_per_byte[way].append((time.perf_counter() - started) / out.nbytes)
        tried = {way: sorted(seconds)[:4][-1] for way, seconds in self._seconds_per_byte.items() if seconds}
        if min(map(self._num_trials, tried)) >= _NUM_TRIALS:
            self._ranking = sorted(tried, key=tried.__getitem__)

    def _num_trials(self, way: Way) -> int:
        return len(self._seconds_per_byte[way])


_FASTEST = {False: _Fastest(np.copyto, _by_torch), True: _Fastest(np.copyto, _in_pieces)}
"""By whether the frames lie side by side. Where they do not, np.copyto goes frame by frame itself."""


class _Rows:
    """Memory of frames as rows of bytes, for `np.asarray`, which keeps this object and so the frames."""

    def __init__(self, frames: NDArray[Any]) -> None:
        self._frames = frames
        address = frames.__array_interface__["data"][0]
        self.__array_interface__ = {
            "data": (address, False), "shape": (len(frames), frames[0].nbytes), "strides": (frames.strides[0], 1),
            "typestr": "|u1", "version": 3,
        }  # fmt: skip
