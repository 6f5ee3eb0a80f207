"""Random reads from a Zarr shard at the speed of a memory copy.

zarr-python's own indexing costs 5 to 50 times a plain read of the same bytes. Here the index of a shard is parsed once;
uncompressed chunks that lie at equal distances are one strided array over the mapped file, so that a window of frames,
with or without a step, is one copy. Chunks that are compressed, or lie elsewhere, are decoded one by one: those of the
frames asked for and no others. A chunk that the index does not have is an error, never a fill value.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores.mapped import RESTORE, MappedFile
from vfz.pipeline.stores.mapped_reader import MappedShardReader
from vfz.pipeline.stores.zarr_arrays import ArrayLayout, EncodedArray, PlainArray
from vfz.pipeline.stores.zarr_writer import CRC_BYTES, data_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vfz.pipeline.stores.metadata import ArraySpec, Compression

_BYTES_CODECS: tuple[Any, ...] = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "bytes"})
"""Little-endian numbers; the second where a number is one byte."""
_INDEX_CODECS = [_BYTES_CODECS[0], {"name": "crc32c"}]
_COMPRESSORS: dict[tuple[str, ...], Compression] = {(): "none", ("zstd",): "zstd", ("blosc",): "blosc-zstd"}
_ABSENT = np.uint64(2**64 - 1)


class ZarrShardReader(MappedShardReader):
    """Reads what `ZarrShardWriter` wrote, or any other writer of the same arrays in one Zarr shard each."""

    def _open_array(self, spec: ArraySpec) -> PlainArray | EncodedArray:
        record = self.data.chunks[spec.key]
        num_chunks = len(record.crc32c)
        compression = self._compression(spec)
        name = data_file(spec)
        if name not in self.data.files:
            raise CacheFormatError(f"{self.path}: the shard's index names no file {name}; {RESTORE}")
        file = MappedFile(self.path / name, self.data.files[name].num_bytes)
        offsets, lengths = _read_chunk_index(file, num_chunks)
        layout = ArrayLayout(spec=spec, record=record, file=file, checksums=self.checksums)
        strides = np.diff(offsets)
        if compression == "none" and (lengths != layout.chunk_bytes + CRC_BYTES).any():
            raise CacheFormatError(f"{file.path}: chunks that are not compressed have several lengths; {RESTORE}")
        if compression != "none" or (strides != strides[:1]).any():
            return EncodedArray(layout, compression, offsets.tolist(), lengths.tolist())
        verified = self._verified.setdefault(spec.key, bytearray(num_chunks))
        return PlainArray(layout, verified, int(offsets[0]), int(strides[0]) if len(strides) else 0)

    def _compression(self, spec: ArraySpec) -> Compression:
        """How an array's chunks are compressed, from its `zarr.json`, which must describe the array of the index."""
        path = self.path / spec.key / "zarr.json"
        record = self.data.chunks[spec.key]
        try:
            meta = json.loads(path.read_bytes())
            sharding = meta["codecs"][0]["configuration"]
            found = (
                tuple(meta["shape"]),
                meta["data_type"],
                tuple(meta["chunk_grid"]["configuration"]["chunk_shape"]),
                [codec["name"] for codec in meta["codecs"]],
                tuple(sharding["chunk_shape"]),
                sharding["index_codecs"],
                sharding["index_location"],
            )
            inner = sharding["codecs"]
            names = tuple(str(codec["name"]) for codec in inner)
        except OSError as error:
            raise CacheFormatError(f"cannot read {path}: {error.strerror}; {RESTORE}") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CacheFormatError(f"{path} is damaged ({error!r}); {RESTORE}") from error
        expected = (
            (self.data.num_frames, *spec.frame_shape),
            spec.dtype.name,
            (len(record.crc32c) * record.frames_per_chunk, *spec.frame_shape),
            ["sharding_indexed"],
            (record.frames_per_chunk, *spec.frame_shape),
            _INDEX_CODECS,
            "end",
        )
        if found != expected:
            raise CacheFormatError(f"{path} describes {found}, the shard's index {expected}; {RESTORE}")
        if not inner or inner[0] not in _BYTES_CODECS[: 1 + (spec.dtype.itemsize == 1)] or names[-1] != "crc32c":
            raise CacheFormatError(f"{path}: chunks are {inner}; vfz reads little-endian bytes with a crc32c")
        if names[1:-1] not in _COMPRESSORS:
            raise CacheFormatError(f"{path}: chunks are compressed by {names[1:-1]}; vfz reads zstd and blosc")
        return _COMPRESSORS[names[1:-1]]


def _read_chunk_index(file: MappedFile, num_chunks: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Offset and length in bytes of every chunk of a Zarr shard, from the end of its file."""
    path, num_bytes = file.path, 16 * num_chunks + CRC_BYTES
    start = len(file) - num_bytes
    if start < 0:
        raise CacheFormatError(f"{path} has {len(file)} bytes, too few for {num_chunks} chunks; {RESTORE}")
    file.fetch(start, len(file))
    index = file.bytes[start:]
    if google_crc32c.value(index[:-CRC_BYTES]) != int.from_bytes(index[-CRC_BYTES:], "little"):
        raise CacheFormatError(f"{path}: the index of its chunks is damaged: its crc32c does not match; {RESTORE}")
    entries = np.frombuffer(index, "<u8", count=2 * num_chunks).reshape(num_chunks, 2)
    offsets, lengths = entries[:, 0], entries[:, 1]
    if (entries == _ABSENT).any():
        raise CacheFormatError(f"{path}: chunk {int((entries == _ABSENT).any(axis=1).argmax())} is absent; {RESTORE}")
    if (offsets > start).any() or (lengths > start - offsets).any() or (lengths <= CRC_BYTES).any():
        raise CacheFormatError(f"{path}: its index names chunks beyond the end of the file; {RESTORE}")
    return offsets.astype(np.int64), lengths.astype(np.int64)
