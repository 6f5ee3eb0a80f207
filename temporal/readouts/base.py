"""The contract of every readout: the output of a core becomes a task's answer.

Two protocols (arXiv 2605.19137). `streaming`: every frame is answered from the core's output at that frame alone, so
memory of the past must be in the core. `clip`: one answer from all frames of the clip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from torch import Tensor, nn

from vfz.pipeline.errors import UnknownNameError

Protocol = Literal["streaming", "clip"]


class Readout(nn.Module, ABC):
    """Base of all readouts.

    Attributes:
        protocol: `streaming` or `clip`.

    Raises:
        UnknownNameError: when `protocol` is neither.
    """

    def __init__(self, protocol: str) -> None:
        super().__init__()
        if protocol not in get_args(Protocol):
            raise UnknownNameError("protocol", protocol, get_args(Protocol))
        self.protocol = protocol

    @abstractmethod
    def forward(self, x_BTND: Tensor) -> Tensor:
        """Answers from the core's output: `[B, T, ...]` when streaming, `[B, ...]` for a clip."""
