"""Compression: what is chosen for which tokens, and that chunks survive it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vfz.pipeline.errors import UsageError
from vfz.pipeline.stores.compression import MIN_SAVING, choose_compression, decode, encode, encoded_bytes_limit

pytestmark = pytest.mark.quick

CODECS = ("none", "zstd", "blosc-zstd")


def layernorm_like(num_frames=8, dtype=np.float16):
    return np.random.default_rng(0).standard_normal((num_frames, 201, 384)).astype(dtype)


def mostly_zero(num_frames=8):
    return np.maximum(layernorm_like(num_frames) - np.float16(1), 0)


def test_tokens_out_of_a_layernorm_are_left_alone():
    choice = choose_compression({"layer_5/patch": layernorm_like()}, requested="auto")
    assert choice.name == "none"
    assert all(choice.ratios[name] > 1 - MIN_SAVING for name in CODECS)


def test_tokens_that_are_mostly_zero_are_compressed():
    choice = choose_compression({"layer_5/patch": mostly_zero()}, requested="auto")
    assert choice.name in ("zstd", "blosc-zstd")
    assert choice.ratios[choice.name] == min(choice.ratios.values()) < 0.5


def test_the_payload_outweighs_its_scales():
    payload = np.random.default_rng(0).integers(-127, 127, (8, 201, 384), np.int8)
    constant = np.ones((8, 201, 3), np.float16)
    assert choose_compression({"patch_scale": constant}, requested="auto").name != "none"
    assert choose_compression({"patch": payload, "patch_scale": constant}, requested="auto").name == "none"


@pytest.mark.parametrize("requested", CODECS)
def test_what_was_asked_for_is_taken_and_still_measured(requested):
    for tokens in (layernorm_like(), mostly_zero()):
        choice = choose_compression({"patch": tokens}, requested=requested)
        assert choice.name == requested
        assert choice == choose_compression({"patch": tokens}, requested=requested)
        assert choice.ratios == choose_compression({"patch": tokens}, requested="auto").ratios
        assert choice.ratios.keys() == set(CODECS)
        assert choice.ratios["none"] == 1.0


def test_a_sample_shorter_than_a_chunk_is_measured_as_it_is():
    few = np.zeros((3, 2, 40), np.float16)
    assert choose_compression({"prefix": few}, requested="auto").name != "none"
    with pytest.raises(ValueError, match="no frame"):
        choose_compression({"prefix": few[:0]}, requested="auto")


def test_only_whole_chunks_are_measured():
    """Of 100 frames of 160 bytes in chunks of 410 none is whole; of 500 one is, and the 90 frames of noise are not."""
    tokens = np.zeros((500, 2, 40), np.float16)
    tokens[410:] = np.random.default_rng(0).standard_normal((90, 2, 40))
    alone = choose_compression({"prefix": tokens[:410]}, requested="auto")
    assert choose_compression({"prefix": tokens}, requested="auto") == alone


def test_an_unknown_codec_is_refused():
    with pytest.raises(UsageError, match="'gzip' is not one of auto, none, zstd, blosc-zstd"):
        choose_compression({"patch": layernorm_like()}, requested="gzip")


@pytest.mark.parametrize("name", CODECS)
@given(
    values=hnp.arrays(st.sampled_from([np.float16, np.float32, np.float64, np.uint8]), st.integers(1, 3000)),
    tiled=st.integers(1, 50),
)
@settings(max_examples=40, deadline=None, database=None)
def test_a_chunk_comes_back_equal_from_the_same_bytes(name, values, tiled):
    chunk = np.tile(values, tiled).view(np.uint8)
    stored = bytes(encode(name, chunk, values.dtype.itemsize))
    assert stored == bytes(encode(name, chunk.copy(), values.dtype.itemsize))
    assert len(stored) <= encoded_bytes_limit(len(chunk))
    np.testing.assert_array_equal(decode(name, np.frombuffer(stored, np.uint8), len(chunk)), chunk)


@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_of_another_size_is_refused(name):
    stored = np.frombuffer(bytes(encode(name, np.arange(200, dtype=np.uint8), 1)), np.uint8)
    with pytest.raises(ValueError, match="200 bytes came out, 201"):
        decode(name, stored, 201)


def test_bytes_that_no_codec_wrote_are_refused():
    for name in ("zstd", "blosc-zstd"):
        with pytest.raises((ValueError, RuntimeError)):
            decode(name, np.frombuffer(b"nothing that was ever compressed", np.uint8), 200)
