"""Writing the Zarr store: one Zarr v3 group per shard, readable with `zarr.open_group` alone.

Arrays `layer_<k>/patch [F, N, D]`, `layer_<k>/prefix [F, P, D]`, their `_scale [F, N, G]` when quantised, and
`pts_seconds [F]`; the group's attribute `videos` says which frames are whose. Each array is one file: a Zarr shard
(sharding codec) that covers the whole array, made of inner chunks of whole frames, compressed where the column says so,
each followed by its crc32c, with the index of the chunks at the end.

zarr-python writes the same bytes from a whole shard in memory in 1.5 to 2.1 times the time, without hashing them. As
frames come (32 of 512) it takes 8 times as long, since it reads and writes the shard anew each time. So vfz appends the
chunks as frames come, writes the chunk index last, and leaves only the metadata (`zarr.json`) to zarr-python.

Cost: four buffers of about 512 KiB per array, whatever the length of the shard. SHA-256 is the slowest step (1.4 to 1.7
GB/s), so a second thread hashes buffers that are written; with four of them it need not wait for the next one.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from vfz.pipeline.files import fsync_tree, sha256_file, storage_errors
from vfz.pipeline.stores.base import ShardWriter
from vfz.pipeline.stores.compression import encode, encoded_bytes_limit, zarr_compressors
from vfz.pipeline.stores.metadata import (
    CRC_BYTES,
    PTS_ARRAY,
    ArraySpec,
    ChunkRecord,
    Column,
    FileRecord,
    ShardData,
    ShardVideo,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_BUFFER_BYTES = 512 * 1024
_NUM_BUFFERS = 4
_FLUSH_BYTES = 32 * 1024 * 1024
"""The disk is asked to start this often; waiting for all of it at the end would leave it idle until then."""


class ZarrShardWriter(ShardWriter):
    """Appends frames to one file per array; see the module's docstring."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        super().__init__(path, columns)
        # One of each: a digest is taken in order, and a flush must not keep it waiting.
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vfz-hash")
        self._flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vfz-flush")
        self._files: dict[str, _ArrayFile] = {}
        with storage_errors(path):
            path.mkdir(parents=True)
            try:
                for spec in (*self._specs.values(), PTS_ARRAY):
                    file = path / spec.zarr_file
                    file.parent.mkdir(parents=True)
                    self._files[spec.key] = _ArrayFile(file, spec, hasher=self._hasher, flusher=self._flusher)
            except OSError:
                self.abort()
                raise

    def _begin_video(self, video: ShardVideo) -> None:  # noqa: ARG002 (its frames follow the others')
        for file in self._files.values():
            file.mark()

    def _append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for key, file in self._files.items():
            file.append(arrays[key])

    def _drop_video(self, num_frames: int) -> None:  # noqa: ARG002 (the mark knows)
        for file in self._files.values():
            file.return_to_mark()

    def _finish(self) -> ShardData:
        chunks = {key: file.finish() for key, file in self._files.items()}
        known = {
            file.path.relative_to(self.path).as_posix(): FileRecord(
                num_bytes=file.path.stat().st_size, sha256=file.sha256()
            )
            for file in self._files.values()
        }
        self._close()
        self._write_metadata(chunks)
        fsync_tree(self.path)
        for path in sorted(self.path.rglob("zarr.json")):
            known[path.relative_to(self.path).as_posix()] = FileRecord(
                num_bytes=path.stat().st_size, sha256=sha256_file(path)
            )
        return ShardData(
            store="zarr",
            name=self.path.name,
            columns=self.columns,
            videos=self._stored_videos,
            files=known,
            chunks=chunks,
        )

    def _write_metadata(self, chunks: Mapping[str, ChunkRecord]) -> None:
        """Has zarr-python describe the files that lie there already."""
        group = zarr.create_group(self.path, zarr_format=3, attributes={"videos": self._video_attributes()})
        for spec in (*self._specs.values(), PTS_ARRAY):
            record = chunks[spec.key]
            plain: list[Any] = [BytesCodec(endian="little"), Crc32cCodec()]
            inner: list[Any] = [plain[0], *zarr_compressors(spec.compression, spec.dtype.itemsize), plain[1]]
            group.create_array(
                spec.key,
                shape=(self.num_frames, *spec.frame_shape),
                dtype=spec.dtype,
                chunks=(len(record.crc32c) * record.frames_per_chunk, *spec.frame_shape),
                serializer=ShardingCodec(
                    chunk_shape=(record.frames_per_chunk, *spec.frame_shape), codecs=inner, index_codecs=plain
                ),
                filters=None,
                compressors=None,
                fill_value=0,
                dimension_names=("frame", "token", "channel")[: 1 + len(spec.frame_shape)],
            )

    def _video_attributes(self) -> list[dict[str, Any]]:
        """Which frames are whose, for readers without vfz."""
        start, found = 0, []
        for video, stored in zip(self._videos, self._stored_videos, strict=True):
            found.append({**asdict(video), "frame_start": start, "num_frames": stored.num_frames})
            start += stored.num_frames
        return found

    def _close(self) -> None:
        for thread in (self._hasher, self._flusher):
            thread.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.close()


