"""Checkpoint files as they are found: which of their tensors are the encoder's, what is told, what is refused."""

import argparse
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.encoder.checkpoint import encoder_weights, read_dicts
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.errors import EncoderError, UsageError

VIT = "vit_tiny_patch16_224"
NAMES = ("cls_token", "patch_embed.weight", "blocks.0.attn.weight", "blocks.1.attn.weight", "norm.weight", "norm.bias")
HEAD = ("head.weight", "head.bias", "classif.weight")


def state(fill=0.0, prefix="", head=""):
    """A made-up model; its head lies below `head`, where that is not None."""
    names = [f"{prefix}{name}" for name in NAMES] + ([] if head is None else [f"{head}{name}" for name in HEAD])
    return {name: torch.full((2,), fill) for name in names}


def choose(content, tmp_path, weights_key=None):
    path = tmp_path / "best.pth"
    torch.save(content, path)
    return encoder_weights(
        read_dicts(path), set(NAMES), heads={*NAMES, *HEAD}, weights_key=weights_key, label="best.pth"
    )


def value(found):
    """The one number that all tensors of a `state` hold."""
    assert found.state.keys() == set(NAMES)
    (number,) = {float(tensor[0]) for tensor in found.state.values()}
    return number


@pytest.mark.quick
@pytest.mark.parametrize(
    ("content", "weights_key", "expected", "choice", "told"),
    [
        (state(1), None, 1, "", None),
        ({"state_dict": state(1), "epoch": 3}, None, 1, "state_dict", None),
        (
            {"state_dict": state(1), "state_dict_ema": state(2)}, None, 2, "state_dict_ema",
            "took state_dict_ema, a moving average (as timm does), not state_dict; --weights-key state_dict takes",
        ),
        (
            {"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict", 1, "state_dict",
            "took state_dict (as asked), not state_dict_ema; --weights-key state_dict_ema takes the other",
        ),
        ({"model": state(1), "model_ema": state(2, "module.", "module.")}, None, 2, "model_ema", "stripped 'module.'"),
        ({"state_dict": state(1), "state_dict_ema": None}, None, 1, "state_dict", None),
        ({"state_dict": state(1), "state_dict_ema": {}}, None, 1, "state_dict", None),
        ({"model": state(1), "state_dict": state(2)}, None, 2, "state_dict", "not model"),
        ({"state_dict": state(1), "ema": state(2)}, None, 1, "state_dict", r"took state_dict (as timm does), not ema"),
        ({"state_dict": state(1), "ema": state(2)}, "ema", 2, "ema", "took ema (as asked), not state_dict"),
        ({"model": {"state_dict": state(1)}}, None, 1, "model.state_dict", None),
        ({"model": {"state_dict": state(1), "state_dict_ema": state(2)}}, None, 2, "model.state_dict_ema", "not mod"),
        ({"model": {"state_dict": state(1), "state_dict_ema": state(2)}}, "state_dict", 1, "model.state_dict", "not"),
        ({"a": {"b": {"c": {"weights": state(1)}}}, "rng": {"x": torch.ones(1)}}, None, 1, "a.b.c.weights", "a.b"),
        ({"teacher": state(1, "backbone."), "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, None, 1, "teacher",
         "took teacher; stripped 'backbone.' from names; left out 3 (head.weight, head.bias, classif.weight)"),
        ({"teacher": state(1), "student": state(2)}, "student", 2, "student", "took student (as asked), not teacher"),
        (state(1, "_orig_mod.", "_orig_mod."), None, 1, "", "stripped '_orig_mod.' from names"),
        (state(1, "module._orig_mod.backbone.", "module.head."), None, 1, "", "stripped 'module._orig_mod.b"),
        ({name.replace("0.", "0._orig_mod."): item for name, item in state(1, "m.").items()}, None, 1, "",
         "stripped 'm.' and '_orig_mod.' from names; left out 3 (head"),
        ({name.replace("1.", "1._checkpoint_wrapped_module."): item for name, item in state(1).items()}, None, 1, "",
         "stripped '_checkpoint_wrapped_module.' from names"),
        (state(1, "encoder.") | {"decoder.weight": torch.ones(1)}, None, 1, "", "left out 4 ("),
        (state(1, "teacher.") | state(2, "student."), "teacher", 1, "teacher", "stripped 'teacher.'"),
        (state(1, "m.teacher.x.") | state(2, "m.student.x."), "student", 2, "student", "stripped 'm.student.x.'"),
        (state(1, "ema.") | state(2, "net."), "ema", 1, "ema", "took what was asked for; stripped 'ema.'"),
        ({"state_dict": state(1, "a.") | state(2, "b.")}, "state_dict.b", 2, "state_dict.b", "stripped 'b.'"),
        ({"state_dict": state(1, "a.") | state(2, "b.")}, "b", 2, "state_dict.b", "stripped 'b.'"),
        (state(1) | {"n_averaged": torch.ones(1)}, None, None, "", None),  # for timm's strict loader to refuse
        ({"module." + key: item for key, item in state(1).items()} | {"n_averaged": torch.ones(1)}, None, 1, "",
         "stripped 'module.' from names; left out 1 (n_averaged)"),
    ],
)  # fmt: skip
def test_the_encoders_tensors_are_found_and_what_was_taken_is_told(
    tmp_path, content, weights_key, expected, choice, told
):
    found = choose(content, tmp_path, weights_key)
    if expected is None:
        assert "n_averaged" in found.state
        return
    assert (value(found), found.choice) == (expected, choice)
    assert (found.note is None) == (told is None)
    assert told is None or told in found.note


@pytest.mark.quick
@pytest.mark.parametrize(
    ("content", "weights_key", "words"),
    [
        ({"teacher": state(1), "student": state(2)}, None, "holds teacher and student, .* --weights-key teacher"),
        ({"teacher": {"x.y": torch.ones(1)}, "student": {"x.y": torch.ones(1)}}, None, "none has the names"),
        (state(1, "teacher.") | state(2, "student."), None, "student and teacher, which fit alike; .*-key student"),
        (state(1) | state(2, "ema."), None, "names without a prefix and ema, .* --weights-key ema"),
        ({"g": {"state_dict": state(1)}, "d": {"state_dict": state(2)}}, None, "g.state_dict and d.state_dict"),
        ({"g": {"state_dict": state(1)}, "d": {"state_dict": state(2)}}, "state_dict", "g.state_dict and d.state_dict"),
        ({"state_dict": state(1)}, "ema", r"--weights-key 'ema' is not in best.pth; it has state_dict, blocks"),
        (state(1), "state_dict_ema", "--weights-key 'state_dict_ema' is not in best.pth"),
        ({"epoch": 3, "best": 0.5}, None, "holds epoch, best; there are no tensors by name"),
        ({}, None, "is empty; there are no tensors"),
        ({"state_dict": {}}, None, "holds state_dict; there are no tensors"),
        ([torch.ones(1)], None, "holds no dict"),
        (torch.ones(1), None, "holds no dict"),
        ({0: torch.ones(1)}, None, "holds 0; there are no tensors"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_and_not_guessed(tmp_path, content, weights_key, words):
    with pytest.raises((EncoderError, UsageError), match=words) as caught:
        choose(content, tmp_path, weights_key)
    assert "\n" not in str(caught.value)


PARTS = ["module", "_orig_mod", "model", "teacher", "encoder", "backbone", "net", "0"]


@given(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4),
    st.sampled_from(["", "module.", "head_of_a_detector.", "decoder."]),
)
def test_below_any_prefix_and_beside_any_head_the_same_tensors_are_found(prefix, head):
    prefix = "".join(f"{part}." for part in prefix)
    saved = state(1, prefix, head)
    found = encoder_weights(
        {"": dict(reversed(saved.items()))}, set(NAMES), heads={*NAMES, *HEAD}, weights_key=None, label="x"
    )
    assert value(found) == 1
    assert "stripped" in found.note
    assert head.startswith(prefix) or f"left out {len(HEAD)}" in found.note


def write_bytes(content):
    return lambda path: path.write_bytes(content)


def cut(path):
    torch.save(state(1) | {"large": torch.zeros(50_000)}, path)
    path.write_bytes(path.read_bytes()[:100_000])


def cut_safetensors(path):
    safetensors.torch.save_file(state(1), path)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("whole.pth", lambda path: torch.save(torch.nn.Linear(2, 2), path), r"more than tensors \(torch\.nn\."),
        ("cut.pth", cut, "damaged or not complete"),
        ("cut.safetensors", cut_safetensors, "damaged or not complete"),
        ("empty.pth", write_bytes(b""), "the file is empty"),
        ("empty.safetensors", write_bytes(b""), "the file is empty"),
        ("lfs.safetensors", write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS"),
        ("page.pth", write_bytes(b"<!DOCTYPE html><html>not found</html>"), "a web page"),
        ("folder.pth", lambda path: path.mkdir(), "is a folder; give a .safetensors"),
        ("jax.npz", lambda path: np.savez(path, a=np.zeros(2)), r"\.npz is not read; give a \.safetensors"),
        ("pipe.pth", os.mkfifo, "is no file"),
        ("link.pth", lambda path: path.symlink_to("gone.pth"), "a link to gone.pth, which is not there"),
        ("none.pth", lambda _path: None, "there is no such file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_one_clear_line(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises((EncoderError, UsageError), match=words) as caught:
        read_dicts(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize(
    "address", ["https://host/x.pth", "http://host/x.safetensors", "hf-hub:timm/x", "s3://b/x.pth"]
)
def test_an_address_is_no_file_and_is_shown_as_it_was_given(address):
    with pytest.raises(UsageError, match=rf"{re.escape(address)} is an address"):
        read_dicts(Path(address))


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_no_damage_to_a_file_is_anything_but_one_line(tmp_path, kind):
    path, generator = tmp_path / "x", random.Random(1)
    if kind == "safetensors":
        safetensors.torch.save_file(state(1), path)
    else:
        torch.save({"state_dict": state(1), "epoch": 2}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.choices(range(min(len(whole), 1500)), k=generator.choice([1, 3, 20])):
            damaged[place] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([len(whole), generator.randrange(len(whole))])])
        try:
            read_dicts(path)
        except (EncoderError, UsageError) as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in line for line in refusals)


@pytest.mark.quick
def test_a_folder_names_the_weights_in_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"one of those in it: model\.safetensors"):
        read_dicts(tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "weights", "weights.safetensors", "weights.bin"])
def test_what_is_in_a_file_and_not_its_name_says_how_it_is_read(tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "there" / "blob")
    if "safetensors" in name or name == "weights":
        safetensors.torch.save_file(state(1), tmp_path / "there" / "blob")
    else:  # as timm's train.py writes it
        torch.save({"state_dict": state(1), "args": argparse.Namespace(lr=0.1)}, tmp_path / "there" / "blob")
    (tensors,) = read_dicts(tmp_path / name).values()
    assert tensors.keys() == state().keys()


def vit_state(seed, **changes):
    import timm

    torch.manual_seed(seed)
    return timm.create_model(VIT, img_size=32, num_classes=10, **changes).state_dict()


def load(path, name=VIT, **options):
    return load_encoder(name, **{"image_size": 32, "batch_size": 2, "weights": path, **options})


def saved(tmp_path, content, name="best.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_the_average_is_what_timms_own_loader_takes_and_has_an_identity_of_its_own(tmp_path):
    from timm.models import load_state_dict

    plain, averaged = vit_state(1), vit_state(2)
    both = saved(tmp_path, {"state_dict": plain, "state_dict_ema": averaged})
    assert torch.equal(load_state_dict(both)["cls_token"], averaged["cls_token"])
    found = load(both)
    assert torch.equal(found._model.cls_token, averaged["cls_token"])
    assert found.weights_note.startswith("weights best.pth: took state_dict_ema, a moving average")
    digests = [
        found.weights_sha256,
        load(saved(tmp_path, averaged, "a.pth")).weights_sha256,
        load(both, weights_key="state_dict").weights_sha256,
        load(saved(tmp_path, plain, "p.pth")).weights_sha256,
    ]
    assert digests[0] == digests[1] != digests[2] == digests[3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_float_type_are_taken_as_float32(tmp_path, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in vit_state(1).items()}
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(weights, path)
    encoder = load(path)
    assert encoder._model.cls_token.dtype == torch.float32
    assert torch.equal(encoder._model.cls_token, weights["cls_token"].float())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"norm.weight": s["norm.weight"].char()}), "norm.weight is torch.int8; quantised"),
        (
            lambda s: s["blocks.3.norm1.bias"].fill_(float("nan")),
            r"its weights are, in 1 tensors \(blocks.3",
        ),
    ],
)
def test_weights_that_are_no_numbers_of_the_model_are_refused(tmp_path, change, words):
    weights = vit_state(1)
    change(weights)
    with pytest.raises(EncoderError, match=words):
        load(saved(tmp_path, weights))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "xcit_nano_12_p8_224"])
def test_the_file_of_a_whole_model_with_another_number_of_classes_is_that_of_its_encoder(tmp_path, name):
    import timm

    torch.manual_seed(1)
    whole = timm.create_model(name, num_classes=7)
    encoder = load(saved(tmp_path, whole.state_dict()), name)
    whole.reset_classifier(0)
    assert encoder._model.state_dict().keys() == whole.state_dict().keys()


def test_weights_of_another_image_size_that_a_family_cannot_resample_say_so(tmp_path):
    import timm

    path = saved(tmp_path, timm.create_model("crossvit_tiny_240").state_dict())
    with pytest.raises(EncoderError, match=r"of another shape 2 \(pos_embed_0, pos_embed_1\); leave --image-size out"):
        load(path, "crossvit_tiny_240", image_size=192)


def test_names_without_end_are_cut(tmp_path):
    with pytest.raises(EncoderError) as caught:
        choose({"x" * 10_000: 1, "y" * 10_000: 2}, tmp_path)
    assert len(str(caught.value)) < 600


def test_a_weights_key_without_a_file_is_refused():
    with pytest.raises(UsageError, match="give --weights FILE too"):
        load(None, random_weights=True, weights_key="teacher")
