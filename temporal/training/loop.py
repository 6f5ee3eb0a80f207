"""The training loop: epochs of steps, checkpoints in between, evaluation after epochs; goes on where it stopped.

A step is: losses of its parts and their gradients, one exchange with the other processes, clipping, the optimizer, the
schedule, the moving average. Where a loss or gradient is not finite the weights are not touched any more; where the
loss has grown beyond all measure the run ends, too.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfz.pipeline.errors import RunError, RunInterruptedError
from vfz.pipeline.progress import Progress, StopRequest, human_bytes, human_seconds
from vfz.temporal.data.loader import ClipBatch
from vfz.temporal.model import TemporalModel
from vfz.temporal.training.evaluation import Evaluation, evaluate_clips
from vfz.temporal.training.experiment import Experiment
from vfz.temporal.training.logs import RunLog
from vfz.temporal.training.optim import Schedule, build_ema, build_optimizer
from vfz.temporal.training.runs import Position, restore, save_checkpoint
from vfz.temporal.training.sizes import smaller
from vfz.temporal.training.step import ClipLoss, autocast_dtype, non_finite_clips, seed_step

DIVERGED, DIVERGED_STEPS = 1000, 5
"""By how much the loss has grown since the first step, or since 1 where that was less, and for how many steps."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """A step over all its parts and processes.

    Attributes:
        loss: mean over everything valid in its clips.
        weight: how much that was, by `Task.num_valid`; 1 for a step of a single part.
        num_clips: clips in it.
        stop: whether a process was asked to stop.
        save: whether a checkpoint is due.
    """

    loss: float
    weight: float
    num_clips: int
    stop: bool
    save: bool


class Trainer:
    """The model of an experiment with all that changes while it is trained.

    Args:
        experiment: what is trained on what.
        progress: told of every step.
        stop: asked after every step.

    Raises:
        UsageError: an optimizer that is not there or cannot be used, or a model that several processes cannot share.
    """

    def __init__(self, experiment: Experiment, progress: Progress, stop: StopRequest) -> None:
        self._experiment, self._progress, self._stop = experiment, progress, stop
        self._options, self._ranks = experiment.options, experiment.ranks
        options = self._options
        self.autocast = autocast_dtype(options.dtype, self._ranks.device)
        self._loss = ClipLoss(experiment.model, experiment.task, autocast=self.autocast)
        self._trained = self._ranks.wrap(self._loss)
        self._optimizer = build_optimizer(
            self._loss, name=options.optimizer, lr=options.lr, weight_decay=options.weight_decay
        )
        steps = experiment.steps_per_epoch
        begins = (0, *experiment.leg_ends)
        self._schedule = Schedule(
            self._optimizer,
            leg_steps=[(end - begin) * steps for begin, end in zip(begins, experiment.leg_ends, strict=False)],
            num_warmup_steps=round(options.warmup_epochs * steps),
        )
        self._schedule.step_update(0)
        self._ema = build_ema(experiment.model, decay=options.ema) if options.ema else None
        self.position = Position()
        self.epoch_seconds: list[float] = []
        self._epoch_started = self._saved_at = self._run_started = self._first_step_ended = 0.0
        self._first_loss: float | None = None
        self._num_steps = self._num_diverged = 0  # of this call; in a row

    @property
    def model(self) -> TemporalModel:
        """The model that is evaluated and saved: the moving average where there is one."""
        averaged: TemporalModel = self._ema.module if self._ema else self._experiment.model
        return averaged

    def run(self, log: RunLog, *, resume: bool) -> Evaluation:
        """Every epoch that is left, from the last checkpoint or from the beginning; returns the last evaluation.

        Raises:
            RunError: a loss or gradient is not finite or training diverges, or the checkpoint is damaged.
            RunInterruptedError: a signal asked to stop; there is a checkpoint.
        """
        self._log, self._run_started = log, time.perf_counter()
        if resume:
            self.restore(log)
        while True:
            evaluation = self._epoch()
            if evaluation and self.position.epoch == self._options.epochs:
                return evaluation

    def restore(self, log: RunLog) -> None:
        """Go back to the last checkpoint of the run; where there is none, to its beginning."""
        found = restore(self._experiment.path, self._parts())
        metrics_bytes = 0
        if found:
            self.position, metrics_bytes = found
        self._schedule.step_update(self.position.step)
        log.cut(metrics_bytes, step=self.position.step)

    def measure(self, log: RunLog, *, seconds: float) -> list[float]:
        """Train some steps for their time alone, at least two; where the log does not write, nothing is written.

        Args:
            log: of the run.
            seconds: until when a further step is begun.

        Returns:
            The seconds of each, with what it waited for its clips. The first one sets things up.
        """
        self._log = log
        self._trained.train()
        self._run_started = self._first_step_ended = self._saved_at = time.monotonic()
        begun = last = time.perf_counter()
        laps: list[float] = []
        for epoch in itertools.count(self.position.epoch):
            with closing(self._experiment.steps(epoch)) as steps:
                for parts in steps:
                    self._step(parts)
                    if self._ranks.device.type == "cuda":
                        torch.cuda.synchronize(self._ranks.device)
                    now = time.perf_counter()
                    laps.append(now - last)
                    last = now
                    is_long = torch.tensor([float(self._ranks.is_first and now - begun >= seconds)])
                    if len(laps) > 1 and float(self._ranks.sum(is_long)):
                        return laps
        raise AssertionError("epochs do not end")

    def evaluates_after(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, is evaluated; the last one always is, before and after a continuation."""
        every = self._options.eval_every
        return epoch in self._experiment.leg_ends or bool(every and epoch % every == 0)

    def _epoch(self) -> Evaluation | None:
        """What is left of the current epoch; evaluated where that is due, and always after the last one."""
        number, position = self.position.epoch + 1, self.position
        self._epoch_started = time.perf_counter() - position.epoch_seconds
        self._progress.start(
            f"epoch {number}/{self._options.epochs}", total=self._experiment.train_clips.num_clips, unit="clips"
        )
        self._progress.advance(position.num_clips)
        self._trained.train()
        self._saved_at = time.monotonic()
        for parts in self._experiment.steps(position.epoch, first=position.epoch_step):
            self._step(parts)
        self._progress.finish()
        seconds = self._save()  # before the evaluation: a run that is stopped there evaluates again
        position.end_epoch()
        self._log.write("epoch", step=position.step, epoch=number, train_loss=position.train_loss, seconds=seconds)
        self.epoch_seconds.append(seconds)
        return self._evaluate() if self.evaluates_after(number) else None

    def _step(self, parts: Sequence[ClipBatch]) -> None:
        position = self.position
        seed_step(self._options.seed, position.step, self._ranks.rank)
        self._optimizer.zero_grad(set_to_none=True)
        step = self._exchange(self._backward(parts))
        norm = self._finish_gradients(step)
        if not (math.isfinite(step.loss) and math.isfinite(norm)):
            self._refuse(parts, step, norm)
        self._refuse_to_diverge(step)
        lr = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        position.advance(step.loss, step.num_clips)
        self._schedule.step_update(position.step)
        if self._ema:
            self._ema.update(self._experiment.model, position.step)
        self._log.write("step", step=position.step, epoch=position.epoch + 1, loss=step.loss, lr=lr, grad_norm=norm)
        self._tell(step)
        if step.stop or step.save:
            self._save()
        if step.stop:
            self._interrupt()

    def _backward(self, parts: Sequence[ClipBatch]) -> tuple[float, float, int]:
        """Adds up the gradients of losses times weights; returns the sums of both, and the number of clips."""
        loss = weight = torch.zeros((), device=self._ranks.device)
        for number, batch in enumerate(parts):
            with self._gradients_stay_here(last=number == len(parts) - 1):
                part = self._trained(batch)
                of_part = self._weight(batch)
                (part * of_part).backward()
            loss, weight = loss + part.detach() * of_part, weight + of_part
        return float(loss), float(weight), sum(len(batch.video_ids) for batch in parts if batch.weight)

    def _weight(self, batch: ClipBatch) -> Tensor:
        """By what a part's loss counts beside the others: 1 where it is the only one."""
        if self._experiment.num_parts == 1:
            return torch.ones((), device=self._ranks.device)
        # weight 0: a clip that is another process's, for this one has none
        return self._experiment.task.num_valid(batch).float() * (batch.weight > 0)

    def _gradients_stay_here(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients of all but the last part are kept for the one exchange at the end."""
        if isinstance(self._trained, nn.parallel.DistributedDataParallel) and not last:
            return self._trained.no_sync()
        return nullcontext()

    def _exchange(self, sums: tuple[float, float, int]) -> StepOutcome:
        """What all processes know of the step once each has added its own."""
        every_steps = self._options.checkpoint_steps
        save = bool(every_steps) and (self.position.step + 1) % every_steps == 0
        if self._ranks.is_first:  # whose clock counts
            save |= time.monotonic() - self._saved_at >= self._options.checkpoint_seconds
        mine = torch.tensor([*sums, self._stop.is_requested, save], dtype=torch.float64)
        loss, weight, num_clips, stop, save_somewhere = self._ranks.sum(mine).tolist()
        return StepOutcome(
            loss=loss / max(weight, 1.0),
            weight=weight,
            num_clips=int(num_clips),
            stop=stop > 0,
            save=save_somewhere > 0,
        )

    def _finish_gradients(self, step: StepOutcome) -> float:
        """Makes the sum over the parts their mean, and clips it; returns its norm before."""
        parameters = [parameter for parameter in self._loss.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # DistributedDataParallel has divided the sum over processes by their number
        scale = self._ranks.world_size / max(step.weight, 1.0)
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        return float(nn.utils.clip_grad_norm_(parameters, self._options.clip_grad or math.inf))

    def _refuse(self, parts: Sequence[ClipBatch], step: StepOutcome, norm: float) -> None:
        what = f"the loss is {step.loss}" if not math.isfinite(step.loss) else f"the norm of the gradient is {norm}"
        where = f"at step {self.position.step} (epoch {self.position.epoch + 1}, "
        kept = f"{self._experiment.path} keeps its last checkpoint"
        found = [ids for ids in self._ranks.gather(non_finite_clips(self._loss, parts)) if ids]
        bad = [video_id for ids in found for video_id in ids]
        if 0 < len(bad) < step.num_clips:
            named = ", ".join(bad[:4]) + (", …" if len(bad) > 4 else "")
            raise RunError(f"{what} {where}clip {named}); look at these videos and their targets; {kept}")
        ids = parts[0].video_ids
        named = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
        raise RunError(f"{what} {where}any clip of {named}); lower --lr, or clip gradients by --clip-grad; {kept}")

    def _refuse_to_diverge(self, step: StepOutcome) -> None:
        if self._first_loss is None:
            self._first_loss = step.loss
        has_grown = step.loss > DIVERGED * max(1.0, abs(self._first_loss))
        self._num_diverged = self._num_diverged + 1 if has_grown else 0
        if self._num_diverged == DIVERGED_STEPS:
            raise RunError(
                f"the loss has grown from {self._first_loss:.4g} to {step.loss:.4g} at step {self.position.step} "
                f"(epoch {self.position.epoch + 1}): training diverges; lower --lr, which is {self._options.lr:g}, or "
                f"clip gradients by --clip-grad; {self._experiment.path} keeps its last checkpoint"
            )

    def _tell(self, step: StepOutcome) -> None:
        """How far the run is, and after its second step (the first one sets things up) what it will take."""
        self._num_steps += 1
        num_left = self._options.epochs * self._experiment.steps_per_epoch - self.position.step
        seconds = (time.perf_counter() - self._run_started) / self._num_steps
        if self._num_steps == 1:
            self._first_step_ended = time.perf_counter()
        if self._num_steps == 2:
            self._forecast(time.perf_counter() - self._first_step_ended, num_left)
        loss = self.position.loss_sum / self.position.num_clips
        self._progress.advance(step.num_clips, figures={"loss": loss, "run left": human_seconds(seconds * num_left)})

    def _forecast(self, step_seconds: float, num_left: int) -> None:
        num_parameters = sum(parameter.numel() for parameter in self._loss.parameters())
        epoch = human_seconds(step_seconds * self._experiment.steps_per_epoch)
        memory = human_bytes(self._ranks.peak_bytes())
        self._progress.note(f"{self._options.core}: {num_parameters:,} parameters; {memory} of memory so far")
        self._progress.note(
            f"{human_seconds(step_seconds)} a step, {epoch} an epoch, {human_seconds(step_seconds * num_left)} left "
            f"without evaluation; {self._less()}"
        )

    def _less(self) -> str:
        """What would take less, in some words."""
        dim = self._experiment.model.config.encoder_dim
        options = [option for option, _ in smaller(self._experiment.sized, encoder_dim=dim)]
        return f"less with {', '.join(options[:4])}" if options else "--batch-size 1 would take the least memory"

    def _save(self) -> float:
        """A checkpoint; returns how long the current epoch has taken until it."""
        self._saved_at = time.monotonic()
        seconds = self.position.epoch_seconds = time.perf_counter() - self._epoch_started
        if self._ranks.is_first:
            metrics_bytes = self._log.sync()
            save_checkpoint(self._experiment.path, self.position, self._parts(), metrics_bytes=metrics_bytes)
        return seconds

    def _interrupt(self) -> None:
        self._progress.finish()
        raise RunInterruptedError(
            f"stopped as asked after step {self.position.step} (epoch {self.position.epoch + 1} of "
            f"{self._options.epochs}); {self._experiment.path} has a checkpoint: the same command with --resume goes on"
        )

    def _evaluate(self) -> Evaluation:
        experiment, position = self._experiment, self.position
        evaluation = evaluate_clips(
            ClipLoss(self.model, experiment.task, autocast=self.autocast),
            experiment.eval_clips,
            ranks=self._ranks,
            progress=self._progress,
            keep=position.epoch == self._options.epochs,
        )
        self._log.write("eval", step=position.step, epoch=position.epoch, **evaluation.measured())
        self._trained.train()
        return evaluation

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self._experiment.model, "task": self._experiment.task, "optimizer": self._optimizer}
        return parts | ({"ema": self._ema.module} if self._ema else {})
