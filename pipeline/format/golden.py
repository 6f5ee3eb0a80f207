"""Golden frames: 16 frames of a cache as pixels, with the tokens they gave when the cache was made.

They tell later whether an encoder still is the one that made the cache, without any video at hand.
`golden/frames.npz` holds `pixels_GCHW` (uint8, before normalisation), `video_ids` and `pts_seconds`;
`golden/tokens-<n>.npz` the stored arrays of some columns, as in a shard; a column added later adds a file. The
contents of the cache hold the digest of each.

Shapes: G golden frames.
"""

from __future__ import annotations

import secrets
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import fsync_dir, fsync_file, sha256_file, storage_errors
from vfz.pipeline.format.header import GOLDEN
from vfz.pipeline.stores.metadata import PTS_ARRAY, PTS_KEY

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from vfz.pipeline.format.header import Contents

NUM_GOLDEN_FRAMES = 16
FRAMES_FILE = "frames.npz"
_FRAME_KEYS = ("pixels_GCHW", "video_ids", PTS_KEY)
_UNREADABLE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise of a file that is no archive of arrays."""


@dataclass(frozen=True, kw_only=True)
class GoldenFrames:
    """The golden frames of a cache.

    Attributes:
        pixels_GCHW: uint8.
        video_ids, pts_seconds: [G] where they came from.
        arrays: stored arrays [G, ...] by key, of all columns.
    """

    pixels_GCHW: NDArray[np.uint8]
    video_ids: tuple[str, ...]
    pts_seconds: tuple[float, ...]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class FrameSample:
    """M frames of a dataset, in view 0; the first of them become golden frames.

    Attributes:
        pixels_MCHW: uint8, before normalisation.
        video_ids: [M].
        pts_seconds: [M].
    """

    pixels_MCHW: torch.Tensor
    video_ids: tuple[str, ...]
    pts_seconds: tuple[float, ...]


def write_golden_frames(cache_folder: Path, sample: FrameSample) -> dict[str, str]:
    """Writes the pixels of the first 16 frames of a sample; returns the SHA-256 of the file by its name."""
    return _write(
        cache_folder / GOLDEN / FRAMES_FILE,
        {
            "pixels_GCHW": sample.pixels_MCHW[:NUM_GOLDEN_FRAMES].numpy(),
            "video_ids": np.array(sample.video_ids[:NUM_GOLDEN_FRAMES], dtype=np.str_),
            "pts_seconds": np.array(sample.pts_seconds[:NUM_GOLDEN_FRAMES]),
        },
    )


def write_golden_tokens(cache_folder: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Writes the stored arrays of the golden frames under a new name; returns the SHA-256 of the file by its name."""
    return _write(cache_folder / GOLDEN / f"tokens-{secrets.token_hex(4)}.npz", arrays)


def read_golden(cache_folder: Path, contents: Contents) -> GoldenFrames:
    """Everything in `golden/`.

    Raises:
        CacheFormatError: when a file is missing, not the one that the contents name, or holds something else.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, digest in contents.golden.items():
        path = cache_folder / GOLDEN / name
        try:
            if sha256_file(path) != digest:
                raise CacheFormatError(f"{path} was changed after it was written; restore it from a copy")
            with np.load(path, allow_pickle=False) as content:
                arrays.update(content)
        except _UNREADABLE as error:
            raise CacheFormatError(f"cannot read {path}: {error}; restore it from a copy") from error
    _check(cache_folder / GOLDEN, arrays, contents)
    return GoldenFrames(
        pixels_GCHW=arrays.pop("pixels_GCHW"),
        video_ids=tuple(arrays.pop("video_ids").tolist()),
        pts_seconds=tuple(arrays.pop("pts_seconds").tolist()),
        arrays=arrays,
    )


def _check(folder: Path, arrays: Mapping[str, NDArray[Any]], contents: Contents) -> None:
    """Refuses golden frames of which something is missing or of another shape than the columns have.

    Raises:
        CacheFormatError: names the array.
    """
    for key in _FRAME_KEYS:
        if key not in arrays:
            raise CacheFormatError(f"{folder} has no {key}; restore it from a copy")
    num_frames, num_axes = arrays["video_ids"].size, arrays["pixels_GCHW"].ndim
    specs = [spec for column in contents.columns if column.key in arrays for spec in column.arrays]
    expected = {spec.key: (spec.dtype, (num_frames, *spec.frame_shape)) for spec in (*specs, PTS_ARRAY)}
    expected["video_ids"] = (np.dtype(np.str_), (num_frames,))
    expected["pixels_GCHW"] = (np.dtype(np.uint8), (num_frames, *arrays["pixels_GCHW"].shape[1:]))
    for key, (dtype, shape) in expected.items():
        found = arrays.get(key, np.empty(0))
        same_dtype = found.dtype == dtype or found.dtype.kind == dtype.kind == "U"
        if not num_frames or num_axes != 4 or not same_dtype or found.shape != shape:
            raise CacheFormatError(
                f"{folder}: {key} is {found.dtype} {found.shape}, expected {dtype} {shape}; restore it from a copy"
            )


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    with storage_errors(path):
        np.savez(path, **arrays)  # type: ignore[arg-type] # savez takes arrays by any name
        fsync_file(path)
        fsync_dir(path.parent)
    return {path.name: sha256_file(path)}
