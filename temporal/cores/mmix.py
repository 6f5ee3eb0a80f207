"""Cores `m`, `mmix` and `gmmix`: the paper's recurrent cores, built of Mamba layers along time (arXiv 2605.19137).

- `m`: Mamba along time, every token position on its own, no mixing within the frame. The cheapest: its cost is linear
  in tokens and in frames.
- `mmix`: attention within the frame, then Mamba along time, layer by layer. Attention adds N per token to the cost.
- `gmmix`: `mmix` with a learned gate between what the frame says and what the past adds. The paper's best recurrent
  core on dense tasks; the gate adds 2 D^2 weights per layer.

      z = spatial(x)      h = z + Mamba(LN z)      u = sigmoid(gate([z; h]))      x = (1 - u) z + u h

Shape suffixes: B batch, T time, N tokens of a frame, D channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.cores.mamba import MambaBlock, MambaState
from vfz.temporal.layers import SpatialBlock


class MCore(TemporalCore[tuple[MambaState, ...]]):
    """A stack of x + Dropout(Mamba(LN x)), then a LayerNorm on the output.

    State: one `MambaState` per layer, sequences S = B * N.

    Args:
        dim: D.
        num_layers: Mamba blocks.
        dropout: on the residual branches.
    """

    def __init__(self, dim: int, *, num_layers: int = 4, dropout: float = 0.1) -> None:
        super().__init__(dim)
        self.mamba_blocks = nn.ModuleList(MambaBlock(dim, dropout=dropout) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[MambaState, ...] | None) -> tuple[Tensor, tuple[MambaState, ...]]:
        """See `TemporalCore.run`."""
        y_BTND, new_state = self._run_layers(self.mamba_blocks, x_BTND, state)
        return self.output_norm(y_BTND), new_state


class MMixCore(TemporalCore[tuple[MambaState, ...]]):
    """Layers of a `SpatialBlock` followed by a `MambaBlock`, then a LayerNorm on the output.

    State: one `MambaState` per layer, sequences S = B * N.

    Args:
        dim: D.
        num_layers: pairs of blocks.
        num_heads: heads of the spatial attention; must divide `dim`.
        dropout: on the residual branches and inside the MLPs.
        drop_path: probability that a frame skips a branch of a spatial block in training.

    Raises:
        UsageError: when `num_heads` does not divide `dim`.
    """

    sizes = ("num_layers", "num_heads")

    def __init__(
        self, dim: int, *, num_layers: int = 4, num_heads: int = 16, dropout: float = 0.1, drop_path: float = 0.1
    ) -> None:
        super().__init__(dim)
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(dim, num_heads=num_heads, dropout=dropout, drop_path=drop_path) for _ in range(num_layers)
        )
        self.mamba_blocks = nn.ModuleList(MambaBlock(dim, dropout=dropout) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[MambaState, ...] | None) -> tuple[Tensor, tuple[MambaState, ...]]:
        """See `TemporalCore.run`."""
        layers = (partial(_mix, *blocks) for blocks in zip(self.spatial_blocks, self.mamba_blocks, strict=True))
        y_BTND, new_state = self._run_layers(layers, x_BTND, state)
        return self.output_norm(y_BTND), new_state


class GMMixCore(TemporalCore[tuple[MambaState, ...]]):
    """Layers of a `SpatialBlock`, a `MambaBlock` and a gate between the two, then a LayerNorm on the output.

    State: one `MambaState` per layer, sequences S = B * N.

    Args:
        dim: D.
        num_layers: triples of spatial block, Mamba block and gate.
        num_heads: heads of the spatial attention; must divide `dim`.
        gate_hidden_dim: None for a linear gate, else the width of a gate of two layers with GELU between.
        dropout: inside the spatial blocks only; the Mamba branch is gated, not dropped.
        drop_path: probability that a frame skips a branch of a spatial block in training.

    Raises:
        UsageError: when `num_heads` does not divide `dim`.
    """

    sizes = ("num_layers", "num_heads")

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int = 4,
        num_heads: int = 16,
        gate_hidden_dim: int | None = None,
        dropout: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(dim)
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(dim, num_heads=num_heads, dropout=dropout, drop_path=drop_path) for _ in range(num_layers)
        )
        self.mamba_blocks = nn.ModuleList(MambaBlock(dim, dropout=0.0) for _ in range(num_layers))
        self.gates = nn.ModuleList(_build_gate(dim, gate_hidden_dim) for _ in range(num_layers))
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[MambaState, ...] | None) -> tuple[Tensor, tuple[MambaState, ...]]:
        """See `TemporalCore.run`."""
        blocks = zip(self.spatial_blocks, self.mamba_blocks, self.gates, strict=True)
        y_BTND, new_state = self._run_layers((partial(_mix_gated, *layer) for layer in blocks), x_BTND, state)
        return self.output_norm(y_BTND), new_state


def _mix(
    spatial_block: nn.Module, mamba_block: nn.Module, x_BTND: Tensor, state: MambaState | None
) -> tuple[Tensor, MambaState]:
    """One layer."""
    mixed: tuple[Tensor, MambaState] = mamba_block(spatial_block(x_BTND), state)
    return mixed


def _mix_gated(
    spatial_block: nn.Module, mamba_block: nn.Module, gate: nn.Module, x_BTND: Tensor, state: MambaState | None
) -> tuple[Tensor, MambaState]:
    """One layer."""
    z_BTND = spatial_block(x_BTND)
    h_BTND, state = mamba_block(z_BTND, state)
    u_BTND = torch.sigmoid(gate(torch.cat([z_BTND, h_BTND], dim=-1)))
    return z_BTND + u_BTND * (h_BTND - z_BTND), state


def _build_gate(dim: int, hidden_dim: int | None) -> nn.Module:
    if hidden_dim is None:
        return nn.Linear(2 * dim, dim)
    return nn.Sequential(nn.Linear(2 * dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
