"""Small layers that several readouts share."""

from __future__ import annotations

from torch import Tensor, nn

from vfz.temporal.autocast import without_autocast


def build_projection(dim: int, readout_dim: int) -> nn.Module:
    """A Linear from `dim` to `readout_dim`; nothing where they are equal, as in the paper."""
    return nn.Identity() if dim == readout_dim else nn.Linear(dim, readout_dim)


class NumericHead(nn.Sequential):
    """Linear, GELU, Linear, in float32 even under autocast: the 8 bits of bfloat16 are too few for a coordinate."""

    def __init__(self, readout_dim: int, hidden_dim: int, num_outputs: int) -> None:
        super().__init__(nn.Linear(readout_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[*, readout_dim]` -> `[*, num_outputs]`."""
        with without_autocast(x.device):
            x = x.to(next(self.parameters()).dtype)
            for layer in self:
                x = layer(x)
        return x
