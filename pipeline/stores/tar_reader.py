"""Random reads from a tar shard at the speed of a memory copy.

The tar is mapped as a whole; the index says where every payload begins, so a window of frames of one video, with or
without a step, is one copy. Nothing in the tar is parsed: what must stand before a payload, tar and npy header, follows
from the index alone, and the first read of a member compares it: 6 µs, where parsing both headers with tarfile and
numpy takes 37 and has to be told what to refuse. A pickle, a name that leads elsewhere or a header that claims other
sizes is refused for not being equal.

Only the chunks of a window leave the disk (`vfz.pipeline.stores.mapped`): reading every second frame, or one layer of
four, moves 1.00 to 1.06 times that part of the file. Cost: some 10 µs per clip of a batch beside the copy, twice that
for a read alone: 16 frames of 201x384 float16 (2.5 MB, 0.1 ms) come at about 0.9 times the speed of a copy out of a
np.memmap, of 201x1024 at 0.95 to 1.03 times.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate, pairwise
from types import NoneType
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores.mapped import RESTORE, MappedFile, MappedShardReader, copy_frames
from vfz.pipeline.stores.tar_writer import (
    BLOCK_BYTES,
    array_header,
    end_of_archive,
    json_member,
    padding,
    sample_name,
    tar_header,
)

if TYPE_CHECKING:
    from mmap import mmap
    from pathlib import Path

    from numpy.typing import NDArray

    from vfz.pipeline.stores.base import Checksums
    from vfz.pipeline.stores.metadata import ArraySpec, ShardData, StoredVideo


_MAX_JSON_BYTES = 1024 * 1024


class WebDatasetShardReader(MappedShardReader):
    """Reads what `WebDatasetShardWriter` wrote."""

    def __init__(self, path: Path, data: ShardData, *, checksums: Checksums = "first") -> None:
        super().__init__(path, data, checksums=checksums)
        self._tar: _MappedTar | None = None

    def close(self) -> None:
        """See `ShardReader.close`."""
        super().close()
        self._tar = None

    def _open_array(self, spec: ArraySpec) -> _MappedArray:
        tar = self._tar = self._tar or _MappedTar(self.path, self.data)
        num_chunks = len(self.data.chunks[spec.key].crc32c)
        return _MappedArray(tar, spec, self.checksums, self._verified.setdefault(spec.key, bytearray(num_chunks)))


class _MappedTar:
    """What the arrays of a tar share: the mapped file and where in the shard each video's frames begin."""

    def __init__(self, path: Path, data: ShardData) -> None:
        self.path, self.data = path, data
        self.file = _map(path, data)
        self.starts = list(accumulate((video.num_frames for video in data.videos), initial=0))


