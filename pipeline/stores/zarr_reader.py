"""Random reads from a Zarr shard at the speed of a memory copy.

zarr-python's own indexing takes 26 to 75 times as long for a window of 16 frames (2.5 MB), 7 to 15 times where every
chunk is checked here too, 2.3 to 2.6 times where it is compressed; and it fills in what is absent. Here the index of a
shard is parsed once, and its chunks are read in one of two ways:

- `PlainArray`: uncompressed chunks at equal distances, which is what `ZarrShardWriter` writes, are one strided array
  over the mapped file. A window of frames, with or without a step, is one copy.
- `EncodedArray`: any other chunks are checked and decoded one by one, at about 0.7 GB/s: for every read those of the
  frames asked for, and no others.

A chunk that the index does not have is an error, never a fill value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores.compression import decode
from vfz.pipeline.stores.mapped import RESTORE, MappedFile, MappedShardReader, copy_frames
from vfz.pipeline.stores.metadata import CRC_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from vfz.pipeline.stores.base import Checksums
    from vfz.pipeline.stores.metadata import ArraySpec, ChunkRecord, Compression

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
        name = spec.zarr_file
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


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """What both kinds of array start from.

    Attributes:
        spec: what is stored.
        record: its chunks.
        file: where they are.
        checksums: when they are compared with their crc32c.
    """

    spec: ArraySpec
    record: ChunkRecord
    file: MappedFile
    checksums: Checksums

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before compression."""
        return self.record.frames_per_chunk * self.spec.frame_bytes

    def damaged(self, chunk: int, why: str) -> CacheFormatError:
        """The error for a chunk that cannot be used."""
        first = chunk * self.record.frames_per_chunk
        return CacheFormatError(
            f"{self.file.path}: chunk {chunk} (frames {first} to {first + self.record.frames_per_chunk - 1} of the "
            f"shard) is damaged: {why}; {RESTORE}"
        )

    def check(self, chunk: int, stored: NDArray[np.uint8], stored_crc32c: int) -> None:
        """Compares a chunk's stored bytes with both of its checksums: the file's own and that of the shard's index."""
        if not google_crc32c.value(stored) == self.record.crc32c[chunk] == stored_crc32c:
            raise self.damaged(chunk, "its crc32c does not match")


