"""`vfz cache verify`: is every byte of a cache as it was written, and does everything fit together?

    report = verify_cache("caches/k400-vit_small-0123456789ab")
    report.intact, report.problems

It looks at all there is and lists all it finds: checked JSON files, golden frames, data, catalogue, and what else lies
in the folder. Readers pass over a catalogue that is damaged or out of date, so nothing of it makes a cache unreadable;
`vfz cache repair` writes it anew. A cache that is being extended meanwhile may be verified; what is committed after the
start is not looked at.

Cost: one read of every byte at about the speed of SHA-256 (1.4 GB/s on one core, files of a shard on up to four beside
the one that compares chunks), or of the disk; memory for a few blocks of 8 MB.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import read_checked_json_digest, sha256_file
from vfz.pipeline.format.catalog import CATALOG_FILES, NUM_DROPS, SIDE, TABLE, build_catalog, lost_drops, read_side
from vfz.pipeline.format.commits import SHARDS, ShardIndex, committed_paths
from vfz.pipeline.format.drops import DROPS
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import CONTENTS
from vfz.pipeline.format.plan import PLAN
from vfz.pipeline.maintenance.verify.data import PtsOfVideo, check_data
from vfz.pipeline.maintenance.verify.leftovers import find_leftovers
from vfz.pipeline.maintenance.verify.metadata import LINK, CacheState, read_state, short
from vfz.pipeline.maintenance.verify.report import Problem, Severity, VerifyReport, sorted_problems
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
    problems += find_leftovers(state)
    stored = [index.data for index in state.indexes.values() if index.data is not None]
    named = [path / name for name in state.named]
    first = [data for (_, number), index in state.indexes.items() if number == 0 and (data := index.data) is not None]
    return VerifyReport(
        cache=str(path),
        fingerprint=None if state.header is None else state.header.fingerprint,
        num_files=len(named) + sum(len(data.files) for data in stored),
        num_bytes=sum(data.num_bytes for data in stored) + sum(file.stat().st_size for file in named if file.exists()),
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
                videos=(video,),
                array=PTS_KEY,
            )


def check_catalog(state: CacheState) -> Iterator[Problem]:
    """The catalogue against its digest, and against what it was made from."""
    there = [name for name in CATALOG_FILES if (state.path / name).exists()]
    if len(there) < len(CATALOG_FILES):
        if state.indexes or there:
            gone = next(name for name in CATALOG_FILES if name not in there)
            yield _problem(gone, "it is not there: opening the cache takes longer", severity="note")
        return
    if links := [name for name in there if (state.path / name).is_symlink()]:
        yield _problem(links[0], LINK)
        return
    try:
        side = read_side(state.path)
    except CacheFormatError as error:
        yield _problem(SIDE, short(error, state.path / SIDE))
        return
    num_drops = sum(name.startswith(f"{DROPS}/") for name in state.named)
    if side[NUM_DROPS] > num_drops:
        text = f"it {lost_drops(side[NUM_DROPS], num_drops)}; restore it from a copy of the cache"
        yield Problem(file=f"{DROPS}/{num_drops + 1}.json", text=text)
    if _is_stale(state, side):
        yield _problem(TABLE, "it is out of date: the cache has changed since, and opens more slowly", severity="note")
    elif text := _check_table(state, side):
        yield _problem(TABLE, text)


def _is_stale(state: CacheState, side: Mapping[str, Any]) -> bool:
    """Whether commits, plans or contents have come or gone since."""
    paths = {path.name: path for path in committed_paths(state.path).values()}
    counts = [
        sum(name.startswith(f"{folder}/") for name in state.named if (state.path / name).exists())
        for folder in (PLAN, CONTENTS, DROPS)
    ]
    if paths.keys() != side["indexes"].keys() or counts != [side["num_plans"], side["num_contents"], side[NUM_DROPS]]:
        return True
    unreadable = {f"{shard}.{number}.index.json" for shard, number in state.unreadable}
    return any(
        read_checked_json_digest(paths[name]) != known.digest
        for name, known in side["indexes"].items()
        if name not in unreadable
    )


def _check_table(state: CacheState, side: Mapping[str, Any]) -> str:
    """What is wrong with the table of a catalogue that is up to date."""
    path = state.path / TABLE
    if sha256_file(path) != side["table"]["sha256"]:
        return "it was changed after it was written: its sha256 does not match"
    if state.header is None or side["fingerprint"] != state.header.fingerprint:
        return "" if state.header is None else "it was made for another recipe: it was copied from another cache"
    if any((state.path / name).is_symlink() for name in state.named):
        return ""  # told of, and not followed
    try:
        expected = build_catalog(CacheFolder(state.path))
    except CacheFormatError:
        return ""  # something else is damaged, and told of
    try:
        found = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"it cannot be read: {error}"
    if not found.equals(expected.table) or dict(expected.shard_bytes) != side["shard_bytes"]:
        return f"it is not what {PLAN}/ and {SHARDS}/ say together"
    return ""


def _problem(name: str, text: str, *, severity: Severity = "damage") -> Problem:
    return Problem(file=name, text=text, severity=severity, remedy="rebuild")
