"""What planning claims: a quarter of a million videos are dealt to shards, or found to be done, within a minute."""

import pytest
from benchmarks.pipeline.planning import measure_planning

pytestmark = pytest.mark.bench


def test_planning_240000_videos(record):
    for planning in measure_planning():
        record(
            f"planning[{planning.name}, seconds]",
            value=planning.seconds,
            unit="s",
            baseline="the limit",
            baseline_value=60,
            goal="at most 1",
        )
        record(
            f"planning[{planning.name}, memory]",
            value=planning.peak_mb,
            unit="MB",
            baseline="the limit",
            baseline_value=2000,
            goal="at most 1",
        )
