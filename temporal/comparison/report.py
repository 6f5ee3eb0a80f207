"""`vfz compare` and `vfz probe compare`: folders in; a comparison, and its tables as CSV, JSON and one HTML page, out.

The console and the page show the same tables, for every task, split and label set two: every result, and every other
one against the baseline. The CSV has one row for every result, with both. The page is one file: tables, charts and a
small script are all inside, and nothing comes from the network.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vfz.pipeline.errors import UsageError
from vfz.pipeline.files import make_folder, write_file_atomic
from vfz.pipeline.progress import human_bytes, human_seconds
from vfz.temporal.comparison.charts import accuracy_chart, change_chart, confusion_chart, curve_chart, layer_chart
from vfz.temporal.comparison.compare import Comparison, LeftOut, compare_groups, load_all
from vfz.temporal.comparison.results import CLASSIFY, Curve, Result
from vfz.temporal.kept import finite
from vfz.temporal.probes.options import CompareOptions

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """What was compared, and where it is written.

    Attributes:
        comparisons: for every task, split and label set the results, and each against the baseline.
        left_out: what was named and is not among them, with the reasons.
        csv, json, html: the files.
    """

    comparisons: tuple[Comparison, ...]
    left_out: tuple[LeftOut, ...]
    csv: str
    json: str
    html: str

    @property
    def comparison(self) -> Comparison:
        """The first, or only one."""
        return self.comparisons[0]


def compare_runs(options: CompareOptions) -> CompareReport:
    """Compare runs as they were evaluated, and probes among them; write `<out>/<name>/comparison.{csv,json,html}`.

    Raises:
        UsageError: when there is nothing to compare, or no such baseline. StorageError: the files cannot be written.
    """
    return _compared(options, runs=True, least=1)


def compare_probes(options: CompareOptions) -> CompareReport:
    """As `compare_runs`, of at least two probes alone.

    Raises:
        UsageError: fewer than two probes that can be compared, or no such baseline. StorageError: the files cannot be
        written.
    """
    return _compared(options, runs=False, least=2)


def _compared(options: CompareOptions, *, runs: bool, least: int) -> CompareReport:
    found, left_out = load_all(options.runs, runs=runs)
    comparisons, strange = compare_groups(found, baseline=options.baseline) if found else ((), ())
    left_out = [*left_out, *strange]
    if max((len(comparison.results) for comparison in comparisons), default=0) < least:
        reasons = "; ".join(one.reason for one in left_out)
        what = "two or more probes of one task and split" if least > 1 else "a run or a probe"
        raise UsageError(f"nothing to compare: {what} must be left{f', but {reasons}' if reasons else ''}")
    report = CompareReport(comparisons=comparisons, left_out=tuple(left_out), csv="", json="", html="")
    title = f"{options.name}: {'runs' if runs else 'probes'} compared"
    texts = {
        "csv": _csv(comparisons),
        "json": json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "html": render_page(comparisons, report.left_out, title=title),
    }
    folder, paths = make_folder(options.out / options.name), {}
    for ending, text in texts.items():
        paths[ending] = str(folder / f"comparison.{ending}")
        write_file_atomic(Path(paths[ending]), text.encode("utf-8", "backslashreplace"))
    return dataclasses.replace(report, csv=paths["csv"], json=paths["json"], html=paths["html"])


def to_dict(report: CompareReport) -> dict[str, Any]:
    """The comparisons as JSON values. The first one's stand at the top, too, as they did when there was but one."""
    groups = [_group(comparison) for comparison in report.comparisons]
    first = {name: value for name, value in groups[0].items() if name not in {"task", "split", "labels", "results"}}
    values = {
        "format_version": FORMAT_VERSION,
        **first,
        "probes": groups[0]["results"],
        "groups": groups,
        "left_out": [dataclasses.asdict(one) for one in report.left_out],
    }
    finite_values: dict[str, Any] = finite(values)
    return finite_values


