"""`vfz run`: a recipe in, `vfz.temporal.run_workflow.run_workflow`, its plan or its results out."""

from __future__ import annotations

import dataclasses

from vfz.cli.options import Session, command
from vfz.temporal.workflow import RunOptions

EXAMPLE = """\
vfz run workflows/quickstart.toml --dry-run
VFZ_DATA_SSV2=/datasets/ssv2 vfz run workflows/paper/ssv2_gmmix_large.toml"""


@command(RunOptions, name="run", example=EXAMPLE, argument="recipe")
def run_command(options: RunOptions, session: Session) -> None:
    """Run a recipe: extract, train and probe, leaving out what is done.

    A recipe is a TOML file with the tables [extract], [[train-temporal]] and [[probe]]. Stopped, it goes on where
    it was when it is run again.
    """
    from vfz.cli.console import print_json, progress, show, table
    from vfz.temporal.run_workflow import run_workflow

    with progress() as shown:
        report = run_workflow(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    if options.dry_run:
        table(
            f"{report.recipe}: nothing was run",
            ["stage", "state", "where"],
            [(stage.stage, stage.state, stage.detail) for stage in report.plan],
        )
    for stage, result in report.results.items():
        show(stage, {name: value for name, value in result.items() if isinstance(value, str | int | float)})
    if report.published:
        measured = "not measured" if report.measured is None else f"{report.measured:.4g}"
        show(
            f"{report.recipe}: {report.published.metric}",
            {"measured": measured, "published": f"{report.published.value:.4g} ({report.published.source})"},
        )
