"""What a shard's data consists of: columns, the arrays they are stored in, files and chunks, with their checksums.

These records are what a store's writer returns, what the shard's index keeps as JSON and what a reader starts from.

Shapes: F frames of a shard, N tokens (P of them for prefix), D channels, G groups of channels.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vfz.pipeline.recipe import GROUP_CHANNELS, PRECISIONS, QUANTISED, STORE_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


Part = Literal["patch", "prefix"]
Compression = Literal["none", "zstd", "blosc-zstd"]
CHUNK_BYTES = 64 * 1024
"""A chunk is the fewest whole frames that reach this size: small enough to read one frame, large enough for a disk."""
MAX_CHUNK_BYTES = 2**30
"""No frame and no chunk has more before compression, so no record can have a reader ask for more memory than that."""
CRC_BYTES = 4
"""Bytes of the CRC-32C behind every chunk of the Zarr store."""
PTS_KEY = "pts_seconds"
"""The array that every shard has beside its columns: presentation times, float64, one per frame."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a shard: F frames of one shape.

    Attributes:
        key: its name in the shard, e.g. `layer_5/patch`.
        frame_shape: shape of one frame, `(N, D)` for tokens, `()` for times.
        dtype: of the stored numbers, little-endian.
        compression: of its chunks, where the store compresses.
    """

    key: str
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compression: Compression = "none"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame before compression."""
        return math.prod(self.frame_shape) * self.dtype.itemsize

    @property
    def frames_per_chunk(self) -> int:
        """Frames of one chunk: the fewest that have `CHUNK_BYTES` before compression."""
        return -(-CHUNK_BYTES // self.frame_bytes)

    @property
    def zarr_file(self) -> str:
        """Where its only file lies in a shard of the Zarr store, e.g. `layer_5/patch/c/0/0/0`."""
        return f"{self.key}/c/0{'/0' * len(self.frame_shape)}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """The tokens of one part of one layer, for every frame of a shard.

    Attributes:
        layer: `5` for a block or stage of the encoder, or `final`.
        part: `patch` (the grid, row by row) or `prefix` (CLS and registers).
        num_tokens: N, tokens per frame.
        dim: D, channels per token.
        precision: fp32, fp16, int8 or int4; see `vfz.pipeline.stores.quantization`.
        compression: of its chunks.
    """

    layer: str
    part: Part
    num_tokens: int
    dim: int
    precision: str
    compression: Compression = "none"

    def __post_init__(self) -> None:
        if type(self.layer) is not str or not self.layer.isalnum() or not self.layer.isascii():
            raise ValueError(f"layer {self.layer!r} is no name of a layer: letters and digits only, e.g. 5 or final")
        if self.part not in get_args(Part) or self.precision not in PRECISIONS:
            raise ValueError(f"column {self.key}: part is {get_args(Part)}, precision {PRECISIONS}: {self.precision}")
        if self.compression not in get_args(Compression):
            raise ValueError(f"column {self.key}: compression {self.compression!r} is none of {get_args(Compression)}")
        whole = all(type(count) is int and count > 0 for count in (self.num_tokens, self.dim))
        if not whole or 4 * self.num_tokens * self.dim > MAX_CHUNK_BYTES:
            raise ValueError(
                f"column {self.key} has {self.num_tokens!r} tokens of {self.dim!r} channels; whole numbers, 1 or more "
                f"each, and no more than {MAX_CHUNK_BYTES // 4} numbers a frame"
            )

    @property
    def key(self) -> str:
        """Name of its payload array, e.g. `layer_5/patch`."""
        return f"layer_{self.layer}/{self.part}"

    @property
    def payload(self) -> ArraySpec:
        """The stored numbers: [N, D], for int4 [N, ceil(D/2)] bytes of two channels each."""
        stored_dim = -(-self.dim // 2) if self.precision == "int4" else self.dim
        return self._array(self.key, stored_dim, _PAYLOAD_DTYPES[self.precision])

    @property
    def scale(self) -> ArraySpec | None:
        """The scales of a quantised column, float16 [N, G], G = ceil(D / 128); None for floating point."""
        if self.precision not in QUANTISED:
            return None
        return self._array(f"{self.key}_scale", -(-self.dim // GROUP_CHANNELS), "<f2")

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Its arrays: the payload, and the scales where there are some."""
        return (self.payload,) if self.scale is None else (self.payload, self.scale)

    def _array(self, key: str, channels: int, dtype: str) -> ArraySpec:
        shape = (self.num_tokens, channels)
        return ArraySpec(key=key, frame_shape=shape, dtype=np.dtype(dtype), compression=self.compression)


_PAYLOAD_DTYPES = {"fp32": "<f4", "fp16": "<f2", "int8": "i1", "int4": "u1"}
PTS_ARRAY = ArraySpec(key=PTS_KEY, frame_shape=(), dtype=np.dtype("<f8"))


@dataclass(frozen=True, kw_only=True)
class ShardVideo:
    """A video about to be written: what a reader without vfz finds beside its tokens.

    Attributes:
        id, view: whose tokens; the pair is unique in a shard.
        split, label: of the dataset.
    """

    id: str
    view: int
    split: str
    label: int | None


@dataclass(frozen=True, kw_only=True)
class StoredVideo:
    """A video of a finished shard and how many frames it has there."""

    id: str
    view: int
    num_frames: int

    def __post_init__(self) -> None:
        if type(self.id) is not str or type(self.view) is not int or type(self.num_frames) is not int:
            raise TypeError(f"{self}: the id is text, view and num_frames are whole numbers")


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file of a shard's data: its size in bytes and its SHA-256 (64 hexadecimal digits)."""

    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.num_bytes) is not int or self.num_bytes < 0 or type(self.sha256) is not str:
            raise TypeError(f"a file of {self.num_bytes!r} bytes and sha256 {self.sha256!r}: a whole number and a text")


