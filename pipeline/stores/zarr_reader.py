"""Random reads from a Zarr shard at the speed of a memory copy.

zarr-python's own indexing costs 5 to 50 times a plain read of the same bytes. Here the index of a shard is parsed once;
uncompressed chunks that lie at equal distances are one strided array over the mapped file, so that a window of frames,
with or without a step, is one copy. Any other layout that Zarr allows (compressed chunks) is left to zarr-python.
A chunk that the index does not have is an error, never a fill value.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.stores.base import Checksums, ShardReader
from vfz.pipeline.stores.zarr_store import CRC_BYTES, data_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vfz.pipeline.stores.records import ArraySpec, ShardData

_PLAIN_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_ABSENT = np.uint64(2**64 - 1)
_RESTORE = "restore it from a copy or extract the shard again"


class ZarrShardReader(ShardReader):
    """Reads what `ZarrShardWriter` wrote, or any other writer of the same arrays in one Zarr shard each."""

    def __init__(self, folder: Path, data: ShardData, *, checksums: Checksums = "first") -> None:
        super().__init__(folder, data, checksums=checksums)
        self._specs = {spec.key: spec for spec in data.arrays}
        # Outlives `close`: a chunk is checked once per reader, however often its file is opened.
        self._verified: dict[str, NDArray[np.bool_]] = {}
        self._open: dict[str, _PlainArray | _AnyArray] = {}
        self._pid = os.getpid()

    def read(self, key: str, frames: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `ShardReader.read`."""
        if key not in self._specs:
            raise UnknownNameError("array", key, self._specs)
        spec = self._specs[key]
        frames = np.asarray(frames, dtype=np.int64)
        window = _as_slice(frames)
        lowest, highest = (window.start, window.stop - 1) if window else (frames.min(), frames.max())
        if lowest < 0 or highest >= self.data.num_frames:
            raise UsageError(
                f"{self.folder}: frames {lowest} to {highest} requested; the shard has frames 0 to "
                f"{self.data.num_frames - 1}"
            )
        shape = (len(frames), *spec.frame_shape)
        if out is None:
            out = np.empty(shape, spec.dtype)
        elif out.shape != shape or out.dtype != spec.dtype:
            raise UsageError(f"{key}: out is {out.dtype} {out.shape}; {spec.dtype} {shape} is needed")
        if len(frames):
            self._opened(spec).read(frames, window, out)
        return out

    def close(self) -> None:
        """Forgets the mapped files; they are unmapped when the last array over them is gone."""
        self._open = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "data": self.data, "checksums": self.checksums}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["data"], checksums=state["checksums"])  # type: ignore[misc]

    def _opened(self, spec: ArraySpec) -> _PlainArray | _AnyArray:
        if self._pid != os.getpid():  # after a fork: files are opened by the process that reads them
            self._open, self._pid = {}, os.getpid()
        array = self._open.get(spec.key)
        if array is None:
            array = self._open[spec.key] = self._open_array(spec)
        return array

    def _open_array(self, spec: ArraySpec) -> _PlainArray | _AnyArray:
        chunks = self.data.chunks[spec.key]
        path = self.folder / data_file(spec)
        codecs = self._inner_codecs(spec)
        mapped = self._map(path)
        offsets, lengths = _read_chunk_index(path, mapped, len(chunks.crc32c))
        payload_bytes = chunks.frames_per_chunk * spec.frame_bytes
        strides = np.diff(offsets)
        stride = int(strides[0]) if len(strides) else payload_bytes + CRC_BYTES
        if codecs != _PLAIN_CODECS or (strides != stride).any() or (lengths != payload_bytes + CRC_BYTES).any():
            return _AnyArray(path=self.folder / spec.key)
        if self.checksums == "first" and spec.key not in self._verified:
            self._verified[spec.key] = np.zeros(len(chunks.crc32c), np.bool_)
        return _PlainArray(
            path=path,
            spec=spec,
            frames_per_chunk=chunks.frames_per_chunk,
            crc32c=chunks.crc32c,
            checksums=self.checksums,
            verified=self._verified.get(spec.key),
            mapped=mapped,
            start=int(offsets[0]),
            stride=stride,
        )

    def _inner_codecs(self, spec: ArraySpec) -> list[dict[str, Any]]:
        """How the chunks of an array are encoded, from its `zarr.json`, which must describe the array of the index."""
        path = self.folder / spec.key / "zarr.json"
        chunks = self.data.chunks[spec.key]
        num_padded = len(chunks.crc32c) * chunks.frames_per_chunk
        try:
            meta = json.loads(path.read_bytes())
            sharding = meta["codecs"][0]
            found = (
                tuple(meta["shape"]),
                meta["data_type"],
                tuple(meta["chunk_grid"]["configuration"]["chunk_shape"]),
                [codec["name"] for codec in meta["codecs"]],
                tuple(sharding["configuration"]["chunk_shape"]),
                sharding["configuration"]["index_codecs"],
                sharding["configuration"]["index_location"],
            )
            inner: list[dict[str, Any]] = sharding["configuration"]["codecs"]
        except OSError as error:
            raise CacheFormatError(f"cannot read {path}: {error.strerror}; {_RESTORE}") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CacheFormatError(f"{path} is damaged ({error!r}); {_RESTORE}") from error
        expected = (
            (self.data.num_frames, *spec.frame_shape),
            spec.dtype.name,
            (num_padded, *spec.frame_shape),
            ["sharding_indexed"],
            (chunks.frames_per_chunk, *spec.frame_shape),
            _PLAIN_CODECS,
            "end",
        )
        if found != expected:
            raise CacheFormatError(f"{path} describes {found}, the shard's index {expected}; {_RESTORE}")
        return inner

    def _map(self, path: Path) -> mmap.mmap:
        """The whole file, read-only, after its size was compared with what was committed."""
        expected = self.data.files[path.relative_to(self.folder).as_posix()].num_bytes
        try:
            with path.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes != expected:
                    raise CacheFormatError(f"{path} has {num_bytes} bytes, {expected} were committed; {_RESTORE}")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CacheFormatError(f"cannot read {path}: {error.strerror}; {_RESTORE}") from error


