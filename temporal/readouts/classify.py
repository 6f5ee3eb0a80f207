"""Readout `classify`: class logits, for every frame (streaming) or for the clip.

Streaming: a video's class is the answer at its last frame, when the core has seen all of it. Clip: all tokens of all
frames are attended to at once, with a learned time embedding.
"""

from __future__ import annotations

from torch import Tensor

from vfz.temporal.readouts.attention import AttentionReadout
from vfz.temporal.readouts.base import frames_of_clip


class ClassifyReadout(AttentionReadout):
    """One learned query, one linear classifier (arXiv 2605.19137, 2512.13684).

    Args:
        dim: D, channels of the core's output.
        num_classes: logits; `multilabel` and `regression`, which have this readout too, have one a label or target.
        protocol: `streaming` or `clip`.
        readout_dim: width of the attention.
        num_heads: its heads; must divide `readout_dim`.
        num_frames: length of the time embedding, needed for `clip`; other lengths are interpolated. Streaming has no
            time embedding and takes no notice.

    Raises:
        UnknownNameError: when there is no such protocol.
        UsageError: when `num_heads` does not divide `readout_dim`, or `clip` is asked for without `num_frames`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        protocol: str = "streaming",
        readout_dim: int = 768,
        num_heads: int = 12,
        num_frames: int | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_classes,
            protocol=protocol,
            readout_dim=readout_dim,
            num_heads=num_heads,
            num_frames=frames_of_clip(num_frames) if protocol == "clip" else None,
        )

    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor:  # noqa: ARG002 - it has no inputs
        """Logits `[B, T, classes]` when streaming, `[B, classes]` for a clip."""
        if self.protocol == "clip":
            return self.read(tokens_BTND).squeeze(1)
        frames_R1ND = tokens_BTND.flatten(0, 1).unsqueeze(1)
        return self.read(frames_R1ND).view(*tokens_BTND.shape[:2], -1)
