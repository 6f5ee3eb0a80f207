"""A comparison's two tables as text, for the console, CSV and HTML alike."""

from __future__ import annotations

from typing import NamedTuple

from vfz.pipeline.units import human_bytes, human_seconds
from vfz.temporal.comparison.compare import Comparison, ProbeResult

COLUMNS = (
    "probe", "kind", "of", "encoder", "layers", "precision", "top-1", "95% interval", "best head on validation",
    "videos", "parameters", "of the core", "time", "cache",
)  # fmt: skip
NUM_TEXT_COLUMNS = 6
AGAINST_COLUMNS = (
    "probe",
    "videos",
    "difference",
    "95% interval",
    "only it",
    "only the baseline",
    "McNemar p",
    "bootstrap p",
)


class Cell(NamedTuple):
    """What a cell shows, and what its column is sorted by."""

    text: str
    key: float | str


def result_rows(comparison: Comparison) -> list[list[Cell]]:
    """A row for every probe under `COLUMNS`."""
    return [_row(result) for result in comparison.results]


def _row(result: ProbeResult) -> list[Cell]:
    of = "tokens" if result.core is None else result.core
    names = [result.name, result.probe, of, result.encoder, ", ".join(result.layers), result.precision]
    return [
        *(Cell(name, name) for name in names),
        Cell(f"{100 * result.top1.mean:.1f}%", result.top1.mean),
        Cell(f"{100 * result.top1.low:.1f} to {100 * result.top1.high:.1f}%", result.top1.low),
        Cell(f"{100 * result.best_head_on_validation:.1f}%", result.best_head_on_validation),
        Cell(f"{result.num_videos} of {result.num_planned}", result.num_videos),
        Cell(f"{result.num_parameters:,}", result.num_parameters),
        Cell(f"{result.num_core_parameters:,}", result.num_core_parameters),
        Cell(human_seconds(result.seconds), result.seconds),
        Cell(human_bytes(result.cache_bytes), result.cache_bytes),
    ]


def against_rows(comparison: Comparison) -> list[list[Cell]]:
    """A row for every probe but the baseline under `AGAINST_COLUMNS`."""
    return [
        [
            Cell(name, name),
            Cell(f"{against.num_videos}", against.num_videos),
            Cell(f"{100 * against.difference.difference:+.1f} points", against.difference.difference),
            Cell(
                f"{100 * against.difference.low:+.1f} to {100 * against.difference.high:+.1f}", against.difference.low
            ),
            Cell(f"{against.test.num_only_first}", against.test.num_only_first),
            Cell(f"{against.test.num_only_second}", against.test.num_only_second),
            Cell(f"{against.test.p_value:.2g}", against.test.p_value),
            Cell(f"{against.difference.p_value:.2g}", against.difference.p_value),
        ]
        for name, against in comparison.against.items()
    ]
