"""`vfz cache verify`: is every byte of a cache as it was written, and does everything fit together?

    report = verify_cache("caches/k400-vit_small-0123456789ab")
    report.intact, report.problems

It looks at all there is and lists all it finds: sealed files, golden frames, data, catalogue, and what else lies in the
folder. A cache that is being extended meanwhile may be verified; what is committed after the start is not looked at.

Cost: one read of every byte at about the speed of SHA-256 (1.4 GB/s on one core, files of a shard on up to four beside
the one that compares chunks), or of the disk; memory for a few blocks of 8 MB.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vfz.pipeline.format.commits import ShardIndex
from vfz.pipeline.maintenance.verify.data import PtsOfVideo, check_data
from vfz.pipeline.maintenance.verify.leftovers import find_strays
from vfz.pipeline.maintenance.verify.metadata import CacheState, read_state
from vfz.pipeline.maintenance.verify.report import Problem, VerifyReport, sorted_problems
from vfz.pipeline.maintenance.verify_catalog import check_catalog
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.stores.metadata import PTS_KEY

_NUM_HASHERS = max(1, min(4, (os.cpu_count() or 1) - 1))


def verify_cache(path: str | Path, *, progress: Progress | None = None) -> VerifyReport:
    """Reads a whole cache and compares it with what was written.

    Args:
        path: the cache's folder.
        progress: told of every commit.

    Raises:
        CacheFormatError: when the folder is no cache at all, or one of its own folders is a symbolic link; damage is in
            the report instead.
    """
    progress, started, path = progress or SilentProgress(), time.perf_counter(), Path(path)
    state, problems = read_state(path)
    problems += _check_all_data(state, progress)
    problems += check_catalog(state)
    problems += find_strays(state)
    stored = [index.data for index in state.indexes.values() if index.data is not None]
    sealed = [path / name for name in state.named]
    first = [data for (_, number), index in state.indexes.items() if number == 0 and (data := index.data) is not None]
    return VerifyReport(
        cache=str(path),
        fingerprint=None if state.header is None else state.header.fingerprint,
        num_files=len(sealed) + sum(len(data.files) for data in stored),
        num_bytes=sum(data.num_bytes for data in stored) + sum(file.stat().st_size for file in sealed if file.exists()),
        num_chunks=sum(len(chunks.crc32c) for data in stored for chunks in data.chunks.values()),
        num_commits=len(state.indexes),
        num_videos=sum(len(data.videos) for data in first),
        num_frames=sum(data.num_frames for data in first),
        num_pending=state.num_pending,
        seconds=time.perf_counter() - started,
        problems=sorted_problems(problems),
    )


def _check_all_data(state: CacheState, progress: Progress) -> Iterator[Problem]:
    """The data of every commit, and that later commits of a shard have the times of its first."""
    progress.start("verifying", total=len(state.indexes), unit="commits")
    started, num_bytes = time.perf_counter(), 0
    first_pts: dict[str, PtsOfVideo] = {}
    with ThreadPoolExecutor(max_workers=_NUM_HASHERS, thread_name_prefix="vfz-sha256") as hasher:
        for (shard, number), index in state.indexes.items():
            if index.data is not None:
                checked = check_data(state.path, index, index.data, hasher)
                yield from checked.problems
                if not number:
                    first_pts = {shard: checked.pts_seconds}
                yield from _check_same_times(index, checked.pts_seconds, first_pts.get(shard, {}))
                num_bytes += index.data.num_bytes
            speed = num_bytes / 1e6 / (time.perf_counter() - started)
            progress.advance(figures={"MB/s": speed})
    progress.finish()


def _check_same_times(index: ShardIndex, found: PtsOfVideo, first: PtsOfVideo) -> Iterator[Problem]:
    for video, view in found.keys() & first.keys():
        if found[video, view] != first[video, view]:
            yield Problem(
                file=f"shards/{index.name}",
                text=f"its times of the video (view {view}) are not those of the first commit of the shard",
                remedy="extract",
                shard=index.shard,
                number=index.number,
                video=video,
                array=PTS_KEY,
            )
