"""`vfz compare` and `vfz probe compare`: options in, one call, tables out.

The calls are `compare_runs` and `compare_probes` of `vfz.temporal.comparison.report`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfz.cli.options import Session, command
from vfz.temporal.probes.options import CompareOptions, CompareRunsOptions

if TYPE_CHECKING:
    from vfz.temporal.comparison.report import CompareReport


@command(
    CompareRunsOptions,
    name="compare",
    argument="runs",
    example="vfz compare runs/*\nvfz compare gru gmmix --baseline gru --name cores",
)
def compare_command(options: CompareRunsOptions, session: Session) -> None:
    """Put runs side by side, and probes among them: what `vfz train-temporal` and `vfz evaluate` have kept.

    One table for every task, split and label set: figures with intervals, sizes, times, and paired tests against a
    baseline. What cannot be compared is named. All is written as CSV, JSON and one HTML page that needs no network.
    """
    from vfz.temporal.comparison.report import compare_runs

    _show(compare_runs(options), session)


@command(
    CompareOptions,
    name="probe.compare",
    argument="runs",
    example="vfz probe compare runs/tokens-linear-probe runs/gmmix-linear-probe\n"
    "vfz probe compare runs/*-probe-* --baseline tokens-linear-probe --name layers",
)
def probe_compare_command(options: CompareOptions, session: Session) -> None:
    """Put probes side by side: accuracies with intervals, paired tests against a baseline, confusions, classes.

    Prints the tables and writes them as CSV, JSON and one HTML page that needs no network. What cannot be compared is
    named, and left out.
    """
    from vfz.temporal.comparison.report import compare_probes

    _show(compare_probes(options), session)


def _show(report: CompareReport, session: Session) -> None:
    from vfz.cli.console import print_json, show, table
    from vfz.temporal.comparison.report import against_table, results_table, to_dict

    if session.json:
        print_json(to_dict(report) | {"files": {"csv": report.csv, "json": report.json, "html": report.html}})
        return
    for comparison in report.comparisons:
        results, against = results_table(comparison), against_table(comparison)
        table(comparison.title, results.columns, [[cell.text for cell in row] for row in results.rows])
        if against.rows:
            title = f"against {comparison.baseline}"
            table(title, against.columns, [[cell.text for cell in row] for row in against.rows])
    if report.left_out:
        show("not compared", {one.name: one.reason for one in report.left_out})
    show("written", {"page": report.html, "tables": f"{report.csv}, {report.json}"})
