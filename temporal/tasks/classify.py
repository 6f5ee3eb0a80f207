"""Task `classify`: which class a clip shows. Streaming: the answer at the last frame, when all of it has been seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.temporal.metrics import ClassifyMetrics, clip_logits
from vfz.temporal.objectives import classification_loss
from vfz.temporal.target_batch import TargetBatch, valid_labels
from vfz.temporal.tasks.base import Task


class ClassifyTask(Task[Tensor]):
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
    needs_targets = False

    def __init__(self, *, protocol: str = "streaming", num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(protocol=protocol)
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label smoothing is {label_smoothing}; it must be at least 0 and less than 1")
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.last_frame_only = protocol == "streaming"

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """See `Task`."""
        return classification_loss(clip_logits(outputs), batch.labels_B, label_smoothing=self.label_smoothing)

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Clips that have a class."""
        return valid_labels(batch).sum()

    def new_metrics(self) -> ClassifyMetrics:
        """See `Task`."""
        return ClassifyMetrics()

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:
        """The classes' shares of the training set, whatever the clip."""
        labels = torch.cat([batch.labels_B for batch in batches])
        counts_K = labels[labels >= 0].bincount(minlength=self.num_classes).float()
        logits_K = (counts_K + 1).log()  # one more of each: a class that was never seen is rare, not impossible

        def predict(batch: TargetBatch) -> Tensor:
            shape = batch.frame_mask_BT.shape if self.protocol == "streaming" else batch.labels_B.shape
            return logits_K.to(batch.labels_B.device).expand(*shape, -1)

        return predict
