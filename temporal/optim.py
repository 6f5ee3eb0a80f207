"""The optimizer and its schedule, by timm.

No weight decay on norms, biases and other one-dimensional parameters, nor on those a core marks (Mamba's A_log and D).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn


def build_optimizer(model: nn.Module, *, lr: float, weight_decay: float, name: str = "adamw") -> torch.optim.Optimizer:
    """An optimizer over `model`; parameters named by `model.no_weight_decay()` are not decayed."""
    optimizer: torch.optim.Optimizer = create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay)
    return optimizer


def build_schedule(optimizer: torch.optim.Optimizer, *, num_steps: int, num_warmup_steps: int) -> Any:
    """Linear warm-up, then cosine to zero; call `step_update(num_updates)` after every optimizer step."""
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, num_steps),
        warmup_t=min(num_warmup_steps, max(0, num_steps - 1)),
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=False,
    )
