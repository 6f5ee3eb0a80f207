"""Resizing is PIL's to a grey level, the crop is centred, and its box says where."""

import numpy as np
import pytest
import torch
from PIL import Image

from vfz.pipeline.encoder.transforms import Preprocess, resize_frames
from vfz.pipeline.errors import UsageError

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
