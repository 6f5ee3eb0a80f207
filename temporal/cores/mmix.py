"""Core `mmix`: attention within the frame, then Mamba along time, layer by layer (arXiv 2605.19137).

Attention adds N per token to the cost of `m`; along time it stays linear.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.cores.mamba import MambaBlock, MambaState
from vfz.temporal.layers import SpatialBlock


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


def _mix(
    spatial_block: nn.Module, mamba_block: nn.Module, x_BTND: Tensor, state: MambaState | None
) -> tuple[Tensor, MambaState]:
    """One layer."""
    mixed: tuple[Tensor, MambaState] = mamba_block(spatial_block(x_BTND), state)
    return mixed
