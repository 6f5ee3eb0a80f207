"""Which cores learn what on the built-in videos: the table of `synthetic_tasks`. Some 45 minutes on two cores."""

import os

import pytest
from benchmarks.temporal.synthetic_tasks import BASELINE, CONSTANT, SETTINGS, run_table, table_lines

pytestmark = pytest.mark.bench

HIGHER_IS_BETTER = {"classify": True, "boxes": True, "points": True, "depth": False, "pose": False}


@pytest.mark.timeout(7200)
def test_five_tasks_on_the_synthetic_set(record, capsys, tmp_path):
    rows = run_table(tmp_path, tasks=list(SETTINGS), workers=os.cpu_count() or 1)
    with capsys.disabled():
        print("\n" + "\n".join(table_lines(rows)))
    by_name = {(row.task, row.core): row for row in rows}
    for task, setting in SETTINGS.items():
        for core in setting.cores:
            if core == BASELINE:
                continue
            for baseline in (BASELINE, CONSTANT):
                ours, theirs = by_name[task, core], by_name[task, baseline]
                record(
                    f"synthetic_{task}_{core}_against_{baseline}",
                    value=ours.mean,
                    unit=ours.metric,
                    baseline=f"{baseline} ± {theirs.deviation:.2g}",
                    baseline_value=theirs.mean,
                    goal="40 points more" if task == "classify" else "above 1" if HIGHER_IS_BETTER[task] else "below 1",
                )
