"""The contract of a task: what its readout is told, what it is trained for, how it is measured, what its targets are.

A task is one file here and the readout of its name in `vfz.temporal.readouts`. The readout's outputs [B, ...] and a
batch go into `loss` and into `Metrics.update`; the batch holds everything a task is told of the truth (`TargetBatch`).
`clip_targets` makes it for a clip, out of what `targets.npz` knows of the clip's video.

Rules that hold of every task (`tests/contracts/task_contract.py` is their executable form):

- Every loss is a mean over what is valid only (clips, boxes, points, frames): weighted by how many of those there are,
  the losses of parts of a batch add up to that of the whole. With nothing valid it is 0 and still has a graph, so that
  a step (and DDP) goes on. Computed in float32, or float64 where that was given.
- What is not valid is taken out before anything is computed, so that neither its prediction nor its target can reach
  the loss or a gradient, not even as NaN. A frame that only repeats a short video's last one is never valid.
- Metrics of parts of the data, and of ranks, are put together to those of the whole: as a rule they are sums.

Targets lie in the crop the encoder saw, 1 being its side. arXiv 2605.19137 names the tasks and the kinds of losses; the
constants are those of the works they come from.

Shape suffixes: B clips, T frames, K classes, O objects, Q points asked for, H W pixels, F frames of a video's targets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vfz.pipeline.datasets.targets import Targets, VideoTargets
from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.readouts.base import PROTOCOLS

OutputsT = TypeVar("OutputsT")
"""What a readout answers: a tensor, or tensors by name."""

Arrays = dict[str, NDArray[Any]]
"""Targets of one clip, by name."""


class TargetBatch(Protocol):
    """The truth about a batch; `ClipBatch` is one.

    Attributes:
        labels_B: class indices (int64), -1 where a clip has none.
        frame_mask_BT: False where a short video's last frame is repeated.
        targets: tensors [B, ...] by name, those of one task; its file lists them.
    """

    @property
    def labels_B(self) -> Tensor: ...  # noqa: N802, D102

    @property
    def frame_mask_BT(self) -> Tensor: ...  # noqa: N802, D102

    @property
    def targets(self) -> Mapping[str, Tensor]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, eq=False)
class RawTargets:
    """What is known of one clip, not yet brought to what the encoder saw of it.

    Attributes:
        video: the targets of its video, F frames.
        frames_T: which of those F each of the clip's frames is.
        mask_T: which of the clip's frames are real and have a target; the others are never valid.
        mirrored: whether the encoder saw the frames mirrored.
        crop: gives what it saw of a frame. Only asked where it is needed: the size of the video's frames may have to be
            found out first (DatasetError where it cannot).
        output_size: side of the maps that are wanted, of tasks with `makes_maps`; else 0.
    """

    video: VideoTargets
    frames_T: NDArray[np.int64]
    mask_T: NDArray[np.bool_]
    mirrored: bool
    crop: Callable[[], SeenCrop]
    output_size: int = 0


class Metrics(ABC, Generic[OutputsT]):
    """What one evaluation has seen, fed batch by batch; parts of the data and ranks are put together.

    `state()` is one tensor, and the states of any parts of the data, `combined`, are the state of the whole.
    `compute()` turns it into named numbers, always with the counts they are means of; a mean over nothing is NaN.
    """

    @abstractmethod
    def update(self, outputs: OutputsT, batch: TargetBatch) -> None:
        """Adds the predictions of one batch."""

    @abstractmethod
    def state(self) -> Tensor:
        """A copy of what was added: float64, on the CPU."""

    @abstractmethod
    def load_state(self, state: Tensor) -> None:
        """Replaces it, for instance by what the states of every rank are `combined`.

        Raises:
            ValueError: when it is not a state of these metrics.
        """

    @staticmethod
    @abstractmethod
    def combined(states: Sequence[Tensor]) -> Tensor:
        """The state of the whole, of the states of its parts."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics of everything added so far, and the counts they are means of (`num_...`)."""


class SumMetrics(Metrics[OutputsT]):
    """Metrics that are running sums, in float64; sums of parts add up.

    Cost: a few elementwise passes over the predictions, and one copy of a short vector from the device per batch.

    Attributes:
        sum_names: what `state()` holds, in order.
    """

    sum_names: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._state = torch.zeros(len(self.sum_names), dtype=torch.float64)

    @torch.no_grad()
    def update(self, outputs: OutputsT, batch: TargetBatch) -> None:
        """See `Metrics`."""
        sums = self._sums(outputs, batch)
        self._state += torch.stack([sums[name].double() for name in self.sum_names]).cpu()

    def state(self) -> Tensor:
        """See `Metrics`."""
        return self._state.clone()

    def load_state(self, state: Tensor) -> None:
        """See `Metrics`."""
        if state.shape != self._state.shape:
            raise ValueError(f"state has shape {list(state.shape)}; these metrics keep {', '.join(self.sum_names)}")
        self._state = state.detach().to("cpu", torch.float64, copy=True)

    @staticmethod
    def combined(states: Sequence[Tensor]) -> Tensor:
        """See `Metrics`."""
        return torch.stack(list(states)).sum(dim=0)

    @abstractmethod
    def _sums(self, outputs: OutputsT, batch: TargetBatch) -> Mapping[str, Tensor]:
        """What one batch adds to each of `sum_names`: scalar tensors."""

    def _total(self, name: str) -> float:
        return float(self._state[self.sum_names.index(name)])

    def _mean(self, name: str, count_name: str) -> float:
        count = self._total(count_name)
        return self._total(name) / count if count else math.nan


