"""Readout `pose`: how the camera moved since the frame before, streaming only.

The mean token of a frame through an MLP. The frame before is known to the core alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from vfz.temporal.layers import NumericHead, build_projection
from vfz.temporal.readouts.base import Readout

NUM_OUTPUTS = 9


class PoseReadout(Readout):
    """Nine numbers a frame, `[B, T, 9]` (arXiv 2605.19137).

    The first three are the translation to the frame before in metres, the other six two columns of the rotation before
    Gram-Schmidt (arXiv 1812.07035). The first frame has none before it: its answer means nothing.

    Args:
        dim: D, channels of the core's output.
        readout_dim: width in front of the MLP; there is a Linear where `dim` differs.
        mlp_hidden: width of the MLP.

    Raises:
        UsageError: when the protocol is not `streaming`.
    """

    protocols = ("streaming",)

    def __init__(
        self, dim: int, *, protocol: str = "streaming", readout_dim: int = 1024, mlp_hidden: int = 512
    ) -> None:
        super().__init__(dim, protocol=protocol)
        self.projection = build_projection(dim, readout_dim)
        self.norm = nn.LayerNorm(readout_dim)
        self.head = NumericHead(readout_dim, mlp_hidden, NUM_OUTPUTS)

    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor:  # noqa: ARG002 - it has no inputs
        """See the class."""
        pose_BT9: Tensor = self.head(self.norm(self.projection(tokens_BTND.mean(dim=2))))
        return pose_BT9
