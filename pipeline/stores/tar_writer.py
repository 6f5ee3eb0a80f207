"""Writing the WebDataset store: one tar per shard, readable with `webdataset` or `tarfile` and `numpy` alone.

Per video, one after the other: `<name>.layer_<k>.patch.npy`, `.patch_scale.npy` when quantised, `.prefix.npy`,
`<name>.pts_seconds.npy` and `<name>.json` (id, view, split, label, num_frames). webdataset takes a name up to its first
dot as the sample's key, so ids are escaped: `%` and two hexadecimal digits for each UTF-8 byte of a dot, slash, percent
sign or anything else a file name had better not have. The index keeps where every payload begins, and a crc32c per
group of frames.

What is no token follows from the video, the array's shape and its dtype alone. So equal tokens give equal archives, and
a reader parses nothing: it compares. For the same reason headers are made here and not by `tarfile` and `numpy`, whose
choices (padding, device numbers) have changed between versions; tests hold them equal to today's. They also come
faster: 4 µs a header where `TarInfo.tobuf` takes 17, so that a first read of videos of 2.5 MB would take 1.06 times as
long, of 12 KB 1.7 times, and the check of a whole shard's layout 2.1 to 2.4 times. The format is GNU's, which every tar
reads: long names in an extra member, sizes above 8 GiB in base 256.

A tar wants each member whole and its size before it, while frames of all arrays come side by side and their number is
known at the end. So the first array goes straight to its place, behind a gap for its header, and the others wait in
files without a name beside the tar until the video is complete. That is one more copy of those arrays, within the page
cache for all but long videos, through a buffer of 256 KiB (copy_file_range, which cannot share blocks at a tar's
offsets, took 1.4 times as long). `TarFile.addfile`, which needs a file for every array, gives the same bytes in 1.0 to
1.5 times the time.

Cost: memory for that buffer and a number per group of frames. SHA-256 is the slowest step (1.7 GB/s) and needs the
headers, so a second thread hashes videos that are complete. In all 0.58 times the speed of a plain write with fsync for
one array, 0.53 times for four.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from vfz.pipeline.files import canonical_json, fsync_dir, storage_errors
from vfz.pipeline.stores.base import ShardWriter
from vfz.pipeline.stores.metadata import PTS_ARRAY, ArraySpec, ChunkRecord, Column, FileRecord, ShardData, ShardVideo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray


_BUFFER_BYTES = 256 * 1024
_FLUSH_BYTES = 32 * 1024 * 1024
"""The disk is asked to start this often; waiting for all of it at the end would leave it idle until then."""
_KEPT_BYTES = 64 * 1024 * 1024
"""A waiting array's file keeps up to this much space for the next video, which is quicker than giving it back."""


