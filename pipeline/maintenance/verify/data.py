"""The data of one commit: SHA-256 of every file, crc32c of every chunk, every number looked at.

Files are hashed in other threads while chunks are read and compared in this one, so all go over the same bytes at about
the same time and the disk gives them once. In the end zarr-python, without vfz, must find in a Zarr shard what the
shard's index says.

Cost: one read of the data. Memory holds a few blocks of 8 MB, however large the shard.

Shapes: F frames of a shard, n of a block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from vfz.pipeline.errors import CacheFormatError, VfzError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.format.commits import SHARDS, ShardIndex
from vfz.pipeline.format.ledger import VideoKey
from vfz.pipeline.maintenance.verify.metadata import LINK, short
from vfz.pipeline.maintenance.verify.report import Problem
from vfz.pipeline.stores import STORES, ShardData, ShardReader
from vfz.pipeline.stores.base import all_finite
from vfz.pipeline.stores.metadata import PTS_ARRAY, PTS_KEY, ArraySpec
from vfz.pipeline.stores.tar_reader import check_layout as check_tar

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES = 8 * 1024 * 1024
PtsOfVideo = dict[VideoKey, bytes]


def check_data(cache_folder: Path, index: ShardIndex, data: ShardData, hasher: Executor) -> DataCheck:
    """Reads everything a commit names.

    Args:
        cache_folder: the cache.
        index: the commit.
        data: its data.
        hasher: runs in other threads.
    """
    return _DataChecker(cache_folder, index, data).run(hasher)


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What came out of the data of a commit.

    Attributes:
        problems: all of them.
        pts_seconds: times of each video by (id, view), as bytes.
    """

    problems: tuple[Problem, ...]
    pts_seconds: PtsOfVideo


