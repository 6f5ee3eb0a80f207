"""`vfz probe compare`: records in; a comparison, and its tables as CSV, JSON and one HTML page, out."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.files import make_folder, write_file_atomic
from vfz.temporal.comparison.compare import Comparison, ProbeResult, compare
from vfz.temporal.comparison.load import load_result
from vfz.temporal.comparison.options import CompareOptions
from vfz.temporal.comparison.page import render_page

FORMAT_VERSION = 1


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
