"""What a shard's data consists of: columns, the arrays they are stored in, files and chunks, with their checksums.

These records are what a store's writer returns, what the shard's index keeps as JSON and what a reader starts from.

Shapes: F frames of a shard, N tokens (P of them for prefix), D channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Part = Literal["patch", "prefix"]
Dtype = Literal["float32", "float16"]
PTS_KEY = "pts_seconds"
"""The array that every shard has beside its columns: presentation times, float64, one per frame."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a shard: F frames of one shape.

    Attributes:
        key: its name in the shard, e.g. `layer_5/patch`.
        frame_shape: shape of one frame, `(N, D)` for tokens, `()` for times.
        dtype: of the stored numbers, little-endian.
    """

    key: str
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return int(np.prod(self.frame_shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Column:
    """The tokens of one part of one layer, for every frame of a shard.

    Attributes:
        layer: `5` for a block or stage of the encoder, or `final`.
        part: `patch` (the grid, row by row) or `prefix` (CLS and registers).
        num_tokens: N, tokens per frame.
        dim: D, channels per token.
        dtype: of the stored numbers.
    """

    layer: str
    part: Part
    num_tokens: int
    dim: int
    dtype: Dtype

    def __post_init__(self) -> None:
        if not self.layer.isalnum() or not self.layer.isascii():
            raise ValueError(f"layer {self.layer!r} is no name of a layer: letters and digits only, e.g. 5 or final")
        if self.part not in get_args(Part) or self.dtype not in get_args(Dtype):
            raise ValueError(f"column {self.key}: part is {get_args(Part)}, dtype {get_args(Dtype)}, got {self.dtype}")
        if self.num_tokens < 1 or self.dim < 1:
            raise ValueError(f"column {self.key} has {self.num_tokens} tokens of {self.dim} channels; 1 or more each")

    @property
    def key(self) -> str:
        """Name of its array, e.g. `layer_5/patch`."""
        return f"layer_{self.layer}/{self.part}"

    @property
    def array(self) -> ArraySpec:
        """Its array."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return ArraySpec(key=self.key, frame_shape=(self.num_tokens, self.dim), dtype=dtype)


PTS_ARRAY = ArraySpec(key=PTS_KEY, frame_shape=(), dtype=np.dtype("<f8"))


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a shard's data: its size in bytes and its SHA-256 (64 hexadecimal digits)."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """How one array is cut: frames per chunk, and crc32c of the stored bytes of each chunk, in order."""

    frames_per_chunk: int
    crc32c: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """What a finished writer left on disk; goes into the shard's index.

    Attributes:
        store: name in `vfz.pipeline.stores.STORES`.
        name: folder or file under the cache's `shards/`.
        num_frames: F, at least 1.
        columns: what is stored.
        files: every file by its POSIX path relative to the data folder.
        chunks: by array key, `pts_seconds` included.
    """

    store: str
    name: str
    num_frames: int
    columns: tuple[Column, ...]
    files: Mapping[str, FileRecord]
    chunks: Mapping[str, ChunkRecord]

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"shard data {self.name} has {self.num_frames} frames; a shard without any has no data")
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"shard data {self.name!r} is not a plain name")
        keys = [column.key for column in self.columns]
        if len(set(keys)) != len(keys) or self.chunks.keys() != {*keys, PTS_KEY}:
            raise ValueError(f"shard data {self.name} has the columns {keys} but the chunks of {sorted(self.chunks)}")

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(record.num_bytes for record in self.files.values())

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array: the columns', then the times."""
        return (*(column.array for column in self.columns), PTS_ARRAY)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the names of the attributes."""
        return {
            **{name: getattr(self, name) for name in ("store", "name", "num_frames")},
            "columns": [asdict(column) for column in self.columns],
            "files": {path: asdict(record) for path, record in self.files.items()},
            "chunks": {
                key: {"frames_per_chunk": record.frames_per_chunk, "crc32c": list(record.crc32c)}
                for key, record in self.chunks.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShardData:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, AttributeError, KeyError: when the values are not of that form.
        """
        return cls(
            store=str(values["store"]),
            name=str(values["name"]),
            num_frames=int(values["num_frames"]),
            columns=tuple(Column(**column) for column in values["columns"]),
            files={path: FileRecord(**record) for path, record in values["files"].items()},
            chunks={
                key: ChunkRecord(frames_per_chunk=record["frames_per_chunk"], crc32c=tuple(record["crc32c"]))
                for key, record in values["chunks"].items()
            },
        )
