"""`vfz train-temporal --dry-run`: what a run takes, measured on some of its own steps; nothing is written.

The same code as in a real run builds the experiment, trains some steps on its first clips and answers some batches of
the split it is evaluated on. The first of both, which sets things up, is not counted where there are more. The weights
are then thrown away.

Cost: what a real run needs before its first step, and some `MEASURED_SECONDS`; two steps where one takes longer.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from vfz.pipeline.progress import Progress, SilentProgress, StopRequest
from vfz.temporal.training.distributed import join_ranks
from vfz.temporal.training.experiment import Experiment, build_experiment
from vfz.temporal.training.logs import RunLog
from vfz.temporal.training.loop import Trainer
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.sizes import smaller
from vfz.temporal.training.step import ClipLoss, autocast_dtype
from vfz.temporal.training.train import check_folder, say_what_is_trained

MEASURED_SECONDS = 4.0
_NEVER_SECONDS = 1e9


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """What a training run will take.

    Attributes:
        run: the folder it would be in.
        task, core: their names.
        size: the set of sizes that decided what was not given.
        parameters: how many, by part of the model; `task` has those of the loss.
        memory_bytes: the most that was taken while measuring: of a GPU what tensors took, else all of the process.
        num_measured: steps that were measured.
        step_seconds: the median of these.
        clips_per_epoch: videos to train on.
        steps_per_epoch: optimizer steps of an epoch.
        epoch_seconds: training time of an epoch.
        eval_split: the split that is evaluated.
        num_eval_videos: videos of it.
        evaluation_seconds: of one evaluation.
        num_evaluations: how many are to come.
        num_steps: how many are to come; of a run that goes on, those that are left.
        total_seconds: of these steps and evaluations.
        smaller: what would take less: an option as it is typed, and what it does.
        rank: of this process among those of the run.
    """

    run: str
    task: str
    core: str
    size: str
    parameters: dict[str, int]
    memory_bytes: int
    num_measured: int
    step_seconds: float
    clips_per_epoch: int
    steps_per_epoch: int
    epoch_seconds: float
    eval_split: str
    num_eval_videos: int
    evaluation_seconds: float
    num_evaluations: int
    num_steps: int
    total_seconds: float
    smaller: dict[str, str]
    rank: int = 0

    @property
    def num_parameters(self) -> int:
        """Of all parts."""
        return sum(self.parameters.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"num_parameters": self.num_parameters}


def forecast_training(options: TrainOptions, *, progress: Progress | None = None) -> RunForecast:
    """Measure some steps of a run, and tell what all of it takes.

    Raises:
        VfzError: as `train_temporal` does, where it would not start.
    """
    quiet = dataclasses.replace(options, checkpoint_steps=0, checkpoint_seconds=_NEVER_SECONDS)
    with join_ranks(options.device) as ranks:
        shown = progress if progress and ranks.is_first else SilentProgress()
        experiment = build_experiment(quiet, ranks)
        say_what_is_trained(experiment, shown)
        ranks.first_does(lambda: check_folder(experiment))
        trainer = Trainer(experiment, SilentProgress(), StopRequest())
        if options.resume:
            trainer.restore(RunLog(experiment.path, writes=False))
        done = dataclasses.replace(trainer.position)
        shown.note("measuring some steps, and some batches of the evaluation")
        laps = trainer.measure(RunLog(experiment.path, writes=False), seconds=MEASURED_SECONDS)
        step_seconds = statistics.median(laps[1:] or laps)
        evaluation_seconds = _evaluation_seconds(experiment, trainer)
        num_evaluations = sum(trainer.evaluates_after(epoch) for epoch in range(done.epoch + 1, options.epochs + 1))
        num_steps = options.epochs * experiment.steps_per_epoch - done.step
        return RunForecast(
            run=str(experiment.path),
            task=experiment.options.task,
            core=options.core,
            size=experiment.sized.size,
            parameters=_parameters(experiment),
            memory_bytes=ranks.peak_bytes(),
            num_measured=len(laps[1:] or laps),
            step_seconds=step_seconds,
            clips_per_epoch=experiment.train_clips.num_clips,
            steps_per_epoch=experiment.steps_per_epoch,
            epoch_seconds=step_seconds * experiment.steps_per_epoch,
            eval_split=experiment.eval_clips.split,
            num_eval_videos=experiment.eval_clips.num_videos,
            evaluation_seconds=evaluation_seconds,
            num_evaluations=num_evaluations,
            num_steps=num_steps,
            total_seconds=num_steps * step_seconds + num_evaluations * evaluation_seconds,
            smaller=dict(smaller(experiment.sized, encoder_dim=experiment.model.config.encoder_dim)),
            rank=ranks.rank,
        )


def _parameters(experiment: Experiment) -> dict[str, int]:
    model = experiment.model
    parts = {"mixer": model.mixer, "projection": model.projection, "core": model.core, "readout": model.readout}
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in (parts | {"task": experiment.task}).items()
    }


@torch.no_grad()
def _evaluation_seconds(experiment: Experiment, trainer: Trainer) -> float:
    """One evaluation, from the batches that are answered in half of the time to measure in."""
    clips, ranks = experiment.eval_clips, experiment.ranks
    autocast = autocast_dtype(experiment.options.dtype, ranks.device)
    loss = ClipLoss(trainer.model, experiment.task, autocast=autocast).eval()
    begun = last = time.perf_counter()
    seconds: list[float] = []
    videos: list[int] = []
    for batch in clips.batches():
        loss.answer(batch)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        now = time.perf_counter()
        seconds.append(now - last)
        videos.append(len(set(batch.indices_B.tolist())) * ranks.world_size)
        last = now
        if len(seconds) > 1 and now - begun >= MEASURED_SECONDS / 2:
            break
    counted = slice(1, None) if len(seconds) > 1 else slice(None)
    return clips.num_videos * sum(seconds[counted]) / sum(videos[counted])
