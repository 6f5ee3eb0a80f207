"""`vfz train-temporal`: options in, `vfz.temporal.train.train_temporal`, table out."""

from __future__ import annotations

import dataclasses

from vfz.cli.options import Session, command
from vfz.temporal.options import TrainOptions

EXAMPLE = """\
vfz train-temporal --core gmmix --epochs 20
vfz train-temporal --cache caches/k400-vit_large_patch16_dinov3-0123456789ab --core rvm_rnn --resume"""


@command(TrainOptions, name="train-temporal", example=EXAMPLE)
def train_temporal_command(options: TrainOptions, session: Session) -> None:
    """Train a recurrent temporal module and its readout from a cache, and evaluate it.

    A run that was stopped goes on with --resume, with the same losses as if it had never stopped.
    """
    from vfz.cli.console import percent, print_json, progress, show
    from vfz.temporal.train import train_temporal

    with progress() as shown:
        report = train_temporal(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(report))
        return
    missing = f", {report.num_eval_missing} not in the cache" if report.num_eval_missing else ""
    show(
        f"train-temporal {report.core}",
        {
            "run": report.run,
            "top-1": f"{percent(report.top1)} of {report.num_eval_clips} clips of {report.eval_split}{missing}",
            "train loss": f"{report.train_loss:.4f}",
            "parameters": f"{report.num_parameters:,}",
            "seconds per epoch": f"{sum(report.epoch_seconds) / max(1, len(report.epoch_seconds)):.1f}",
        },
    )
