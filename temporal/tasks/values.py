"""What tasks of several numbers a video share: `multilabel` and `regression`, whose truth is a label set of the cache.

Such a set says K numbers of a video, some of which may not be known. What is not known counts neither in the loss nor
in a figure, number by number. A figure (average precision, R2) is of one label or target over all videos, no mean of
what single videos reach; so its metrics keep every answer, 16 bytes a number, until it is asked for.

    outputs   [B, T, K] (streaming, where the last frame counts) or [B, K] (clip)
    targets   label_values [B, K] float32, finite; label_known [B, K] bool

Shape suffixes: B clips, V videos, T frames, K labels or targets, R resamples of the videos.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.temporal.tasks.base import LabelTask, Metrics, TargetBatch, exact, mean_or_zero
from vfz.temporal.tasks.classify import clip_logits

Floats = NDArray[np.float64]


class ValuesTask(LabelTask):
    """Base of both.

    Args:
        protocol: see `Task`.
        num_classes: K.
        target_means: of the K numbers in the training split; 0 where it is not said.

    Attributes:
        means: of each metric that `compute` gives, which figure of single labels it is the mean of.
        mean_K: of the numbers in the training split, kept with the task's state.
    """

    means: ClassVar[Mapping[str, str]]
    mean_K: Tensor

    def __init__(
        self, *, protocol: str = "streaming", num_classes: int, target_means: Sequence[float] | None = None
    ) -> None:
        super().__init__(protocol=protocol, num_classes=num_classes)
        self.register_buffer("mean_K", torch.tensor(target_means or [0.0] * num_classes, dtype=torch.float32))

    def loss(self, outputs: Tensor, batch: TargetBatch) -> Tensor:
        """The mean over all numbers that are known."""
        values_BK, known_BK = batch.targets["label_values"], batch.targets["label_known"]
        outputs_BK = exact(clip_logits(outputs))
        return mean_or_zero(self.losses(outputs_BK[known_BK], self.as_outputs(values_BK)[known_BK]))

    def num_valid(self, batch: TargetBatch) -> Tensor:
        """Numbers that are known."""
        return batch.targets["label_known"].sum()

    def new_metrics(self) -> ValuesMetrics:
        """See `Task`."""
        return ValuesMetrics(self)

    def kept(self, outputs: Tensor, batch: TargetBatch) -> dict[str, Tensor]:
        """`answers` [B, K] and the numbers they should be, `targets` [B, K], NaN where one is not known."""
        return {"answers": self.answers(outputs), "targets": torch.from_numpy(known_values(batch))}

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """The task's `figures_of` what was kept of whole videos, and `num_clips`, which are videos."""
        answers_VK, values_VK = (kept[name].numpy() for name in ("answers", "targets"))
        num_known = np.isfinite(values_VK).any(axis=1).sum()
        return self.figures_of(answers_VK, values_VK) | {"num_clips": float(num_known)}

    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], Tensor]:
        """Of each label the mean of what is known of it in the training set."""
        values_VK = np.concatenate([known_values(batch) for batch in batches])
        answer_K = torch.from_numpy(constant_answers(values_VK)).float()

        def predict(batch: TargetBatch) -> Tensor:
            frames = batch.frame_mask_BT
            shape = frames.shape if self.protocol == "streaming" else frames.shape[:1]
            outputs_K: Tensor = self.outputs_of(answer_K.to(frames.device))
            return outputs_K.expand(*shape, -1)

        return predict

    @staticmethod
    @abstractmethod
    def losses(outputs: Tensor, truth: Tensor) -> Tensor:
        """The loss of each number, in any shape."""

    def as_outputs(self, values_BK: Tensor) -> Tensor:
        """The truth in the outputs' units."""
        return values_BK

    @abstractmethod
    def outputs_of(self, answers_K: Tensor) -> Tensor:
        """The outputs that give an answer."""

    @staticmethod
    @abstractmethod
    def of_labels(answers_VK: Floats, values_VK: Floats) -> dict[str, Floats]:
        """Every figure by name, [K]: of each label, over the videos where it is known; NaN where it cannot be said.

        Args:
            answers_VK: what was answered.
            values_VK: the truth, NaN where it is not known.
        """

    @staticmethod
    @abstractmethod
    def headlines(answers_VK: Floats, values_VK: Floats, weights_RV: NDArray[Any]) -> Floats:
        """The headline metric [R] where each video occurs as often as a row of the weights says; NaN where it has none.

        Arguments as of `of_labels`.
        """

    def prepare(self, values_VK: NDArray[Any]) -> None:
        """Takes what it needs to know of the training videos' numbers, NaN where one is not known."""
        self.mean_K.copy_(torch.from_numpy(constant_answers(values_VK)))

    def settings(self) -> dict[str, list[float]]:
        """What `build_task` needs, besides the number of labels, to make the task as it was prepared."""
        return {"target_means": self.mean_K.tolist()}

    @classmethod
    def figures_of(cls, answers_VK: Floats, values_VK: Floats) -> dict[str, float]:
        """Every metric: the mean of a figure over the labels that have it, and over how many labels that is."""
        of_labels = cls.of_labels(answers_VK, values_VK)
        means = {metric: mean_of_known(of_labels[figure]) for metric, figure in cls.means.items()}
        counted = of_labels[cls.means[cls.headline]]
        return means | {"num_labels": float(np.isfinite(counted).sum())}


