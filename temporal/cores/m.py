"""Core `m`: Mamba along time, every token position on its own; no mixing within the frame (arXiv 2605.19137).

The cheapest recurrent core: cost is linear in tokens and in frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore
from vfz.temporal.cores.mamba import MambaBlock, MambaState


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
