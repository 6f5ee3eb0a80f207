"""`vfz evaluate`: options in, `vfz.temporal.training.evaluate.evaluate`, table out."""

from __future__ import annotations

from vfz.cli.options import Session, command
from vfz.temporal.training.options import EvaluateOptions

EXAMPLE = """\
vfz evaluate runs/my-run
vfz evaluate runs/my-run --cache caches/k400-vit_large_patch16_dinov3-0123456789ab --split val --segments 4"""


@command(EvaluateOptions, name="evaluate", example=EXAMPLE, argument="run")
def evaluate_command(options: EvaluateOptions, session: Session) -> None:
    """Evaluate a run of vfz train-temporal on a split of a cache of the same recipe."""
    from vfz.cli.console import print_json, progress, show
    from vfz.temporal.training.evaluate import evaluate

    with progress() as shown:
        report = evaluate(options, progress=shown)
    if session.json:
        print_json(report.to_dict())
        return
    show(f"evaluate {report.task} {report.core}", {"run": report.run, **report.evaluation.lines()})
