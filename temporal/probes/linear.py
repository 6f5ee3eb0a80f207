"""The linear probe: multinomial logistic regression on one vector per clip, fitted exactly by L-BFGS.

The vector is the CLS token (where there is one) beside the mean of the patch tokens, averaged over the clip's frames or
taken from the last one: the features of the DINOv2 protocol (arXiv 2304.07193). Features are standardised with the
training split's mean and deviation. The strength of the L2 penalty is chosen on the held-out tenth; then the probe is
fitted on the whole training split. Cost: one pass over the data; fitting is a matter of seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vfz.temporal.probes.base import FeatureClips, ProbeFit, ProbeTask
from vfz.temporal.probes.selection import hold_out

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_EPSILON = 1e-6


def clip_vector(features_BTND: Tensor, *, num_prefix: int, pool: str) -> Tensor:
    """One vector per clip: [B,2D] where there are prefix and patch tokens, else [B,D].

    Args:
        features_BTND: tokens, prefix tokens first.
        num_prefix: how many are prefix tokens; the first is CLS.
        pool: `mean` over the frames, which no order of frames can change, or the `last` frame.
    """
    frames_BTND = features_BTND[:, -1:] if pool == "last" else features_BTND
    pooled = []
    if num_prefix:
        pooled.append(frames_BTND[:, :, 0].mean(dim=1))
    if frames_BTND.shape[2] > num_prefix:
        pooled.append(frames_BTND[:, :, num_prefix:].mean(dim=(1, 2)))
    return torch.cat(pooled, dim=1)


def fit_logistic(x_VD: Tensor, labels_V: Tensor, *, num_classes: int, inverse_penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [K,D] and biases [K] that minimise sum of cross-entropy + |W|^2 / (2 C), in float64.

    Args:
        x_VD: features.
        labels_V: class indices.
        num_classes: K.
        inverse_penalty: C, as scikit-learn calls it.
    """
    x_VD = x_VD.double()
    weight_KD = torch.zeros(num_classes, x_VD.shape[1], dtype=torch.float64, device=x_VD.device, requires_grad=True)
    bias_K = torch.zeros(num_classes, dtype=torch.float64, device=x_VD.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KD, bias_K],
        max_iter=1000,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_VD @ weight_KD.T + bias_K, labels_V)
        loss = loss + weight_KD.square().sum() / (2 * inverse_penalty * len(x_VD))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_KD.detach(), bias_K.detach()


def fit_linear(task: ProbeTask) -> ProbeFit:
    """Fit on the training clips, choose the penalty on a held-out tenth of them, predict the evaluated clips."""
    train_V = task.train.labels_V
    held_V = hold_out(train_V, seed=task.seed)
    train_VD = _vectors(task, task.train, "reading the training split")
    evaluate_VD = _vectors(task, task.evaluate, "reading the reported split")
    mean_D, std_D = train_VD.mean(dim=0), train_VD.std(dim=0)
    train_VD, evaluate_VD = ((x - mean_D) / (std_D + _EPSILON) for x in (train_VD, evaluate_VD))
    scores = {}
    for inverse_penalty in INVERSE_PENALTIES:
        fitted = fit_logistic(
            train_VD[~held_V], train_V[~held_V], num_classes=task.num_classes, inverse_penalty=inverse_penalty
        )
        scores[inverse_penalty] = float((_predict(train_VD[held_V], *fitted) == train_V[held_V]).float().mean())
    best = max(INVERSE_PENALTIES, key=lambda inverse_penalty: scores[inverse_penalty])
    weight_KD, bias_K = fit_logistic(train_VD, train_V, num_classes=task.num_classes, inverse_penalty=best)
    return ProbeFit(
        predicted_V=_predict(evaluate_VD, weight_KD, bias_K),
        labels_V=task.evaluate.labels_V,
        chosen={"inverse_penalty": best, "held_out_top1": scores[best], "num_held_out": int(held_V.sum())},
        num_parameters=weight_KD.numel() + bias_K.numel(),
    )


def _vectors(task: ProbeTask, clips: FeatureClips, what: str) -> Tensor:
    vectors = []
    task.progress.start(what, total=len(clips.labels_V), unit="clips")
    for batch in clips.batches(None):
        vectors.append(clip_vector(batch.features_BTND, num_prefix=task.num_prefix, pool=task.pool))
        task.progress.advance(len(batch.labels_B))
    task.progress.finish()
    return torch.cat(vectors).cpu()


def _predict(x_VD: Tensor, weight_KD: Tensor, bias_K: Tensor) -> Tensor:
    return (x_VD.double() @ weight_KD.T + bias_K).argmax(dim=1)