def render_page(
    comparisons: Sequence[Comparison], left_out: Sequence[LeftOut] = (), *, title: str = "vfz compare"
) -> str:
    """The page as text. Names of others are escaped by the template."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("vfz.temporal.comparison").joinpath("report.html").read_text("utf-8"))
    return template.render(title=title, groups=[_drawn(one) for one in comparisons], left_out=left_out)


class Cell(NamedTuple):
    """What a cell shows, and what its column is sorted by."""

    text: str
    key: float | str


class Table(NamedTuple):
    """A table: its columns, how many of them are text, and the cells of each row."""

    columns: list[str]
    num_text: int
    rows: list[list[Cell]]


def results_table(comparison: Comparison) -> Table:
    """A row for every result; columns that are empty for all of them are left out."""
    first = comparison.results[0]
    headline = _HEADLINES.get(first.headline, first.headline) + ("" if first.higher_is_better else " (lower is better)")
    text: dict[str, Callable[[Result], str]] = {
        "name": lambda one: one.name,
        "kind": lambda one: one.kind,
        "of": lambda one: "tokens" if one.core is None else one.core,
        "size": lambda one: one.size,
        "clips": lambda one: one.clips,
        "encoder": lambda one: one.encoder,
        "layers": lambda one: ", ".join(one.layers),
        "precision": lambda one: one.precision,
    }
    numbers: dict[str, Callable[[Result], Cell]] = {
        headline: lambda one: Cell(_shown(one, one.figure.mean), one.figure.mean),
        "95% interval": _interval,
        "balanced": lambda one: _optional(
            one.balanced.mean if one.balanced else None, lambda value: _shown(one, value)
        ),
        "best head on validation": lambda one: _optional(one.best_head_on_validation, lambda value: _shown(one, value)),
        "videos": lambda one: Cell(f"{one.num_videos} of {one.num_planned}", one.num_videos),
        "parameters": lambda one: Cell(f"{one.num_parameters:,}", one.num_parameters),
        "of the core": lambda one: Cell(
            "" if one.kind == "run" else f"{one.num_core_parameters:,}", one.num_core_parameters
        ),
        "an epoch": lambda one: _optional(one.epoch_seconds, human_seconds),
        "time": lambda one: _optional(one.seconds, human_seconds),
        "cache": lambda one: Cell(human_bytes(one.cache_bytes), one.cache_bytes),
    }
    columns = {name: [Cell(of(one), of(one)) for one in comparison.results] for name, of in text.items()}
    columns |= {name: [of(one) for one in comparison.results] for name, of in numbers.items()}
    kept = {name: cells for name, cells in columns.items() if any(cell.text for cell in cells)}
    return Table(
        columns=list(kept),
        num_text=sum(name in text for name in kept),
        rows=[list(row) for row in zip(*kept.values(), strict=True)],
    )


def against_table(comparison: Comparison) -> Table:
    """A row for every result but the baseline."""
    by_name = {result.name: result for result in comparison.results}
    by_class = comparison.results[0].task == CLASSIFY
    columns = ["name", "videos", "difference", "95% interval"]
    columns += ["only it", "only the baseline", "McNemar p"] if by_class else []
    rows = []
    for name, against in comparison.against.items():
        of, difference = by_name[name], against.difference
        row = [
            Cell(name, name),
            Cell(f"{against.num_videos}", against.num_videos),
            Cell(_change(of, difference.difference) + (" points" if of.is_share else ""), difference.difference),
            Cell(f"{_change(of, difference.low)} to {_change(of, difference.high)}", difference.low),
        ]
        if against.test is not None:
            row += [
                Cell(f"{against.test.num_only_first}", against.test.num_only_first),
                Cell(f"{against.test.num_only_second}", against.test.num_only_second),
                Cell(f"{against.test.p_value:.2g}", against.test.p_value),
            ]
        rows.append([*row, Cell(f"{difference.p_value:.2g}", difference.p_value)])
    return Table(columns=[*columns, "bootstrap p"], num_text=1, rows=rows)


_HEADLINES = {"top1": "top-1", "map": "mAP", "r2": "R2", "miou": "mIoU"}


def _shown(result: Result, value: float) -> str:
    if not math.isfinite(value):
        return "none"
    return f"{100 * value:.1f}%" if result.is_share else f"{value:.4g}"


def _change(result: Result, change: float) -> str:
    return f"{100 * change:+.1f}" if result.is_share else f"{change:+.4g}"


def _interval(result: Result) -> Cell:
    low, high = result.figure.low, result.figure.high
    if not math.isfinite(low):
        return Cell("", -math.inf)
    return Cell(f"{_shown(result, low).removesuffix('%')} to {_shown(result, high)}", low)


def _optional(value: float | None, shown: Callable[[float], str]) -> Cell:
    return Cell("", -math.inf) if value is None else Cell(shown(value), value)


def _group(comparison: Comparison) -> dict[str, Any]:
    task, split, label_set = comparison.results[0].group
    by_class = [result for result in comparison.results if result.task == CLASSIFY]
    return {
        "task": task,
        "split": split,
        "labels": label_set,
        "baseline": comparison.baseline,
        "results": [_figures(result) for result in comparison.results],
        "against": {name: dataclasses.asdict(against) for name, against in comparison.against.items()},
        "confusions": {result.name: result.confusion_matrix.tolist() for result in by_class},
        "class_names": list(comparison.results[0].class_names),
    }


def _figures(result: Result) -> dict[str, Any]:
    of_classes = {
        "top1": result.figure.mean,
        "top1_low": result.figure.low,
        "top1_high": result.figure.high,
        "balanced_accuracy": result.balanced.mean if result.balanced else None,
        "balanced_accuracy_low": result.balanced.low if result.balanced else None,
        "balanced_accuracy_high": result.balanced.high if result.balanced else None,
    }
    return {
        "name": result.name,
        "path": str(result.path),
        "probe": result.kind,
        "task": result.task,
        "core": result.core,
        "size": result.size,
        "clips": result.clips,
        "encoder": result.encoder,
        "layers": " ".join(result.layers),
        "precision": result.precision,
        "split": result.split,
        "labels": result.label_set,
        "headline": result.headline,
        "value": result.figure.mean,
        "low": result.figure.low,
        "high": result.figure.high,
        **(of_classes if result.task == CLASSIFY else dict.fromkeys(of_classes)),
        "best_head_on_validation": result.best_head_on_validation,
        "num_videos": result.num_videos,
        "num_planned": result.num_planned,
        "num_parameters": result.num_parameters,
        "num_core_parameters": result.num_core_parameters,
        "epoch_seconds": result.epoch_seconds,
        "seconds": result.seconds,
        "cache_bytes": result.cache_bytes,
    }


def _csv(comparisons: Sequence[Comparison]) -> str:
    """A row for every result; the last three columns compare it with the baseline, and are empty for that one."""
    rows = []
    for comparison in comparisons:
        for result in comparison.results:
            against = comparison.against.get(result.name)
            tested = {
                "difference_to_baseline": against.difference.difference if against else "",
                "num_shared_videos": against.num_videos if against else "",
                "mcnemar_p": against.test.p_value if against and against.test else "",
                "bootstrap_p": against.difference.p_value if against else "",
            }
            rows.append(finite(_figures(result)) | tested)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _drawn(comparison: Comparison) -> dict[str, Any]:
    """What the page shows of a comparison, by name."""
    results = comparison.results
    layers = layer_chart(results)
    by_class = [result for result in results if result.task == CLASSIFY]
    changes = [(name, change_chart(comparison, name)) for name, one in comparison.against.items() if one.classes]
    return {
        "title": comparison.title,
        "baseline": comparison.baseline,
        "results": results_table(comparison),
        "against": against_table(comparison),
        "figure": _chart(accuracy_chart(results)),
        "layers": _chart(layers) if layers else None,
        "changes": [(name, _chart(chart)) for name, chart in changes],
        "confusions": [(result, _chart(confusion_chart(result))) for result in by_class],
        "curves": [(name, _chart(curve_chart(curves))) for name, curves in _curves(results)],
    }


def _curves(results: tuple[Result, ...]) -> list[tuple[str, list[Curve]]]:
    """Curves of each result that share their axes, under its name."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for result in results:
        for curve in result.curves:
            if curve.points:
                grouped[f"{result.name}: {curve.y_name} by {curve.x_name}"].append(curve)
    return list(grouped.items())


def _chart(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - drawn by matplotlib, which escapes the names in it
