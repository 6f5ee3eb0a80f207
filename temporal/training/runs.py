"""A run folder: what a training run leaves behind, how it is continued and loaded.

    <out>/<name>/run.json            config, cache fingerprint, ledger digest, recipe, licence, results
                 model.safetensors   the trained weights (their moving average, where there is one); with run.json
                                     enough to use the model, without the cache
                 metrics.jsonl       one JSON object a step, an epoch, an evaluation
                 tensorboard/        the same as TensorBoard events
                 curves.png          the same as a picture, once done
                 evaluations/        what was answered for each video, see `vfz.temporal.kept`
                 checkpoint.pt       position, weights and their moving average, the task's own weights, optimizer,
                                     length of metrics.jsonl; stays when done, so that more epochs can follow

A run continued from its checkpoint gives the same numbers. A finished one that is continued with more epochs can be
used as it is until those are done. Random numbers need no place in it: order, positions and dropout follow from the
seed, the epoch and the step. It takes three times the size of the weights, four times with a moving average, and that
much again while it is written. metrics.jsonl grows line by line and is synced before every checkpoint; the other files
are replaced whole (written aside, synced, renamed), so that a kill leaves the last complete one.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vfz.pipeline.errors import CheckpointError, RunError
from vfz.pipeline.files import fsync_file, storage_errors, write_file_atomic
from vfz.temporal.lookup import find_run
from vfz.temporal.model import TemporalModel
from vfz.temporal.run_record import RunInfo, read_run

CHECKPOINT_FILE = "checkpoint.pt"
WEIGHTS_FILE = "model.safetensors"


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[TemporalModel, RunInfo]:
    """The trained model of a finished run, in evaluation mode. The cache is not needed.

    Args:
        path: the run's folder, or its bare name under `runs/`.
        device: where the model is to be.

    Raises:
        UsageError: no run there. RunError: not finished, or damaged. CheckpointError: weights of another model.
    """
    path = find_run(path)
    run = read_run(path)
    if not run.finished:
        raise RunError(f"{path} has not been trained to its end; continue it with vfz train-temporal --resume")
    model = TemporalModel(run.model_config)
    file = path / WEIGHTS_FILE
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} does not load: {str(error).splitlines()[0]}") from None
    load_weights(model, weights, where=str(file))
    return model.to(device).eval(), run


def load_weights(model: TemporalModel, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Bring a model to the weights of another of its kind.

    Raises:
        CheckpointError: when they are of another model; says how many tensors differ, and names the first of each kind.
    """
    ours = model.state_dict()
    kinds = {
        "not in the model": [name for name in weights if name not in ours],
        "missing": [name for name in ours if name not in weights],
        "of another shape": [name for name in ours if name in weights and ours[name].shape != weights[name].shape],
    }
    differing = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if differing:
        raise CheckpointError(
            f"{where} does not fit a {model.config.core} core with a {model.config.task} readout: tensors "
            f"{', '.join(differing)}; give weights of the same options"
        )
    model.load_state_dict(weights)


def save_model(path: Path, model: TemporalModel) -> None:
    """Replace `model.safetensors`."""
    temporary = path / "model.safetensors.tmp"
    with storage_errors(temporary):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
        fsync_file(temporary)
        temporary.replace(path / WEIGHTS_FILE)


@dataclass(kw_only=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: whole epochs behind it.
        step: optimizer steps behind it, over all epochs.
        epoch_step: those of the current epoch.
        loss_sum: sum of the losses of the clips of the current epoch.
        num_clips: how many clips that is.
        train_loss: mean of the last whole epoch.
        epoch_seconds: time spent on the current epoch until the last checkpoint.
    """

    epoch: int = 0
    step: int = 0
    epoch_step: int = 0
    loss_sum: float = 0.0
    num_clips: int = 0
    train_loss: float = float("nan")
    epoch_seconds: float = 0.0

    def advance(self, loss: float, num_clips: int) -> None:
        """One more step, whose clips had this mean loss."""
        self.step += 1
        self.epoch_step += 1
        self.loss_sum += loss * num_clips
        self.num_clips += num_clips

    def end_epoch(self) -> None:
        """The current epoch is whole."""
        self.train_loss = self.loss_sum / self.num_clips
        self.epoch += 1
        self.epoch_step, self.loss_sum, self.num_clips, self.epoch_seconds = 0, 0.0, 0, 0.0


def save_checkpoint(path: Path, position: Position, parts: dict[str, Any], *, metrics_bytes: int) -> None:
    """Replace the checkpoint of the run folder `path`.

    Args:
        path: the run folder.
        position: where the run stands.
        parts: what has a `state_dict`, by name.
        metrics_bytes: size of metrics.jsonl now.
    """
    state = {"position": dataclasses.asdict(position), "metrics_bytes": metrics_bytes}
    buffer = io.BytesIO()
    torch.save(state | {name: part.state_dict() for name, part in parts.items()}, buffer)
    write_file_atomic(path / CHECKPOINT_FILE, buffer.getvalue())


def restore(path: Path, parts: dict[str, Any]) -> tuple[Position, int] | None:
    """Bring `parts` to the last checkpoint of a run folder.

    Returns:
        The position and the size metrics.jsonl had, or None where there is no checkpoint yet.

    Raises:
        RunError: when it cannot be read, or belongs to another model.
    """
    file = path / CHECKPOINT_FILE
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Position(**state["position"]), int(state["metrics_bytes"])
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise RunError(f"{file} is damaged or of another vfz; delete the run and train again") from None


def remove_checkpoint(path: Path) -> None:
    """Drop the checkpoint of a run that is done."""
    (path / CHECKPOINT_FILE).unlink(missing_ok=True)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
