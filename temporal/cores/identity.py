"""Core `identity`: a LayerNorm and no time at all. The baseline that shows what the temporal cores add."""

from __future__ import annotations

from torch import Tensor, nn

from vfz.temporal.cores.base import TemporalCore


class IdentityCore(TemporalCore[tuple[()]]):
    """LayerNorm of every token. State: the empty tuple."""

    sizes = ()

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.output_norm = nn.LayerNorm(dim)

    def run(self, x_BTND: Tensor, state: tuple[()] | None) -> tuple[Tensor, tuple[()]]:  # noqa: ARG002
        """See `TemporalCore.run`."""
        return self.output_norm(x_BTND), ()
