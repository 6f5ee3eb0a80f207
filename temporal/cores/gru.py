"""Core `gru`: gated recurrent units (arXiv 1406.1078) along time, every token position on its own.

`m` with another recurrence: no mixing within the frame, the same residual stack. What differs between the two in a
table is the recurrence. A GRU's gates see its state, so its frames follow one another; each is one matrix product over
all tokens of all videos. 6 D^2 weights per layer, about as many as a Mamba layer.

Shape suffixes: B batch, T time, N tokens of a frame, D channels, S = B * N sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore


class GruCore(TemporalCore[tuple[Tensor, ...]]):
    """A stack of x + Dropout(GRU(LN x)), then a LayerNorm on the output.

    State: one h per layer, `[S, D]`.

    Args:
        dim: D.
        num_layers: GRU blocks.
        dropout: on the residual branches.
    """

    def __init__(self, dim: int, *, num_layers: int = 4, dropout: float = 0.1) -> None:
        super().__init__(dim)
        self.blocks = nn.ModuleList(_GruBlock(dim, dropout=dropout) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `TemporalCore.run`."""
        y_BTND, new_state = self._run_layers(self.blocks, x_BTND, state)
        return self.output_norm(y_BTND), new_state


class _GruBlock(nn.Module):
    """x + Dropout(GRU(LN x))."""

    def __init__(self, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gru = nn.GRU(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTND: Tensor, h_SD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the block's output `[B, T, N, D]` and h after the last frame."""
        num_videos, _, num_tokens, _ = x_BTND.shape
        u_TSD = self.norm(x_BTND).transpose(0, 1).flatten(1, 2)
        h_1SD = torch.zeros_like(u_TSD[:1]) if h_SD is None else h_SD.to(u_TSD.dtype).unsqueeze(0)
        y_TSD, h_1SD = self.gru(u_TSD, h_1SD)
        y_BTND = y_TSD.unflatten(1, (num_videos, num_tokens)).transpose(0, 1)
        return x_BTND + self.dropout(y_BTND), h_1SD.squeeze(0)
