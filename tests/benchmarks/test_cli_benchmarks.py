"""How quick the command line is to answer."""

import statistics
import subprocess
import sys
import time

import pytest
from helpers.measure import seconds_of
from helpers.wrong_values import ROWS, arguments_of, prepare

pytestmark = pytest.mark.bench


def test_help_against_importing_what_it_needs(record):
    def run(*arguments):
        return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    shown, imported = seconds_of(
        run("-m", "vfz.cli", "--help"), run("-c", "import click, rich.console, rich.table, rich.progress"), rounds=15
    )
    record("help_seconds", value=shown, unit="s", baseline="importing click and rich", baseline_value=imported)


def test_answers_to_wrong_values_against_the_version(record, tmp_path, capsys):
    """Each in a process of its own; `vfz --version` is asked in turn with them, and the medians are compared."""
    prepare(tmp_path)

    def seconds(*arguments):
        started = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-m", "vfz.cli", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        return time.perf_counter() - started, ran

    versions, taken = [], {}
    for line, value, words in ROWS:
        versions.append(seconds("--version")[0])
        taken[line], ran = seconds(*arguments_of(line, tmp_path))
        assert (ran.returncode, value in ran.stderr, words in ran.stderr) == (2, True, True), ran.stderr
    slowest = max(taken, key=taken.__getitem__)
    with capsys.disabled():
        print(f"\n{len(taken)} wrong values; the slowest is: vfz {slowest}")
    version = statistics.median(versions)
    for name, value in (("slowest", taken[slowest]), ("median", statistics.median(taken.values()))):
        record(
            f"wrong_value_{name}_seconds", value=value, unit="s", baseline="vfz --version", baseline_value=version,
            goal="below 1 s",
        )  # fmt: skip
