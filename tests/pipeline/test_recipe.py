"""The recipe decides the fingerprint, and says what differs."""

import dataclasses
import json
from pathlib import Path

import pytest

from vfz.pipeline.errors import CacheFormatError, UsageError
from vfz.pipeline.recipe import (
    STORE_NAMES,
    EncoderSpec,
    FrameSpec,
    Recipe,
    StorageSpec,
    ViewSpec,
    describe_difference,
    recipe_from_dict,
)

pytestmark = pytest.mark.quick

RECIPE = Recipe(
    encoder=EncoderSpec(
        name="vit_tiny_patch16_224",
        weights_sha256="0" * 64,
        random_weights=True,
        image_size=224,
        crop_fraction=1.0,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        preprocess_version=1,
        layers_version=1,
        final_norm=True,
        autocast="float32",
    ),
    frames=FrameSpec(fps=6.0, decoder="pyav", decoder_version=1),
    views=ViewSpec(),
    storage=StorageSpec(precision="fp16"),
)


def changed(part, **values):
    return dataclasses.replace(RECIPE, **{part: dataclasses.replace(getattr(RECIPE, part), **values)})


def test_a_recipe_survives_the_trip_through_json():
    again = recipe_from_dict(RECIPE.to_dict())
    assert again == RECIPE
    assert again.fingerprint == RECIPE.fingerprint


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("encoder", {"name": "vit_small_patch16_224"}),
        ("encoder", {"weights_sha256": "1" * 64}),
        ("encoder", {"image_size": 256}),
        ("encoder", {"autocast": "bfloat16"}),
        ("encoder", {"mean": (0.4, 0.5, 0.5)}),
        ("frames", {"fps": 12.0}),
        ("frames", {"end_seconds": 3.0}),
        ("frames", {"rule": "centred", "num_frames": 16}),
        ("frames", {"rule": "uniform", "num_frames": 16, "fps": None}),
        ("views", {"seed": 1}),
        ("views", {"horizontal_flip": True}),
        ("storage", {"precision": "fp32"}),
        ("storage", {"precision_version": 2}),
        ("storage", {"converted_from": "fp32"}),
        ("storage", {"precision": "int8", "calibration_frames": 48, "calibration_seed": 0}),
    ],
)
def test_whatever_decides_a_number_changes_the_fingerprint(part, values):
    assert changed(part, **values).fingerprint != RECIPE.fingerprint


def test_a_rule_that_old_caches_did_not_know_leaves_their_fingerprints_as_they_were():
    assert RECIPE.fingerprint == "b36f4d33168267a01a5afebcff671a7af0010e6ccdb21f89670c4efeca222fa6"
    assert not {"rule", "num_frames"} & RECIPE.to_dict()["frames"].keys()


@pytest.mark.parametrize(
    "values", [{"rule": "centred", "num_frames": 16}, {"rule": "uniform", "num_frames": 8, "fps": None}]
)
def test_other_rules_survive_the_trip_through_json(values):
    recipe = changed("frames", **values)
    again = recipe_from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    assert any("frames.rule" in line for line in describe_difference(RECIPE.to_dict(), recipe.to_dict()))


def test_whole_and_decimal_rates_are_the_same_recipe():
    assert recipe_from_dict(RECIPE.to_dict() | {"frames": RECIPE.to_dict()["frames"] | {"fps": 6}}) == RECIPE


def test_a_difference_is_told_field_by_field():
    other = changed("encoder", image_size=256)
    assert describe_difference(RECIPE.to_dict(), other.to_dict()) == ["encoder.image_size: cache 224, requested 256"]


def test_a_recipe_with_a_field_too_many_or_too_few_is_refused():
    values = RECIPE.to_dict()
    with pytest.raises(CacheFormatError, match="flavour"):
        recipe_from_dict(values | {"flavour": "vanilla"})
    del values["frames"]["fps"]
    with pytest.raises(CacheFormatError, match="fps"):
        recipe_from_dict(values)


@pytest.mark.parametrize("values", [{"fps": 0}, {"fps": float("nan")}, {"start_seconds": -1}, {"end_seconds": 0.0}])
def test_an_impossible_window_is_refused(values):
    with pytest.raises(UsageError):
        changed("frames", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp8"}, "'fp8' is not one of fp32, fp16, int8, int4"),
        ({"converted_from": "bf16"}, "'bf16' is not one of"),
        ({"precision": "int4"}, "int4 with None calibration frames"),
        ({"calibration_frames": 48}, "fp16 with 48 calibration frames"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        changed("storage", **values)


def test_the_stores_that_the_command_line_offers_are_the_registered_ones():
    from vfz.pipeline.stores import STORES

    assert tuple(STORES) == STORE_NAMES


def test_every_store_is_held_to_the_contract():
    from contracts.store_contract import StoreContract
    from contracts.subclasses import subclasses_in

    assert {cls.store for cls in subclasses_in(Path(__file__).parent / "stores", StoreContract)} == set(STORE_NAMES)