class Task(nn.Module, ABC, Generic[OutputsT]):
    """Base of all tasks; a module, so that what a loss learns (the balance of `pose`) is trained with the model.

    Attributes:
        name: in the registries of tasks and of readouts.
        protocols: which of `streaming` and `clip` it has.
        input_names: of the batch's targets, those that the readout is given.
        headline: the metric people quote.
        higher_is_better: of the headline.
        shares: how the names of those metrics begin that are shares of 1; people are shown them as percentages.
        needs_targets: whether it needs `targets.npz`. A task that does not is a `LabelTask` and takes the cache's
            labels.
        asks_about_places: whether it asks about places in the picture, so that no token may be dropped.
        makes_maps: whether its targets are maps, of the readout's `output_size`.
        protocol: the one it was made for.
        last_frame_only: whether the outputs at the last frame are all that is used, so that the readout need not be
            run on the others.

    Raises:
        UnknownNameError: when there is no such protocol. UsageError: when the task does not have it.
    """

    name: ClassVar[str]
    protocols: ClassVar[tuple[str, ...]] = PROTOCOLS
    input_names: ClassVar[tuple[str, ...]] = ()
    headline: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    shares: ClassVar[tuple[str, ...]] = ()
    needs_targets: ClassVar[bool] = True
    asks_about_places: ClassVar[bool] = False
    makes_maps: ClassVar[bool] = False
    last_frame_only: bool = False

    def __init__(self, *, protocol: str = "streaming") -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        if protocol not in self.protocols:
            raise UsageError(f"task {self.name} has no {protocol} protocol; use {' or '.join(self.protocols)}")
        self.protocol = protocol

    @classmethod
    def default_sizes(cls, image_size: int) -> dict[str, int]:  # noqa: ARG003 - most have none
        """Sizes of the readout that follow from the side of the encoder's picture in pixels, where none are given."""
        return {}

    @classmethod
    def num_known(cls, targets: Targets) -> int:  # noqa: ARG003 - each task looks at its own arrays
        """How much the targets of a dataset have for the task (objects, points, rows of a map); 0: nothing."""
        return 1

    @classmethod
    def clip_targets(cls, raw: RawTargets) -> Arrays:
        """The targets of one clip as the encoder saw it; stacked, they are `TargetBatch.targets`.

        What is not valid is finite. The first dimension may differ from clip to clip (objects, points): it is filled up
        with zeros, which must mean that nothing is valid there.
        """
        raise NotImplementedError(f"task {cls.name} takes nothing from targets.npz")

    def readout_inputs(self, batch: TargetBatch, *, training: bool = False) -> dict[str, Tensor]:  # noqa: ARG002
        """What the readout is given beside the tokens, by name; no task makes a difference in training."""
        return {name: batch.targets[name] for name in self.input_names}

    @abstractmethod
    def loss(self, outputs: OutputsT, batch: TargetBatch) -> Tensor:
        """A scalar: the mean over what is valid in the batch; 0, with a graph, when nothing is."""

    @abstractmethod
    def num_valid(self, batch: TargetBatch) -> Tensor:
        """How many things (clips, boxes, points, frames) the loss is a mean over: the weight of a part of a batch."""

    @abstractmethod
    def new_metrics(self) -> Metrics[OutputsT]:
        """Empty metrics."""

    def kept(self, outputs: OutputsT, batch: TargetBatch) -> dict[str, Tensor]:  # noqa: ARG002 - most keep none
        """What an evaluation keeps of the answer to every clip, and of its truth: [B, ...] each, by name.

        Of several clips of a video the mean is kept. Tasks that keep nothing have the values of their metrics kept,
        video by video. Names with one number a video become columns, the others arrays.
        """
        return {}

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float] | None:  # noqa: ARG002 - most sum over clips
        """The metrics, by the names that `new_metrics` gives, out of what was `kept` of all videos; None: of sums.

        For a task that answers whole videos (of several clips the mean), or whose metric is no sum (mAP).

        Args:
            kept: [V, ...] each, float64, on the CPU, means over the clips of each of V videos.
        """
        return None

    @abstractmethod
    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], OutputsT]:
        """The best that can be said without looking at the video: what a model must beat.

        Args:
            batches: of the training set; the answer is fitted to their targets.

        Returns:
            A function from a batch to outputs as the readout would give them.
        """


class LabelTask(Task[Tensor]):
    """Base of tasks of what is known of a whole video: its class, or the numbers of one of the cache's label sets.

    Outputs are [B, T, K] (streaming, where the last frame counts) or [B, K] (clip).

    Args:
        protocol: see `Task`.
        num_classes: K, the numbers that the readout answers.
    """

    needs_targets = False

    def __init__(self, *, protocol: str = "streaming", num_classes: int) -> None:
        super().__init__(protocol=protocol)
        self.num_classes = num_classes
        self.last_frame_only = protocol == "streaming"

    @abstractmethod
    def answers(self, outputs: Tensor) -> Tensor:
        """What a clip's outputs say, [B, K] in float64 on the CPU: probabilities, or numbers in the targets' own units.

        The answer for a video is the mean of those of its clips.
        """


def exact(values: Tensor) -> Tensor:
    """Float32 at least, whatever autocast made."""
    return values if values.dtype == torch.float64 else values.float()


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean of the losses of what is valid, or 0 with a graph when there are none."""
    return values.sum() / max(values.numel(), 1)
