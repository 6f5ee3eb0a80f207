"""The contract of every readout: the output of a core becomes a task's answer.

Two protocols (arXiv 2605.19137). `streaming`: every frame is answered from the core's output at that frame alone, so
memory of the past must be in the core. `clip`: one answer from all frames of the clip.

Shape suffixes: B batch, T time, N tokens of a frame, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn

from vfz.pipeline.errors import UnknownNameError, UsageError

Protocol = Literal["streaming", "clip"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


class Readout(nn.Module, ABC):
    """Base of all readouts. `tests/contracts/readout_contract.py` is the executable form of what it promises.

    Args:
        dim: D, channels of the core's output.
        protocol: one of `protocols`.

    Attributes:
        input_names: keyword inputs that `forward` needs beside the tokens; each starts with the batch.
        protocols: those that the task has.

    Raises:
        UnknownNameError: when `protocol` is neither `streaming` nor `clip`.
        UsageError: when the task does not have that protocol.
    """

    input_names: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[str, ...]] = PROTOCOLS

    def __init__(self, dim: int, *, protocol: str) -> None:
        super().__init__()
        self.check_protocol(protocol)
        self.dim = dim
        self.protocol = protocol

    @classmethod
    def check_protocol(cls, protocol: str) -> None:
        """Refuses a protocol that the task does not have.

        Raises:
            UnknownNameError: when there is no such protocol.
            UsageError: when the task does not have it.
        """
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        if protocol not in cls.protocols:
            raise UsageError(f"this task has no protocol {protocol!r}; use {' or '.join(cls.protocols)}")

    def forward(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Answers from the core's output.

        Args:
            tokens_BTND: what the core made of the frames, oldest first.
            **inputs: what `input_names` lists.

        Returns:
            What the task's class says: a tensor, or tensors by name.

        Raises:
            UsageError: when the tokens or an input have another shape than the readout was built for, or an input is
                missing or not among `input_names`.
        """
        if tokens_BTND.dim() != 4 or tokens_BTND.shape[-1] != self.dim:
            raise UsageError(
                f"the readout got tokens of shape {list(tokens_BTND.shape)}; it takes [B, T, N, {self.dim}]"
            )
        if set(inputs) != set(self.input_names):
            raise UsageError(
                f"the readout got the inputs {', '.join(sorted(inputs)) or 'none'} beside the tokens; "
                f"it takes {', '.join(self.input_names) or 'none'}"
            )
        for name, value in inputs.items():
            if value.dim() == 0 or value.shape[0] != tokens_BTND.shape[0]:
                raise UsageError(
                    f"{name} has shape {list(value.shape)} beside tokens of {tokens_BTND.shape[0]} clips; "
                    "pass one row per clip"
                )
        return self.answer(tokens_BTND, **inputs)

    @abstractmethod
    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """`forward` for tokens and inputs that have been checked."""


def frames_of_clip(num_frames: int | None) -> int:
    """`num_frames`, which a readout of the clip protocol cannot do without.

    Raises:
        UsageError: when it is None.
    """
    if num_frames is None:
        raise UsageError("the clip protocol needs num_frames, the frames of a training clip; pass num_frames=16")
    return num_frames


def check_pairs(num_frames: int, what: str) -> None:
    """Refuses clips that cannot be cut into pairs of frames.

    Raises:
        UsageError: when `num_frames` is odd.
    """
    if num_frames % 2:
        raise UsageError(f"{what} answers frames in pairs, and {num_frames} is odd; pass {num_frames + 1} frames")
