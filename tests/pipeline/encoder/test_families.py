"""The page's table of timm's families says what becomes of each: a seeded sample here, all by `make faults`."""

import random
import re

import pytest
import timm
import torch
from benchmarks.pipeline.encoder_families import PAGE, families, summary, try_family, written_rows

from vfz.pipeline.encoder.layers import make_reader
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.encoder.weights import build_from_file
from vfz.pipeline.errors import UsageError, VfzError

ROWS = written_rows()
SAMPLE = {"coat", "crossvit", *random.Random(2).sample(sorted(ROWS), 8)}
HERE = timm.__version__
PAGES = re.search(r"\(timm (\S+)\)", PAGE.read_text()).group(1)

each_family = pytest.mark.parametrize(
    "family", [family if family in SAMPLE else pytest.param(family, marks=pytest.mark.faults) for family in ROWS]
)


def encoder_of(family):
    if ROWS[family].encoder not in timm.list_models(module=family):
        pytest.skip(f"timm {HERE} has no {ROWS[family].encoder}; the page is of timm {PAGES}")
    return ROWS[family].encoder


@each_family
def test_a_family_does_what_the_page_says(family):
    assert str(try_family(family, encoder_of(family))) == str(ROWS[family])


def test_the_page_has_every_family():
    assert ROWS.keys() == set(families()) or HERE != PAGES
    assert PAGE.read_text().endswith(f"\n\n{summary(ROWS.values())}\n")


@each_family
def test_the_file_of_a_whole_model_gives_the_weights_of_its_encoder(family, tmp_path):
    name = encoder_of(family)
    if ROWS[family].layers == "refused":
        pytest.skip(f"{name} is refused")
    torch.manual_seed(1)
    whole = timm.create_model(name)
    torch.save({"state_dict": {f"module.{key}": item for key, item in whole.state_dict().items()}}, tmp_path / "x.pth")
    loaded = build_from_file(name, tmp_path / "x.pth", model_options={})
    assert "stripped 'module.'" in loaded.note
    found = loaded.model.state_dict()
    same = {key: tensor for key, tensor in whole.state_dict().items() if key in found}
    assert all(torch.equal(tensor, found[key]) for key, tensor in same.items())
    assert len(same) >= 0.9 * len(found)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda m: m.delattr("timm.models.resnet.ResNet.forward_intermediates"), "gives no intermediate features"),
        (
            lambda m: m.setattr("timm.models.resnet.ResNet.forward_intermediates", lambda *_a, **_k: {}["gone"]),
            r"fails on images of its own size, 224 px \(KeyError: 'gone'\); choose another encoder, such as vit_small",
        ),
        (
            lambda m: m.setattr("timm.models.resnet.ResNet.forward_intermediates", lambda *_a, **_k: {"a": 1, "b": 2}),
            r"layer 0 of resnet18 is a dict \(a, b\) and no map of cells",
        ),
        (
            lambda m: m.setattr("timm.models.resnet.ResNet.forward_intermediates", lambda *_a, **_k: [(1, 2, 3)]),
            "layer 0 of resnet18 is a tuple of 3 and no map of cells; choose another",
        ),
        (
            lambda m: m.setattr("timm.models.resnet.ResNet.forward_features", lambda *_a: {"x": 1}),
            r"final features of resnet18 are a dict \(x\) and no map of cells; give its stages, 0 to 4, not 'final'",
        ),
        (
            lambda m: m.setattr("timm.models.resnet.ResNet.forward_features", lambda *_a: 1 / 0),
            r"resnet18 fails to give layers final \(ZeroDivisionError: division by zero\)",
        ),
        (lambda m: m.setattr("timm.models.resnet.ResNet.__init__", lambda *_a, **_k: {}["gone"]), "timm cannot build"),
    ],
)
def test_whatever_a_model_lacks_or_raises_is_one_line_that_names_it(monkeypatch, break_it, words):
    break_it(monkeypatch)
    with pytest.raises(VfzError, match=words) as caught:
        load_encoder("resnet18", layers=("final",), random_weights=True, batch_size=1)
    assert "resnet18" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["coat_tiny", "crossvit_tiny_240"])
def test_several_branches_are_no_final_map_and_their_stages_work(name):
    with pytest.raises(UsageError, match=rf"final features of {name} are a list of \d and no map .* give its stages"):
        load_encoder(name, layers=("final",), random_weights=True, batch_size=1)
    encoder = load_encoder(name, layers=("1",), random_weights=True, batch_size=1)
    size = encoder.preprocess.image_size
    tokens = encoder.encode(torch.zeros(1, 3, size, size, dtype=torch.uint8))["1"]
    assert tokens.shape == encoder.shapes["1"]


def test_a_vit_without_a_final_norm_gives_its_blocks_as_they_are():
    if not timm.is_model("qwen3_vit_88m_enc"):
        pytest.skip(f"timm {HERE} has no such model")
    model = timm.create_model("qwen3_vit_88m_enc", depth=2, embed_dim=64, num_heads=2, img_size=64).eval()
    images = torch.rand(1, 3, 64, 64)
    reader, _ = make_reader(model, images, name="x", layers=("0", "final"))
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")
        found = reader.read(images)
    assert torch.equal(found["0"].patch_BND, expected[0])
    assert torch.equal(found["final"].patch_BND, expected[1])
