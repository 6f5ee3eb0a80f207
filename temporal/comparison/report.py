"""`vfz probe compare`: records in; a comparison, and its tables as CSV, JSON and one HTML page, out.

The console and the page show the same two tables: every probe, and every other probe against the baseline. The CSV has
one row for every probe, with both. The page is one file: tables, charts and a small script are all inside, and nothing
comes from the network.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vfz.pipeline.files import make_folder, write_file_atomic
from vfz.pipeline.progress import human_bytes, human_seconds
from vfz.temporal.comparison.charts import accuracy_chart, change_chart, confusion_chart, curve_chart, layer_chart
from vfz.temporal.comparison.compare import Comparison, Curve, ProbeResult, compare, load_result
from vfz.temporal.probes.options import CompareOptions

FORMAT_VERSION = 1
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


def compare_probes(options: CompareOptions) -> CompareReport:
    """Compare probes and write `<out>/<name>/{comparison.csv,comparison.json,comparison.html}`.

    Raises:
        UsageError: fewer than two probes, folders without a result, or results of different videos. RunError: a
        damaged result. StorageError: the files cannot be written.
    """
    comparison = compare([load_result(path) for path in options.runs], baseline=options.baseline)
    folder = make_folder(options.out / options.name)
    files = {
        "csv": _csv(comparison),
        "json": json.dumps(to_dict(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "html": render_page(comparison, title=f"{options.name}: probes compared"),
    }
    paths = {}
    for ending, text in files.items():
        paths[ending] = str(folder / f"comparison.{ending}")
        write_file_atomic(Path(paths[ending]), text.encode("utf-8", "backslashreplace"))
    return CompareReport(comparison=comparison, **paths)


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """What was compared, and where it is written.

    Attributes:
        comparison: the probes, and each against the baseline.
        csv, json, html: the files.
    """

    comparison: Comparison
    csv: str
    json: str
    html: str


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {
        "format_version": FORMAT_VERSION,
        "baseline": comparison.baseline,
        "probes": [_figures(result) for result in comparison.results],
        "against": {name: dataclasses.asdict(against) for name, against in comparison.against.items()},
        "confusions": {result.name: result.confusion_matrix.tolist() for result in comparison.results},
        "class_names": list(comparison.results[0].class_names),
    }


def render_page(comparison: Comparison, *, title: str = "vfz probe compare") -> str:
    """The page as text. Names of others are escaped by the template."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("vfz.temporal.comparison").joinpath("report.html").read_text("utf-8"))
    results = comparison.results
    layers = layer_chart(results)
    return template.render(
        title=title,
        comparison=comparison,
        columns=COLUMNS,
        num_text=NUM_TEXT_COLUMNS,
        rows=result_rows(comparison),
        accuracy=_chart(accuracy_chart(results)),
        layers=_chart(layers) if layers else None,
        against_columns=AGAINST_COLUMNS,
        against_rows=against_rows(comparison),
        changes=[(name, _chart(change_chart(comparison, name))) for name in comparison.against],
        confusions=[(result, _chart(confusion_chart(result))) for result in results],
        curves=[(name, _chart(curve_chart(curves))) for name, curves in _curves(results)],
    )


class Cell(NamedTuple):
    """What a cell shows, and what its column is sorted by."""

    text: str
    key: float | str


def result_rows(comparison: Comparison) -> list[list[Cell]]:
    """A row for every probe under `COLUMNS`."""
    return [_row(result) for result in comparison.results]


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


def _figures(result: ProbeResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "path": str(result.path),
        "probe": result.probe,
        "core": result.core,
        "encoder": result.encoder,
        "layers": " ".join(result.layers),
        "precision": result.precision,
        "split": result.split,
        "top1": result.top1.mean,
        "top1_low": result.top1.low,
        "top1_high": result.top1.high,
        "best_head_on_validation": result.best_head_on_validation,
        "num_videos": result.num_videos,
        "num_planned": result.num_planned,
        "num_parameters": result.num_parameters,
        "num_core_parameters": result.num_core_parameters,
        "seconds": result.seconds,
        "cache_bytes": result.cache_bytes,
    }


def _csv(comparison: Comparison) -> str:
    """A row for every probe; the last three columns compare it with the baseline, and are empty for that one."""
    rows = []
    for result in comparison.results:
        against = comparison.against.get(result.name)
        tested = {
            "difference_to_baseline": against.difference.difference if against else "",
            "num_shared_videos": against.num_videos if against else "",
            "mcnemar_p": against.test.p_value if against else "",
        }
        rows.append(_figures(result) | tested)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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


def _curves(results: tuple[ProbeResult, ...]) -> list[tuple[str, list[Curve]]]:
    """Curves of each probe that share their axes, under the probe's name."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for result in results:
        for curve in result.curves:
            if curve.points:
                grouped[f"{result.name}: {curve.y_name} by {curve.x_name}"].append(curve)
    return list(grouped.items())


def _chart(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - drawn by matplotlib, which escapes the names in it
