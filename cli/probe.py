"""`vfz probe`: options in, one call, tables out.

The call is `vfz.temporal.probes.run.probe_all`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfz.cli.options import Commands, Session, command
from vfz.temporal.probes.options import ProbeOptions

if TYPE_CHECKING:
    from vfz.temporal.probes.jobs.dense import DenseReport
    from vfz.temporal.probes.jobs.values import ValuesReport
    from vfz.temporal.probes.record import ProbeReport

MOST_CLASSES_WITHOUT_TOP5 = 10
"""Where there are no more, five answers say little."""

MOST_LABELS_SHOWN = 30
_FIGURES = {"map": "mAP", "average_precision": "average precision", "r2": "R2", "mse": "MSE", "mae": "MAE"}

COMMANDS: Commands = {
    "compare": ("vfz.cli.compare", "probe_compare_command", "Put probes side by side: tables, tests, one HTML page."),
}


@command(
    ProbeOptions,
    name="probe",
    commands=COMMANDS,
    example="vfz probe --probe linear\n"
    "vfz probe --probe attentive --temporal runs/my-run\n"
    "vfz probe --probe linear --layers 2,5,8,11 --sweep\n"
    "vfz probe --probe knn --shots 1%,5%,10% --seeds 3\n"
    "vfz probe --task depth --temporal runs/my-run\n"
    "vfz probe compare runs/*-probe-*",
)
def probe_command(options: ProbeOptions, session: Session) -> None:
    """Fit a probe on cached tokens, or on what a trained temporal module makes of them.

    Settings are chosen on a held-out tenth of the training split; the reported split chooses nothing. A result that is
    there already is shown again.
    """
    from vfz.cli.console import IMPORTING, print_json, progress
    from vfz.temporal.checks import check_probe

    check_probe(options)  # a slip of the pen is told before torch is imported
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.temporal.probes.jobs.values import ValuesReport
        from vfz.temporal.probes.record import ProbeReport
        from vfz.temporal.probes.run import probe_all

        reports = probe_all(options, progress=shown)
    if session.json:
        values = [dataclasses.asdict(report) for report in reports]
        print_json(values[0] if len(values) == 1 else {"probes": values})
        return
    found = [report for report in reports if isinstance(report, ProbeReport)]
    for report in reports:
        if isinstance(report, ValuesReport):
            _show_values(report)
        elif not isinstance(report, ProbeReport):
            _show_dense(report)
    if len(found) == 1:
        _show_one(found[0])
    elif found:
        _show_several(found)


def _show_one(report: ProbeReport) -> None:
    from vfz.cli.console import percent, show

    rows = {
        "result": report.result + (" (stored; --force probes again)" if report.reused else ""),
        "features": f"{report.features} ({_frames(report.pool)}), layers {', '.join(report.layers)}",
        "top-1": f"{_top1(report)} ({report.interval}, 95%) of {report.num_eval_clips} videos of {report.eval_split}"
        + _few(report.num_eval_clips),
        **({"top-5": percent(report.top5)} if report.chance < 1 / MOST_CLASSES_WITHOUT_TOP5 else {}),
        "of all planned": f"{percent(report.top1_of_planned)} of {report.num_eval_planned} videos, "
        f"{report.num_eval_missing} of them not in the cache",
        "chance": percent(report.chance)
        + (f"; always the most frequent class: {percent(report.majority)}" if report.majority is not None else ""),
        "chosen": ", ".join(f"{name} {value:.4g}" for name, value in report.chosen.items()),
        "fitted on": f"{report.num_train} videos" + (f" ({report.shots} shots)" if report.shots else ""),
        "best head on validation": f"{percent(report.best_head_on_validation)} (chosen on the reported videos "
        "themselves, as others publish)",
    }
    show(f"probe {report.probe}", rows)


def _show_values(report: ValuesReport) -> None:
    from vfz.cli.console import percent, show, table

    def shown(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "none"
        return percent(value) if report.task == "multilabel" else f"{value:.4g}"

    deviation = "" if report.deviation is None else f" ± {shown(report.deviation)} over {report.num_seeds} seeds"
    interval = "" if report.low is None else f" [{shown(report.low)}, {shown(report.high)}] ({report.interval}, 95%)"
    rows = {
        "result": report.result + (" (stored; --force probes again)" if report.reused else ""),
        "features": f"{report.features} ({_frames(report.pool)}), layers {', '.join(report.layers)}",
        _FIGURES[report.headline]: f"{shown(report.value)}{deviation}{interval} of {report.num_eval_clips} videos of "
        f"{report.eval_split}" + _few(report.num_eval_clips),
        "always the mean": f"{shown(report.baseline)} (of each label in the training videos)",
        "mean over": f"{report.metrics['num_labels']:.0f} of {len(report.names)} labels of {report.labels}",
        "not in the cache": f"{report.num_eval_missing} of {report.num_eval_planned} videos",
        "chosen": ", ".join(f"{name} {value:.4g}" for name, value in report.chosen.items()),
        "fitted on": f"{report.num_train} videos" + (f" ({report.shots} shots)" if report.shots else ""),
        "best head on validation": f"{shown(report.best_head_on_validation)} (chosen on the reported videos "
        "themselves, as others publish)",
    }
    show(f"probe {report.probe}: {report.task}", rows)
    of_labels = list(zip(report.names, *report.of_labels.values(), strict=True))
    baselines = next(iter(report.baseline_of_labels.values()))
    columns = ["label", *(_FIGURES.get(name, name) for name in report.of_labels), "always the mean"]
    more = f"; {len(of_labels)} in all, in {report.result}/probe.json" if len(of_labels) > MOST_LABELS_SHOWN else ""
    table(
        f"labels{more}",
        columns,
        [
            (name, *map(shown, figures), shown(baseline))
            for (name, *figures), baseline in list(zip(of_labels, baselines, strict=True))[:MOST_LABELS_SHOWN]
        ],
    )


def _show_dense(report: DenseReport) -> None:
    from vfz.cli.console import show

    interval = "" if report.low is None or report.high is None else f" [{report.low:.4g}, {report.high:.4g}]"
    deviation = "" if report.deviation is None else f" ± {report.deviation:.4g} over {report.num_seeds} seeds"
    others = {name: f"{value:.4g}" for name, value in report.metrics.items() if name != report.headline}
    rows = {
        "result": report.result + (" (stored; --force probes again)" if report.reused else ""),
        "features": f"{report.features}, layers {', '.join(report.layers)}, {report.protocol}",
        report.headline: f"{report.value:.4g}{deviation}{interval}",
        **others,
        "measured on": f"{report.num_eval_clips} of {report.num_eval_planned} videos of {report.eval_split}, "
        f"{report.num_eval_missing} of them not in the cache" + _few(report.num_eval_clips),
        "chosen": ", ".join(f"{name} {value:.4g}" for name, value in report.chosen.items()),
        "best head on validation": f"{report.best_head_on_validation:.4g} (chosen on the reported videos themselves)",
    }
    show(f"probe {report.task}", rows)


def _few(num_videos: int) -> str:
    from vfz.temporal.statistics import FEW_VIDEOS

    return f"; so few say little: {FEW_VIDEOS} are the least to go by" if num_videos < FEW_VIDEOS else ""


def _show_several(reports: Sequence[ProbeReport]) -> None:
    from vfz.cli.console import percent, table

    columns = ["layers", "shots", "top-1", "videos", "not in the cache", "best head on validation", "result"]
    rows = [
        (
            ", ".join(report.layers),
            report.shots or "all",
            _top1(report),
            report.num_eval_clips,
            report.num_eval_missing,
            percent(report.best_head_on_validation),
            report.result,
        )
        for report in reports
    ]
    table(f"probe {reports[0].probe} on {reports[0].features}", columns, rows)


def _top1(report: ProbeReport) -> str:
    from vfz.cli.console import percent

    seeds = "" if report.deviation is None else f" ± {percent(report.deviation)} over {report.num_seeds} seeds"
    return f"{percent(report.top1)}{seeds} [{percent(report.low)}, {percent(report.high)}]"


def _frames(pool: str) -> str:
    return {"mean": "mean over frames", "last": "last frame", "frame": "each frame", "all": "all frames"}[pool]