class _ArrayFile:
    """One array's file: complete chunks gather in a buffer that goes to disk when full, one chunk is being filled.

    The buffer holds bytes `_num_written` to `_ends[-1]` of the file, exactly as they will be there. A chunk that is not
    compressed is filled right behind them; one that is, in a place of its own.
    """

    def __init__(self, path: Path, spec: ArraySpec, *, hasher: Executor, flusher: Executor) -> None:
        self.path = path
        self._spec = spec
        self._chunk_bytes = spec.frames_per_chunk * spec.frame_bytes
        self._limit = CRC_BYTES + (
            self._chunk_bytes if spec.compression == "none" else encoded_bytes_limit(self._chunk_bytes)
        )
        # In turn: one is filled while those before it are hashed.
        self._buffers = [np.zeros(max(_BUFFER_BYTES, self._limit), np.uint8) for _ in range(_NUM_BUFFERS)]
        self._hashing: list[Future[None] | None] = [None] * _NUM_BUFFERS
        self._turn = 0
        self._buffer = self._buffers[0]
        self._staged = None if spec.compression == "none" else np.zeros(self._chunk_bytes, np.uint8)
        self._file = path.open("x+b", buffering=0)
        self._num_frames = 0
        self._num_written = 0
        self._crc32c: list[int] = []
        self._ends: list[int] = []  # of each complete chunk, in bytes of the file
        self._mark = (0, b"")
        self._hasher, self._flusher = hasher, flusher
        self._digest = hashlib.sha256()
        self._flushing: Future[None] | None = None
        self._num_unflushed_bytes = 0
        self._digest_is_stale = False

    def append(self, frames: NDArray[Any]) -> None:
        """Adds frames [n, ...]; writes as often as the buffer is full."""
        frame_bytes, frames_per_chunk = self._spec.frame_bytes, self._spec.frames_per_chunk
        raw = np.ascontiguousarray(frames).view(np.uint8).reshape(len(frames), frame_bytes)
        start = 0
        while start < len(raw):
            used = self._num_frames % frames_per_chunk
            num_new = min(len(raw) - start, frames_per_chunk - used)
            begin, end = used * frame_bytes, (used + num_new) * frame_bytes
            self._filling()[begin:end] = raw[start : start + num_new].reshape(-1)
            start += num_new
            self._num_frames += num_new
            if used + num_new == frames_per_chunk:
                self._complete_chunk()

    def mark(self) -> None:
        """Remembers this place, with the frames of the chunk being filled."""
        used = self._num_frames % self._spec.frames_per_chunk * self._spec.frame_bytes
        self._mark = (self._num_frames, self._filling()[:used].tobytes())

    def return_to_mark(self) -> None:
        """Forgets the frames added since `mark`."""
        self._num_frames, frames = self._mark
        num_chunks = self._num_frames // self._spec.frames_per_chunk
        del self._crc32c[num_chunks:], self._ends[num_chunks:]
        if self._end < self._num_written:
            self._wait_for_hashes()
            self._digest_is_stale = True
            self._num_written = self._end
            self._file.seek(self._end)
            self._file.truncate()
        self._filling()[: len(frames)] = np.frombuffer(frames, np.uint8)

    def finish(self) -> ChunkRecord:
        """Pads the last chunk with zeros, Zarr's fill value, and writes what is left and the chunk index."""
        used = self._num_frames % self._spec.frames_per_chunk * self._spec.frame_bytes
        if used:
            self._filling()[used:] = 0
            self._complete_chunk()
        self._write_buffer()
        index = chunk_index(self._ends)
        self._write(index)
        self._wait_for_hashes()
        self._wait_for_flush()
        self._digest.update(index)
        return ChunkRecord(frames_per_chunk=self._spec.frames_per_chunk, crc32c=tuple(self._crc32c))

    def sha256(self) -> str:
        """Digest of the finished file; read again only when bytes already written were taken back."""
        return sha256_file(self.path) if self._digest_is_stale else self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def _end(self) -> int:
        """Bytes of the complete chunks."""
        return self._ends[-1] if self._ends else 0

    def _filling(self) -> NDArray[np.uint8]:
        """The chunk being filled, before compression."""
        if self._staged is not None:
            return self._staged
        start = self._end - self._num_written
        return self._buffer[start : start + self._chunk_bytes]

    def _complete_chunk(self) -> None:
        chunk = self._filling()
        stored = encode(self._spec.compression, chunk, self._spec.dtype.itemsize)
        start, num_bytes = self._end - self._num_written, len(stored)
        if self._staged is not None:
            self._buffer[start : start + num_bytes] = np.frombuffer(stored, np.uint8)
        crc32c = google_crc32c.value(stored)
        self._buffer[start + num_bytes : start + num_bytes + CRC_BYTES].view("<u4")[0] = crc32c
        self._crc32c.append(crc32c)
        self._ends.append(self._end + num_bytes + CRC_BYTES)
        if self._end - self._num_written + self._limit > len(self._buffer):
            self._write_buffer()

    def _write_buffer(self) -> None:
        """Writes the complete chunks of the buffer, hands them to the hashing thread and takes the next buffer."""
        data = memoryview(self._buffer[: self._end - self._num_written])  # type: ignore[arg-type]  # an array is a buffer
        self._write(data)
        self._num_written = self._end
        self._hashing[self._turn] = self._hasher.submit(self._digest.update, data)
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        self._wait_for_hash(self._turn)
        self._buffer = self._buffers[self._turn]
        self._num_unflushed_bytes += data.nbytes
        if self._num_unflushed_bytes >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._wait_for_flush()
            self._flushing = self._flusher.submit(os.fdatasync, self._file.fileno())
            self._num_unflushed_bytes = 0

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _wait_for_flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None

    def _wait_for_hashes(self) -> None:
        for number in range(_NUM_BUFFERS):
            self._wait_for_hash(number)

    def _wait_for_hash(self, number: int) -> None:
        """Until a buffer may be filled again."""
        hashing = self._hashing[number]
        if hashing is not None:
            hashing.result()
            self._hashing[number] = None


def chunk_index(ends: Sequence[int]) -> bytes:
    """The index of a Zarr shard whose chunks lie one after the other: (offset, length) as uint64 each, then crc32c.

    Args:
        ends: where each chunk ends, in bytes; the first begins at 0.
    """
    entries = np.empty((len(ends), 2), "<u8")
    entries[:, 0] = [0, *ends[:-1]]
    entries[:, 1] = np.diff(ends, prepend=0)
    data = entries.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
