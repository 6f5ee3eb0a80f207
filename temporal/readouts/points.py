"""Readout `points`: where a point of one frame is in every frame, and whether it is seen there.

Streaming: the point's code is asked of every frame by itself. Clip: T/2 copies of it with learned time embeddings,
which see one another, are asked of the whole clip, and each answers two frames. Points never see one another: all of a
clip are answered together, from keys and values that are made once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfz.pipeline.errors import UsageError
from vfz.temporal.layers import NumericHead, resize_time
from vfz.temporal.readouts.base import Readout, check_pairs, frames_of_clip
from vfz.temporal.readouts.decoder import FourierQueryEncoder, QueryDecoder

# What stands at the query's own frame, where the answer is known.
KNOWN_VISIBILITY_LOGIT = 10.0
KNOWN_UNCERTAINTY_LOGIT = -10.0
_FRAMES_PER_QUERY = 2
_INIT_STD = 0.02


class PointsReadout(Readout):
    """Tracks of points (arXiv 2605.19137, 2512.13684).

    Inputs: `query_xy` `[B, 2]` or `[B, Q, 2]` in [0, 1] of the crop, and `query_frame` `[B]` or `[B, Q]` (int64), the
    frame that the query was taken from. Outputs by name, with Q only where the inputs have it:

    - `xy` `[B, Q, T, 2]` in [0, 1];
    - `visibility_logit` `[B, Q, T]`; visible where it is above 0;
    - `uncertainty_logit` `[B, Q, T]`.

    At `query_frame` the answer is the query, visibility +10, uncertainty -10; a query from outside these T frames
    overwrites nothing.

    Args:
        dim: D, channels of the core's output.
        protocol: `streaming` or `clip`.
        readout_dim: width of the decoder.
        num_heads: its heads; must divide `readout_dim`.
        mlp_hidden: width of the MLP behind the point's code.
        num_frames: frames of a training clip, even, needed for `clip`; its time embedding is interpolated to other even
            lengths. Streaming has none and takes no notice.

    Raises:
        UnknownNameError: when there is no such protocol.
        UsageError: when `num_heads` does not divide `readout_dim`, or `num_frames` is odd or missing in `clip`.
    """

    input_names = ("query_xy", "query_frame")
    time_embedding: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        protocol: str = "streaming",
        readout_dim: int = 1024,
        num_heads: int = 8,
        mlp_hidden: int = 512,
        num_frames: int | None = None,
    ) -> None:
        super().__init__(dim, protocol=protocol)
        self.query_encoder = FourierQueryEncoder(2, mlp_hidden=mlp_hidden, readout_dim=readout_dim)
        self.decoder = QueryDecoder(dim, readout_dim=readout_dim, num_heads=num_heads)
        self.register_parameter("time_embedding", None)
        if protocol == "clip":
            num_frames = frames_of_clip(num_frames)
            check_pairs(num_frames, "the points readout of a clip")
            num_steps = num_frames // _FRAMES_PER_QUERY
            self.time_embedding = nn.Parameter(torch.empty(1, num_steps, readout_dim).normal_(std=_INIT_STD))
        self.head = NumericHead(
            readout_dim, readout_dim // 2, 4 if self.time_embedding is None else 4 * _FRAMES_PER_QUERY
        )

    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """See the class."""
        query_xy, query_frame = inputs["query_xy"], inputs["query_frame"]
        if query_xy.dim() not in {2, 3} or query_xy.shape[-1] != 2 or query_frame.shape != query_xy.shape[:-1]:
            raise UsageError(
                f"query_xy has shape {list(query_xy.shape)} and query_frame {list(query_frame.shape)}; "
                "pass [B, 2] and [B], or [B, queries, 2] and [B, queries]"
            )
        single = query_xy.dim() == 2
        xy_BQ2, frame_BQ = (query_xy.unsqueeze(1), query_frame.unsqueeze(1)) if single else (query_xy, query_frame)
        query_BQP = self.query_encoder(xy_BQ2)
        if self.time_embedding is None:
            raw_BQT4 = self._ask_frames(tokens_BTND, query_BQP)
        else:
            raw_BQT4 = self._ask_clip(tokens_BTND, query_BQP, self.time_embedding)
        answers = _overwrite_query_frame(raw_BQT4, xy_BQ2, frame_BQ)
        return {name: value.squeeze(1) for name, value in answers.items()} if single else answers

    def _ask_frames(self, tokens_BTND: Tensor, query_BQP: Tensor) -> Tensor:
        memory = self.decoder.prepare(tokens_BTND, num_queries=query_BQP.shape[1])
        y_BTQP = self.decoder(query_BQP.unsqueeze(2), memory).squeeze(3)
        raw_BQT4: Tensor = self.head(y_BTQP).transpose(1, 2)
        return raw_BQT4

    def _ask_clip(self, tokens_BTND: Tensor, query_BQP: Tensor, time_embedding: Tensor) -> Tensor:
        num_frames = tokens_BTND.shape[1]
        check_pairs(num_frames, "the points readout of a clip")
        query_BQLP = query_BQP.unsqueeze(2) + resize_time(time_embedding, num_frames // _FRAMES_PER_QUERY)
        memory = self.decoder.prepare(
            tokens_BTND.flatten(1, 2).unsqueeze(1), num_queries=query_BQLP.shape[1] * query_BQLP.shape[2]
        )
        y_BQLP = self.decoder(query_BQLP, memory).squeeze(1)
        raw_BQT4: Tensor = self.head(y_BQLP).unflatten(-1, (_FRAMES_PER_QUERY, 4)).flatten(2, 3)
        return raw_BQT4


def _overwrite_query_frame(raw_BQT4: Tensor, xy_BQ2: Tensor, frame_BQ: Tensor) -> dict[str, Tensor]:
    """Names the raw answers, and puts what is known at the query's own frame."""
    frames_T = torch.arange(raw_BQT4.shape[2], device=raw_BQT4.device)
    known_BQT = frame_BQ.unsqueeze(-1) == frames_T
    xy_BQT2 = raw_BQT4[..., :2].sigmoid()
    return {
        "xy": torch.where(known_BQT.unsqueeze(-1), xy_BQ2.unsqueeze(2).to(xy_BQT2.dtype), xy_BQT2),
        "visibility_logit": raw_BQT4[..., 2].masked_fill(known_BQT, KNOWN_VISIBILITY_LOGIT),
        "uncertainty_logit": raw_BQT4[..., 3].masked_fill(known_BQT, KNOWN_UNCERTAINTY_LOGIT),
    }
