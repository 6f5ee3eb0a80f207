"""The attentive probe of depth 1: a learned query attends to all tokens of all frames (V-JEPA, arXiv 2404.08471).

It is the clip-protocol attention readout, with its time embedding: unlike the linear probe it may see the order of
frames. Several learning rates are trained as separate heads of one pass; the held-out tenth of training chooses one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.optim import build_schedule
from vfz.temporal.probes.base import FeatureClips, ProbeFit, ProbeTask
from vfz.temporal.probes.selection import hold_out
from vfz.temporal.readouts import build_readout

LEARNING_RATES = (3e-3, 1e-3, 3e-4)
WEIGHT_DECAY = 0.05
HEAD_DIM = 64


def fit_attentive(task: ProbeTask) -> ProbeFit:
    """Fit one head per learning rate, choose on the held-out tenth, predict the evaluated clips."""
    held_V = hold_out(task.train.labels_V, seed=task.seed)
    torch.manual_seed(task.seed)
    heads = nn.ModuleList(_build_head(task) for _ in LEARNING_RATES).to(task.device)
    groups = [{"params": list(head.parameters()), "lr": lr} for head, lr in zip(heads, LEARNING_RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = -(-len(task.train.labels_V) // task.batch_size)
    schedule = build_schedule(optimizer, num_steps=task.epochs * steps_per_epoch, num_warmup_steps=steps_per_epoch)
    task.progress.start("fitting", total=task.epochs * len(task.train.labels_V), unit="clips")
    num_updates = 0
    for epoch in range(task.epochs):
        for batch in task.train.batches(epoch):
            task.progress.advance(len(batch.labels_B))
            fit_B = ~held_V[batch.indices_B].to(task.device)
            if not fit_B.any():
                continue
            features_BTND, labels_B = batch.features_BTND[fit_B], batch.labels_B[fit_B]
            losses = [F.cross_entropy(head(features_BTND), labels_B) for head in heads]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
            num_updates += 1
            schedule.step_update(num_updates)
    task.progress.finish()
    heads.eval()
    held_predicted = _predict(heads, task.train)[:, held_V]
    scores = [float((predicted == task.train.labels_V[held_V]).float().mean()) for predicted in held_predicted]
    best = max(range(len(heads)), key=lambda i: scores[i])
    return ProbeFit(
        predicted_V=_predict([heads[best]], task.evaluate)[0],
        labels_V=task.evaluate.labels_V,
        chosen={"lr": LEARNING_RATES[best], "held_out_top1": scores[best], "num_held_out": int(held_V.sum())},
        num_parameters=sum(parameter.numel() for parameter in heads[best].parameters()),
    )


def _build_head(task: ProbeTask) -> nn.Module:
    width = max(HEAD_DIM, task.dim // HEAD_DIM * HEAD_DIM)
    return build_readout(
        "classify",
        dim=task.dim,
        protocol="clip",
        num_classes=task.num_classes,
        readout_dim=width,
        num_heads=width // HEAD_DIM,
        num_frames=task.num_frames,
    )


@torch.no_grad()
def _predict(heads: Iterable[nn.Module], clips: FeatureClips) -> Tensor:
    """Predicted classes [heads, V] of a split, in the cache's order."""
    heads = list(heads)
    predicted = [
        torch.stack([head(batch.features_BTND).argmax(dim=1).cpu() for head in heads]) for batch in clips.batches(None)
    ]
    return torch.cat(predicted, dim=1)
