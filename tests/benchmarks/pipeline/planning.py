"""What planning a great many videos takes, for a new cache and for one that is resumed: in processes of their own.

The cache that is resumed has real plans, real indexes and a catalog; its video files are there, empty. Their digests
are those of empty files, so that the files which are read again are found to be the same: all of them, since they are
less than an hour older than the commits.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from helpers.tiny_cache import FINGERPRINT, RECIPE, contents_of

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import ShardIndex, commit_shard
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import Contents, create_cache, read_header
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.plan import read_plans
from vfz.pipeline.stores.metadata import ChunkRecord, FileRecord, ShardData, StoredVideo

NUM_VIDEOS = 240_000
NUM_CLASSES = 400
SHARD_VIDEOS = 64
NUM_FRAMES = 60
EMPTY_DIGEST = hashlib.sha256(bytes(8)).hexdigest()


class Planning(NamedTuple):
    """Seconds without imports, and by how many MB the largest resident size of the process grew."""

    name: str
    seconds: float
    peak_mb: float


def large_records(root: Path, num_videos: int) -> list[VideoRecord]:
    """Named and laid out as Kinetics-400."""
    digests = [hashlib.sha256(number.to_bytes(4, "little")).hexdigest()[:11] for number in range(num_videos)]
    return [
        VideoRecord(
            id=f"train/class {number % NUM_CLASSES}/{digest}_{number:06d}",
            source=VideoSource(path=root / f"train/class {number % NUM_CLASSES}/{digest}_{number:06d}.mp4"),
            split="train",
            label=number % NUM_CLASSES,
        )
        for number, digest in enumerate(digests)
    ]


def make_files(records: list[VideoRecord]) -> None:
    """An empty file for each."""
    for folder in {record.source.path.parent for record in records}:
        folder.mkdir(parents=True)
    for record in records:
        record.source.path.touch()


def commit_all(folder: Path) -> None:
    """Every planned shard with indexes as large as those of ViT-S tokens; no tokens."""
    contents = read_header(folder).contents
    for plan in read_plans(folder / "plan"):
        for shard, videos in plan.shards.items():
            rows = tuple(
                replace(
                    video.pending_row(shard, attempts=1), status="ok", num_frames=NUM_FRAMES,
                    frame_start=place * NUM_FRAMES, source_digest=EMPTY_DIGEST, duration_seconds=9.8,
                )
                for place, video in enumerate(videos)
            )  # fmt: skip
            commit_shard(
                folder,
                ShardIndex(
                    shard=shard, number=0, plan=plan.number, fingerprint=FINGERPRINT,
                    calibration_digest=contents.calibration_digest(contents.columns), data=_data(shard, contents, rows),
                    rows=rows, column_keys=tuple(column.key for column in contents.columns),
                ),
            )  # fmt: skip


def _data(shard: str, contents: Contents, rows: tuple[LedgerRow, ...]) -> ShardData:
    num_frames = sum(row.num_frames for row in rows)
    keys = [array.key for column in contents.columns for array in column.arrays]
    return ShardData(
        store="zarr",
        name=f"{shard}-0123456789abcdef",
        columns=contents.columns,
        videos=tuple(StoredVideo(id=row.id, view=row.view, num_frames=row.num_frames) for row in rows),
        files={f"{key}/c/0": FileRecord(num_bytes=10**9, sha256="0" * 64) for key in keys},
        chunks={
            key: ChunkRecord(frames_per_chunk=1, crc32c=[4_000_000_000] * num_frames) for key in [*keys, "pts_seconds"]
        },
    )


PLAN = """
import json, re, sys, time
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[3])
from benchmarks.pipeline.planning import SHARD_VIDEOS, large_records
from vfz.pipeline.datasets.base import present_ids
from vfz.pipeline.extraction.resume import complete_shards, remaining_tasks
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.ledger import LedgerRows
# Not getrusage: after a fork and exec it still counts the parent's memory.
peak_mb = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
root = Path(sys.argv[1])
records = large_records(root / "videos", int(sys.argv[2]))
before_mb, started = peak_mb(), time.perf_counter()
times = []
def lap():
    times.append(round(time.perf_counter() - started, 2))
present = present_ids(records)
lap()
cache = CacheFolder(root / "cache")
catalog = open_catalog(cache)
lap()
rows = {row.key: row for row in LedgerRows(catalog.table)}
lap()
tasks = remaining_tasks(
    cache, catalog.contents, records, rows, complete=complete_shards(catalog, catalog.contents), views=1,
    shard_videos=SHARD_VIDEOS, retry_failed=False,
)
lap()
print(json.dumps({"seconds": times[-1], "peak_mb": peak_mb() - before_mb, "tasks": len(tasks), "laps": times,
    "cpu_seconds": time.process_time(), "present": len(present)}))
"""


def measure_planning(num_videos: int = NUM_VIDEOS) -> list[Planning]:
    """A new cache, the same again when all is done, and after a run that was killed before it wrote the catalog."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_files(large_records(root / "videos", num_videos))
        create_cache(root / "cache", recipe=RECIPE, provenance={}, fill=contents_of)
        first = _plan("first", root, num_videos)
        commit_all(root / "cache")
        write_catalog(CacheFolder(root / "cache"))
        resumed = _plan("resume", root, num_videos)
        (root / "cache/index.parquet").unlink()
        return [first, resumed, _plan("resume without catalog", root, num_videos)]


def _plan(name: str, root: Path, num_videos: int) -> Planning:
    path = json.dumps([str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(root), str(num_videos), path],
        stdout=subprocess.PIPE, text=True, check=True, timeout=1200,
    )  # fmt: skip
    found = json.loads(done.stdout)
    if __name__ == "__main__":
        print(name, found)
    if found["present"] != num_videos or bool(found["tasks"]) != (name == "first"):
        raise AssertionError(f"{name}: {found}")
    return Planning(name, found["seconds"], found["peak_mb"])


if __name__ == "__main__":
    measure_planning(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_VIDEOS)
