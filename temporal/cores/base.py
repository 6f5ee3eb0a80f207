"""The contract of every temporal core (causal, with a carried state, a step equals the full pass), and core `identity`.

A core turns the token maps of a clip into token maps that know the past. It never sees the future, so the same weights
serve training on whole clips (`forward`) and live video (`step`), and a video of any length can be fed in pieces.
`identity` is a LayerNorm without any time: the baseline that shows what the other cores add.

Activation checkpointing (arXiv 1604.06174) lives here for all of them: each core hands its repeated part (a layer, or
for a recurrence a frame) to `_run_layers` or `_recomputed`, and only what passes between these parts is kept for the
backward pass. That costs one more forward pass and leaves every number as it was, dropout included.

Shape suffixes: B batch, T time, N tokens of a frame, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vfz.pipeline.errors import UsageError

StateT = TypeVar("StateT")
LayerStateT = TypeVar("LayerStateT")
ResultT = TypeVar("ResultT")


class TemporalCore(nn.Module, ABC, Generic[StateT]):
    """Base of all cores. `tests/contracts/core_contract.py` is the executable form of what it promises.

    The state is a tensor or a nested tuple of tensors, described by each core. Its size does not depend on how many
    frames have passed, or grows up to a bound that the core states. None stands for the zero state before the first
    frame. A state that was returned may be passed on any number of times: it is never written to.

    Attributes:
        dim: D, channels of the input and of the output.
        checkpointing: whether activations are computed again in the backward pass instead of being kept. May be changed
            at any time; without gradients it has no effect.
        sizes: which of `num_layers` and `num_heads` the constructor takes.
    """

    checkpointing: bool = False
    sizes: ClassVar[tuple[str, ...]] = ("num_layers",)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x_BTND: Tensor, state: StateT | None = None) -> tuple[Tensor, StateT]:
        """Runs over T consecutive frames.

        Args:
            x_BTND: token maps, oldest frame first.
            state: what an earlier call returned for the frames just before these; None at the start of a video.

        Returns:
            Output `[B, T, N, D]`, where frame t depends on frames 0..t and `state` only, and the state after frame T-1.

        Raises:
            UsageError: when the tokens have another shape than the core was built for, or the state is not of as many
                videos and tokens.
        """
        if x_BTND.dim() != 4 or x_BTND.shape[-1] != self.dim or x_BTND.shape[1] == 0:
            raise UsageError(
                f"the core got tokens of shape {list(x_BTND.shape)}; it takes [B, T, N, {self.dim}] of 1 frame or more"
            )
        num_videos, _, num_tokens, _ = x_BTND.shape
        rows = self.state_rows(num_videos, num_tokens)
        for leaf in _leaves(state):
            if leaf.shape[: len(rows)] != rows:
                raise UsageError(
                    f"the core got a state of shape {list(leaf.shape)} beside {num_videos} videos of {num_tokens} "
                    "tokens; pass the state of the frames just before these, or None at the start of a video"
                )
        return self.run(x_BTND, state)

    @abstractmethod
    def run(self, x_BTND: Tensor, state: StateT | None) -> tuple[Tensor, StateT]:
        """`forward` for tokens and a state that have been checked."""

    def step(self, x_BND: Tensor, state: StateT | None = None) -> tuple[Tensor, StateT]:
        """Runs over one frame: `forward` with T = 1, without the time axis.

        Args:
            x_BND: token map of the frame.
            state: what the call for the frame before returned; None at the first frame.

        Returns:
            Output `[B, N, D]` and the state after this frame.
        """
        y_BTND, state = self(x_BND.unsqueeze(1), state)
        return y_BTND.squeeze(1), state

    def _run_layers(
        self,
        layers: Iterable[Callable[[Tensor, LayerStateT | None], tuple[Tensor, LayerStateT]]],
        x_BTND: Tensor,
        state: Sequence[LayerStateT] | None,
    ) -> tuple[Tensor, tuple[LayerStateT, ...]]:
        """Runs layers one after the other, each with its own part of the state; returns the new parts."""
        new_state = []
        for number, layer in enumerate(layers):
            x_BTND, layer_state = self._recomputed(layer, x_BTND, None if state is None else state[number])
            new_state.append(layer_state)
        return x_BTND, tuple(new_state)

    def _recomputed(self, function: Callable[..., ResultT], *args: Any) -> ResultT:
        """`function(*args)`; with `checkpointing`, what it keeps for the backward pass is computed again there."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*args)
        result: ResultT = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=True)
        return result

    @staticmethod
    def state_rows(num_videos: int, num_tokens: int) -> tuple[int, ...]:
        """What the shape of every tensor of a state starts with: a row for each token position of each video."""
        return (num_videos * num_tokens,)

    @staticmethod
    def default_num_heads(dim: int) -> int:
        """Attention heads where none are asked for: the first of 16, 12, 8, 6, 4, 2, 1 that divides `dim`."""
        return next(heads for heads in (16, 12, 8, 6, 4, 2, 1) if dim % heads == 0)


class IdentityCore(TemporalCore[tuple[()]]):
    """LayerNorm of every token. State: the empty tuple."""

    sizes = ()

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[()] | None) -> tuple[Tensor, tuple[()]]:  # noqa: ARG002
        """See `TemporalCore.run`."""
        return self.output_norm(x_BTND), ()


def _leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, however it nests them."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from _leaves(part)