@dataclass(frozen=True, kw_only=True)
class ChunkRecord:
    """How one array is cut into chunks of whole frames, each with a crc32c.

    Attributes:
        frames_per_chunk: of every chunk but the last of a run.
        crc32c: of the stored bytes of each chunk, in order.
        offsets: where the frames of each video begin in the data, in bytes, for a store that keeps every video apart
            (chunks then begin anew with each video); empty for one that keeps the frames of a shard in one run.
    """

    frames_per_chunk: int
    crc32c: Sequence[int]
    offsets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if type(self.frames_per_chunk) is not int or any(type(offset) is not int for offset in self.offsets):
            raise TypeError(f"chunks of {self.frames_per_chunk!r} frames at {self.offsets}: whole numbers of bytes")
        if self.frames_per_chunk < 1:
            raise ValueError(f"chunks of {self.frames_per_chunk} frames; 1 or more")


@dataclass(frozen=True, kw_only=True)
class ShardData:
    """What a finished writer left on disk; goes into the shard's index.

    Attributes:
        store: name in `vfz.pipeline.stores.STORES`.
        name: folder or file under the cache's `shards/`.
        columns: what is stored.
        videos: whose frames, one after the other.
        files: every file by its POSIX path relative to the data; `.` where the data is one file.
        chunks: by array key, `pts_seconds` included.
    """

    store: str
    name: str
    columns: tuple[Column, ...]
    videos: tuple[StoredVideo, ...]
    files: Mapping[str, FileRecord]
    chunks: Mapping[str, ChunkRecord]

    def __post_init__(self) -> None:
        if type(self.name) is not str or not _is_plain(self.name):
            raise ValueError(f"shard data {self.name!r} is not a plain name")
        if self.store not in STORE_NAMES:
            raise ValueError(f"shard data {self.name}: its store {self.store!r} is none of {', '.join(STORE_NAMES)}")
        if not self.videos or min(video.num_frames for video in self.videos) < 1:
            raise ValueError(f"shard data {self.name}: its videos must be some, with frames: {self.videos}")
        if odd := [path for path in self.files if path != "." and not all(map(_is_plain, path.split("/")))]:
            raise ValueError(f"shard data {self.name}: its files {odd} lie outside of it")
        keys = [spec.key for spec in self.arrays]
        if len(set(keys)) != len(keys) or self.chunks.keys() != set(keys):
            raise ValueError(f"shard data {self.name} has the arrays {keys} but the chunks of {sorted(self.chunks)}")

    @property
    def num_frames(self) -> int:
        """F, at least 1."""
        return sum(video.num_frames for video in self.videos)

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(record.num_bytes for record in self.files.values())

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array: the columns', then the times."""
        return (*(spec for column in self.columns for spec in column.arrays), PTS_ARRAY)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the names of the attributes."""
        return {
            "store": self.store,
            "name": self.name,
            "columns": [asdict(column) for column in self.columns],
            "videos": [asdict(video) for video in self.videos],
            "files": {path: asdict(record) for path, record in self.files.items()},
            "chunks": {
                key: {
                    "frames_per_chunk": record.frames_per_chunk,
                    "crc32c": list(record.crc32c),
                    "offsets": list(record.offsets),
                }
                for key, record in self.chunks.items()
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShardData:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, AttributeError, KeyError, OverflowError: when the values are not of that form, or
                there are other chunks than its videos fill.
        """
        data = cls(
            store=values["store"],
            name=values["name"],
            columns=tuple(Column(**column) for column in values["columns"]),
            videos=tuple(StoredVideo(**video) for video in values["videos"]),
            files={path: FileRecord(**record) for path, record in values["files"].items()},
            chunks={
                key: ChunkRecord(
                    frames_per_chunk=record["frames_per_chunk"],
                    crc32c=_crc32c(record["crc32c"]),
                    offsets=tuple(record["offsets"]),
                )
                for key, record in values["chunks"].items()
            },
        )
        data._check_chunks()
        return data

    def _check_chunks(self) -> None:
        """Refuses chunks that are too large, or not as many as hold the frames."""
        for spec in self.arrays:
            chunks = self.chunks[spec.key]
            # Chunks begin anew with each video where the record says where videos begin.
            runs = [video.num_frames for video in self.videos] if chunks.offsets else [self.num_frames]
            expected = sum(-(-num_frames // chunks.frames_per_chunk) for num_frames in runs)
            fits = len(chunks.crc32c) == expected and len(chunks.offsets) in {0, len(self.videos)}
            if not fits or chunks.frames_per_chunk * spec.frame_bytes > MAX_CHUNK_BYTES:
                raise ValueError(
                    f"{spec.key} has {len(chunks.crc32c)} chunks of {chunks.frames_per_chunk} frames, {len(runs)} runs "
                    f"of {self.num_frames} frames fill {expected}, of at most {MAX_CHUNK_BYTES} bytes each"
                )


def _is_plain(name: str) -> bool:
    """Whether a name stays in the folder it is used in."""
    return name not in {"", ".", ".."} and not {"/", "\0"} & set(name)


def _crc32c(values: Any) -> tuple[int, ...]:
    """Checksums, which are whole numbers of 32 bits, or an OverflowError."""
    return tuple(array("I", values))
