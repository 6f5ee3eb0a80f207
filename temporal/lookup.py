"""What was trained, found by name or path: runs of `vfz train-temporal` and results of `vfz probe`.

`find_run("gru")` is `runs/gru` where that is a run, and `find_run("elsewhere/gru")` that folder. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vfz.pipeline.errors import UsageError
from vfz.pipeline.lookup import FolderKind

RUNS_FOLDER = Path("runs")
RUNS = FolderKind(kind="run", marker="run.json", under=RUNS_FOLDER, made_by="vfz train-temporal")
PROBE_RESULTS = FolderKind(kind="probe result", marker="probe.json", under=RUNS_FOLDER, made_by="vfz probe")


def find_run(given: Any, *, under: Path = RUNS_FOLDER) -> Path:
    """The folder of a training run.

    Args:
        given: its path, or its bare name under `under`.
        under: where runs lie.

    Returns:
        The folder; one that is there but no run is returned, too, and `read_run` says what it lacks.

    Raises:
        UsageError: for what is neither text nor a path, or where there are no runs.
        UnknownNameError: when there is no such run; with the nearest names.
    """
    return _found(RUNS, given, under, other=PROBE_RESULTS)


def find_probe(given: Any, *, under: Path = RUNS_FOLDER) -> Path:
    """The folder of a probe's result; otherwise as `find_run`."""
    return _found(PROBE_RESULTS, given, under, other=RUNS)


def _found(kind: FolderKind, given: Any, under: Path, *, other: FolderKind) -> Path:
    """The folder; one that is of the other kind is called what it is."""
    is_one = kind.holds(kind.look_up(given, under=under))
    mistaken = other.look_up(given, under=under)
    if not is_one and other.holds(mistaken):
        raise UsageError(f"{mistaken} is a {other.kind}, made by {other.made_by}, and no {kind.kind}; give it as such")
    return kind.find(given, under=under)