class WebDatasetShardWriter(ShardWriter):
    """Appends videos to one tar; see the module's docstring."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        super().__init__(path, columns)
        self._arrays: dict[str, _Array] = {}
        self._end = 0  # of the videos that are complete
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._tar = path.open("x+b", buffering=0)
            self._disk = _Background(self._tar.fileno())
            try:
                for spec in (*self._specs.values(), PTS_ARRAY):
                    self._arrays[spec.key] = _Array(spec, path, self._tar.fileno(), in_place=not self._arrays)
            except OSError:
                self.abort()
                raise

    def _begin_video(self, video: ShardVideo) -> None:
        if self._in_video:
            self._complete_video()
        name = sample_name(video.id, video.view)
        for array in self._arrays.values():
            array.begin(self._end + len(array_header(name, array.spec, 0)))

    def _append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for key, array in self._arrays.items():
            self._disk.note(array.append(arrays[key]))

    def _drop_video(self, num_frames: int) -> None:  # noqa: ARG002 (those before it are complete)
        for array in self._arrays.values():
            array.drop()
        self._tar.truncate(self._end)

    def _finish(self) -> ShardData:
        if self._in_video:
            self._complete_video()
        self._end += _write(self._tar.fileno(), end_of_archive(self._end), self._end)
        self._disk.hash_to(self._end)
        os.fsync(self._tar.fileno())
        sha256 = self._disk.sha256()
        self._close()
        fsync_dir(self.path.parent)
        return ShardData(
            store="webdataset",
            name=self.path.name,
            columns=self.columns,
            videos=self._stored_videos,
            files={".": FileRecord(num_bytes=self._end, sha256=sha256)},
            chunks={key: array.record() for key, array in self._arrays.items()},
        )

    def _complete_video(self) -> None:
        """Writes the headers of the video begun last, moves its arrays to their places and has it hashed."""
        video, num_frames, tar = self._videos[-1], self._counts[-1], self._tar.fileno()
        name = sample_name(video.id, video.view)
        end = self._end
        for array in self._arrays.values():
            end += _write(tar, array_header(name, array.spec, num_frames), end)
            end += array.place(end)
        about = json_member(
            name, video_id=video.id, view=video.view, split=video.split, label=video.label, num_frames=num_frames
        )
        end += _write(tar, about, end)
        self._end = end
        self._disk.hash_to(end)

    def _close(self) -> None:
        self._disk.close()
        for array in self._arrays.values():
            array.close()
        self._tar.close()


class _Array:
    """One array of the video being written: frames go to their place in the tar, or to a file of their own until then.

    Attributes:
        spec: the array.
        offsets: where its payload begins in the tar, per complete video.
    """

    def __init__(self, spec: ArraySpec, tar_path: Path, tar: int, *, in_place: bool) -> None:
        self.spec = spec
        self.offsets: list[int] = []
        self._crc32c: list[list[int]] = []  # per video, per chunk
        self._tar = tar
        self._waiting = None if in_place else _nameless_file(tar_path)
        self._file = tar if self._waiting is None else self._waiting.fileno()
        self._start = 0  # where the video's frames begin in the file
        self._num_frames = 0

    def begin(self, offset: int) -> None:
        """Starts a video; `offset` is where the payload will lie if the array is written in place."""
        self._start = offset if self._waiting is None else 0
        self._num_frames = 0
        self._crc32c.append([])

    def append(self, frames: NDArray[Any]) -> int:
        """Writes frames [n, ...]; how many bytes of the tar that were."""
        raw = np.ascontiguousarray(frames).reshape(-1).view(np.uint8)
        num_bytes = _write(self._file, raw, self._start + self._num_frames * self.spec.frame_bytes)
        start, chunks = 0, self._crc32c[-1]
        while start < len(frames):
            used = self._num_frames % self.spec.frames_per_chunk
            end = min(len(frames), start + self.spec.frames_per_chunk - used)
            if not used:
                chunks.append(0)
            piece = raw[start * self.spec.frame_bytes : end * self.spec.frame_bytes]
            chunks[-1] = google_crc32c.extend(chunks[-1], piece)
            self._num_frames += end - start
            start = end
        return num_bytes if self._waiting is None else 0

    def place(self, offset: int) -> int:
        """Completes the video with its payload at `offset` of the tar; its size with padding."""
        num_bytes = self._num_frames * self.spec.frame_bytes
        if self._waiting is not None:
            _copy(self._file, self._tar, offset, num_bytes)
            self._give_space_back(num_bytes)
        self.offsets.append(offset)
        return num_bytes + _write(self._tar, padding(offset + num_bytes), offset + num_bytes)

    def drop(self) -> None:
        """Forgets the video."""
        del self._crc32c[-1]
        self._give_space_back(self._num_frames * self.spec.frame_bytes)

    def record(self) -> ChunkRecord:
        """What the index says."""
        return ChunkRecord(
            frames_per_chunk=self.spec.frames_per_chunk,
            crc32c=tuple(chain.from_iterable(self._crc32c)),
            offsets=tuple(self.offsets),
        )

    def close(self) -> None:
        """Deletes what waits."""
        if self._waiting is not None:
            self._waiting.close()

    def _give_space_back(self, num_bytes: int) -> None:
        if self._waiting is not None and num_bytes > _KEPT_BYTES:
            self._waiting.truncate(0)


class _Background:
    """What the tar's two threads do: SHA-256 of all that is complete, and flushing now and then."""

    def __init__(self, tar: int) -> None:
        self._tar = tar
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vfz-hash")
        self._flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vfz-flush")
        self._hashing: list[Future[None]] = []
        self._flushing: Future[None] | None = None
        self._digest = hashlib.sha256()
        self._num_hashed = 0
        self._num_unflushed = 0

    def hash_to(self, end: int) -> None:
        """Has the tar hashed as far as `end`; that much is final."""
        self._hashing.append(self._hasher.submit(self._hash, end))

    def note(self, num_bytes: int) -> None:
        """So many bytes were written; has them flushed when they are many and no flush is under way."""
        self._num_unflushed += num_bytes
        if self._num_unflushed >= _FLUSH_BYTES and (self._flushing is None or self._flushing.done()):
            if self._flushing is not None:
                self._flushing.result()
            self._flushing = self._flusher.submit(os.fdatasync, self._tar)
            self._num_unflushed = 0

    def sha256(self) -> str:
        """Waits for both threads; the digest of all that was to be hashed.

        Raises:
            OSError: when either failed.
        """
        for future in [*self._hashing, *filter(None, [self._flushing])]:
            future.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Ends the threads."""
        for thread in (self._hasher, self._flusher):
            thread.shutdown(wait=True, cancel_futures=True)

    def _hash(self, end: int) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while self._num_hashed < end:
            piece = buffer[: min(len(buffer), end - self._num_hashed)]
            num_read = _read(self._tar, piece, self._num_hashed)
            self._digest.update(piece[:num_read])
            self._num_hashed += num_read


def _nameless_file(tar_path: Path) -> FileIO:
    """A file beside the tar without a name (O_TMPFILE), or, where there is no such thing, unlinked at once.

    If the writer is killed between those two steps, the name that stays begins with the tar's.
    """
    return tempfile.TemporaryFile(prefix=f"{tar_path.name}.", dir=tar_path.parent, buffering=0)


def _write(file: int, data: memoryview | bytes | NDArray[np.uint8], offset: int) -> int:
    """Writes all of `data` there; its size."""
    rest = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer
    num_bytes = rest.nbytes
    while rest:
        num_written = os.pwrite(file, rest, offset)
        rest, offset = rest[num_written:], offset + num_written
    return num_bytes


def _read(file: int, buffer: memoryview, offset: int) -> int:
    """Fills some of `buffer` from there; how much."""
    num_read = os.preadv(file, [buffer], offset)
    if not num_read:
        raise OSError(errno.EIO, f"bytes written a moment ago are gone at {offset}")
    return num_read


def _copy(source: int, target: int, offset: int, num_bytes: int) -> None:
    """Copies the first bytes of one file to an offset of another."""
    buffer, done = memoryview(bytearray(_BUFFER_BYTES)), 0
    while done < num_bytes:
        piece = buffer[: min(len(buffer), num_bytes - done)]
        num_read = _read(source, piece, done)
        _write(target, piece[:num_read], offset + done)
        done += num_read


BLOCK_BYTES = 512
"""Headers and contents begin at multiples of this."""
_RECORD_BYTES = 20 * BLOCK_BYTES
_NPY_HEADER_BYTES = 128  # fits three dimensions of 19 digits, and is what numpy writes
_MAX_NAME_BYTES = 100

# Written out rather than asked of `str.isprintable`, which answers differently from one Python version to the next:
# controls, separators, marks without width or against the reading direction, surrogates, and what Windows refuses.
_UNSAFE = re.compile(
    '[\x00-\x1f%./\\\\:*?"<>|\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff0-\uffff]'
)


def sample_name(video_id: str, view: int) -> str:
    """What the members of a video are called up to their first dot; another video or view has another name.

    `%` is followed by two hexadecimal digits wherever it stands for a character of the id, so `%view1` cannot be one.
    """
    escaped = _UNSAFE.sub(_percent, video_id) or "%empty"
    return escaped if view == 0 else f"{escaped}%view{view}"


def array_header(name: str, spec: ArraySpec, num_frames: int) -> bytes:
    """Everything from the end of the member before to the first byte of an array's payload.

    Args:
        name: the video's, from `sample_name`.
        spec: the array, `layer_5/patch` being the member `<name>.layer_5.patch.npy`.
        num_frames: of the video; the header's length does not depend on it.
    """
    shape = (num_frames, *spec.frame_shape)
    text = f"{{'descr': '{spec.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    preamble = b"\x93NUMPY\x01\x00" + (_NPY_HEADER_BYTES - 10).to_bytes(2, "little")
    npy = preamble + text.encode("ascii").ljust(_NPY_HEADER_BYTES - len(preamble) - 1) + b"\n"
    member = f"{name}.{spec.key.replace('/', '.')}.npy"
    return tar_header(member, len(npy) + num_frames * spec.frame_bytes) + npy


def json_member(name: str, *, video_id: str, view: int, split: str, label: int | None, num_frames: int) -> bytes:
    """The member `<name>.json`, header and padding included: what a reader without vfz cannot take from the arrays."""
    content = canonical_json(
        {"id": video_id, "view": view, "split": split, "label": label, "num_frames": num_frames},
    )
    return tar_header(f"{name}.json", len(content)) + content + padding(len(content))


def padding(num_bytes: int) -> bytes:
    """The zeros between contents of that size and the next header."""
    return bytes(-num_bytes % BLOCK_BYTES)


def end_of_archive(num_bytes: int) -> bytes:
    """The zeros after members of so many bytes in total: two blocks, and then up to the end of a record of 10 KiB."""
    marked = num_bytes + 2 * BLOCK_BYTES
    return bytes(marked + -marked % _RECORD_BYTES - num_bytes)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The header of a regular file of mode 0644, owned by number 0 without a name, last changed in 1970."""
    raw = name.encode()
    header = _block(raw[:_MAX_NAME_BYTES], num_bytes, mode=0o644, kind=b"0")
    if len(raw) <= _MAX_NAME_BYTES:
        return header
    raw += b"\0"
    return _block(b"././@LongLink", len(raw), mode=0, kind=b"L") + raw + padding(len(raw)) + header


def _block(name: bytes, num_bytes: int, *, mode: int, kind: bytes) -> bytes:
    """One header block: name, mode, owner, group, size, time, checksum, kind, and the rest, which is empty."""
    size = b"%011o\0" % num_bytes if num_bytes < 8**11 else b"\x80" + num_bytes.to_bytes(11, "big")
    before = name.ljust(100, b"\0") + b"%07o\0" % mode + 2 * b"0000000\0" + size + b"00000000000\0"
    after = (kind + bytes(100) + b"ustar  \0").ljust(BLOCK_BYTES - len(before) - 8, b"\0")
    # The checksum counts its own eight bytes as spaces.
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * ord(" ")) + after


def _percent(match: re.Match[str]) -> str:
    """A character as `%XX` per byte of its UTF-8, which file names that are no UTF-8 need `surrogatepass` for."""
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))