class PlainArray:
    """Uncompressed chunks at equal distances, as a strided array over the mapped file.

    Args:
        layout: what is stored where.
        verified: [chunks] 1 where one was compared with its checksum; updated.
        start: place of chunk 0 in the file, in bytes.
        stride: from chunk to chunk, in bytes.
    """

    def __init__(self, layout: ArrayLayout, verified: bytearray, start: int, stride: int) -> None:
        self._layout, self._verified, self._start, self._stride = layout, verified, start, stride
        self._file, self._checksums = layout.file, layout.checksums
        self._frame_bytes, self._frames_per_chunk = layout.spec.frame_bytes, layout.record.frames_per_chunk
        spec, mapped, num_chunks = layout.spec, layout.file.bytes, len(layout.record.crc32c)
        self._payloads = np.ndarray((num_chunks, layout.chunk_bytes), np.uint8, mapped, start, (stride, 1))
        self._crc32c = np.ndarray((num_chunks,), "<u4", mapped, start + layout.chunk_bytes, (stride,))
        self._chunks = np.ndarray(
            (num_chunks, self._frames_per_chunk, *spec.frame_shape),
            spec.dtype,
            mapped,
            start,
            (stride, self._frame_bytes, *np.empty(spec.frame_shape, spec.dtype).strides),
        )
        self._frames = self._chunks[:, 0]  # where a chunk is one frame

    def window(self, window: slice) -> NDArray[Any] | None:
        """Frames of a window (at least one, all in range), fetched and checked, where they lie.

        None when they are not at equal distances, in several chunks of several frames.
        """
        if self._frames_per_chunk == 1:
            found = self._frames[window]
        else:
            chunk, place = divmod(window.start, self._frames_per_chunk)
            num_frames = window.stop - window.start
            if place + num_frames > self._frames_per_chunk:
                return None
            found = self._chunks[chunk, place : place + num_frames : window.step]
        self._prepare_window(window)
        return found

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:
        """Copies `frames` (at least one, all in range; `window` where they are one) to `out`."""
        if window is not None:
            source = self.window(window)
            if source is not None:
                copy_frames(out, source)
            else:
                self._prepare_window(window)
                self._copy_window(window, out)
            return
        for chunk in sorted(set((frames // self._frames_per_chunk).tolist())):
            self._prepare_chunk(chunk)
        if self._frames_per_chunk == 1:
            for number, frame in enumerate(frames.tolist()):  # 64 KiB or more each: the loop is nothing beside them
                out[number] = self._frames[frame]
        else:
            out[...] = self._chunks[frames // self._frames_per_chunk, frames % self._frames_per_chunk]

    def _copy_window(self, window: slice, out: NDArray[Any]) -> None:
        """Of several chunks of several frames."""
        number, frame = 0, window.start
        while frame < window.stop:  # chunk by chunk: 64 KiB or more each
            chunk, place = divmod(frame, self._frames_per_chunk)
            piece = self._chunks[chunk, place : place + window.stop - frame : window.step]
            out[number : number + len(piece)] = piece
            number += len(piece)
            frame += len(piece) * window.step

    def _prepare_window(self, window: slice) -> None:
        if window.step == 1:
            self._prepare(window.start, window.stop - 1)
            return
        numbers = range(window.start, window.stop, window.step)
        for chunk in sorted({frame // self._frames_per_chunk for frame in numbers}):
            self._prepare_chunk(chunk)

    def _prepare_chunk(self, chunk: int) -> None:
        self._prepare(chunk * self._frames_per_chunk, (chunk + 1) * self._frames_per_chunk - 1)

    def _prepare(self, first: int, last: int) -> None:
        """Has frames `first` to `last` on their way to memory, and their chunks checked where that is still to do."""
        per_chunk, verified = self._frames_per_chunk, self._verified
        (chunk, frame), (end_chunk, end_frame) = divmod(first, per_chunk), divmod(last, per_chunk)
        start, end = self._start + chunk * self._stride, self._start + end_chunk * self._stride
        if self._checksums == "never" or (self._checksums == "first" and 0 not in verified[chunk : end_chunk + 1]):
            self._file.fetch(start + frame * self._frame_bytes, end + (end_frame + 1) * self._frame_bytes)
            return
        self._file.fetch(start, end + self._layout.chunk_bytes + CRC_BYTES)
        for number in range(chunk, end_chunk + 1):
            if self._checksums == "always" or not verified[number]:
                self._layout.check(number, self._payloads[number], int(self._crc32c[number]))
                verified[number] = True


class EncodedArray:
    """Chunks of any length at any place, which are decoded for every read.

    They are checked at every decoding, whatever the policy: that takes a thirtieth of the time, and decoders are not
    made for damaged bytes.
    """

    def __init__(
        self, layout: ArrayLayout, compression: Compression, offsets: Sequence[int], lengths: Sequence[int]
    ) -> None:
        self._layout, self._compression, self._offsets, self._lengths = layout, compression, offsets, lengths
        self._bytes = np.frombuffer(layout.file.bytes, np.uint8)

    def window(self, window: slice) -> None:
        """None: no frame lies anywhere before it is decoded."""

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:  # noqa: ARG002
        """Decodes `frames` (at least one, all in range) into `out`."""
        chunks, places = np.divmod(frames, self._layout.record.frames_per_chunk)
        wanted = sorted(set(chunks.tolist()))
        self._fetch(wanted)
        for chunk in wanted:
            here = chunks == chunk
            out[here] = self._decoded(chunk)[places[here]]

    def _fetch(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            self._layout.file.fetch(self._offsets[chunk], self._offsets[chunk] + self._lengths[chunk])

    def _decoded(self, chunk: int) -> NDArray[Any]:
        """The frames of a chunk, padding included."""
        layout = self._layout
        end = self._offsets[chunk] + self._lengths[chunk]
        stored = self._bytes[self._offsets[chunk] : end - CRC_BYTES]
        layout.check(chunk, stored, int.from_bytes(self._bytes[end - CRC_BYTES : end].tobytes(), "little"))
        try:
            raw = decode(self._compression, stored, layout.chunk_bytes)
        except (ValueError, RuntimeError) as error:
            raise layout.damaged(chunk, f"it cannot be decoded ({error})") from error
        return raw.view(layout.spec.dtype).reshape(layout.record.frames_per_chunk, *layout.spec.frame_shape)


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
