"""The golden frames, encoded again: the same encoder passes in every precision, any other one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.maintenance.verify import encoder as module
from vfz.pipeline.maintenance.verify.encoder import pass_marks, verify_encoder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("autocast", ["float32", "bfloat16"])
def test_the_encoder_that_made_a_cache_passes(synthetic_options, tmp_path, precision, autocast):
    report = extract(synthetic_options(out=tmp_path, num_videos=48, precision=precision, autocast=autocast))
    found = verify_encoder(report.cache, device="cpu")
    assert found.passed
    assert (found.num_frames, found.num_decoded, found.max_pixel_difference) == (16, 16, 0)
    assert found.not_decoded == {}
    (column,) = found.columns
    assert column.column == "layer_3/patch"
    if precision == "fp32":
        assert column.relative_error == 0
        assert column.min_cosine == pytest.approx(1)
    assert column.relative_error < column.error_mark


def test_every_layer_and_part_is_compared(vit_cache):
    found = verify_encoder(vit_cache.path, device="cpu")
    assert found.passed
    assert [column.column for column in found.columns] == [
        "layer_5/patch", "layer_5/prefix", "layer_11/patch", "layer_11/prefix",
    ]  # fmt: skip


def test_other_weights_are_refused_by_their_digest(vit_cache, tmp_path):
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(5)
    weights = create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).state_dict()
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(CacheMismatchError, match=r"not those that .* was made with.*give the right --weights"):
        verify_encoder(vit_cache.path, weights=tmp_path / "other.safetensors", device="cpu")


def test_of_several_weights_in_a_file_those_of_the_cache_are_found_by_their_digest(synthetic_options, tmp_path):
    """As a cache that was made before averages were taken by default needs it."""
    from timm import create_model

    torch.manual_seed(5)
    plain, averaged = (create_model("test_vit", num_classes=0).state_dict() for _ in range(2))
    torch.save(plain, tmp_path / "plain.pth")
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "both.pth")
    torch.save({"state_dict_ema": averaged}, tmp_path / "average.pth")
    vit = {"encoder": "test_vit", "layers": ("5",), "image_size": None, "out": tmp_path}
    old = extract(synthetic_options(**vit, weights=tmp_path / "plain.pth")).cache
    assert verify_encoder(old, weights=tmp_path / "both.pth", device="cpu").passed
    named = extract(synthetic_options(**vit, weights=tmp_path / "both.pth", weights_key="state_dict")).cache
    assert named == old
    new = extract(synthetic_options(**vit, weights=tmp_path / "both.pth")).cache
    assert new != old
    for weights in (None, tmp_path / "both.pth", tmp_path / "average.pth"):
        assert verify_encoder(new, weights=weights, device="cpu").passed
    with pytest.raises(CacheMismatchError, match=r"are not those"):
        verify_encoder(new, weights=tmp_path / "plain.pth", device="cpu")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("change", ["noise", "crop", "order"])
def test_an_encoder_that_works_otherwise_fails(synthetic_options, tmp_path, monkeypatch, precision, change):
    """Weights and recipe agree, and yet the tokens are others."""
    path = extract(synthetic_options(out=tmp_path, precision=precision)).cache
    encode = module.LiveEncoder.encode

    def encode_otherwise(self, frames_BCHW):
        if change == "crop":
            size = frames_BCHW.shape[-1]
            inner = frames_BCHW[..., 3:-3, 3:-3].float()
            frames_BCHW = torch.nn.functional.interpolate(inner, size=(size, size), mode="bilinear").to(torch.uint8)
        tokens = encode(self, frames_BCHW)
        for found in tokens.values():
            if change == "noise":
                found.patch_BND.add_(0.5 * found.patch_BND.std() * torch.randn_like(found.patch_BND))
            elif change == "order":
                found.patch_BND.copy_(found.patch_BND.flip(1))
        return tokens

    monkeypatch.setattr(module.LiveEncoder, "encode", encode_otherwise)
    found = verify_encoder(path, device="cpu")
    assert not found.passed
    assert found.max_pixel_difference == 0


def test_videos_that_are_gone_moved_or_changed_are_told(synthetic_options, tmp_path):
    report = extract(synthetic_options(root=tmp_path / "videos", out=tmp_path / "out", num_videos=12))
    moved = (tmp_path / "videos").rename(tmp_path / "moved")
    found = verify_encoder(report.cache, device="cpu")
    assert found.passed, "tokens are compared all the same"
    assert (found.num_decoded, found.max_pixel_difference) == (0, None)
    assert all("is not there" in reason for reason in found.not_decoded.values())
    assert verify_encoder(report.cache, root=moved, device="cpu").num_decoded == 16
    changed = next(iter(found.not_decoded))
    (row,) = [row for row in FeatureCache(report.cache).videos if row.id == changed]
    with (moved / Path(row.source_path).relative_to(tmp_path / "videos")).open("ab") as video:
        video.write(b"more")
    found = verify_encoder(report.cache, root=moved, device="cpu")
    assert list(found.not_decoded) == [changed]
    assert "another file now" in found.not_decoded[changed]


def test_pixels_that_differ_fail(vit_cache, monkeypatch):
    from vfz.pipeline.encoder.transforms import Preprocess

    resize_crop = Preprocess.resize_crop
    monkeypatch.setattr(Preprocess, "resize_crop", lambda self, *args: resize_crop(self, *args).clamp(max=200))
    found = verify_encoder(vit_cache.path, device="cpu")
    assert found.max_pixel_difference > 2
    assert not found.passed


def test_a_cache_without_golden_frames_says_so(tmp_path):
    from helpers.tiny_cache import fill_cache, new_cache

    new_cache(tmp_path / "cache")
    fill_cache(tmp_path / "cache")
    with pytest.raises(UsageError, match="no golden frames"):
        verify_encoder(tmp_path / "cache")


def test_marks_grow_with_the_rounding_and_with_the_dtype():
    errors = [pass_marks(error, "float32")[1] for error in (0.0, 0.0003, 0.0075, 0.1)]
    assert errors == sorted(errors)
    assert errors[0] == 0.01
    assert 0.01 < errors[2] < 0.02
    assert pass_marks(0.0, "bfloat16")[1] == 0.05
