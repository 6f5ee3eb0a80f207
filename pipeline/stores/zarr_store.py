"""The Zarr store: one Zarr v3 group per shard, readable with `zarr.open_group` alone.

Arrays `layer_<k>/patch [F, N, D]`, `layer_<k>/prefix [F, P, D]` and `pts_seconds [F]`. Each array is one file: a Zarr
shard (sharding codec) that covers the whole array, made of inner chunks of whole frames, each followed by its crc32c,
with the index of the chunks at the end. zarr-python holds a whole shard in memory and writes it at 0.07 to 0.5 times
the speed of the disk, so vfz appends the chunks as frames come, writes the chunk index last, and leaves the metadata
(`zarr.json`) to zarr-python. Memory: two buffers of about 1 MiB per array, whatever the length of the shard. SHA-256
is the slowest step (1.4 GB/s), so it runs in a second thread over buffers already written.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from vfz.pipeline.files import fsync_tree, sha256_file, storage_errors
from vfz.pipeline.stores.base import ShardWriter
from vfz.pipeline.stores.records import PTS_ARRAY, ArraySpec, ChunkRecord, Column, FileRecord, ShardData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CHUNK_BYTES = 64 * 1024
"""A chunk is the fewest whole frames that reach this size: small enough to read one frame, large enough for a disk."""
_BUFFER_BYTES = 1024 * 1024
_FLUSH_BYTES = 32 * 1024 * 1024
"""The disk is asked to start this often; waiting for all of it at the end would leave it idle until then."""
CRC_BYTES = 4


def data_file(spec: ArraySpec) -> str:
    """Where an array's only file lies in the shard's folder, e.g. `layer_5/patch/c/0/0/0`."""
    return f"{spec.key}/c/0{'/0' * len(spec.frame_shape)}"


class ZarrShardWriter(ShardWriter):
    """Appends frames to one file per array; see the module's docstring."""

    def __init__(self, folder: Path, columns: Sequence[Column]) -> None:
        super().__init__(folder, columns)
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="vfz-store")
        self._files: dict[str, _ArrayFile] = {}
        with storage_errors(folder):
            folder.mkdir(parents=True)
            try:
                for spec in (*self._tokens.values(), PTS_ARRAY):
                    path = folder / data_file(spec)
                    path.parent.mkdir(parents=True)
                    self._files[spec.key] = _ArrayFile(path, spec, self._threads)
            except OSError:
                self.abort()
                raise

    def _append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for key, file in self._files.items():
            file.append(arrays[key])

    def _rollback(self, num_frames: int) -> None:
        for file in self._files.values():
            file.rollback(num_frames)

    def _finish(self) -> ShardData:
        chunks = {key: file.finish() for key, file in self._files.items()}
        known = {
            file.path.relative_to(self.folder).as_posix(): FileRecord(
                num_bytes=file.path.stat().st_size, sha256=file.sha256()
            )
            for file in self._files.values()
        }
        self._close()
        self._write_metadata(chunks)
        fsync_tree(self.folder)
        for path in sorted(self.folder.rglob("zarr.json")):
            known[path.relative_to(self.folder).as_posix()] = FileRecord(
                num_bytes=path.stat().st_size, sha256=sha256_file(path)
            )
        return ShardData(
            store="zarr",
            name=self.folder.name,
            num_frames=self.num_frames,
            columns=self.columns,
            files=known,
            chunks=chunks,
        )

    def _write_metadata(self, chunks: Mapping[str, ChunkRecord]) -> None:
        """Has zarr-python describe the files that lie there already."""
        group = zarr.create_group(self.folder, zarr_format=3)
        for spec in (*self._tokens.values(), PTS_ARRAY):
            record = chunks[spec.key]
            plain: list[Any] = [BytesCodec(endian="little"), Crc32cCodec()]
            group.create_array(
                spec.key,
                shape=(self.num_frames, *spec.frame_shape),
                dtype=spec.dtype,
                chunks=(len(record.crc32c) * record.frames_per_chunk, *spec.frame_shape),
                serializer=ShardingCodec(
                    chunk_shape=(record.frames_per_chunk, *spec.frame_shape), codecs=plain, index_codecs=plain
                ),
                filters=None,
                compressors=None,
                fill_value=0,
                dimension_names=("frame", "token", "channel")[: 1 + len(spec.frame_shape)],
            )

    def _close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.close()


