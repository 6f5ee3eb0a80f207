"""Conversion: every store and precision becomes every other, with the tokens and the recipe that are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.conversion import MAX_ERROR, data_digests, errors, ledger, run, same_arrays, stored, tokens
from helpers.reference import plain_arrays, plain_tokens

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.format.golden import read_golden
from vfz.pipeline.maintenance import convert as convert_shard
from vfz.pipeline.maintenance.convert_source import open_source
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.maintenance.verify.encoder import verify_encoder
from vfz.pipeline.recipe import PRECISIONS, STORE_NAMES
from vfz.pipeline.stores.quantization import to_stored

PAIRS = [(before, after) for n, before in enumerate(PRECISIONS) for after in PRECISIONS[n:]]


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("to", STORE_NAMES)
@pytest.mark.parametrize("of", STORE_NAMES)
def test_every_store_and_precision_becomes_every_other(sources, tmp_path, of, to, before, after):
    source = sources(of, before)
    report, folder = run(source, tmp_path, store=to, precision=after)
    assert (report.store, report.precision, report.num_pending) == (to, after, 0)
    assert (report.num_ok, report.num_failed, report.num_missing, report.unstorable) == (8, 2, 2, {})
    assert ledger(folder) == ledger(source)
    assert FeatureCache(folder).ledger_digest == FeatureCache(source).ledger_digest
    assert verify_cache(folder).problems == ()
    for plan in (source / "plan").iterdir():
        assert (folder / "plan" / plan.name).read_bytes() == plan.read_bytes()
    if before == after:
        assert report.fingerprint == open_source(source).header.fingerprint
        assert same_arrays(stored(folder), stored(source))
        for file in (source / "calibration").iterdir():
            assert (folder / "calibration" / file.name).read_bytes() == file.read_bytes()
        return
    for column, error in errors(source, folder).items():
        assert 0 < error <= MAX_ERROR[after], column


def test_tokens_and_golden_frames_are_what_rounding_the_old_ones_gives_bit_for_bit(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, folder = run(source, tmp_path, precision="int8")
    old, new = open_source(source), open_source(folder)
    old_golden, new_golden = read_golden(source, old.contents), read_golden(folder, new.contents)
    np.testing.assert_array_equal(new_golden.pixels_GCHW, old_golden.pixels_GCHW)
    assert (new_golden.video_ids, new_golden.pts_seconds) == (old_golden.video_ids, old_golden.pts_seconds)
    expected, found = stored(source), stored(folder)
    for column in new.contents.columns:
        stats = new.calibrations[column.key].stats
        for video_id, view in {key[:2] for key in expected}:
            given = to_stored(torch.from_numpy(expected[video_id, view, column.key]).float(), "int8", stats)
            np.testing.assert_array_equal(found[video_id, view, column.key], given.payload.numpy())
            np.testing.assert_array_equal(found[video_id, view, f"{column.key}_scale"], given.scale.numpy())
        given = to_stored(torch.from_numpy(old_golden.arrays[column.key]).float(), "int8", stats)
        np.testing.assert_array_equal(new_golden.arrays[column.key], given.payload.numpy())
        before, after = old.calibrations[column.key], new.calibrations[column.key]
        assert after.precision_error > before.precision_error, "both roundings count"


def test_fp32_to_fp16_gives_the_tokens_that_extraction_gives(sources, tmp_path):
    _, folder = run(sources("zarr", "fp32"), tmp_path, precision="fp16")
    assert same_arrays(stored(folder), stored(sources("zarr", "fp16")))


def test_the_recipe_changes_in_how_tokens_are_stored_only_and_provenance_tells_the_origin(sources, tmp_path):
    source = open_source(sources("zarr", "fp16"))
    _, folder = run(source.path, tmp_path, precision="int4", name="mine")
    new = open_source(folder)
    assert folder.name == f"mine-built_patch16_8-{new.header.fingerprint[:12]}"
    assert new.header.recipe["storage"] == {
        "precision": "int4",
        "precision_version": 1,
        "calibration_seed": 0,
        "calibration_frames": 48,
        "converted_from": "fp16",
    }
    assert {**new.header.recipe, "storage": None} == {**source.header.recipe, "storage": None}
    assert {**new.header.provenance, "converted_from": None} == {**source.header.provenance, "converted_from": None}
    origin = new.header.provenance["converted_from"]
    assert (origin["path"], origin["fingerprint"]) == (str(source.path), source.header.fingerprint)


def test_a_cache_keeps_the_name_that_it_was_given(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, first = run(source, tmp_path, store="webdataset", name="mine")
    _, second = run(first, tmp_path / "again", precision="int8")
    assert second.name.startswith("mine-built_patch16_8-")
    renamed = first.rename(first.with_name("elsewhere"))
    _, third = run(renamed, tmp_path / "third", precision="int8")
    assert third.name.removeprefix(open_source(source).contents.dataset) == second.name.removeprefix("mine")


def test_names_and_samples_are_as_an_extraction_makes_them(sources, tmp_path):
    from vfz.pipeline.format.folder import cache_name

    report, folder = run(sources("webdataset", "int4"), tmp_path)
    assert folder.name == cache_name("built", "built_patch16_8.for_tests", report.fingerprint)


@pytest.mark.parametrize("to", STORE_NAMES)
def test_a_converted_cache_is_read_by_the_plain_libraries(sources, tmp_path, to):
    _, folder = run(sources("webdataset", "fp16"), tmp_path, store=to, precision="int4")
    found, expected = plain_arrays(folder), tokens(folder)
    assert {(*key, name) for key, arrays in found.items() for name in arrays} == set(stored(folder))
    for (video_id, view, key), values in expected.items():
        layer, part = key.removeprefix("layer_").split("/")
        plain = plain_tokens(folder, found[video_id, view], layer, part)
        np.testing.assert_allclose(plain, values, rtol=1e-5, atol=1e-5)


def test_a_converted_cache_is_opened_as_any_other(sources, tmp_path):
    _, folder = run(sources("zarr", "fp16"), tmp_path, precision="int8", store="webdataset")
    with_later = FeatureCache(folder, checksums="always")
    clip = with_later.read("v1", frames=[2, 0], view=1)
    expected = tokens(folder)
    for layer, part in (("2", "patch"), ("2", "prefix"), ("5", "patch"), ("final", "patch")):
        np.testing.assert_allclose(
            clip.tokens(layer, part), expected["v1", 1, f"layer_{layer}/{part}"][[2, 0]], rtol=1e-6, atol=1e-6
        )
    assert (folder / "index.parquet").is_file()


def test_blocks_of_any_size_give_the_same_files(sources, tmp_path, monkeypatch):
    _, whole = run(sources("zarr", "fp16"), tmp_path / "whole", precision="int8")
    monkeypatch.setattr(convert_shard, "BLOCK_BYTES", 1)  # frame by frame
    _, parts = run(sources("zarr", "fp16"), tmp_path / "parts", precision="int8")
    assert data_digests(whole) == data_digests(parts)


def test_chunks_may_be_compressed_and_uncompressed_again(sources, tmp_path):
    source = sources("zarr", "fp32")
    report, packed = run(source, tmp_path / "packed", compression="zstd")
    assert set(report.compression.values()) == {"zstd"}
    report, plain = run(packed, tmp_path / "plain", compression="none")
    assert set(report.compression.values()) == {"none"}
    assert same_arrays(stored(packed), stored(source))
    assert same_arrays(stored(plain), stored(source))
    origin = open_source(plain).header.provenance["converted_from"]
    assert origin["before"]["path"] == str(source), "a copy of a copy tells the whole way"


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_encoder_is_still_recognised_after_conversion(synthetic_cache, tmp_path, precision):
    _, folder = run(synthetic_cache.path, tmp_path, precision=precision, store="webdataset")
    report = verify_encoder(folder)
    assert report.passed
    assert report.num_decoded == report.num_frames == 16
