"""Task `classify`: which class a clip shows.

Streaming: the answer is that at the last frame, when all of the clip has been seen. Clip: there is one answer. Trained
by cross-entropy, optionally smoothed; measured by top-1 and top-5 accuracy (arXiv 2605.19137). A clip counts where its
video has a label; labels come with the cache, and nothing is taken from `targets.npz`.

    outputs   logits [B, T, K] (streaming) or [B, K] (clip)
    targets   TargetBatch.labels_B [B], -1 where a clip has no class

Shape suffixes: B clips, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.temporal.tasks.base import LabelTask, SumMetrics, TargetBatch, exact, mean_or_zero


class ClassifyTask(LabelTask):
    """Cross-entropy; top-1 and top-5. Outputs: logits [B, T, K] (streaming) or [B, K] (clip).

    Args:
        protocol: see `Task`.
        num_classes: K.
        label_smoothing: share of the truth that is spread over all classes.

    Raises:
        UsageError: when `label_smoothing` is not in 0 .. 1.
    """

    name = "classify"
    headline = "top1"
    shares = ("top1", "top5")

    def __init__(self, *, protocol: str = "streaming", num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(protocol=protocol, num_classes=num_classes)
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label smoothing is {label_smoothing}; it must be at least 0 and less than 1")
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """See `Task`."""
        return classification_loss(clip_logits(outputs), batch.labels_B, label_smoothing=self.label_smoothing)

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Clips that have a class."""
        return valid_labels(batch).sum()

    def answers(self, outputs: Tensor) -> Tensor:
        """Class probabilities [B, K]."""
        return clip_logits(outputs).cpu().double().softmax(dim=-1)

    def new_metrics(self) -> ClassifyMetrics:
        """See `Task`."""
        return ClassifyMetrics()

    def kept(self, outputs: Tensor, batch: TargetBatch) -> dict[str, Tensor]:
        """`probabilities` [B, K], whose mean over its clips decides a video's class, and `label` [B]."""
        return {"probabilities": self.answers(outputs), "label": batch.labels_B}

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """`top1`, `top5`, and `num_clips`, which are of whole videos."""
        metrics = ClassifyMetrics()
        metrics.add(kept["probabilities"], kept["label"].long())
        return metrics.compute()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:
        """The classes' shares of the training set, whatever the clip."""
        labels = torch.cat([batch.labels_B for batch in batches])
        counts_K = labels[labels >= 0].bincount(minlength=self.num_classes).float()
        logits_K = (counts_K + 1).log()  # one more of each: a class that was never seen is rare, not impossible

        def predict(batch: TargetBatch) -> Tensor:
            shape = batch.frame_mask_BT.shape if self.protocol == "streaming" else batch.labels_B.shape
            return logits_K.to(batch.labels_B.device).expand(*shape, -1)

        return predict


def valid_labels(batch: TargetBatch) -> Tensor:
    """Clips [B] that have a class."""
    return batch.labels_B >= 0


def clip_logits(logits: Tensor) -> Tensor:
    """The logits [B, K] that decide a clip's class: of [B, T, K] those of the last frame, when all has been seen."""
    return logits[:, -1] if logits.dim() == 3 else logits


def classification_loss(logits_BK: Tensor, labels_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the clips that have a class (label >= 0).

    Args:
        logits_BK: of the clips.
        labels_B: class indices (int64), -1 where a clip has none.
        label_smoothing: share of the truth that is spread over all classes.
    """
    labelled = labels_B >= 0
    losses = F.cross_entropy(
        exact(logits_BK)[labelled], labels_B[labelled], label_smoothing=label_smoothing, reduction="none"
    )
    return mean_or_zero(losses)


class ClassifyMetrics(SumMetrics[Tensor]):
    """Share of labelled clips whose class is the first (`top1`) or among the first five answers (`top5`)."""

    sum_names = ("top1", "top5", "num_clips")

    def _sums(self, outputs: Tensor, batch: TargetBatch) -> Mapping[str, Tensor]:
        """`outputs`: logits [B, T, K] of frames, the last of which counts, or [B, K] of clips."""
        return _right_answers(clip_logits(outputs), batch.labels_B)

    def add(self, scores_BK: Tensor, labels_B: Tensor) -> None:
        """Adds answers without a batch around them; the greatest score is the answer."""
        sums = _right_answers(scores_BK, labels_B)
        self._state += torch.stack([sums[name].double() for name in self.sum_names]).cpu()

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, `num_clips`."""
        shares = {name: self._mean(name, "num_clips") for name in ("top1", "top5")}
        return shares | {"num_clips": self._total("num_clips")}


def _right_answers(scores_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    labelled = labels_B >= 0
    labels, scores = labels_B[labelled], scores_BK[labelled]
    best = scores.topk(min(5, scores.shape[-1]), dim=-1).indices
    right = best == labels.unsqueeze(-1)
    return {"top1": right[:, 0].sum(), "top5": right.sum(), "num_clips": labelled.sum()}