class _ArrayFile:
    """One array's file: chunks that are complete go to disk, the one being filled stays in the buffer.

    `_buffer` has one row per chunk, payload and crc32c, exactly as on disk; its row 0 is chunk `_num_written`.
    """

    def __init__(self, path: Path, spec: ArraySpec, threads: ThreadPoolExecutor) -> None:
        self.path = path
        self._frame_bytes = spec.frame_bytes
        self._frames_per_chunk = max(1, -(-CHUNK_BYTES // spec.frame_bytes))
        row = np.dtype([("payload", "u1", (self._frames_per_chunk * spec.frame_bytes,)), ("crc32c", "<u4")])
        num_rows = max(1, _BUFFER_BYTES // row.itemsize)
        # Two of them: one is filled while the other is hashed.
        self._buffer, self._spare = np.zeros(num_rows, row), np.zeros(num_rows, row)
        self._file = path.open("x+b", buffering=0)
        self._num_frames = 0
        self._num_written = 0
        self._crc32c: list[int] = []
        self._threads = threads
        self._digest = hashlib.sha256()
        self._hashing: Future[None] | None = None
        self._flushing: Future[None] | None = None
        self._num_unflushed_bytes = 0
        self._digest_is_stale = False

    def append(self, frames: NDArray[Any]) -> None:
        """Adds frames [n, ...]; writes as often as the buffer is full."""
        raw = np.ascontiguousarray(frames).view(np.uint8).reshape(len(frames), self._frame_bytes)
        start = 0
        while start < len(raw):
            chunk, used = divmod(self._num_frames, self._frames_per_chunk)
            num_new = min(len(raw) - start, self._frames_per_chunk - used)
            payload = self._buffer["payload"][chunk - self._num_written]
            begin = used * self._frame_bytes
            payload[begin : begin + num_new * self._frame_bytes] = raw[start : start + num_new].reshape(-1)
            start += num_new
            self._num_frames += num_new
            if used + num_new == self._frames_per_chunk:
                self._complete_chunk()

    def rollback(self, num_frames: int) -> None:
        """Goes back to the first `num_frames` frames."""
        self._num_frames = num_frames
        chunk, used = divmod(num_frames, self._frames_per_chunk)
        del self._crc32c[chunk:]
        if chunk >= self._num_written:
            return  # all of it is still in the buffer
        self._wait_for_hash()
        self._digest_is_stale = True
        self._num_written = chunk
        self._file.seek(chunk * self._buffer.itemsize)
        if used:
            self._buffer["payload"][0] = np.frombuffer(self._file.read(self._buffer["payload"].shape[1]), np.uint8)
            self._file.seek(chunk * self._buffer.itemsize)
        self._file.truncate()

    def finish(self) -> ChunkRecord:
        """Pads the last chunk with zeros, Zarr's fill value, and writes what is left and the chunk index."""
        chunk, used = divmod(self._num_frames, self._frames_per_chunk)
        if used:
            self._buffer["payload"][chunk - self._num_written, used * self._frame_bytes :] = 0
            self._complete_chunk()
        self._write_buffer()
        index = chunk_index(len(self._crc32c), self._buffer["payload"].shape[1] + CRC_BYTES)
        self._write(index)
        self._wait_for_hash()
        self._wait_for_flush()
        self._digest.update(index)
        return ChunkRecord(frames_per_chunk=self._frames_per_chunk, crc32c=tuple(self._crc32c))

    def sha256(self) -> str:
        """Digest of the finished file; read again only when frames already written were taken back."""
        return sha256_file(self.path) if self._digest_is_stale else self._digest.hexdigest()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _complete_chunk(self) -> None:
        row = len(self._crc32c) - self._num_written
        crc32c = google_crc32c.value(self._buffer["payload"][row])
        self._buffer["crc32c"][row] = crc32c
        self._crc32c.append(crc32c)
        if row + 1 == len(self._buffer):
            self._write_buffer()

    def _write_buffer(self) -> None:
        """Writes the complete chunks of the buffer, hands them to the hashing thread and takes the other buffer."""
        rows = self._buffer[: len(self._crc32c) - self._num_written]
        data = memoryview(rows.view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer
        self._write(data)
        self._num_written = len(self._crc32c)
        self._wait_for_hash()
        self._hashing = self._threads.submit(self._digest.update, data)
        self._buffer, self._spare = self._spare, self._buffer
        self._num_unflushed_bytes += data.nbytes
        if self._num_unflushed_bytes >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            self._wait_for_flush()
            self._flushing = self._threads.submit(os.fdatasync, self._file.fileno())
            self._num_unflushed_bytes = 0

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _wait_for_flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None

    def _wait_for_hash(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None


def chunk_index(num_chunks: int, chunk_bytes: int) -> bytes:
    """The index of a Zarr shard whose chunks lie one after the other: (offset, length) as uint64 each, then crc32c."""
    entries = np.empty((num_chunks, 2), "<u8")
    entries[:, 0] = np.arange(num_chunks, dtype=np.uint64) * chunk_bytes
    entries[:, 1] = chunk_bytes
    data = entries.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
