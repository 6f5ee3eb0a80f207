"""Numbers that a stored precision, or the encoder's own, cannot hold: named with layer, value and what would do."""

import dataclasses
import functools
import re

import numpy as np
import pytest
import timm
import torch
from helpers.extraction import Notes

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.encoder.layers import VitReader
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.engine.columns import first_unstorable
from vfz.pipeline.engine.columns import largest_of as largest_by_column
from vfz.pipeline.errors import EncoderError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.recipe import PRECISIONS
from vfz.pipeline.stores.metadata import Column
from vfz.pipeline.stores.quantization import channel_stats, expand, largest_of, to_stored, why_unstorable

VIT = "vit_tiny_patch16_224"
INF, NAN = float("inf"), float("nan")


def column(precision, dim=4):
    return Column(layer="11", part="patch", num_tokens=3, dim=dim, precision=precision)


@pytest.mark.quick
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("largest", [0.0, 65504.0, 65519.0, 65520.0, 7e4, 3e38, INF, NAN])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_frame_is_unstorable_exactly_where_its_stored_numbers_would_not_be_finite(precision, largest, sign):
    tokens_BND = torch.zeros(2, 3, 4)
    tokens_BND[1, 2, 0] = sign * largest
    stats = channel_stats(torch.tensor([[0.0, 1, 2, 3], [1.0, 3, 2, 1]]) * 1e4)
    stored = to_stored(tokens_BND, precision, stats)
    finite = (stored.payload if stored.scale is None else stored.scale).isfinite().flatten(1).all(dim=1)
    found = [why_unstorable(column(precision), float(v), autocast="float32") for v in largest_of(tokens_BND)]
    assert [reason is None for reason in found] == finite.tolist() == [True, finite[1].item()]
    if finite[1]:
        back = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=4)
        assert back.isfinite().all()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("largest", "autocast", "words"),
    [
        (7e4, "float32", "layer_11/patch: the largest value is 70000 and fp16 holds up to 65504; .* fp32 or int8"),
        (7e4, "bfloat16", "the largest value is 70000 and fp16 holds"),
        (INF, "float16", "infinite where the encoder computes in float16; give --autocast bfloat16 or float32"),
        (NAN, "bfloat16", "NaN where the encoder computes in bfloat16; give --autocast float32"),
        (INF, "float32", "infinite although the encoder computes in float32; leave this layer out"),
    ],
)  # fmt: skip
def test_the_reason_names_layer_value_and_what_would_do(largest, autocast, words):
    reason = why_unstorable(column("fp16"), largest, autocast=autocast)
    assert re.search(words, reason)
    assert "\n" not in reason


@pytest.mark.quick
def test_only_the_frames_asked_for_and_the_first_bad_one_count():
    columns = [column("fp16"), dataclasses.replace(column("fp16"), layer="2")]
    largest = {"layer_11/patch": torch.tensor([1.0, 7e4, NAN, 8e4]).numpy(), "layer_2/patch": torch.ones(4).numpy()}
    assert first_unstorable(largest, columns, slice(0, 1), autocast="float32") is None
    assert "70000" in first_unstorable(largest, columns, slice(0, 4), autocast="float32")
    assert "NaN" in first_unstorable(largest, columns, slice(2, 4), autocast="float32")
    assert first_unstorable(largest, columns, slice(4, 4), autocast="float32") is None


def test_no_frames_have_no_largest_values():
    encoder = load_encoder(VIT, layers=("2",), image_size=32, random_weights=True, batch_size=2)
    tokens = encoder.encode(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))
    assert largest_by_column(tokens, [Column(layer="2", part="patch", num_tokens=4, dim=192, precision="fp16")])[
        "layer_2/patch"
    ].shape == (0,)


@pytest.fixture
def options(folder_dataset, tmp_path):
    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder=VIT, random_weights=True, image_size=32, layers=("2",), fps=2,
        batch_size=8, out=tmp_path / "caches",
    )  # fmt: skip


