"""One training step as a module: clips in, loss out, so that DistributedDataParallel can wrap it.

A step's clips may come in several parts: micro-batches of one process (`--accumulate`) and shares of several processes.
A part's loss is a mean over what is valid in it, so parts are weighted by how much that is (`Task.num_valid`) and their
weighted sum is the loss of the whole batch, and so are the gradients: exactly, as the contract of tasks demands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vfz.temporal.data.loader import ClipBatch

if TYPE_CHECKING:
    from vfz.temporal.model import TemporalModel
    from vfz.temporal.tasks import Task


class ClipLoss(nn.Module):
    """The loss of a batch of clips: model, then task.

    Args:
        model: what is trained.
        task: its loss; may have weights of its own (the balance of translation and rotation), which are trained too.
        autocast: number format of the model's forward pass; None for float32. The loss is always float32.
    """

    def __init__(self, model: TemporalModel, task: Task[Any], *, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.task, self._autocast = model, task, autocast

    def forward(self, batch: ClipBatch) -> Tensor:
        """The mean loss of the clips, a scalar."""
        loss: Tensor = self.task.loss(self.answer(batch), batch)
        return loss

    def answer(self, batch: ClipBatch) -> Tensor | dict[str, Tensor]:
        """The model's outputs for the clips, in float32."""
        inputs = self.task.readout_inputs(batch, training=self.training)
        device_type = batch.layers_BTND[0].device.type
        with torch.autocast(device_type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = self.model(batch.layers_BTND, last_frame_only=self.task.last_frame_only, **inputs)
        if isinstance(outputs, dict):
            return {name: output.float() for name, output in outputs.items()}
        answered: Tensor = outputs.float()
        return answered

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed, beside the one-dimensional ones."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def autocast_dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """The number format of `--dtype`; None for float32.

    `auto` is bfloat16 on a GPU only: at widths that suit a few CPU cores the casts cost more than they save.
    """
    if wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return None


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of a step (dropout, drop-path) follow from seed, step and rank alone.

    So a run that goes on in the middle of an epoch needs no state of a generator, and draws what it would have drawn.
    """
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) % 2**63)


@torch.no_grad()
def non_finite_clips(loss: ClipLoss, parts: Sequence[ClipBatch]) -> list[str]:
    """Ids of the clips whose own loss is not finite, computed one by one in evaluation mode."""
    was_training = loss.training
    loss.eval()
    bad = [
        video_id
        for batch in parts
        for place, video_id in enumerate(batch.video_ids)
        if not torch.isfinite(loss(one_clip(batch, place)))
    ]
    loss.train(was_training)
    return bad


def one_answer(outputs: Tensor | dict[str, Tensor], place: int) -> Tensor | dict[str, Tensor]:
    """The answer to one of the clips of a batch, still [1, ...]."""
    if isinstance(outputs, dict):
        return {name: output[place : place + 1] for name, output in outputs.items()}
    return outputs[place : place + 1]


def one_clip(batch: ClipBatch, place: int) -> ClipBatch:
    """A batch of one of the clips of another."""

    def only(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: only(item) for name, item in value.items()}
        if isinstance(value, list):
            return [only(item) for item in value]
        return value if isinstance(value, float) else value[place : place + 1]

    return replace(batch, **{item.name: only(getattr(batch, item.name)) for item in fields(batch)})
