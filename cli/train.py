"""`vfz train-temporal` and `vfz evaluate`: options in, one call, table out.

The calls are `vfz.temporal.training.train.train_temporal`, with `--dry-run`
`vfz.temporal.training.forecast.forecast_training`, and `vfz.temporal.training.evaluate.evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfz.cli.options import Session, command
from vfz.pipeline.progress import counted, human_bytes, human_seconds
from vfz.temporal.training.options import EvaluateOptions, TrainOptions

if TYPE_CHECKING:
    from vfz.temporal.training.forecast import RunForecast


@command(
    TrainOptions,
    name="train-temporal",
    example="vfz train-temporal --core gmmix --epochs 20 --dry-run\n"
    "vfz train-temporal --task boxes --core rvm_rnn --layers 2,5,8,11 --mixer mean\n"
    "vfz train-temporal --cache caches/k400-vit_large_patch16_dinov3-0123456789ab --core rvm_rnn --resume\n"
    "torchrun --nproc-per-node 8 -m vfz.cli train-temporal --batch-size 512",
)
def train_temporal_command(options: TrainOptions, session: Session) -> None:
    """Train a temporal module and its readout from a cache, and evaluate it.

    A run that was stopped goes on with --resume, with the same losses as if it had never stopped.
    """
    from vfz.cli.console import IMPORTING, print_json, progress, show
    from vfz.temporal.checks import check_training

    check_training(options)  # a slip of the pen is told before torch is imported
    if options.dry_run:
        with progress() as shown:
            shown.doing(IMPORTING)
            from vfz.temporal.training.forecast import forecast_training

            forecast = forecast_training(options, progress=shown)
        if forecast.rank == 0:
            _show_forecast(forecast, as_json=session.json)
        return
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.temporal.training.train import train_temporal

        report = train_temporal(options, progress=shown)
    if report.rank != 0:
        return
    if session.json:
        print_json(report.to_dict())
        return
    show(
        f"train-temporal {report.task} {report.core}",
        {
            "run": report.run,
            **report.evaluation.lines(),
            "train loss": f"{report.train_loss:.4f}",
            "parameters": f"{report.num_parameters:,}",
            "seconds per epoch": f"{sum(report.epoch_seconds) / max(1, len(report.epoch_seconds)):.1f}",
        },
    )


def _show_forecast(forecast: RunForecast, *, as_json: bool) -> None:
    """Prints what a run would take."""
    from vfz.cli.console import print_json, show, table

    if as_json:
        print_json(forecast.to_dict())
        return
    parts = ", ".join(f"{name} {count:,}" for name, count in forecast.parameters.items() if count)
    show(
        f"dry run of train-temporal {forecast.task} {forecast.core}: nothing was written",
        {
            "run": forecast.run,
            "size": forecast.size,
            "parameters": f"{forecast.num_parameters:,}: {parts}",
            "memory": f"{human_bytes(forecast.memory_bytes)} at the most while measuring",
            "a step": f"{human_seconds(forecast.step_seconds)}, median of {forecast.num_measured}",
            "an epoch": f"{human_seconds(forecast.epoch_seconds)}: {counted(forecast.clips_per_epoch, 'clip')} in "
            f"{counted(forecast.steps_per_epoch, 'step')}",
            "an evaluation": f"{human_seconds(forecast.evaluation_seconds)}: "
            f"{counted(forecast.num_eval_videos, 'video')} of {forecast.eval_split}",
            "in all": f"{human_seconds(forecast.total_seconds)}: {counted(forecast.num_steps, 'step')} and "
            f"{counted(forecast.num_evaluations, 'evaluation')}",
        },
    )
    if forecast.smaller:
        table("what would make it smaller", ["", ""], list(forecast.smaller.items()), header=False)


@command(
    EvaluateOptions,
    name="evaluate",
    argument="run",
    example="vfz evaluate runs/my-run\n"
    "vfz evaluate runs/my-run --cache caches/k400-vit_large_patch16_dinov3-0123456789ab --split val --segments 4",
)
def evaluate_command(options: EvaluateOptions, session: Session) -> None:
    """Evaluate a run of vfz train-temporal on a split of a cache of the same recipe."""
    from vfz.cli.console import IMPORTING, print_json, progress, show
    from vfz.temporal.checks import check_evaluation

    check_evaluation(options)  # a slip of the pen is told before torch is imported
    with progress() as shown:
        shown.doing(IMPORTING)
        from vfz.temporal.training.evaluate import evaluate

        report = evaluate(options, progress=shown)
    if report.rank != 0:
        return
    if session.json:
        print_json(report.to_dict())
        return
    rows = {"run": report.run, **report.evaluation.lines(), "kept in": report.kept or "nothing: see above"}
    show(f"evaluate {report.task} {report.core}", rows)
