"""What an extraction will store, told before it: the same as what it then stores, and nothing is made for it."""

import dataclasses

import pytest

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.encoder.shapes import describe_encoder
from vfz.pipeline.errors import EncoderError, UnknownNameError, UsageError
from vfz.pipeline.extraction.expected import expect, find_videos, needs_a_root
from vfz.pipeline.extraction.options import ExtractOptions


@pytest.mark.parametrize(
    ("name", "layers", "image_size"),
    [
        ("demo", ("1", "3", "final"), 96), ("vit_tiny_patch16_224", ("5", "-1"), 64), ("convnext_atto", None, 64),
        ("vit_tiny_patch16_224", None, None), ("swin_tiny_patch4_window7_224", ("final",), None),
    ],
)  # fmt: skip
def test_shapes_without_weights_are_those_of_the_encoder(name, layers, image_size):
    encoder = load_encoder(name, layers=layers, image_size=image_size, random_weights=name != "demo")
    assert describe_encoder(name, layers=layers, image_size=image_size) == (
        encoder.preprocess.image_size, encoder.shapes,
    )  # fmt: skip


@pytest.mark.quick
def test_what_was_expected_is_what_was_stored(synthetic_options, synthetic_cache):
    options = synthetic_options()
    found = expect(options, dataset=find_videos(options))
    assert dict(found.layers) == {"3": {"patch": (16, 112)}}
    assert {layer: dict(parts) for layer, parts in synthetic_cache.layers.items()} == dict(found.layers)
    assert found.recipe["encoder"]["image_size"] == synthetic_cache.recipe["encoder"]["image_size"]
    assert found.class_names == synthetic_cache.class_names
    assert found.splits == {split: synthetic_cache.num_planned(split) for split in synthetic_cache.splits}
    assert found.targets_path.is_file()


def test_nothing_is_rendered_or_loaded_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ExtractOptions(dataset="synthetic", encoder="vit_large_patch16_dinov3.lvd1689m", layers=("-1",))
    found = expect(options, dataset=find_videos(options))
    assert dict(found.layers) == {"23": {"patch": (256, 1024), "prefix": (5, 1024)}}
    assert found.splits == {"train": 360, "test": 120}
    assert list(tmp_path.iterdir()) == []


def test_folders_without_splits_have_those_that_they_will_be_dealt_to(tmp_path):
    for number in range(3):
        path = tmp_path / "walk" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"never opened")
    options = ExtractOptions(dataset="folder", root=tmp_path, encoder="demo")
    dataset = find_videos(options)
    assert expect(options, dataset=dataset).splits == {"train": None, "val": None, "test": None}
    two = dataclasses.replace(options, split_fractions=(0.5, 0.0, 0.5))
    assert expect(two, dataset=dataset).splits == {"train": None, "test": None}
    assert expect(dataclasses.replace(options, split_folds=2), dataset=dataset).splits is None


def test_without_the_videos_the_tokens_are_known_all_the_same(monkeypatch):
    monkeypatch.delenv("VFZ_DATA_SSV2", raising=False)
    options = ExtractOptions(dataset="ssv2", encoder="demo")
    assert needs_a_root(options)
    found = expect(options, dataset=None)
    assert (found.class_names, found.splits, found.targets_path) == (None, None, None)
    assert dict(found.layers) == {"4": {"patch": (49, 320)}}
    assert not needs_a_root(ExtractOptions(dataset="synthetic"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"encoder": "demoo"}, UnknownNameError, "did you mean demo"),
        ({"layers": ("9",)}, UsageError, "has no layer '9'"),
        ({"parts": ("prefix",)}, UsageError, "layer 3 of demo has no such tokens; it has patch"),
        ({"splits": ("valid",)}, UsageError, "--splits 'valid' is not in .*; it has test, train"),
        ({"weights": "nowhere.pth"}, EncoderError, "weights nowhere.pth: there is no such file"),
        ({"encoder": "vit_tiny_patch16_224", "layers": None, "image_size": 50}, UsageError, "no multiple of"),
    ],
)
def test_what_an_extraction_would_refuse_is_refused(synthetic_options, changes, error, words):
    def expected():  # an encoder's name is looked at when the options are made
        options = synthetic_options(**changes)
        return expect(options, dataset=find_videos(options))

    with pytest.raises(error, match=words):
        expected()


def test_a_dataset_that_is_not_prepared_is_listed_and_not_made(tmp_path):
    dataset = open_dataset("synthetic", root=tmp_path / "none", num_videos=24, num_frames=6, size=64, prepare=False)
    planned = dataset.planned_videos()
    assert not (tmp_path / "none").exists()
    dataset.prepare()
    assert dataset.videos() == planned == dataset.planned_videos()
