"""Views: what a random resized crop may be, and that it depends on nothing but the recipe, the video and the number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.encoder.transforms import Preprocess, ViewCropper, cropper_of
from vfz.pipeline.recipe import ViewSpec

SIDES = st.integers(8, 500)


def _preprocess(size=32):
    return Preprocess(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)


@given(height=SIDES, width=SIDES, video_id=st.text(max_size=8), view=st.integers(1, 9))
def test_a_crop_lies_in_the_frame_and_is_always_the_same(height, width, video_id, view):
    first, again = (ViewCropper(ViewSpec(), video_id, view).crop(height, width) for _ in range(2))
    assert first == again
    assert 0 <= first.top < first.top + first.height <= height
    assert 0 <= first.left < first.left + first.width <= width


def test_crops_cover_the_scales_and_ratios_of_the_recipe():
    spec = ViewSpec(crop_scale=(0.3, 1.0), crop_ratio=(0.75, 4 / 3))
    crops = [ViewCropper(spec, f"video {number}", 1).crop(240, 320) for number in range(300)]
    areas = np.array([crop.height * crop.width / (240 * 320) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert 0.29 < areas.min() < 0.35
    assert areas.max() > 0.9
    assert 0.74 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.35


def test_a_frame_that_no_crop_fits_gives_its_central_square():
    crop = ViewCropper(ViewSpec(crop_scale=(0.9, 1.0)), "long", 1).crop(10, 1000)
    assert (crop.top, crop.left, crop.height, crop.width) == (0, 495, 10, 10)


def test_seed_video_and_view_each_change_the_crop():
    crops = {
        ViewCropper(ViewSpec(seed=seed), video_id, view).crop(240, 320)
        for seed in (0, 1)
        for video_id in ("a", "b")
        for view in (1, 2)
    }
    assert len(crops) == 8


def test_views_are_mirrored_only_where_the_recipe_says_so():
    def mirrored(*, flip):
        spec = ViewSpec(horizontal_flip=flip)
        return sum(ViewCropper(spec, f"video {number}", 1).crop(240, 320).mirrored for number in range(200))

    assert mirrored(flip=False) == 0
    assert 70 < mirrored(flip=True) < 130


def test_the_square_shows_the_crop_and_nothing_else():
    pixels_HWC = np.full((60, 80, 3), 255, np.uint8)
    cropper = ViewCropper(ViewSpec(horizontal_flip=True), "mirrored 1", 1)
    crop = cropper.crop(60, 80)
    rows, columns = slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width)
    pixels_HWC[rows, columns] = np.linspace(0, 100, crop.width).astype(np.uint8)[None, :, None]
    square = _preprocess().resize_view(pixels_HWC, crop)
    assert square.shape == (3, 32, 32)
    assert square.max() <= 100
    left, right = square[..., 0].float().mean(), square[..., -1].float().mean()
    assert left > right if crop.mirrored else left < right


def test_view_0_is_the_centre_crop_and_no_cropper():
    assert cropper_of(ViewSpec(), "a", 0) is None
    with pytest.raises(ValueError, match="view 0"):
        ViewCropper(ViewSpec(), "a", 0)