class ValuesMetrics(Metrics[Tensor]):
    """Keeps what was answered about every clip of which something is known; see `ValuesTask.figures_of`.

    Args:
        task: whose answers they are.
    """

    def __init__(self, task: ValuesTask) -> None:
        self._task = task
        self._rows: list[Tensor] = [torch.zeros(0, 2 * task.num_classes, dtype=torch.float64)]

    @torch.no_grad()
    def update(self, outputs: Tensor, batch: TargetBatch) -> None:
        """See `Metrics`."""
        values_BK = torch.from_numpy(known_values(batch))
        answers_BK = self._task.answers(outputs).masked_fill(values_BK.isnan(), torch.nan)
        rows = torch.cat([answers_BK, values_BK], dim=1)
        self._rows.append(rows[~values_BK.isnan().all(dim=1)])

    def state(self) -> Tensor:
        """Of each clip its K answers and the K numbers they should be: [clips, 2 K]."""
        return torch.cat(self._rows)

    def load_state(self, state: Tensor) -> None:
        """See `Metrics`."""
        if state.shape != (len(state), 2 * self._task.num_classes):
            raise ValueError(
                f"state has shape {list(state.shape)}; these metrics keep {self._task.num_classes} answers and as many "
                "true numbers of each clip"
            )
        self._rows = [state.detach().to("cpu", torch.float64, copy=True)]

    @staticmethod
    def combined(states: Sequence[Tensor]) -> Tensor:
        """See `Metrics`."""
        return torch.cat(list(states))

    def compute(self) -> dict[str, float]:
        """The task's `figures_of` them, and `num_clips`."""
        answers_VK, values_VK = (half.numpy() for half in self.state().chunk(2, dim=1))
        return self._task.figures_of(answers_VK, values_VK) | {"num_clips": float(len(values_VK))}


def known_values(batch: TargetBatch) -> Floats:
    """The truth [B, K] of a batch, NaN where it is not known."""
    values_BK, known_BK = batch.targets["label_values"], batch.targets["label_known"]
    known: Floats = values_BK.double().masked_fill(~known_BK, torch.nan).cpu().numpy()
    return known


def constant_answers(values_VK: NDArray[Any]) -> Floats:
    """Of each label the mean of what is known of it, [K]: the share of videos that have it; 0 where nothing is."""
    known_VK = np.isfinite(values_VK)
    total_K = np.where(known_VK, values_VK, 0.0).sum(axis=0, dtype=np.float64)
    means_K: Floats = total_K / np.maximum(known_VK.sum(axis=0), 1)
    return means_K


def mean_of_known(values: Floats) -> float:
    """The mean of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def means_of_known(values_RK: Floats) -> Floats:
    """The same of each row."""
    known_RK = np.isfinite(values_RK)
    count_R = known_RK.sum(axis=1)
    total_R = np.where(known_RK, values_RK, 0.0).sum(axis=1)
    means_R: Floats = np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan)
    return means_R
