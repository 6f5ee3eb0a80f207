"""Readout `boxes`: follows boxes from where they were at the first frame, streaming only.

The query of a frame is the code of the box predicted for the frame before; predictions are detached, so no gradient
passes from frame to frame. The first frame is predicted too. The code is chaotic (see `fourier.py`): two runs that
differ in the last bit drift apart after some frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.temporal.layers import NumericHead
from vfz.temporal.readouts.base import Readout
from vfz.temporal.readouts.decoder import FourierQueryEncoder, QueryDecoder


class BoxesReadout(Readout):
    """Boxes (cx, cy, w, h), in units of the crop that the encoder saw; unbounded (arXiv 2605.19137).

    Input: `init_box_cxcywh` `[B, 4]`, or `[B, O, 4]` for O objects, which do not see one another. Output: `[B, T, 4]`,
    or `[B, O, T, 4]`. With T = 1 it is one step: pass the last prediction as the next frame's `init_box_cxcywh`.

    Args:
        dim: D, channels of the core's output.
        readout_dim: width of the decoder.
        num_heads: its heads; must divide `readout_dim`.
        mlp_hidden: width of the MLP behind the box's code.

    Raises:
        UsageError: when `num_heads` does not divide `readout_dim`, or the protocol is not `streaming`.
    """

    input_names = ("init_box_cxcywh",)
    protocols = ("streaming",)

    def __init__(
        self,
        dim: int,
        *,
        protocol: str = "streaming",
        readout_dim: int = 1024,
        num_heads: int = 4,
        mlp_hidden: int = 512,
    ) -> None:
        super().__init__(dim, protocol=protocol)
        self.query_encoder = FourierQueryEncoder(4, mlp_hidden=mlp_hidden, readout_dim=readout_dim)
        self.decoder = QueryDecoder(dim, readout_dim=readout_dim, num_heads=num_heads)
        self.head = NumericHead(readout_dim, readout_dim, 4)

    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor:
        """See the class."""
        first = inputs["init_box_cxcywh"]
        if first.dim() not in {2, 3} or first.shape[-1] != 4:
            raise UsageError(f"init_box_cxcywh has shape {list(first.shape)}; pass [B, 4] or [B, objects, 4]")
        box_BO4 = first.unsqueeze(1) if first.dim() == 2 else first
        memory = self.decoder.prepare(tokens_BTND, num_queries=box_BO4.shape[1])
        boxes = []
        for t in range(tokens_BTND.shape[1]):
            query_BO1P = self.query_encoder(box_BO4.detach()).unsqueeze(2)
            box_BO4 = self.head(self.decoder(query_BO1P, memory.frame(t))).flatten(1, 3)
            boxes.append(box_BO4)
        boxes_BOT4 = torch.stack(boxes, dim=2)
        return boxes_BOT4.squeeze(1) if first.dim() == 2 else boxes_BOT4
