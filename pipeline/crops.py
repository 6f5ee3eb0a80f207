"""The part of a frame that the encoder saw, and what becomes of coordinates there.

View 0 is the centre square of the frame resized by its short side (`Preprocess.crop_box`); every later view is a random
part of it, perhaps mirrored (`ViewCropper`). All of it follows from the recipe, the video's id, the view's number and
the size of the frames.

Coordinates are normalised: (0, 0) is the outer corner of the top left pixel, (1, 1) that of the bottom right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.encoder.transforms import Interpolation, Preprocess
from vfz.pipeline.recipe import EncoderSpec, Recipe
from vfz.pipeline.views import cropper_of


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
