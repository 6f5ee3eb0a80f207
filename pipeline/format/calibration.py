"""The calibration of a column: each channel's offset and spread, and what storing it costs, measured on sample tokens.

int8 and int4 subtract the offset and divide by the spread before they round (`vfz.pipeline.stores.quantization`), so
their tokens cannot be read without it. For every precision it also says how far stored tokens lie from the encoder's
and how well they compress, which decides the compression. One checked JSON file per column,
`calibration/<layer>.<part>.json`; `vfz.json` or `contents/<n>.json` holds its digest.

Shapes: M sample frames, N tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import (
    checked_json_bytes,
    content_errors,
    read_checked_json,
    sha256_file,
    sha256_hex,
    write_file_once,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vfz.pipeline.stores.compression import RequestedCompression
    from vfz.pipeline.stores.metadata import Column, Compression
    from vfz.pipeline.stores.quantization import ChannelStats

CALIBRATION = "calibration"
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_KEYS = frozenset({"column", "num_frames", "offset", "std", "precision_error", "compression_ratios"})


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is known of a column from its sample.

    Attributes:
        column: its key.
        num_frames: M, frames of the sample.
        offset, std: [D] per channel, float32 values: `token = stored * std + offset` for quantised tokens.
        precision_error: relative error of the stored tokens, each channel divided by its standard deviation; None where
            some of the sample cannot be stored (beyond the range of fp16).
        compression_ratios: stored bytes / uncompressed bytes by codec; empty where the store does not compress.
    """

    column: str
    num_frames: int
    offset: tuple[float, ...]
    std: tuple[float, ...]
    precision_error: float | None
    compression_ratios: Mapping[str, float]

    def __post_init__(self) -> None:
        if len(self.offset) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError(f"calibration of {self.column}: offset and std must be as many, and std above 0")
        if type(self.column) is not str or type(self.num_frames) is not int:
            raise TypeError(f"calibration of {self.column!r} from {self.num_frames!r} frames: a text, a whole number")
        ratios = self.compression_ratios.values()
        values = (*self.offset, *self.std, *ratios, 0.0 if self.precision_error is None else self.precision_error)
        if any(type(value) not in (float, int) or abs(value) > _MAX_FLOAT32 for value in values):
            raise ValueError(f"calibration of {self.column}: its values must be numbers that float32 holds")

    @property
    def dim(self) -> int:
        """D, channels of the column."""
        return len(self.std)

    @cached_property
    def stats(self) -> ChannelStats:
        """Offset and spread as `vfz.pipeline.stores.quantization` takes them."""
        from vfz.pipeline.stores.quantization import ChannelStats

        return ChannelStats(offset=np.array(self.offset, np.float32), std=np.array(self.std, np.float32))

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return checked_json_bytes(
            {
                "column": self.column,
                "num_frames": self.num_frames,
                "offset": list(self.offset),
                "std": list(self.std),
                "precision_error": self.precision_error,
                "compression_ratios": dict(self.compression_ratios),
            }
        )


@dataclass(frozen=True, kw_only=True)
class CalibratedColumn:
    """A column that a cache is going to store.

    Attributes:
        column: with its compression chosen.
        calibration: what is known of it.
        digest: SHA-256 of the file that holds the calibration.
    """

    column: Column
    calibration: Calibration
    digest: str


def calibrate(
    column: Column, tokens_MND: Tensor, *, requested_compression: str, compresses: bool
) -> tuple[Column, Calibration]:
    """Measures a column on sample tokens.

    Args:
        column: what is to be stored; its compression does not matter.
        tokens_MND: float32 tokens of the sample.
        requested_compression: `auto`, or a codec.
        compresses: whether the store can.

    Returns:
        The column with the compression chosen, and its calibration.
    """
    from vfz.pipeline.stores.compression import choose_compression
    from vfz.pipeline.stores.quantization import channel_stats, expand, relative_error, to_stored

    stats = channel_stats(tokens_MND)
    stored = to_stored(tokens_MND, column.precision, stats)
    restored = expand(stored.payload, stored.scale, precision=column.precision, stats=stats, dim=column.dim)
    samples = {column.key: stored.payload.cpu().numpy()}
    if stored.scale is not None:
        samples[f"{column.key}_scale"] = stored.scale.cpu().numpy()
    error = relative_error(tokens_MND, restored)
    compression, ratios = "none", cast("Mapping[str, float]", {})
    if compresses:
        choice = choose_compression(samples, requested=cast("RequestedCompression", requested_compression))
        compression, ratios = choice.name, choice.ratios
    calibration = Calibration(
        column=column.key,
        num_frames=len(tokens_MND),
        offset=tuple(stats.offset.tolist()),
        std=tuple(stats.std.tolist()),
        precision_error=error if math.isfinite(error) else None,
        compression_ratios=ratios,
    )
    return replace(column, compression=cast("Compression", compression)), calibration


def write_calibration(cache_folder: Path, column: Column, calibration: Calibration) -> CalibratedColumn:
    """Writes the file of a column's calibration unless there is one.

    Returns:
        The column with the calibration on disk: an earlier writer's, where there was one.

    Raises:
        CacheFormatError: when the file that is there is damaged, or of another column or number of channels.
        StorageError: when the disk is full or refuses to be written.
    """
    path = cache_folder / CALIBRATION / file_name_of(column.key)
    write_file_once(path, calibration.to_bytes())
    found = read_calibration(path)
    _check_column(path, found, column.key, column.dim)
    return CalibratedColumn(column=column, calibration=found, digest=sha256_file(path))


def read_named_calibration(cache_folder: Path, column: Column, digest: str) -> Calibration:
    """The calibration of a column that the contents name.

    Args:
        cache_folder: the cache.
        column: which.
        digest: SHA-256 of its file, as the contents say.

    Raises:
        CacheFormatError: when it is missing, damaged, or another one.
    """
    path = cache_folder / CALIBRATION / file_name_of(column.key)
    calibration = read_calibration(path)
    if calibration.column != column.key or sha256_hex(calibration.to_bytes()) != digest:
        raise CacheFormatError(f"{path} is not the calibration this cache was made with; restore it from a copy")
    _check_column(path, calibration, column.key, column.dim)
    return calibration


def read_calibration(path: Path) -> Calibration:
    """One `calibration/<layer>.<part>.json`.

    Raises:
        CacheFormatError: when it is missing or damaged.
    """
    content = read_checked_json(path, _KEYS)
    with content_errors(path):
        return Calibration(**{**content, "offset": tuple(content["offset"]), "std": tuple(content["std"])})


def file_name_of(column_key: str) -> str:
    """`layer_5/patch` to `layer_5.patch.json`."""
    return f"{column_key.replace('/', '.')}.json"


def _check_column(path: Path, calibration: Calibration, key: str, dim: int) -> None:
    """Refuses the calibration of another column, or of other channels."""
    if (calibration.column, calibration.dim) != (key, dim):
        raise CacheFormatError(
            f"{path} is the calibration of {calibration.column} with {calibration.dim} channels, expected {key} with "
            f"{dim}; restore it from a copy, or remove it where no contents name it"
        )
