"""Readout `depth`: a depth map of every frame, one learned query per patch of it.

Streaming: patches of 1 x 8 x 8 pixels, every frame by itself. Clip: patches of 2 x 8 x 8, from all tokens of the clip.
The queries of a clip stand for its frames, so it takes clips of that length only.

Cost: most of it is the MLP on the queries, (H/8)(W/8) a frame, half as many in clip protocol.
"""

from __future__ import annotations

from torch import Tensor

from vfz.pipeline.errors import UsageError
from vfz.temporal.readouts.attention import AttentionReadout
from vfz.temporal.readouts.base import check_pairs, frames_of_clip

PATCH_PIXELS = 8
_CLIP_PATCH_FRAMES = 2


class DepthReadout(AttentionReadout):
    """Depth in metres `[B, T, H, W]`, without an activation: the loss clamps it (arXiv 2605.19137).

    Args:
        dim: D, channels of the core's output.
        output_size: H = W, a multiple of 8.
        protocol: `streaming` or `clip`.
        readout_dim: width of the attention.
        num_heads: its heads; must divide `readout_dim`.
        num_frames: frames of a clip, even, needed for `clip`. Streaming takes no notice.

    Raises:
        UnknownNameError: when there is no such protocol.
        UsageError: when `num_heads` does not divide `readout_dim`, `output_size` is no multiple of 8, or `num_frames`
            is odd or missing in `clip`.
    """

    def __init__(
        self,
        dim: int,
        output_size: int,
        *,
        protocol: str = "streaming",
        readout_dim: int = 1024,
        num_heads: int = 16,
        num_frames: int | None = None,
    ) -> None:
        if output_size < PATCH_PIXELS or output_size % PATCH_PIXELS:
            raise UsageError(f"output_size is {output_size}; depth maps are made of patches, pass a multiple of 8")
        row_frames, patch_frames, num_patches = 1, 1, output_size // PATCH_PIXELS
        if protocol == "clip":
            row_frames, patch_frames = frames_of_clip(num_frames), _CLIP_PATCH_FRAMES
            check_pairs(row_frames, "the depth readout of a clip")
        super().__init__(
            dim,
            patch_frames * PATCH_PIXELS**2,
            protocol=protocol,
            readout_dim=readout_dim,
            num_heads=num_heads,
            num_queries=row_frames // patch_frames * num_patches**2,
            num_frames=row_frames,
        )
        self.row_frames, self.patch_frames, self.num_patches = row_frames, patch_frames, num_patches

    def answer(self, tokens_BTND: Tensor, **inputs: Tensor) -> Tensor:  # noqa: ARG002 - it has no inputs
        """See the class."""
        num_videos, num_frames = tokens_BTND.shape[:2]
        if self.protocol == "clip" and num_frames != self.row_frames:
            raise UsageError(
                f"the depth readout got {num_frames} frames and was built for clips of {self.row_frames}; "
                "pass clips of that length"
            )
        answers_RQO = self.read(tokens_BTND.reshape(-1, self.row_frames, *tokens_BTND.shape[2:]))
        side = self.num_patches
        patches = answers_RQO.unflatten(1, (-1, side, side)).unflatten(-1, (self.patch_frames, PATCH_PIXELS, -1))
        # [R, time, row, column, frame, y, x] -> [R, time, frame, row, y, column, x]
        pixels = patches.permute(0, 1, 4, 2, 5, 3, 6)
        depth_BTHW: Tensor = pixels.reshape(num_videos, num_frames, side * PATCH_PIXELS, side * PATCH_PIXELS)
        return depth_BTHW
