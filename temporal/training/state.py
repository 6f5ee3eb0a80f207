"""Where a run stands, and `checkpoint.pt`, which takes it there again exactly.

    checkpoint.pt   position, weights and their moving average, the task's own weights, optimizer, length of metrics

Random numbers need no place in it: order, positions and dropout follow from the seed, the epoch and the step. It is
replaced whole (written aside, synced, renamed), so that a kill leaves the last complete one. Writing one costs about
four times the size of the weights (six with a moving average).
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vfz.pipeline.errors import RunError
from vfz.pipeline.files import write_file_atomic

FILE_NAME = "checkpoint.pt"


@dataclass(kw_only=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: whole epochs behind it.
        step: optimizer steps behind it, over all epochs.
        epoch_step: those of the epoch in hand.
        loss_sum: sum of the losses of the clips of the epoch in hand.
        num_clips: how many clips that is.
        train_loss: mean of the last whole epoch.
        epoch_seconds: time spent on the epoch in hand until the last checkpoint.
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
        """The epoch in hand is whole."""
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
    write_file_atomic(path / FILE_NAME, buffer.getvalue())


def load_checkpoint(path: Path, parts: dict[str, Any]) -> tuple[Position, int] | None:
    """Bring `parts` to the last checkpoint of a run folder.

    Returns:
        The position and the size metrics.jsonl had, or None where there is no checkpoint yet.

    Raises:
        RunError: when it cannot be read, or belongs to another model.
    """
    file = path / FILE_NAME
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
    (path / FILE_NAME).unlink(missing_ok=True)