class _DataChecker:
    def __init__(self, cache_folder: Path, index: ShardIndex, data: ShardData) -> None:
        self._index, self._data = index, data
        self._path = cache_folder / SHARDS / data.name
        self._starts = list(accumulate((video.num_frames for video in data.videos), initial=0))
        self._problems: list[Problem] = []
        self._pts: PtsOfVideo = {}

    def run(self, hasher: Executor) -> DataCheck:
        if links := self._links():
            for name in links:
                self._add(name, LINK)
            return self._result()
        if not self._path.exists():
            self._add(".", "the data that the commit names is gone")
            return self._result()
        if (store := self._data.store) not in STORES:
            self._add(".", f"its store {store!r} is none that this vfz knows; upgrade vfz", remedy="none")
            return self._result()
        digests = {name: hasher.submit(_digest, self._path / name) for name in self._data.files}
        changed_size = {name for name, record in self._data.files.items() if not self._has_size(name, record.num_bytes)}
        reader = STORES[store].reader(self._path, self._data, checksums="first")
        for spec in self._data.arrays:
            if _file_of(self._data, spec) not in changed_size:
                self._check_array(reader, spec)
        reader.close()
        if store == "webdataset" and not changed_size:
            self._check_layout(check_tar)
        located = {problem.file for problem in self._problems}
        for name, digest in digests.items():
            text = _compare(digest.result(), self._data.files[name].sha256)
            if text and self._name(name) not in located:
                self._add(name, text)
        self._check_extra_files()
        if store == "zarr" and not self._problems:  # else zarr would only repeat what is known
            self._check_layout(check_zarr)
        return self._result()

    def _links(self) -> list[str]:
        """Symbolic links in the place of the data, of a file that the commit names, or of a folder above one."""
        above = {folder.as_posix() for name in self._data.files for folder in (Path(name), *Path(name).parents)}
        return [name for name in sorted({".", *above}) if (self._path / name).is_symlink()]

    def _result(self) -> DataCheck:
        return DataCheck(problems=tuple(self._problems), pts_seconds=self._pts)

    def _name(self, file: str) -> str:
        """A file of the data, relative to the cache."""
        return f"{SHARDS}/{self._data.name}" if file == "." else f"{SHARDS}/{self._data.name}/{file}"

    def _add(
        self, file: str, text: str, *, remedy: Any = "extract", videos: Sequence[str] = (), array: str | None = None
    ) -> None:
        self._problems.append(
            Problem(
                file=self._name(file),
                text=text,
                remedy=remedy,
                shard=self._index.shard,
                number=self._index.number,
                videos=tuple(videos),
                array=array,
            )
        )

    def _has_size(self, name: str, expected: int) -> bool:
        try:
            num_bytes = (self._path / name).stat().st_size
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            self._add(name, "it is gone" if gone else f"it cannot be read: {error.strerror}")
            return False
        if num_bytes != expected:
            self._add(name, f"it has {num_bytes} bytes, {expected} were committed")
        return num_bytes == expected

    def _check_layout(self, check: Callable[[Path, ShardData], None]) -> None:
        """What a reader without vfz goes by."""
        try:
            check(self._path, self._data)
        except CacheFormatError as error:
            self._add(".", short(error, self._path))

    def _check_array(self, reader: ShardReader, spec: ArraySpec) -> None:
        """Reads an array block by block."""
        bad: dict[range, str] = {}
        for frames in _blocks(self._data, spec):
            try:
                values = reader.read(spec.key, np.arange(frames.start, frames.stop))
            except VfzError:
                bad |= self._bad_chunks(reader, spec, frames)
                continue
            if spec.key == PTS_KEY:
                self._check_times(frames, values)
            elif spec.dtype.kind == "f" and not all_finite(values):
                self._add_not_finite(spec, frames, values)
        if len(set(bad.values())) == 1 and len(bad) > 1:  # the same of every chunk: it is the array that is wrong
            self._add(_file_of(self._data, spec), next(iter(bad.values())), array=spec.key)
        elif bad:
            self._add_bad_chunks(spec, sorted(bad.items(), key=lambda chunk: chunk[0].start))

    def _bad_chunks(self, reader: ShardReader, spec: ArraySpec, frames: range) -> dict[range, str]:
        """The frames of each chunk of a block that cannot be read, and why."""
        bad = {}
        for chunk in _split(frames, self._data.chunks[spec.key].frames_per_chunk):
            try:
                reader.read(spec.key, np.arange(chunk.start, chunk.stop))
            except VfzError as error:
                text = short(error, self._path / _file_of(self._data, spec))
                bad[chunk] = text.replace(f"{self._path}/", "")
        return bad

    def _add_bad_chunks(self, spec: ArraySpec, bad: Sequence[tuple[range, str]]) -> None:
        """One problem for each chunk, or run of chunks one after the other, with the videos that it touches."""
        first = 0
        for number, (frames, text) in enumerate(bad, start=1):
            if number < len(bad) and bad[number][0].start == frames.stop:
                continue
            start, num_more = bad[first][0].start, number - 1 - first
            if num_more:
                text = f"{bad[first][1]}, and so are {num_more} chunks after it, up to frame {frames.stop - 1}"
            videos = [
                video.id
                for video, (begin, end) in zip(self._data.videos, pairwise(self._starts), strict=True)
                if begin < frames.stop and start < end
            ]
            self._add(_file_of(self._data, spec), text, videos=videos, array=spec.key)
            first = number

    def _add_not_finite(self, spec: ArraySpec, frames: range, values: NDArray[Any]) -> None:
        hit = [frames[number] for number, frame in enumerate(values) if not all_finite(frame)]
        for video, (start, end) in zip(self._data.videos, pairwise(self._starts), strict=True):
            if found := [frame - start for frame in hit if start <= frame < end]:
                text = f"frame {found[0]} of the video holds numbers that are not finite"
                self._add(_file_of(self._data, spec), text, videos=[video.id], array=spec.key)

    def _check_times(self, frames: range, pts_seconds_n: NDArray[np.float64]) -> None:
        """Finite, and strictly increasing within each video; blocks of times are whole videos."""
        for video, (start, end) in zip(self._data.videos, pairwise(self._starts), strict=True):
            if start not in frames:
                continue
            of_video = pts_seconds_n[start - frames.start : end - frames.start]
            self._pts[video.id, video.view] = of_video.tobytes()
            if not np.isfinite(of_video).all() or (np.diff(of_video) <= 0).any():
                text = "its times are not finite and strictly increasing"
                self._add(_file_of(self._data, PTS_ARRAY), text, videos=[video.id], array=PTS_KEY)

    def _check_extra_files(self) -> None:
        if not self._path.is_dir():
            return
        for parent, folders, names in os.walk(self._path):
            inside = Path(parent).relative_to(self._path)
            for name in names:
                if (file := (inside / name).as_posix()) not in self._data.files:
                    self._add(file, "the commit does not name it; it does not belong there", remedy="remove")
            for name in list(folders):
                file = (inside / name).as_posix()
                if not any(known.startswith(f"{file}/") for known in self._data.files):
                    self._add(file, "the commit names nothing in it; it does not belong there", remedy="remove")
                    folders.remove(name)


