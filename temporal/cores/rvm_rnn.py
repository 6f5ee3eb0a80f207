"""Core `rvm_rnn`: the gated transformer recurrence of RVM (arXiv 2512.13684).

    u = sigmoid(W1 x + W2 s)    r = sigmoid(W3 x + W4 s)    h = Tx(x, r * LN(s))    s <- (1 - u) s + u h    y = LN(s)

A GRU whose candidate is a transformer: the frame's tokens query the gated state. It is nonlinear in s, so frames are
processed strictly one after the other; what depends on x alone (W1 x, W3 x) is computed for all frames at once.

Shape suffixes: B batch, T time, N tokens of a frame, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.layers import Attention, Mlp

# Of every LayerNorm but the output norm, which has torch's 1e-5.
_INNER_EPS = 1e-6
# The published S, B and L models. A released checkpoint does not store its number of heads.
_PUBLISHED_HEADS = {384: 8, 768: 12, 1024: 16}


class RvmRnnCore(TemporalCore[Tensor]):
    """The RVM recurrence.

    State: s, `[B, N, D]`, before the output norm.

    Args:
        dim: D.
        num_layers: blocks of the transformer.
        num_heads: heads of its attentions; must divide `dim`.

    Raises:
        UsageError: when `num_heads` does not divide `dim`.
    """

    sizes = ("num_layers", "num_heads")

    def __init__(self, dim: int, *, num_layers: int = 4, num_heads: int = 16) -> None:
        super().__init__(dim)
        self.input_update = nn.Linear(dim, dim, bias=False)
        self.input_reset = nn.Linear(dim, dim, bias=False)
        self.state_update = nn.Linear(dim, dim, bias=False)
        self.state_reset = nn.Linear(dim, dim, bias=False)
        self.state_layer_norm = nn.LayerNorm(dim, eps=_INNER_EPS)
        self.transformer = _CrossTransformer(dim, num_layers=num_layers, num_heads=num_heads)
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `TemporalCore.run`."""
        dtype = self.state_update.weight.dtype  # s sums over the past: not in the tokens' precision, if that is less
        s_BND = torch.zeros_like(x_BTND[:, 0], dtype=dtype) if state is None else state.to(dtype)
        from_input = torch.cat([self.input_update(x_BTND), self.input_reset(x_BTND)], dim=-1).unbind(dim=1)
        state_weight = torch.cat([self.state_update.weight, self.state_reset.weight])
        states = []
        for x_BND, input_gates in zip(x_BTND.unbind(dim=1), from_input, strict=True):
            s_BND = self._recomputed(self._next_state, x_BND, input_gates, state_weight, s_BND)
            states.append(s_BND)
        return self.output_norm(torch.stack(states, dim=1)), s_BND

    def _next_state(self, x_BND: Tensor, input_gates: Tensor, state_weight: Tensor, s_BND: Tensor) -> Tensor:
        """One frame of the recurrence; `input_gates` is [W1 x, W3 x], `state_weight` [W2; W4]."""
        gates = torch.sigmoid(input_gates + F.linear(s_BND, state_weight))
        update_BND, reset_BND = gates.chunk(2, dim=-1)
        h_BND: Tensor = self.transformer(x_BND, reset_BND * self.state_layer_norm(s_BND))
        return s_BND + update_BND * (h_BND - s_BND)

    @staticmethod
    def state_rows(num_videos: int, num_tokens: int) -> tuple[int, ...]:
        """The state is a token map."""
        return num_videos, num_tokens

    @staticmethod
    def default_num_heads(dim: int) -> int:
        """The heads of RVM-S, -B and -L (8, 12, 16) for their widths 384, 768, 1024; else as in the other cores."""
        return _PUBLISHED_HEADS.get(dim) or TemporalCore.default_num_heads(dim)


class _CrossTransformer(nn.Module):
    """Blocks that read the state by cross-attention, then a LayerNorm."""

    def __init__(self, dim: int, *, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_CrossBlock(dim, num_heads) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim, eps=_INNER_EPS)

    def forward(self, x_BND: Tensor, context_BND: Tensor) -> Tensor:
        """`x_BND` queries `context_BND` in every block."""
        for layer in self.layers:
            x_BND = layer(x_BND, context_BND)
        y_BND: Tensor = self.output_norm(x_BND)
        return y_BND


class _CrossBlock(nn.Module):
    """Cross-attention, MLP, self-attention, in this order; the context is taken as it is, only the query is normed."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ca_norm = nn.LayerNorm(dim, eps=_INNER_EPS)
        self.ca_attn = Attention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=_INNER_EPS)
        self.mlp = Mlp(dim)
        self.sa_norm = nn.LayerNorm(dim, eps=_INNER_EPS)
        self.sa_attn = Attention(dim, num_heads)

    def forward(self, x_BND: Tensor, context_BND: Tensor) -> Tensor:
        """Returns the block's output `[B, N, D]`."""
        x_BND = x_BND + self.ca_attn(self.ca_norm(x_BND), context_BND)
        x_BND = x_BND + self.mlp(self.mlp_norm(x_BND))
        y_BND: Tensor = x_BND + self.sa_attn(self.sa_norm(x_BND))
        return y_BND
