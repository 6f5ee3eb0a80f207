"""What extraction measures of itself: how fast it is, how busy each stage is, and which one holds the others up.

It is shown while a run goes on, and kept in `extract.jsonl` in the cache's folder: one line for each shard that was
made, by whatever process, to look at later. A line is appended with one write, so that processes do not mix theirs, and
carries its own CRC-32C. No reader of tokens looks at it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from vfz.pipeline.engine.tasks import DECODE, STAGES, ShardInProgress
from vfz.pipeline.files import canonical_json, storage_errors

if TYPE_CHECKING:
    from vfz.pipeline.decoding.pool import DecodePool
    from vfz.pipeline.engine.tasks import ShardResult
    from vfz.pipeline.format.commits import CommitKey

LOG = "extract.jsonl"
_CRC = "crc32c"


class RunTotals:
    """Sums over shards that are done.

    Attributes:
        num_tried, num_ok, num_failed: videos.
        num_frames: of the videos that are ok.
        num_encoded: frames, those of videos that failed half-way included.
        num_bytes: of the data committed.
        batch_size: the least number of frames that was encoded at a time; None where none were.
        stage_seconds: how long each stage was at work.
        processes: (host, pid) of those that made the shards.
    """

    def __init__(self) -> None:
        self.num_tried = self.num_ok = self.num_failed = 0
        self.num_frames = self.num_encoded = self.num_bytes = 0
        self.batch_size: int | None = None
        self.stage_seconds = dict.fromkeys(STAGES, 0.0)
        self.processes: set[tuple[str, int]] = set()

    def add(self, result: ShardResult) -> None:
        """Counts one more shard."""
        self.num_tried += len(result.rows)
        self.num_ok += sum(row.status == "ok" for row in result.rows)
        self.num_failed += sum(row.status == "failed" for row in result.rows)
        self.num_frames += sum(row.num_frames for row in result.rows)
        self.num_encoded += result.num_frames
        self.num_bytes += result.num_bytes
        if result.num_frames:
            self.batch_size = min(self.batch_size or result.batch_size, result.batch_size)
        for stage in STAGES:
            self.stage_seconds[stage] += result.stage_seconds[stage]
        self.processes.add((result.host, result.pid))

    def figures(self, seconds: float) -> dict[str, float | str]:
        """Frames and bytes per second, how busy each stage is, the busiest, and the failures, over that time.

        Args:
            seconds: above 0; at least one shard is done.
        """
        return shown_figures(
            busy_shares(self.stage_seconds, seconds=seconds, num_processes=len(self.processes)),
            frames_per_second=self.num_encoded / seconds,
            bytes_per_second=self.num_bytes / seconds,
            num_failed=self.num_failed,
        )


class RunMeter:
    """How far the shards of a run are, and what each stage has done for it.

    Args:
        pool: decodes for the run.
    """

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self._started = time.perf_counter()
        self._in_progress: dict[CommitKey, ShardInProgress] = {}
        self._done = RunTotals()

    @property
    def num_in_progress(self) -> int:
        """Shards that were begun and not ended."""
        return len(self._in_progress)

    def begin(self, shard: ShardInProgress) -> None:
        """A shard is begun."""
        self._in_progress[shard.task.shard, shard.task.number] = shard

    def end(self, result: ShardResult) -> None:
        """A shard is done."""
        del self._in_progress[result.task.shard, result.task.number]
        self._done.add(result)

    def figures(self) -> dict[str, float | str]:
        """Frames and bytes per second, how busy each stage is, the busiest, and the failures, all since the start."""
        seconds, in_progress = time.perf_counter() - self._started, list(self._in_progress.values())
        stage_seconds = {
            stage: self._done.stage_seconds[stage] + sum(shard.stage_seconds[stage] for shard in in_progress)
            for stage in STAGES
        }
        stage_seconds[DECODE] = self._pool.figures.busy_seconds / self._pool.num_workers  # unfinished shards lag behind
        return shown_figures(
            busy_shares(stage_seconds, seconds=seconds),
            frames_per_second=(self._done.num_encoded + sum(shard.num_frames for shard in in_progress)) / seconds,
            bytes_per_second=self._done.num_bytes / seconds,
            num_failed=self._done.num_failed,
        )


def shown_figures(
    busy: Mapping[str, float], *, frames_per_second: float, bytes_per_second: float, num_failed: int
) -> dict[str, float | str]:
    """What is shown beside the bar; zeros are left out."""
    shown: dict[str, float | str] = {"frames/s": frames_per_second}
    if bytes_per_second:
        shown["MB/s"] = bytes_per_second / 1e6
    shown["busy"] = " ".join(f"{stage} {share:.0%}" for stage, share in busy.items())
    shown["bottleneck"] = bottleneck_of(busy)
    if num_failed:
        shown["failed"] = str(num_failed)
    return shown


def busy_shares(stage_seconds: Mapping[str, float], *, seconds: float, num_processes: int = 1) -> dict[str, float]:
    """The share of the time that each stage was at work, 0 to 1.

    Args:
        stage_seconds: how long it was, by stage; of decoding on average over its processes.
        seconds: the whole time.
        num_processes: that encode.
    """
    return {stage: min(1.0, stage_seconds[stage] / (seconds * num_processes)) for stage in STAGES}


def bottleneck_of(busy: Mapping[str, float]) -> str:
    """The stage that the others wait for: the busiest."""
    return max(busy, key=lambda stage: busy[stage])


def log_shard(cache: Path, result: ShardResult) -> None:
    """Appends the line of a shard that was made.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    content = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": result.host,
        "pid": result.pid,
        "shard": result.task.shard,
        "commit": result.task.number,
        "committed": result.committed,
        "videos": Counter(row.status for row in result.rows),
        "num_frames": result.num_frames,
        "num_bytes": result.num_bytes,
        "batch_size": result.batch_size,
        "seconds": round(result.seconds, 4),
        "stage_seconds": {stage: round(spent, 4) for stage, spent in result.stage_seconds.items()},
    }
    line = _with_crc(content) + b"\n"
    path = cache / LOG
    with storage_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def read_log(cache: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of a cache's log that are whole, and the numbers (from 1) of those that are not."""
    lines, damaged = [], []
    path = cache / LOG
    *texts, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(texts, start=1):
        try:
            content = json.loads(text)
            content.pop(_CRC)
            whole = text == _with_crc(content)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            whole = False
        if whole:
            lines.append(content)
        else:
            damaged.append(number)
    if rest:  # a line without its end
        damaged.append(len(texts) + 1)
    return lines, damaged


def _with_crc(content: Mapping[str, Any]) -> bytes:
    """The text of a line, without its end."""
    return canonical_json({**content, _CRC: google_crc32c.value(canonical_json(content))})
