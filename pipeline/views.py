"""The crops of a video: view 0 is the centre crop, every later view a random resized crop of its own.

A crop follows from the recipe's seed, the video's id and the view's number alone, so every process and every machine
cuts the same one, and it is the same for all frames of a video. Random resized crops are those of Inception
(Szegedy et al., arXiv 1409.4842): a random area and aspect ratio, tried ten times.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from vfz.pipeline.recipe import ViewSpec

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ViewCrop:
    """A part of a frame in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


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


def cropper_of(spec: ViewSpec, video_id: str, view: int) -> ViewCropper | None:
    """What cuts that view; None for the centre crop."""
    return ViewCropper(spec, video_id, view) if view else None
