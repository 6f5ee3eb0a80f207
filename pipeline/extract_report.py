"""What an extraction ended with: what is in the cache now, what this call did, how fast, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.engine.metrics import bottleneck_of, busy_shares
from vfz.pipeline.failures import FailureKind, group_failures
from vfz.pipeline.format.ledger_table import lacking_rows

if TYPE_CHECKING:
    from vfz.pipeline.engine.metrics import RunTotals


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One stage of the pipeline.

    Attributes:
        seconds: how long it was at work, in all processes together that encode; of decoding, on average over the decode
            processes of each.
        busy: the share of the time that it was, 0 to 1.
    """

    seconds: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction ended with.

    Attributes:
        cache: the cache's folder.
        num_ok, num_failed, num_missing: videos in the whole cache.
        num_lacking: those of the ok ones that have no tokens of a layer that was added later.
        num_pending: those of its plan that no process has done yet.
        num_frames: frames in the whole cache.
        cache_bytes: size of the committed data.
        num_tried, new_videos, new_frames, new_bytes, seconds: done by this call: videos tried, those of them that went
            well, their frames, their size in the cache, and the time from decoding to commit.
        frames_per_second, bytes_per_second: of the new ones; 0 where nothing was left to do.
        batch_size: frames encoded at a time in the end, fewer than asked for where memory did not suffice; None where
            nothing was encoded.
        stages: of this call, by name; empty where nothing was left to do.
        bottleneck: the stage that the others waited for.
        failure_kinds: why videos of the whole cache are not in it, most frequent first.
        failures: the reason in full by video id.
    """

    cache: str
    fingerprint: str
    num_ok: int
    num_failed: int
    num_missing: int
    num_lacking: int
    num_pending: int
    num_frames: int
    cache_bytes: int
    num_tried: int
    new_videos: int
    new_frames: int
    new_bytes: int
    seconds: float
    frames_per_second: float
    bytes_per_second: float
    batch_size: int | None
    stages: Mapping[str, StageReport]
    bottleneck: str | None
    failure_kinds: tuple[FailureKind, ...]
    failures: Mapping[str, str]


def make_report(folder: Path, totals: RunTotals, seconds: float) -> ExtractReport:
    """Looks at the cache as it is now, which another process may be adding to.

    Args:
        folder: the cache.
        totals: what this call has done.
        seconds: how long that took.
    """
    cache = FeatureCache(folder, allow_incomplete=True)
    count = Counter(row.status for row in cache.videos)
    lacking = lacking_rows(cache.table())
    busy = (
        busy_shares(totals.stage_seconds, seconds=seconds, num_processes=len(totals.processes))
        if totals.processes
        else {}
    )
    bad = [row for row in [*cache.videos, *lacking] if row.reason]
    return ExtractReport(
        cache=str(folder),
        fingerprint=cache.fingerprint,
        num_ok=count["ok"],
        num_failed=count["failed"],
        num_missing=count["missing"],
        num_lacking=len({row.key for row in lacking}),
        num_pending=count["pending"],
        num_frames=sum(row.num_frames for row in cache.videos),
        cache_bytes=cache.num_bytes,
        num_tried=totals.num_tried,
        new_videos=totals.num_ok,
        new_frames=totals.num_frames,
        new_bytes=totals.num_bytes,
        seconds=seconds,
        frames_per_second=totals.num_frames / seconds,
        bytes_per_second=totals.num_bytes / seconds,
        batch_size=totals.batch_size,
        stages={stage: StageReport(seconds=totals.stage_seconds[stage], busy=share) for stage, share in busy.items()},
        bottleneck=bottleneck_of(busy) if busy else None,
        failure_kinds=group_failures(bad),
        failures={row.id: row.reason for row in bad},
    )
