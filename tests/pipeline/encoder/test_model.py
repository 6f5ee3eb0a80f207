"""Tokens are the network's own and do not depend on the batch; requests that make no sense are refused."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from vfz.pipeline.encoder.layers import LayerShape
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.errors import UnknownNameError, UsageError

VIT = "vit_tiny_patch16_224"
CNN = "resnet18"


def random_frames(count, size, seed=1):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def load(name=VIT, **options):
    return load_encoder(name, **{"random_weights": True, "image_size": 32, "batch_size": 4, **options})


@contextlib.contextmanager
def hooked(modules):
    outputs = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, key=key: outputs.__setitem__(key, output))
        for key, module in modules.items()
    ]
    yield outputs
    for hook in hooks:
        hook.remove()


@pytest.mark.quick
@pytest.mark.parametrize(("name", "num_prefix"), [(VIT, 1), ("vit_small_patch16_dinov3", 5)])
def test_vit_layers_are_block_outputs_after_the_final_norm(name, num_prefix):
    encoder = load(name, layers=("11", "0", "5", "final"))
    model, frames = encoder._reader._model, random_frames(4, 32)
    with torch.no_grad(), hooked({k: model.blocks[k] for k in (0, 5, 11)}) as blocks:
        model.forward_features(encoder.preprocess.normalise(frames))
        expected = {str(k): model.norm(block) for k, block in blocks.items()}
    tokens = encoder.encode(frames)
    assert list(tokens) == ["11", "0", "5", "final"]
    for layer, found in tokens.items():
        wanted = expected["11" if layer == "final" else layer]
        assert torch.equal(torch.cat([found.prefix_BPD, found.patch_BND], dim=1), wanted)
        assert (
            encoder.shapes[layer]
            == found.shape
            == LayerShape(num_prefix=num_prefix, num_patches=4, dim=wanted.shape[2])
        )


def test_a_norm_behind_the_pooling_is_applied_to_every_token():
    encoder = load("eva02_tiny_patch14_224", image_size=28, layers=("3",))
    tokens = encoder.encode(random_frames(2, 28))["3"].patch_BND
    assert tokens.mean(-1).abs().max() < 1e-5
    assert torch.allclose(tokens.var(-1, unbiased=False), torch.ones(()), atol=1e-3)


@pytest.mark.quick
def test_cnn_layers_are_stage_outputs_cell_by_cell():
    encoder = load("tf_efficientnet_lite0", image_size=64, layers=("final", "3", "4"))
    model, frames = encoder._reader._model, random_frames(4, 64)
    with torch.no_grad(), hooked({"3": model.blocks[4], "4": model.blocks[6], "final": model.bn2}) as maps:
        model(encoder.preprocess.normalise(frames))
    for layer, found in encoder.encode(frames).items():
        assert found.prefix_BPD is None
        side = maps[layer].shape[-1]
        assert torch.equal(found.patch_BND[:, side + 1], maps[layer][:, :, 1, 1]), "cells lie row by row"
        assert torch.equal(found.patch_BND, maps[layer].flatten(2).transpose(1, 2))
        assert encoder.shapes[layer] == found.shape


def test_channels_last_families_give_the_same_final_map():
    encoder = load("swin_tiny_patch4_window7_224", image_size=None, layers=("3", "final"), batch_size=1)
    tokens = encoder.encode(random_frames(1, 224))
    normed = encoder._reader._model.norm(tokens["3"].patch_BND)
    assert torch.allclose(tokens["final"].patch_BND, normed, atol=1e-5)


def test_the_last_layer_is_given_where_none_is_named_and_the_encoder_says_which_else_it_has():
    assert load().layers == ("11",)
    assert load().more_layers.startswith("2,5,8,11 (as the paper")
    assert load(CNN).layers == ("4",)
    assert load(CNN).more_layers == "0,1,2,3,4 (its stages)"


@pytest.mark.parametrize("name", [VIT, CNN])
def test_tokens_do_not_depend_on_the_number_of_frames_beside_them(name):
    encoder = load(name)
    frames = random_frames(10, 32)
    together = encoder.encode(frames)
    for count in (1, 3, 4, 9):
        for layer, tokens in encoder.encode(frames[:count]).items():
            assert torch.equal(tokens.patch_BND, together[layer].patch_BND[:count])


@pytest.mark.parametrize(
    ("name", "layer", "option"), [(CNN, "4", "channels_last"), (VIT, "0", "channels_last"), (VIT, "0", "compile_model")]
)
def test_what_makes_an_encoder_faster_leaves_its_tokens(name, layer, option):
    frames = random_frames(6, 32)
    plain = load(name, layers=(layer,)).encode(frames)[layer].patch_BND
    faster = load(name, layers=(layer,), **{option: True}).encode(frames)[layer].patch_BND
    torch.testing.assert_close(faster, plain, rtol=1e-4, atol=1e-5)


def test_no_frames_give_empty_tokens():
    tokens = load().encode(random_frames(0, 32))["11"]
    assert tokens.patch_BND.shape == (0, 4, 192)
    assert tokens.prefix_BPD.shape == (0, 1, 192)


def test_tokens_are_constants_that_a_trained_module_may_use():
    tokens = load().encode(random_frames(2, 32))["11"].patch_BND
    assert not tokens.requires_grad
    head = torch.nn.Linear(192, 1)
    head(tokens).sum().backward()
    assert head.weight.grad is not None


def test_autocast_is_the_encoders_own_and_not_the_callers():
    frames = random_frames(2, 32)
    plain, half = load(), load(autocast="bfloat16")
    expected = plain.encode(frames)["11"].patch_BND
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain.encode(frames)["11"].patch_BND, expected)
    rounded = half.encode(frames)["11"].patch_BND
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - expected).abs().max() < 0.2


@pytest.mark.parametrize("frames", [torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 31, 32, dtype=torch.uint8)])
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(UsageError, match=r"takes torch.uint8 \[B, 3, 32, 32\]"):
        load().encode(frames)


def test_random_weights_are_seeded_marked_and_leave_the_global_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = load(seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert first.random_weights
    assert first.weights_source == "random:seed=3"
    assert first.weights_sha256 == load(seed=3).weights_sha256 != load(seed=4).weights_sha256


def test_preprocessing_follows_the_models_data_config():
    preprocess = load("vit_small_patch16_dinov3", image_size=None).preprocess
    assert (preprocess.image_size, preprocess.interpolation, preprocess.crop_fraction) == (256, "bicubic", 1.0)
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert load(crop_fraction=0.5, interpolation="bilinear").preprocess.interpolation == "bilinear"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_225", f"{VIT}.imagenet", "demoo", "", "vit tiny"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UnknownNameError, match=re.escape(repr(name))):
        load_encoder(name, random_weights=True)


def test_the_beginning_of_a_name_is_completed():
    with pytest.raises(UnknownNameError, match=r"did you mean vit_tiny_patch16_224 or "):
        load_encoder("vit_tiny", random_weights=True)


def test_layers_are_counted_from_the_end_too():
    encoder = load_encoder(VIT, random_weights=True, layers=("-2", "-1"))
    assert encoder.layers == ("10", "11")
    with pytest.raises(UsageError, match="has no layer '-13'; it has 0 to 11"):
        load_encoder(VIT, random_weights=True, layers=("-13",))
    with pytest.raises(UsageError, match="each once"):
        load_encoder(VIT, random_weights=True, layers=("11", "-1"))


def test_unknown_names_offer_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        load("vit_tiny_patch16_22")
    assert VIT in caught.value.nearest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": ("12",)}, r"no layer '12'; it has 0 to 11"),
        ({"layers": ("-13",)}, r"no layer '-13'"),
        ({"name": CNN, "layers": ("5",)}, r"no layer '5'; it has 0 to 4"),
        ({"layers": ()}, "at least one"),
        ({"layers": ("3", "3")}, "each once"),
        ({"name": "xcit_nano_12_p16_224", "layers": ("final",), "image_size": None}, "no map of cells"),
        ({"image_size": 40}, "no multiple of .* 16 px"),
        ({"batch_size": 0}, "batch size 0"),
        ({"autocast": "int8"}, "autocast 'int8'"),
        ({"weights": Path("x.pth")}, "contradict"),
        ({"name": "vit_base_patch16_sapiens2.fb", "image_size": None}, "1024 x 768"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        load(**options)


def test_a_model_without_intermediate_features_is_refused(monkeypatch):
    monkeypatch.delattr("timm.models.resnet.ResNet.forward_intermediates")
    with pytest.raises(UsageError, match="forward_intermediates"):
        load(CNN)