@dataclass(kw_only=True)
class _PlainArray:
    """An array whose uncompressed chunks lie at equal distances in a mapped file."""

    path: Path
    spec: ArraySpec
    frames_per_chunk: int
    crc32c: tuple[int, ...]
    checksums: Checksums
    verified: NDArray[np.bool_] | None
    mapped: mmap.mmap
    start: int
    stride: int
    chunks: NDArray[Any] = field(init=False)
    payloads: NDArray[np.uint8] = field(init=False)
    stored_crc32c: NDArray[np.uint32] = field(init=False)

    def __post_init__(self) -> None:
        num_chunks, frame_bytes = len(self.crc32c), self.spec.frame_bytes
        payload_bytes = self.frames_per_chunk * frame_bytes
        inner = np.empty(self.spec.frame_shape, self.spec.dtype).strides
        self.chunks = np.ndarray(
            (num_chunks, self.frames_per_chunk, *self.spec.frame_shape),
            self.spec.dtype,
            self.mapped,
            self.start,
            (self.stride, frame_bytes, *inner),
        )
        self.payloads = np.ndarray((num_chunks, payload_bytes), np.uint8, self.mapped, self.start, (self.stride, 1))
        end = self.start + payload_bytes
        self.stored_crc32c = np.ndarray((num_chunks,), "<u4", self.mapped, end, (self.stride,))

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:
        """Copies `frames` (at least one, all in range; `window` where they are one) to `out`."""
        chunks = frames // self.frames_per_chunk if self.frames_per_chunk > 1 else frames
        if self.checksums != "never" and not (self.verified is not None and self.verified[chunks].all()):
            self._verify(np.unique(chunks))
        if self.frames_per_chunk > 1:
            out[...] = self.chunks[chunks, frames % self.frames_per_chunk]
        elif window is not None:
            np.copyto(out, self.chunks[window, 0])
        else:
            for number, frame in enumerate(frames.tolist()):  # 64 KiB or more each: the loop is nothing beside them
                out[number] = self.chunks[frame, 0]

    def _verify(self, wanted: NDArray[np.int64]) -> None:
        if self.verified is not None:
            wanted = wanted[~self.verified[wanted]]
        for chunk in wanted.tolist():
            crc32c = google_crc32c.value(self.payloads[chunk])
            if not crc32c == self.crc32c[chunk] == self.stored_crc32c[chunk]:
                first = chunk * self.frames_per_chunk
                raise CacheFormatError(
                    f"{self.path}: chunk {chunk} (frames {first} to {first + self.frames_per_chunk - 1} of the shard) "
                    f"is damaged: its crc32c does not match; {_RESTORE}"
                )
            if self.verified is not None:
                self.verified[chunk] = True


@dataclass(kw_only=True)
class _AnyArray:
    """An array that zarr-python has to decode; its own codecs compare the checksums, on every read."""

    path: Path
    array: Any = field(init=False)

    def __post_init__(self) -> None:
        import zarr

        self.array = zarr.open_array(self.path, mode="r")

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:  # noqa: ARG002
        """Decodes `frames` (at least one, all in range) into `out`."""
        unique, inverse = np.unique(frames, return_inverse=True)
        try:
            out[...] = self.array.oindex[unique][inverse]
        except (ValueError, RuntimeError) as error:
            raise CacheFormatError(f"{self.path} cannot be decoded: {error}; {_RESTORE}") from error


def _as_slice(frames: NDArray[np.int64]) -> slice | None:
    """The window with a step that `frames` is, if it is one; the slice ends right after the last frame."""
    if len(frames) == 0:
        return slice(0, 0, 1)
    first, last = int(frames[0]), int(frames[-1])
    step = int(frames[1]) - first if len(frames) > 1 else 1
    if step < 1 or not (frames[1:] - frames[:-1] == step).all():
        return None
    return slice(first, last + 1, step)


def _read_chunk_index(path: Path, mapped: mmap.mmap, num_chunks: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Offset and length in bytes of every chunk of a Zarr shard, from the end of its file."""
    num_bytes = 16 * num_chunks + CRC_BYTES
    start = len(mapped) - num_bytes
    if start < 0:
        raise CacheFormatError(f"{path} has {len(mapped)} bytes, too few for {num_chunks} chunks; {_RESTORE}")
    index = mapped[start:]
    if google_crc32c.value(index[:-CRC_BYTES]) != int.from_bytes(index[-CRC_BYTES:], "little"):
        raise CacheFormatError(f"{path}: the index of its chunks is damaged: its crc32c does not match; {_RESTORE}")
    entries = np.frombuffer(index, "<u8", count=2 * num_chunks).reshape(num_chunks, 2)
    offsets, lengths = entries[:, 0], entries[:, 1]
    if (entries == _ABSENT).any():
        raise CacheFormatError(f"{path}: chunk {int((entries == _ABSENT).any(axis=1).argmax())} is absent; {_RESTORE}")
    if (offsets > start).any() or (lengths > start - offsets).any():
        raise CacheFormatError(f"{path}: its index names chunks beyond the end of the file; {_RESTORE}")
    return offsets, lengths
