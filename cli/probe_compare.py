"""`vfz probe compare`: options in, `vfz.temporal.comparison.report.compare_probes`, tables out."""

from __future__ import annotations

from vfz.cli.options import Session, command
from vfz.temporal.comparison.options import CompareOptions

EXAMPLE = """\
vfz probe compare runs/tokens-linear-probe runs/gmmix-linear-probe
vfz probe compare runs/*-probe --baseline tokens-linear-probe --name layers"""


@command(CompareOptions, name="probe.compare", example=EXAMPLE, argument="runs")
def compare_command(options: CompareOptions, session: Session) -> None:
    """Put probes side by side: accuracies with intervals, paired tests against a baseline, confusions, classes.

    Prints the tables and writes them as CSV, JSON and one HTML page that needs no network.
    """
    from vfz.cli.console import print_json, show, table
    from vfz.temporal.comparison.report import compare_probes, to_dict
    from vfz.temporal.comparison.tables import AGAINST_COLUMNS, COLUMNS, against_rows, result_rows

    report = compare_probes(options)
    if session.json:
        files = {"csv": report.csv, "json": report.json, "html": report.html}
        print_json(to_dict(report.comparison) | {"files": files})
        return
    for title, columns, rows in (
        ("probes", COLUMNS, result_rows(report.comparison)),
        (f"against {report.comparison.baseline}", AGAINST_COLUMNS, against_rows(report.comparison)),
    ):
        table(title, columns, [[cell.text for cell in row] for row in rows])
    show("written", {"page": report.html, "tables": f"{report.csv}, {report.json}"})
