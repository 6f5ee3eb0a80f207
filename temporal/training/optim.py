"""The optimizer, its schedule and the moving average of weights, by timm.

No weight decay on norms, biases and other one-dimensional parameters, nor on those a core marks (Mamba's A_log and D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from vfz.pipeline.errors import UnknownNameError, UsageError


def check_optimizer(name: str) -> None:
    """Refuse a name that timm has no optimizer of.

    Raises:
        UnknownNameError: with the nearest names.
    """
    known = [str(known) for known in list_optimizers()]
    if name.lower() not in known:
        raise UnknownNameError("optimizer", name, known)


def build_optimizer(model: nn.Module, *, lr: float, weight_decay: float, name: str = "adamw") -> torch.optim.Optimizer:
    """An optimizer over `model`; parameters named by `model.no_weight_decay()` are not decayed.

    Args:
        model: whose parameters.
        lr: peak learning rate.
        weight_decay: of the parameters that are decayed.
        name: as timm calls it (`adamw`, `lamb`, `muon`, ...).

    Raises:
        UnknownNameError: when timm has no optimizer of that name. UsageError: when it needs second derivatives.
    """
    check_optimizer(name)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay)
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(f"--optimizer {name} needs second derivatives, which training does not compute; take another")
    return optimizer


class Schedule:
    """The learning rate of every step: for each leg of a run linear warm-up, then cosine to zero.

    A run has one leg, and one more each time it is continued with more epochs: a warm restart, from the same peak, with
    the same warm-up, over the steps that were added.

    Args:
        optimizer: whose rate.
        leg_steps: optimizer steps of every leg.
        num_warmup_steps: of each.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, leg_steps: Sequence[int], num_warmup_steps: int) -> None:
        self._leg_steps = list(leg_steps)
        self._legs = [_leg(optimizer, num_steps=steps, num_warmup_steps=num_warmup_steps) for steps in leg_steps]

    def step_update(self, num_updates: int) -> None:
        """Set the rate of the step that follows so many; call it after every optimizer step."""
        for number, (leg, steps) in enumerate(zip(self._legs, self._leg_steps, strict=True)):
            if num_updates < steps or number == len(self._legs) - 1:
                leg.step_update(num_updates)
                return
            num_updates -= steps


def _leg(optimizer: torch.optim.Optimizer, *, num_steps: int, num_warmup_steps: int) -> Any:
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, num_steps),
        warmup_t=min(num_warmup_steps, max(0, num_steps - 1)),
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=False,
    )


def build_ema(model: nn.Module, *, decay: float) -> ModelEmaV3:
    """An exponential moving average of the model's weights and batch statistics, in its `module`.

    The decay warms up as 1 - step^(-2/3) until it is `decay`, so that a short run's average is not its first weights.
    Call `update(model, step)` after every optimizer step, counted from 1.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True)
