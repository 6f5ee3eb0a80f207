"""The contract of a task: what its readout is told, what it is trained for, how it is measured.

The readout of a task has the task's name. Its outputs [B, ...] and a batch go into `loss` and into `Metrics.update`;
everything a task needs to know about the truth stands in the batch (`TargetBatch`).

Shape suffixes: B clips, T frames, K classes, O objects, Q points asked for, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Generic

from torch import Tensor, nn

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.metrics import Metrics, OutputsT
from vfz.temporal.readouts.base import PROTOCOLS
from vfz.temporal.target_batch import TargetBatch


class Task(nn.Module, ABC, Generic[OutputsT]):
    """Base of all tasks; a module, so that what a loss learns (the balance of `pose`) is trained with the model.

    Attributes:
        name: in the registries of tasks and of readouts.
        protocols: which of `streaming` and `clip` it has.
        input_names: of the batch's targets, those that the readout is given.
        headline: the metric people quote.
        higher_is_better: of the headline.
        needs_targets: whether it needs more than labels (`targets.npz`).
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
    needs_targets: ClassVar[bool] = True
    last_frame_only: bool = False

    def __init__(self, *, protocol: str = "streaming") -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        if protocol not in self.protocols:
            raise UsageError(f"task {self.name} has no {protocol} protocol; use {' or '.join(self.protocols)}")
        self.protocol = protocol

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

    @abstractmethod
    def constant_predictor(self, batches: Iterable[TargetBatch]) -> Callable[[TargetBatch], OutputsT]:
        """The best that can be said without looking at the video: what a model must beat.

        Args:
            batches: of the training set; the answer is fitted to their targets.

        Returns:
            A function from a batch to outputs as the readout would give them.
        """
