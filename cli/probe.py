"""`vfz probe`: options in, `vfz.temporal.probes.run.probe`, table out."""

from __future__ import annotations

import dataclasses

from vfz.cli.options import Session, command
from vfz.temporal.options import ProbeOptions

EXAMPLE = """\
vfz probe --probe linear
vfz probe --probe attentive --temporal runs/my-run"""


@command(ProbeOptions, name="probe", example=EXAMPLE)
def probe_command(options: ProbeOptions, session: Session) -> None:
    """Fit a probe on cached tokens, or on what a trained temporal module makes of them.

    Settings are chosen on a held-out tenth of the training split; the reported split chooses nothing.
    """
    from vfz.cli.console import percent, print_json, progress, show
    from vfz.temporal.probes.run import probe

    with progress() as shown:
        report = probe(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    missing = f", {report.num_eval_missing} not in the cache" if report.num_eval_missing else ""
    show(
        f"probe {report.probe}",
        {
            "result": report.result,
            "features": f"{report.features} ({report.pool})",
            "top-1": f"{percent(report.top1)} ± {percent(report.standard_error)} of {report.num_eval_clips} clips of "
            f"{report.eval_split}{missing}",
            "chance": percent(report.chance),
            "chosen": ", ".join(f"{name} {value:.4g}" for name, value in report.chosen.items()),
        },
    )
