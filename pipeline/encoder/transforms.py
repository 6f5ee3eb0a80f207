"""From a decoded frame to the encoder's square input: which part of it, resized how, and where coordinates come to lie.

Two steps: `Preprocess.resize_crop` takes frames of any size and keeps uint8, so that what is compared, drawn and kept
as golden frames is what an image is; `normalise` takes batches of squares. Both run on the device.

View 0 is the centre square of the frame resized by its short side. Every later view is a random part of it, perhaps
mirrored, the same for all frames of a video: the random resized crop of Inception (Szegedy et al., arXiv 1409.4842), a
random area and aspect ratio, tried ten times. It follows from the recipe's seed, the video's id and the view's number
alone, so every process and every machine cuts the same one.

Resizing on the CPU is torch's antialiased uint8 kernel: the same filters as PIL's, within one grey level of it, and
some 4 times faster. Other devices have the filter for floats only; its result is rounded, and is within one grey level
of the CPU's. An image smaller than the target is enlarged with the same filter, unscaled.

Shapes: B frames, C = 3 channels (RGB), H x W pixels of the source, S the side of the square. Coordinates are
normalised: (0, 0) is the outer corner of the top left pixel, (1, 1) that of the bottom right one.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vfz.pipeline.errors import UsageError
from vfz.pipeline.recipe import EncoderSpec, Recipe, ViewSpec

LONGEST = 64
"""What is further from the centre of a frame than half so many times its short side is cut off before it is resized."""
PREPROCESS_VERSION = 1
"""Part of every recipe: raise it when a frame comes out otherwise."""
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
        frames_BHWC = _without_far_ends(frames_BHWC)
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


def preprocess_of(spec: EncoderSpec) -> Preprocess:
    """The resize, crop and normalise of a recipe."""
    interpolation: Interpolation = "bilinear" if spec.interpolation == "bilinear" else "bicubic"
    red, green, blue = spec.mean
    of_red, of_green, of_blue = spec.std
    return Preprocess(
        image_size=spec.image_size,
        crop_fraction=spec.crop_fraction,
        interpolation=interpolation,
        mean=(red, green, blue),
        std=(of_red, of_green, of_blue),
    )


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


def _without_far_ends(frames_BHWC: torch.Tensor) -> torch.Tensor:
    """The centre of frames that are hardly more than a line: resized as a whole, one of 1 x 65535 takes 10 GB."""
    height, width = frames_BHWC.shape[1:3]
    short = min(height, width)
    top, left = (max(0, (side - LONGEST * short) // 2) for side in (height, width))  # as much at either end
    return frames_BHWC[:, top : height - top, left : width - left]


@functools.cache
def _channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 [C, 1, 1] on a device; made once, since to copy them there a GPU is waited for."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def cropper_of(spec: ViewSpec, video_id: str, view: int) -> ViewCropper | None:
    """What cuts that view; None for the centre crop."""
    return ViewCropper(spec, video_id, view) if view else None


_TRIES = 10


class ViewCropper:
    """Cuts one view of one video.

    Args:
        spec: the recipe's.
        video_id: whose.
        view: 1 or more; view 0 is the centre crop and needs no cropper.

    Attributes:
        mirrored: whether it is mirrored, whatever the size of the frames.
    """

    def __init__(self, spec: ViewSpec, video_id: str, view: int) -> None:
        if view < 1:
            raise ValueError(f"view {view} is cut by Preprocess.resize_crop, not by a ViewCropper")
        seed = hashlib.sha256(f"{spec.seed}:{view}:{video_id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(seed, "little"))
        low, high = spec.crop_ratio
        self._areas = generator.uniform(*spec.crop_scale, _TRIES)
        self._ratios = np.exp(generator.uniform(math.log(low), math.log(high), _TRIES))
        self._place = generator.random(2)
        self.mirrored = bool(spec.horizontal_flip and generator.random() < 0.5)

    def crop(self, height: int, width: int) -> ViewCrop:
        """The part of a `height` x `width` frame; the central square where no random one fits into it."""
        for area, ratio in zip(self._areas, self._ratios, strict=True):
            crop_width = round(math.sqrt(height * width * area * ratio))
            crop_height = round(math.sqrt(height * width * area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                break
        else:
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            return ViewCrop(top=top, left=left, height=side, width=side, mirrored=self.mirrored)
        return ViewCrop(
            top=int(self._place[0] * (height - crop_height + 1)),
            left=int(self._place[1] * (width - crop_width + 1)),
            height=crop_height,
            width=crop_width,
            mirrored=self.mirrored,
        )


@dataclass(frozen=True, kw_only=True)
class ViewCrop:
    """A part of a frame in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def seen_crop(recipe: Recipe, video_id: str, view: int, *, height: int, width: int) -> SeenCrop:
    """What the encoder saw of the `height` x `width` frames of a video in one view."""
    cropper = cropper_of(recipe.views, video_id, view)
    if cropper is None:
        x0, y0, x1, y1 = preprocess_of(recipe.encoder).crop_box(height, width)
        return SeenCrop(x0=x0, y0=y0, x1=x1, y1=y1)
    crop = cropper.crop(height, width)
    return SeenCrop(
        x0=crop.left / width,
        y0=crop.top / height,
        x1=(crop.left + crop.width) / width,
        y1=(crop.top + crop.height) / height,
        mirrored=crop.mirrored,
    )


@dataclass(frozen=True, kw_only=True)
class SeenCrop:
    """A part of a frame, from (x0, y0) to (x1, y1) normalised to the frame, and whether the encoder saw it mirrored."""

    x0: float
    y0: float
    x1: float
    y1: float
    mirrored: bool = False

    def from_frame(self, xy: NDArray[Any]) -> NDArray[np.float64]:
        """Points [..., 2] normalised to the frame as normalised to the crop; outside of it they leave 0 .. 1."""
        origin, size = np.array([self.x0, self.y0]), np.array([self.x1 - self.x0, self.y1 - self.y0])
        inside: NDArray[np.float64] = (np.asarray(xy, np.float64) - origin) / size
        if self.mirrored:
            inside[..., 0] = 1 - inside[..., 0]
        return inside

    def to_frame(self, xy: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `from_frame`."""
        inside = np.array(xy, np.float64)
        if self.mirrored:
            inside[..., 0] = 1 - inside[..., 0]
        origin, size = np.array([self.x0, self.y0]), np.array([self.x1 - self.x0, self.y1 - self.y0])
        whole: NDArray[np.float64] = origin + inside * size
        return whole
