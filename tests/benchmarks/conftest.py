"""Benchmarks: a ratio against a baseline measured in the same run, one table at the end, and .bench/results.json."""

import json
import os
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parents[2] / ".bench" / "results.json"
_ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Benchmarks use every core, unlike the other tests."""
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture
def record(capsys):
    """`record(name, value=, unit=, baseline=, baseline_value=, goal=)`: prints one line, writes the results file.

    `goal` says what the ratio should be, such as `at least 0.9`; it is shown beside it and nothing is asserted.
    """

    def write(name, *, value, unit, baseline, baseline_value, goal=""):
        ratio = value / baseline_value
        RESULTS.parent.mkdir(exist_ok=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = {"value": value, "unit": unit, "baseline": f"{baseline}: {baseline_value:.4g}", "ratio": ratio}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        _ROWS.append((name, f"{value:.4g} {unit}", f"{baseline}: {baseline_value:.4g}", f"{ratio:.3g}", goal))
        with capsys.disabled():
            print(f"\n{name}: {value:.4g} {unit} = {ratio:.3g}x of {baseline} ({baseline_value:.4g} {unit})")

    return write


def pytest_terminal_summary(terminalreporter):
    """All figures of this run in one table."""
    if not _ROWS:
        return
    rows = [("figure", "measured", "baseline, same run", "ratio", "goal"), *_ROWS]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    terminalreporter.section("benchmarks")
    for row in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
