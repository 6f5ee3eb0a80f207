"""How quick the command line is to answer."""

import subprocess
import sys

import pytest
from helpers.measure import seconds_of

pytestmark = pytest.mark.bench


def test_help_against_importing_what_it_needs(record):
    def run(*arguments):
        return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    shown, imported = seconds_of(
        run("-m", "vfz.cli", "--help"), run("-c", "import click, rich.console, rich.table, rich.progress"), rounds=15
    )
    record("help_seconds", value=shown, unit="s", baseline="importing click and rich", baseline_value=imported)