class _MappedArray:
    """One array of a tar: a payload per video, in chunks of whole frames that begin anew with each video.

    `verified` has a byte per chunk: whether it was compared with its checksum; updated.
    """

    def __init__(self, tar: _MappedTar, spec: ArraySpec, checksums: Checksums, verified: bytearray) -> None:
        chunks, counts = tar.data.chunks[spec.key], [video.num_frames for video in tar.data.videos]
        self._tar, self._spec, self._chunks = tar, spec, chunks
        self._frame_bytes, self._per_chunk = spec.frame_bytes, chunks.frames_per_chunk
        self._first_chunks = list(accumulate((-(-count // self._per_chunk) for count in counts), initial=0))
        fits = tar.starts[-1] * self._frame_bytes <= len(tar.file)
        if not fits or (len(chunks.offsets), len(chunks.crc32c)) != (len(counts), self._first_chunks[-1]):
            raise CacheFormatError(
                f"{tar.path}: the index of {spec.key} names {len(chunks.offsets)} payloads and {len(chunks.crc32c)} "
                f"checksums; {len(counts)} videos of {tar.starts[-1]} frames, in chunks of {self._per_chunk}, in a "
                f"file of {len(tar.file)} bytes, cannot have those; {RESTORE}"
            )
        self._payloads: dict[int, NDArray[Any]] = {}
        self._checksums, self._verified = checksums, verified

    def window(self, window: slice) -> NDArray[Any] | None:
        """Frames of a window (at least one, all in range), fetched and checked, where they lie.

        None when they are of several videos.
        """
        starts = self._tar.starts
        video = bisect_right(starts, window.start) - 1
        if window.stop > starts[video + 1]:
            return None
        frames = slice(window.start - starts[video], window.stop - starts[video], window.step)
        return self._prepared(video, frames)[frames]

    def read(self, frames: NDArray[np.int64], window: slice | None, out: NDArray[Any]) -> None:
        """Copies `frames` of the shard (at least one, all in range; `window` where they are one) to `out`."""
        if window is not None and (source := self.window(window)) is not None:
            copy_frames(out, source)
            return
        starts = self._tar.starts
        videos = np.searchsorted(starts, frames, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(videos)) + 1).tolist(), len(frames)]
        for first, last in pairwise(cuts):
            video = int(videos[first])
            of_video = frames[first:last] - starts[video]
            # All are in range; "raise" would copy twice.
            np.take(self._prepared(video, of_video), of_video, axis=0, out=out[first:last], mode="clip")

    def _prepared(self, video: int, frames: slice | NDArray[np.int64]) -> NDArray[Any]:
        """All frames of a video, over the mapped file; these of them, counted from its first, fetched and checked."""
        payload = self._payloads.get(video)
        if payload is None:
            payload = self._payloads[video] = self._open_payload(video)
        for first, last in self._runs(frames):
            self._fetch(video, payload, first, last)
            if self._checksums != "never":
                self._verify(video, payload, first, last)
        return payload

    def _runs(self, frames: slice | NDArray[np.int64]) -> list[tuple[int, int]]:
        """The chunks that hold these frames of a video, as first and last + 1 of each run of neighbours."""
        if isinstance(frames, slice):
            if frames.step <= self._per_chunk:
                return [(frames.start // self._per_chunk, (frames.stop - 1) // self._per_chunk + 1)]
            numbers = range(frames.start, frames.stop, frames.step)
            return [(number // self._per_chunk, number // self._per_chunk + 1) for number in numbers]
        chunks = np.unique(frames // self._per_chunk)
        cuts = [0, *(np.flatnonzero(np.diff(chunks) != 1) + 1).tolist(), len(chunks)]
        return [(int(chunks[first]), int(chunks[last - 1]) + 1) for first, last in pairwise(cuts)]

    def _open_payload(self, video: int) -> NDArray[Any]:
        """All frames of a video, over the mapped file, once what stands before them was compared."""
        tar, spec, about = self._tar, self._spec, self._tar.data.videos[video]
        header = array_header(sample_name(about.id, about.view), spec, about.num_frames)
        offset = self._chunks.offsets[video]
        start, end = offset - len(header), offset + about.num_frames * self._frame_bytes
        inside = start >= 0 and start % BLOCK_BYTES == 0 and end <= len(tar.file)
        if not inside or tar.file.bytes[start:offset] != header:
            raise CacheFormatError(
                f"{tar.path}: {spec.key} of video {about.id!r}, view {about.view} is not at {offset}, where the index "
                f"has it: another header, or none, stands before it; {RESTORE}"
            )
        return np.ndarray((about.num_frames, *spec.frame_shape), spec.dtype, tar.file.bytes, offset)

    def _fetch(self, video: int, payload: NDArray[Any], first: int, last: int) -> None:
        """Has the disk bring chunks `first` to `last` (not included), and no others."""
        offset, chunk_bytes = self._chunks.offsets[video], self._per_chunk * self._frame_bytes
        self._tar.file.fetch(offset + first * chunk_bytes, offset + min(last * chunk_bytes, payload.nbytes))

    def _verify(self, video: int, payload: NDArray[Any], first: int, last: int) -> None:
        """Compares those of the chunks with their crc32c that need it."""
        before = self._first_chunks[video]
        for chunk in range(first, last):
            if self._checksums == "first" and self._verified[before + chunk]:
                continue
            frames = payload[chunk * self._per_chunk : (chunk + 1) * self._per_chunk]
            if google_crc32c.value(frames) != self._chunks.crc32c[before + chunk]:
                frame = self._tar.starts[video] + chunk * self._per_chunk
                raise CacheFormatError(
                    f"{self._tar.path}, {self._spec.key}: chunk {before + chunk} (frames {frame} to "
                    f"{frame + len(frames) - 1} of the shard) is damaged: its crc32c does not match; {RESTORE}"
                )
            self._verified[before + chunk] = 1


def _map(path: Path, data: ShardData) -> MappedFile:
    """The whole tar, after its size was compared with what was committed."""
    if data.files.keys() != {"."} or data.num_bytes < 1:
        raise CacheFormatError(f"{path}: its index names the files {dict(data.files)}, not one tar; {RESTORE}")
    return MappedFile(path, data.num_bytes)


def check_layout(path: Path, data: ShardData) -> None:
    """Compares everything in a tar that is no payload: members, their order, headers, padding, the end of the archive.

    Reads a few blocks per member; payloads are compared with their checksums by `WebDatasetShardReader`.

    Raises:
        CacheFormatError: when the tar holds anything else than what the index says, or it elsewhere.
    """
    mapped, end = _map(path, data).bytes, 0
    for number, video in enumerate(data.videos):
        name = sample_name(video.id, video.view)
        for spec in data.arrays:
            header, num_bytes = array_header(name, spec, video.num_frames), video.num_frames * spec.frame_bytes
            _compare(path, mapped, end, header)
            end += len(header)
            if data.chunks[spec.key].offsets[number : number + 1] != (end,):
                raise CacheFormatError(
                    f"{path}: {spec.key} of {name!r} is at {end}, not where its index says; {RESTORE}"
                )
            end += num_bytes
            rest = padding(end)
            _compare(path, mapped, end, rest)
            end += len(rest)
        end = _check_json(path, mapped, end, video)
    _compare(path, mapped, end, end_of_archive(end))
    if end + len(end_of_archive(end)) != len(mapped):
        raise CacheFormatError(f"{path} goes on after the end of its archive; {RESTORE}")


def _check_json(path: Path, mapped: mmap, start: int, video: StoredVideo) -> int:
    """Checks the member `<name>.json` at `start`; where it ends."""
    name = sample_name(video.id, video.view)
    begin = start + len(tar_header(f"{name}.json", 0))
    try:
        # The one size that the index does not have. What is read here is compared as a whole below.
        content = mapped[begin : begin + min(int(mapped[begin - 388 : begin - 377], 8), _MAX_JSON_BYTES)]
        about = json.loads(content)
        split, label = about["split"], about["label"]
        expected = json_member(
            name, video_id=video.id, view=video.view, split=split, label=label, num_frames=video.num_frames
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        expected = b""
    if not expected or type(split) is not str or type(label) not in (int, NoneType):
        raise CacheFormatError(f"{path}: {name}.json at {start} is not that of the video in the index; {RESTORE}")
    _compare(path, mapped, start, expected)
    return start + len(expected)


def _compare(path: Path, mapped: mmap, start: int, expected: bytes) -> None:
    """Refuses a tar that has anything else there."""
    if mapped[start : start + len(expected)] != expected:
        raise CacheFormatError(f"{path}: the {len(expected)} bytes at {start} are not those of its index; {RESTORE}")
