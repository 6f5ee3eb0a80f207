"""From a decoded frame to the encoder's square input.

Two steps: `resize_crop` takes frames of any size and keeps uint8, so that what is compared, drawn and kept as golden
frames is what an image is; `normalise` takes batches of squares. Both run on the device.

Resizing on the CPU is torch's antialiased uint8 kernel: the same filters as PIL's, within one grey level of it, and
some 4 times faster. Other devices have the filter for floats only; its result is rounded, and is within one grey level
of the CPU's. An image smaller than the target is enlarged with the same filter, unscaled.

Shapes: B frames, C = 3 channels (RGB), H x W pixels of the source, S the side of the square.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from vfz.pipeline.errors import UsageError
from vfz.pipeline.views import ViewCrop

PREPROCESS_VERSION = 1

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize the short side, crop the centre square, normalise.

    Attributes:
        image_size: side S of the square in pixels.
        crop_fraction: part of the short side that the square keeps, in (0, 1]; 1.0 keeps all of it, as in the paper.
        interpolation: the antialiased filter, `bilinear` or `bicubic`.
        mean, std: per channel (R, G, B), of pixels in [0, 1].
    """

    image_size: int
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"image size {self.image_size} is not a side in pixels; give 1 or more")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"crop fraction {self.crop_fraction} is not in (0, 1]; 1.0 keeps the whole short side")
        if self.interpolation not in get_args(Interpolation):
            allowed = " or ".join(get_args(Interpolation))
            raise UsageError(f"interpolation {self.interpolation!r} is not offered; give {allowed}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UsageError(f"mean {self.mean} and std {self.std} must be three numbers each, with std above 0")

    def resize_crop(self, pixels_HWC: np.ndarray) -> torch.Tensor:
        """The centre square of one frame, on the CPU.

        Args:
            pixels_HWC: uint8 RGB, of any size.

        Returns:
            uint8 [3, S, S], in memory of its own.
        """
        return self.resize_crop_frames(_frames_of_one(pixels_HWC))[0]

    def resize_crop_frames(self, frames_BHWC: torch.Tensor) -> torch.Tensor:
        """The centre squares of frames of one size, on their device.

        Args:
            frames_BHWC: uint8 RGB.

        Returns:
            uint8 [B, 3, S, S], in memory of its own.
        """
        resized_height, resized_width = self._resized(*frames_BHWC.shape[1:3])
        frames_BCHW = self._resize(frames_BHWC.permute(0, 3, 1, 2), resized_height, resized_width)
        top, left = self._offsets(resized_height, resized_width)
        squares_BCSS = frames_BCHW[..., top : top + self.image_size, left : left + self.image_size]
        return squares_BCSS.clone(memory_format=torch.contiguous_format)

    def resize_view(self, pixels_HWC: np.ndarray, crop: ViewCrop) -> torch.Tensor:
        """A view's part of one frame, on the CPU, resized to the square without regard to its proportions.

        Args:
            pixels_HWC: uint8 RGB, of any size.
            crop: which part.

        Returns:
            uint8 [3, S, S], in memory of its own.
        """
        return self.resize_view_frames(_frames_of_one(pixels_HWC), crop)[0]

    def resize_view_frames(self, frames_BHWC: torch.Tensor, crop: ViewCrop) -> torch.Tensor:
        """The same part of frames of one size, on their device.

        Args:
            frames_BHWC: uint8 RGB.
            crop: which part.

        Returns:
            uint8 [B, 3, S, S], in memory of its own.
        """
        parts_BHWC = frames_BHWC[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        squares_BCSS = self._resize(parts_BHWC.permute(0, 3, 1, 2), self.image_size, self.image_size)
        if crop.mirrored:
            squares_BCSS = squares_BCSS.flip(-1)
        return squares_BCSS.clone(memory_format=torch.contiguous_format)

    def normalise(self, frames_BCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] to float32 `(x / 255 - mean) / std`, on the frames' own device."""
        mean_C11, std_C11 = (
            _channel_values(self.mean, frames_BCHW.device),
            _channel_values(self.std, frames_BCHW.device),
        )
        return (frames_BCHW.to(torch.float32) / 255 - mean_C11) / std_C11

    def crop_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a `height` x `width` frame that the encoder sees.

        Returns:
            (x0, y0, x1, y1), normalised to the full frame: (0, 0, 1, 1) is all of it.
        """
        resized_height, resized_width = self._resized(height, width)
        top, left = self._offsets(resized_height, resized_width)
        return (
            left / resized_width,
            top / resized_height,
            (left + self.image_size) / resized_width,
            (top + self.image_size) / resized_height,
        )

    def _resize(self, frames_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Frames as uint8 [B, 3, height, width]."""
        if frames_BCHW.shape[2:] == (height, width):
            return frames_BCHW
        if frames_BCHW.device.type != "cpu":
            frames_BCHW = frames_BCHW.to(torch.float32)
        return resize_frames(frames_BCHW, height, width, interpolation=self.interpolation)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize: the short side at its target, the long one in proportion."""
        if height < 1 or width < 1:
            raise UsageError(f"a frame of {height} x {width} pixels cannot be resized; give at least 1 x 1")
        short = round(self.image_size / self.crop_fraction)
        scale = short / min(height, width)
        return (short, round(width * scale)) if height <= width else (round(height * scale), short)

    def _offsets(self, resized_height: int, resized_width: int) -> tuple[int, int]:
        """Top and left of the centre square in the resized frame, in pixels."""
        return (resized_height - self.image_size) // 2, (resized_width - self.image_size) // 2


def resize_frames(frames_BCHW: torch.Tensor, height: int, width: int, *, interpolation: Interpolation) -> torch.Tensor:
    """Antialiased resize.

    Args:
        frames_BCHW: pixels in [0, 255]: uint8 on the CPU, which is fast, or floats on any device.
        height: of the result.
        width: of the result.
        interpolation: the filter.

    Returns:
        uint8 [B, C, height, width]; of floats, the same to one grey level.
    """

    def resized(pixels_BCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return F.interpolate(pixels_BCHW, size=(height, width), mode=interpolation, align_corners=False, antialias=True)

    if frames_BCHW.dtype == torch.uint8:
        return resized(frames_BCHW, height, width)
    # As the kernel for bytes: across, then down, rounded and clipped in between, since bicubic overshoots.
    across_BCHW = resized(frames_BCHW, frames_BCHW.shape[-2], width).round().clamp(0, 255)
    return resized(across_BCHW, height, width).round().clamp(0, 255).to(torch.uint8)


def _frames_of_one(pixels_HWC: np.ndarray) -> torch.Tensor:
    """One frame as uint8 [1, H, W, 3]. Channels stay last in memory: the uint8 kernel is vectorised for that layout."""
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC)).unsqueeze(0)


@functools.cache
def _channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 [C, 1, 1] on a device; made once, since to copy them there a GPU is waited for."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
