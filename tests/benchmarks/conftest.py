"""Benchmarks print a ratio against a baseline measured in the same run, and keep it in .bench/results.json."""

import json
import os
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parents[2] / ".bench" / "results.json"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Benchmarks use every core, unlike the other tests."""
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.fixture
def record(capsys):
    """`record(name, value, unit, baseline, baseline_value)`: prints one line, writes the results file."""

    def write(name, *, value, unit, baseline, baseline_value):
        ratio = value / baseline_value
        RESULTS.parent.mkdir(exist_ok=True)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = {"value": value, "unit": unit, "baseline": f"{baseline}: {baseline_value:.4g}", "ratio": ratio}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        with capsys.disabled():
            print(f"\n{name}: {value:.4g} {unit} = {ratio:.2f}x of {baseline} ({baseline_value:.4g} {unit})")

    return write