@pytest.fixture
def loud(tmp_path):
    """A file of weights whose tokens are in the millions."""
    torch.manual_seed(3)
    state = timm.create_model(VIT, img_size=32, num_classes=0).state_dict()
    state["norm.weight"] *= 1e6
    torch.save(state, tmp_path / "loud.pth")
    return {"random_weights": False, "weights": tmp_path / "loud.pth"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_layer_beyond_fp16_is_stored_by_the_others_and_refused_before_a_cache_is_made(options, loud, precision):
    asked = dataclasses.replace(options, **loud, precision=precision)
    if precision == "fp16":
        with pytest.raises(
            EncoderError, match=r"none of 46 frames .* layer_2/.*: the largest value is \d.* fp16 holds"
        ):
            extract(asked)
        assert not any(asked.out.glob("*"))
        return
    report = extract(asked)
    assert report.num_failed == 0
    cache = FeatureCache(report.cache)
    tokens = cache.read(cache.videos[0].id).tokens(layer="2")
    assert 1e5 < abs(tokens).max() < 1e8


@pytest.mark.parametrize(
    ("value", "changes", "words"),
    [
        (7e4, {"precision": "fp16"}, "layer_2/patch: the largest value is 70000 and fp16 holds up to 65504"),
        (INF, {"precision": "fp32", "autocast": "bfloat16"}, "infinite where the encoder computes in bfloat16"),
        (NAN, {"precision": "int8"}, "NaN although the encoder computes in float32"),
    ],
)
def test_a_video_with_a_frame_that_does_not_fit_fails_by_name_and_the_others_stay(
    options, monkeypatch, value, changes, words
):
    read = VitReader.read

    def spoil(self, images_BCHW):
        tokens = read(self, images_BCHW)
        for number, image in enumerate(images_BCHW):
            if image.mean() > 0.3:  # the first frames of the cyclists, and none of the cartoon
                tokens["2"].patch_BND[number, 1, 5] = value
        return tokens

    monkeypatch.setattr(VitReader, "read", spoil)
    notes = Notes()
    report = extract(dataclasses.replace(options, **changes), progress=notes)
    assert (report.num_ok, report.num_failed) == (2, 2)
    assert all(words in reason for reason in report.failures.values())
    cache = FeatureCache(report.cache)
    golden = cache.folder.golden(cache.folder.contents())
    assert all(np.isfinite(array).all() for array in golden.arrays.values())
    assert {name.rsplit("/", 1)[1] for name in report.failures} == {"bikes"}
    assert sum(words in line for line in notes.lines) == 2


@pytest.mark.parametrize("autocast", ["float16", "bfloat16", "float32"])
def test_an_encoder_that_overflows_in_half_precision_is_refused_and_told_what_would_do(tmp_path, autocast):
    torch.manual_seed(3)
    state = timm.create_model(VIT, img_size=32, num_classes=0).state_dict()
    state["blocks.0.mlp.fc1.weight"] *= 1e6
    torch.save(state, tmp_path / "x.pth")
    load = functools.partial(load_encoder, VIT, layers=("2",), image_size=32, weights=tmp_path / "x.pth", batch_size=1)
    if autocast == "float16":
        with pytest.raises(EncoderError, match=r"layer 2 of vit_.* in float16; give --autocast bfloat16 or float32"):
            load(autocast=autocast)
        return
    tokens = load(autocast=autocast).encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))["2"]
    assert tokens.patch_BND.isfinite().all()


def test_an_exception_inside_a_model_is_one_line_with_encoder_layer_and_reason(monkeypatch):
    encoder = load_encoder("resnet18", layers=("4",), image_size=32, random_weights=True, batch_size=2)

    def fail(*_args, **_options):
        raise KeyError("no such key\nand more")

    monkeypatch.setattr(encoder._model, "forward_intermediates", fail)
    with pytest.raises(EncoderError, match=r"resnet18 fails to give layers 4 on cpu \(KeyError: .*; vfz -vv") as caught:
        encoder.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert "\n" not in str(caught.value)
