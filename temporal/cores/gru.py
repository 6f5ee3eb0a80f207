"""Cores `gru` and `mingru`: gated recurrent units along time, every token position on its own.

Both are `m` with another recurrence: the same residual stack, no mixing within the frame, 6 D^2 weights per layer,
about as many as a Mamba layer.

`gru` (arXiv 1406.1078): the gates see the state, so frames follow one another. Each is one matrix product over all
tokens of all videos.

`mingru` (arXiv 2410.01201), of inner width 2 D:

    z = sigmoid(W_z u)      c = W_c u      h_t = (1 - z_t) h_{t-1} + z_t c_t      out = W_out h

Gates and candidates do not see the state: they are matrix products over all frames at once, and only the average h is a
recurrence. h is a weighted mean of candidates, bounded whatever the weights, and is computed as one. The cumulative
products and logarithms of parallel scans, which are numerically delicate, are not needed for 16..64 frames.

Shape suffixes: B batch, T time, N tokens of a frame, D channels, E = expand * D, S = B * N sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.layers import without_autocast


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


class MinGruCore(TemporalCore[tuple[Tensor, ...]]):
    """A stack of x + Dropout(W_out minGRU(LN x)), then a LayerNorm on the output.

    State: one h per layer, float32 `[S, E]`, under autocast too: it sums over the whole past.

    Args:
        dim: D.
        num_layers: minGRU blocks.
        dropout: on the residual branches.
        expand: E / D.
    """

    def __init__(self, dim: int, *, num_layers: int = 4, dropout: float = 0.1, expand: int = 2) -> None:
        super().__init__(dim)
        self.blocks = nn.ModuleList(_MinGruBlock(dim, dropout=dropout, expand=expand) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `TemporalCore.run`."""
        y_BTND, new_state = self._run_layers(self.blocks, x_BTND, state)
        return self.output_norm(y_BTND), new_state


class _MinGruBlock(nn.Module):
    """x + Dropout(W_out minGRU(LN x))."""

    def __init__(self, dim: int, *, dropout: float, expand: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * expand * dim)
        self.out_proj = nn.Linear(expand * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTND: Tensor, h_SE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the block's output `[B, T, N, D]` and h after the last frame."""
        num_videos, _, num_tokens, _ = x_BTND.shape
        u_TSD = self.norm(x_BTND).transpose(0, 1).flatten(1, 2)
        gate_TSE, candidate_TSE = self.in_proj(u_TSD).chunk(2, dim=-1)
        h_TSE = gated_average(torch.sigmoid(gate_TSE), candidate_TSE, h_SE)
        y_BTND = self.out_proj(h_TSE.to(candidate_TSE.dtype)).unflatten(1, (num_videos, num_tokens)).transpose(0, 1)
        return x_BTND + self.dropout(y_BTND), h_TSE[-1].clone()


def gated_average(z_TSE: Tensor, c_TSE: Tensor, h_SE: Tensor | None = None) -> Tensor:
    """h_t = (1 - z_t) h_{t-1} + z_t c_t for t = 0..T-1; differentiable once.

    Half precision is computed in, and returned as, float32. Kept for the backward pass: the inputs and the output.

    Args:
        z_TSE: weights in [0, 1].
        c_TSE: what is averaged.
        h_SE: h before the first frame; None is zero.
    """
    dtype = torch.promote_types(c_TSE.dtype, torch.float32)
    h_SE = c_TSE.new_zeros(c_TSE.shape[1:], dtype=dtype) if h_SE is None else h_SE.to(dtype)
    with without_autocast(c_TSE.device):
        h_TSE: Tensor = _GatedAverage.apply(z_TSE.to(dtype), c_TSE.to(dtype), h_SE)
    return h_TSE


class _GatedAverage(torch.autograd.Function):
    """`gated_average` of tensors of one dtype. Under autograd the loop would keep two more copies of the output."""

    @staticmethod
    def forward(ctx: Any, z_TSE: Tensor, c_TSE: Tensor, before_SE: Tensor) -> Tensor:
        """Writes each h into its place in the output."""
        h_TSE = torch.empty_like(c_TSE, memory_format=torch.contiguous_format)
        h_SE = before_SE
        for t in range(len(c_TSE)):
            h_SE = torch.lerp(h_SE, c_TSE[t], z_TSE[t], out=h_TSE[t])
        ctx.save_for_backward(z_TSE, c_TSE, before_SE, h_TSE)
        return h_TSE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Runs from the last frame to the first; `dh` is the gradient of h_t through its output and later frames."""
        z_TSE, c_TSE, before_SE, h_TSE = ctx.saved_tensors
        dz_TSE, dc_TSE, dh_SE = torch.empty_like(h_TSE), torch.empty_like(h_TSE), torch.zeros_like(before_SE)
        for t in reversed(range(len(h_TSE))):
            dh_SE += dy_TSE[t]
            torch.mul(dh_SE, z_TSE[t], out=dc_TSE[t])
            torch.sub(c_TSE[t], h_TSE[t - 1] if t else before_SE, out=dz_TSE[t]).mul_(dh_SE)
            dh_SE -= dc_TSE[t]
        return dz_TSE, dc_TSE, dh_SE
