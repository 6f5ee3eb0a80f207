"""Resizing is PIL's to a grey level, the crop is centred or a random view, and its box says where."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vfz.pipeline.encoder.transforms import Preprocess, ViewCropper, cropper_of, resize_frames
from vfz.pipeline.errors import UsageError
from vfz.pipeline.recipe import ViewSpec

pytestmark = pytest.mark.quick

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def make_preprocess(size=64, **options):
    return Preprocess(image_size=size, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2), **options)


def textured(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None]
    return ((noise + 2 * ramp) / 3).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(240, 320), (320, 241), (64, 64), (37, 53), (65, 1000), (1, 1), (500, 64)])
def test_the_resize_is_pils_to_one_grey_level(interpolation, shape):
    pixels = textured(*shape)
    ours = make_preprocess(interpolation=interpolation).resize_crop(pixels)
    scale = 64 / min(shape)
    size = (
        64 if shape[1] <= shape[0] else round(shape[1] * scale),
        64 if shape[0] <= shape[1] else round(shape[0] * scale),
    )
    resized = Image.fromarray(pixels).resize(size, FILTERS[interpolation])
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    theirs = np.asarray(resized.crop((left, top, left + 64, top + 64))).astype(int)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, 64, 64)
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_a_frame_of_the_right_size_is_left_as_it_is():
    pixels = textured(64, 64)
    square = make_preprocess().resize_crop(pixels)
    assert np.array_equal(square.permute(1, 2, 0).numpy(), pixels)
    square.zero_()
    assert pixels.any(), "the square has memory of its own"


def test_a_mirrored_view_of_pixels_is_read_as_it_looks():
    pixels = textured(50, 80)
    assert torch.equal(
        make_preprocess().resize_crop(pixels[:, ::-1]), make_preprocess().resize_crop(pixels[:, ::-1].copy())
    )


def test_normalise_is_the_textbook_formula():
    frames = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    normal = make_preprocess(8).normalise(frames)
    assert normal.dtype == torch.float32
    assert torch.allclose(normal[1, 2], (frames[1, 2] / 255 - 0.3) / 0.2, atol=1e-6)


def test_the_crop_box_is_the_centre_square():
    assert make_preprocess().crop_box(200, 200) == (0, 0, 1, 1)
    assert make_preprocess().crop_box(100, 200) == pytest.approx((0.25, 0, 0.75, 1))
    assert make_preprocess().crop_box(200, 100) == pytest.approx((0, 0.25, 1, 0.75))
    assert make_preprocess(56, crop_fraction=0.875).crop_box(64, 64) == pytest.approx(
        (4 / 64, 4 / 64, 60 / 64, 60 / 64)
    )


def test_the_crop_box_holds_what_the_crop_shows():
    pixels = np.zeros((120, 300, 3), np.uint8)
    x0, _, x1, _ = make_preprocess(60).crop_box(120, 300)
    pixels[:, round(x0 * 300) : round(x1 * 300)] = 255
    assert make_preprocess(60).resize_crop(pixels).float().mean() > 250


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 0}, "image size 0"),
        ({"crop_fraction": 0.0}, "crop fraction 0.0"),
        ({"crop_fraction": 1.5}, "crop fraction 1.5"),
        ({"interpolation": "lanczos"}, "'lanczos'"),
    ],
)
def test_nonsense_is_refused_by_name(options, word):
    with pytest.raises(UsageError, match=word):
        make_preprocess(**options)


def test_a_zero_std_is_refused():
    with pytest.raises(UsageError, match="above 0"):
        Preprocess(image_size=8, mean=(0, 0, 0), std=(1, 0, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(240, 320), (37, 53), (500, 64)])
def test_floats_which_other_devices_need_are_resized_as_bytes_are_to_one_grey_level(interpolation, shape):
    pixels_1CHW = torch.from_numpy(textured(*shape)).permute(2, 0, 1).unsqueeze(0)
    of_bytes = resize_frames(pixels_1CHW, 64, 80, interpolation=interpolation)
    of_floats = resize_frames(pixels_1CHW.float(), 64, 80, interpolation=interpolation)
    assert of_floats.dtype == torch.uint8
    assert (of_bytes.int() - of_floats.int()).abs().max() <= 1


# --- views: random resized crops, which depend on nothing but the recipe, the video and the number ---

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


@pytest.mark.parametrize("shape", [(1, 65535), (65535, 1), (2, 8000), (8001, 3)], ids=str)
def test_a_frame_that_is_hardly_more_than_a_line_takes_no_more_memory_than_others(shape, monkeypatch):
    """Resized as a whole, the first takes 4 GB."""
    preprocess, pixels, made = make_preprocess(size=144), textured(*shape), []

    def resize(frames_BCHW, height, width, **more):
        made.append(height * width)
        return resize_frames(frames_BCHW, height, width, **more)

    monkeypatch.setattr("vfz.pipeline.encoder.transforms.resize_frames", resize)
    square = preprocess.resize_crop(pixels)
    assert square.shape == (3, 144, 144)
    assert max(made) <= 65 * 144 * 144
    short = min(shape)
    top, left = ((side - short) // 2 for side in shape)
    middle = pixels[top : top + short, left : left + short]
    assert abs(square.float().mean() - middle.mean()) < 60, "it is the middle, as its box says"
    x0, y0, x1, y1 = preprocess.crop_box(*shape)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((0.5, 0.5), abs=1e-3)


@given(st.integers(1, 5), st.integers(320, 700), st.booleans())
def test_the_far_ends_of_a_frame_are_not_seen(short, long, is_high):
    pixels = textured(short, long)
    cut = (long - 64 * short) // 2 if long > 64 * short else 0
    other = pixels.copy()
    other[:, :cut], other[:, long - cut :] = 0, 255
    squares = [
        make_preprocess(size=16).resize_crop(frame.transpose(1, 0, 2) if is_high else frame)
        for frame in (pixels, other)
    ]
    assert torch.equal(*squares)