def check_zarr(path: Path, data: ShardData) -> None:
    """Compares the metadata of the group and of every array with the index; reads no chunk.

    Raises:
        CacheFormatError: when an array is missing, another one is there, or one is described otherwise.
    """
    try:
        group = zarr.open_group(path, mode="r")
        found: dict[str, Any] = {
            name: (member.shape, member.dtype)
            for name, member in group.members(max_depth=None)
            if isinstance(member, zarr.Array)
        }
        videos: Any = group.attrs["videos"]
        described = [(video["id"], video["view"], video["frame_start"], video["num_frames"]) for video in videos]
    except Exception as error:  # zarr raises whatever a damaged file makes it stumble over
        raise CacheFormatError(f"{path}: zarr cannot open it: {type(error).__name__}: {error}") from error
    expected = {spec.key: ((data.num_frames, *spec.frame_shape), spec.dtype) for spec in data.arrays}
    if found != expected:
        key = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise CacheFormatError(
            f"{path}: its metadata describes {key} as {found.get(key)}, the shard's index as {expected.get(key)}"
        )
    start, stored = 0, []
    for video in data.videos:
        stored.append((video.id, video.view, start, video.num_frames))
        start += video.num_frames
    if described != stored:
        raise CacheFormatError(f"{path}: its attribute `videos` names other videos or frames than the shard's index")


def _digest(path: Path) -> str:
    """SHA-256 of a file, or why it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        return f"cannot read it: {error.strerror}"


def _compare(found: str, expected: str) -> str:
    if found == expected:
        return ""
    return found if " " in found else "it was changed after it was written: its sha256 does not match"


def _file_of(data: ShardData, spec: ArraySpec) -> str:
    """The file that holds an array."""
    return next((name for name in data.files if name.startswith(f"{spec.key}/c/")), ".")


def _blocks(data: ShardData, spec: ArraySpec) -> Iterator[range]:
    """The frames of a shard in runs of whole chunks; times in runs of whole videos."""
    chunks = data.chunks[spec.key]
    chunk_bytes = chunks.frames_per_chunk * spec.frame_bytes
    step = data.num_frames if spec.key == PTS_KEY else chunks.frames_per_chunk * max(1, BLOCK_BYTES // chunk_bytes)
    starts = list(accumulate((video.num_frames for video in data.videos), initial=0))
    # Chunks begin anew with each video where the index says where videos begin.
    for start, end in pairwise(starts if chunks.offsets else (0, data.num_frames)):
        yield from _split(range(start, end), step)


def _split(frames: range, step: int) -> Iterator[range]:
    for start in range(frames.start, frames.stop, step):
        yield range(start, min(start + step, frames.stop))
