"""Training a temporal module on cached tokens: the public call.

An epoch is every training clip once, in an order that depends on the seed and the epoch. A checkpoint is written every
few minutes, after every epoch, and when Ctrl-C or SIGTERM asks to stop; `--resume` goes on from it with the same
losses, bit for bit, as a run that was never stopped. Under torchrun every process takes a share of each batch. With
`--online` the same loop gets its tokens from the encoder itself. How it works stands in `vfz.temporal.training`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from vfz.pipeline.errors import RunError
from vfz.pipeline.files import make_folder
from vfz.pipeline.progress import Progress, SilentProgress, counted, stop_on_signals
from vfz.temporal.data.videos import num_without_split
from vfz.temporal.kept import write_evaluation
from vfz.temporal.run_record import read_run, write_run
from vfz.temporal.tasks import TASK_OF_LABELS
from vfz.temporal.training.distributed import join_ranks
from vfz.temporal.training.evaluate import kept_evaluation
from vfz.temporal.training.evaluation import Evaluation
from vfz.temporal.training.experiment import Experiment, build_experiment, leg_ends
from vfz.temporal.training.logs import RunLog, draw_curves
from vfz.temporal.training.loop import Trainer
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.runs import CHECKPOINT_FILE, remove_checkpoint, save_model

_STOPPING = "stopping after the step or evaluation at work, with a checkpoint; Ctrl-C again stops now, at the last one"


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training run ended with.

    Attributes:
        run: the run folder.
        task, core: their names.
        evaluation: the figures of the last evaluation, and what they are a share of.
        train_loss: mean over the last epoch's clips.
        epoch_seconds: training time of each epoch that this call brought to its end, without evaluation; what earlier
            calls spent on it counts, if it had got into a checkpoint.
        num_parameters: of the whole temporal model.
        kept: the file in the run folder that has what was answered for each evaluated video.
        rank: of this process among those of the run.
    """

    run: str
    task: str
    core: str
    evaluation: Evaluation
    train_loss: float
    epoch_seconds: tuple[float, ...]
    num_parameters: int
    kept: str | None = None
    rank: int = 0

    @property
    def top1(self) -> float:
        """classify: share of evaluated clips whose class is right."""
        return self.evaluation.metrics["top1"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every metric by its own name."""
        return {
            "run": self.run,
            "task": self.task,
            "core": self.core,
            "headline": self.evaluation.headline,
            **self.evaluation.to_dict(),
            **self.evaluation.of_classes(),
            "train_loss": self.train_loss,
            "epoch_seconds": list(self.epoch_seconds),
            "num_parameters": self.num_parameters,
            "kept": self.kept,
        }


def train_temporal(options: TrainOptions, *, progress: Progress | None = None) -> TrainReport:
    """Train a temporal module, or continue one, and evaluate it.

    Raises:
        UsageError: options that do not fit the cache or each other. DatasetError: targets that do not fit the videos.
        RunError: the run exists, cannot be resumed, or its loss is not finite. RunInterruptedError: a signal asked to
        stop; the run can be resumed. CacheError: the cache cannot be used.
    """
    with join_ranks(options.device) as ranks:
        shown = progress if progress and ranks.is_first else SilentProgress()
        experiment = build_experiment(options, ranks)
        say_what_is_trained(experiment, shown)
        with stop_on_signals(partial(shown.note, _STOPPING)) as stop:
            trainer = Trainer(experiment, shown, stop)
            ranks.first_does(lambda: _open_folder(experiment))
            with RunLog(experiment.path, writes=ranks.is_first, tensorboard=options.tensorboard) as log:
                evaluation = trainer.run(log, resume=options.resume)
        report = TrainReport(
            run=str(experiment.path),
            task=experiment.options.task,
            core=options.core,
            evaluation=evaluation,
            train_loss=trainer.position.train_loss,
            epoch_seconds=tuple(trainer.epoch_seconds),
            num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
            rank=ranks.rank,
        )
        kept = ranks.first_does(lambda: _close_folder(experiment, trainer, report))
        return dataclasses.replace(report, kept=kept)


def check_folder(experiment: Experiment) -> None:
    """See that the run may be started, or that the run in its folder may be resumed; nothing is written.

    Raises:
        RunError: when it exists and is not to be resumed, is finished, or was started with other options.
    """
    path = experiment.path
    if not experiment.options.resume:
        if (path / "run.json").exists():
            raise RunError(f"the run {path} exists; continue it with --resume, or choose another --name")
        return
    run = read_run(path)
    last = leg_ends(run.values)[-1]
    if experiment.options.epochs < last:
        raise RunError(
            f"--epochs {experiment.options.epochs} is fewer than the {last} of {path}; give --epochs {last}"
            + (" or more" if run.finished else " to go on, or more")
        )
    if run.finished and experiment.leg_ends == (run.values["options"]["epochs"],):
        raise RunError(
            f"the run {path} is finished; there is nothing to resume: --epochs with more than its {last} goes on"
        )
    if differing := experiment.differences(run.values):
        raise RunError(f"{path} cannot be resumed, for these differ: {', '.join(differing)}")
    if run.finished and not (path / CHECKPOINT_FILE).exists():
        raise RunError(
            f"the run {path} is finished and kept no checkpoint (--no-keep-checkpoint, or an older vfz): it cannot go "
            f"on as if it had not stopped; train {experiment.options.epochs} epochs under another --name"
        )


def _open_folder(experiment: Experiment) -> None:
    """Make the run folder, or see that the run in it can be resumed; raises what `check_folder` does."""
    check_folder(experiment)
    path = experiment.path
    if experiment.options.resume:
        values = read_run(path).values
        if experiment.leg_ends != leg_ends(values):  # a finished run can be used as it is until it is finished again
            more = [end for end in experiment.leg_ends if end > values["options"]["epochs"]]
            write_run(path, values | {"continuing": more})
        return
    make_folder(path)
    (path / "metrics.jsonl").unlink(missing_ok=True)
    remove_checkpoint(path)
    write_run(path, experiment.record() | {"finished": False})


def say_what_is_trained(experiment: Experiment, progress: Progress) -> None:
    """The size and the task, where they were chosen, and what is short or left out, each in a line."""
    if experiment.sized.note:
        progress.note(experiment.sized.note)
    labels = experiment.caches[0].label_set
    if labels and experiment.options.task == TASK_OF_LABELS[labels.kind]:
        progress.note(f"label set {labels.name!r} is of kind {labels.kind}: task {experiment.options.task}")
    if count := sum(map(num_without_split, experiment.caches)):
        progress.note(f"{counted(count, 'video')} of the cache in no split of the label set: left out")
    if experiment.num_unlabelled:
        progress.note(f"{counted(experiment.num_unlabelled, 'training video')} without a label: left out")
    if experiment.num_short:
        progress.note(
            f"{experiment.num_short} of {experiment.train_clips.num_clips} training videos are shorter than a clip of "
            f"{experiment.options.clip_frames} frames; their last frame is repeated, and masked"
        )


def _close_folder(experiment: Experiment, trainer: Trainer, report: TrainReport) -> str:
    """Write the model, the last evaluation, the picture and the record; the checkpoint is kept for a continuation."""
    path = experiment.path
    save_model(path, trainer.model)
    kept = kept_evaluation(
        path,
        experiment.model.config,
        report.evaluation,
        experiment.eval_clips,
        experiment.caches,
        autocast=trainer.autocast,
        targets=experiment.options.targets,
    )
    report = dataclasses.replace(report, kept=str(write_evaluation(path, kept)))
    title = f"{path.name}: {report.evaluation.headline} {report.evaluation.value:.4g} on {report.evaluation.split}"
    higher_is_better = experiment.task.higher_is_better
    draw_curves(path, headline=report.evaluation.headline, higher_is_better=higher_is_better, title=title)
    result = {name: value for name, value in report.to_dict().items() if name != "classes"}  # they are kept
    write_run(path, experiment.record() | {"finished": True, "result": result})
    if not experiment.options.keep_checkpoint:
        remove_checkpoint(path)
    return str(report.kept)
