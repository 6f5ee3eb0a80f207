"""What is stored comes back within the bounds of its precision, whatever the tokens, by the documented formula."""

import dataclasses

import numpy as np
import pytest
import torch
from benchmarks.pipeline.precision_error import SIZE_LIMITS, measure, token_kinds
from benchmarks.pipeline.tokens import layernorm_like
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vfz.pipeline.errors import CacheFormatError, EncoderError, UsageError
from vfz.pipeline.recipe import PRECISIONS
from vfz.pipeline.stores.quantization import (
    ChannelStats,
    channel_stats,
    expand,
    is_quantised,
    relative_error,
    to_stored,
)

pytestmark = pytest.mark.quick

QUANTISED = ("int8", "int4")
HALF_STEP = 0.5 + 127 * 2e-6  # rounding of z / scale in float32
SMALLEST = 127 * 2.0**-25  # a scale too small for float16 is its nearest subnormal


def plain(num_channels, *, offset=0.0, std=1.0):
    return ChannelStats(offset=np.full(num_channels, offset, np.float32), std=np.full(num_channels, std, np.float32))


def restore(tokens, precision, stats):
    stored = to_stored(tokens, precision, stats)
    return expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=tokens.shape[-1])


def decode_plainly(stored, precision, stats, dim):
    """The documented formula in NumPy, channel by channel."""
    payload, scale = stored.payload.numpy(), stored.scale.numpy().astype(np.float64)
    values = np.empty((*payload.shape[:-1], dim))
    for channel in range(dim):
        if precision == "int8":
            q = payload[..., channel].astype(np.int64)
        else:
            byte = payload[..., channel // 2].astype(np.int64)
            nibble = byte >> 4 if channel % 2 else byte & 15
            q = np.where(nibble < 8, nibble, nibble - 16)
        values[..., channel] = q * scale[..., channel // 128] * stats.std[channel] + stats.offset[channel]
    return values


def some_tokens(num_channels, *, seed=0, shape=(3, 5)):
    """Channels with means and spreads of their own, which are the same for every seed."""
    random, spread = np.random.default_rng(seed), np.exp(np.random.default_rng(99).normal(0, 1, num_channels))
    return torch.from_numpy((random.standard_normal((*shape, num_channels)) * spread + spread).astype(np.float32))


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("num_channels", [1, 2, 7, 127, 128, 129, 200, 255, 384])
def test_a_plain_reader_gets_the_tokens_by_the_documented_formula(precision, num_channels):
    tokens = some_tokens(num_channels)
    stats = channel_stats(some_tokens(num_channels, seed=1, shape=(50,)))
    stored = to_stored(tokens, precision, stats)
    width, dtype = (num_channels, torch.int8) if precision == "int8" else (-(-num_channels // 2), torch.uint8)
    assert (stored.payload.shape, stored.payload.dtype) == ((3, 5, width), dtype)
    assert (stored.scale.shape, stored.scale.dtype) == ((3, 5, -(-num_channels // 128)), torch.float16)
    by_formula = decode_plainly(stored, precision, stats, num_channels)
    restored = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=num_channels)
    assert restored.dtype == torch.float32
    np.testing.assert_allclose(restored.numpy(), by_formula, rtol=1e-5, atol=1e-5 * stats.std.max())
    assert np.sqrt(np.mean(((by_formula - tokens.numpy()) / stats.std) ** 2)) < (0.01 if precision == "int8" else 0.15)


@pytest.mark.parametrize("num_channels", [130, 131])
def test_int4_nibbles_are_where_the_format_says(num_channels):
    tokens = torch.zeros(num_channels)
    tokens[0], tokens[1], tokens[129] = -8.0, 7.0, 3.0
    stored = to_stored(tokens[None], "int4", plain(num_channels))
    byte, scale = stored.payload[0].numpy(), stored.scale[0].float().numpy()
    assert byte[0] == 0x78, "channel 0 (-8) is the low nibble, channel 1 (7) the high one"
    assert scale[0] == 1.0
    assert byte[64] == 0x80, "channel 129, alone in its group, takes the level -8"
    assert scale[1] == -3 / 8
    assert not byte[1:64].any()
    assert not byte[65:].any(), "the nibble beyond an odd last channel is 0"


@given(
    tokens=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.sampled_from([1, 3, 128, 131])),
        elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-8, 8, width=32),
    ),
    std=st.floats(2.0**-20, 2.0**20, width=32),
)
@settings(max_examples=150, deadline=None, database=None)
def test_no_value_in_range_is_off_by_more_than_half_a_step(tokens, std):
    """In range: a group's extreme is at most what the largest scale reaches; beyond it, values are clipped."""
    stats = plain(tokens.shape[-1], std=std)
    stored = to_stored(torch.from_numpy(tokens), "int8", stats)
    assert torch.isfinite(stored.scale).all()
    restored = expand(stored.payload, stored.scale, precision="int8", stats=stats, dim=tokens.shape[-1]).numpy()
    scale = np.repeat(stored.scale.float().numpy(), 128, axis=-1)[..., : tokens.shape[-1]].astype(np.float64)
    reach = 127.0 * 65504 * std
    bound = HALF_STEP * scale * std + SMALLEST * std
    assert (np.abs(restored - np.clip(tokens.astype(np.float64), -reach, reach)) <= bound).all()


@given(
    tokens=hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    factor=st.sampled_from([1.0, 1e-30, 1e30]),
)
@settings(max_examples=100, deadline=None, database=None)
def test_int4_has_finite_scales_and_no_more_error_than_plain_rounding(tokens, factor):
    tokens = torch.from_numpy(tokens) * factor
    stored = to_stored(tokens, "int4", plain(64))
    assert torch.isfinite(stored.scale).all()
    if tokens.abs().max() < 8 * 65504:
        restored = expand(stored.payload, stored.scale, precision="int4", stats=plain(64), dim=64)
        error = (restored - tokens).double().norm(dim=-1)
        # Never worse than storing nothing, nor than 16 levels over the whole range of the token.
        step = tokens.double().abs().amax(dim=-1) / 7.5
        assert (error <= torch.minimum(tokens.double().norm(dim=-1), step / 2 * 64**0.5) * 1.001 + 1e-6).all()


def test_the_errors_and_sizes_of_the_table_are_reached():
    for kind in token_kinds(calibration_frames=4, measured_frames=4):
        for row in measure(*kind):
            assert row.error <= row.limit, row
            assert row.bytes_ratio <= SIZE_LIMITS[row.precision], row


def test_fp32_is_exact_and_fp16_rounds():
    tokens = some_tokens(130)
    assert torch.equal(restore(tokens, "fp32", None), tokens)
    restored = restore(tokens, "fp16", None)
    assert restored.dtype == torch.float32
    assert torch.equal(restored, tokens.half().float())
    assert torch.isinf(to_stored(torch.tensor([[7e4]]), "fp16").payload).all(), "for the store to refuse"


@pytest.mark.parametrize("precision", QUANTISED)
def test_zeros_of_a_sparse_channel_come_back_exactly(precision):
    def sparse(seed):
        return (some_tokens(200, seed=seed, shape=(40, 10)) - 2.5).clamp_min(0)

    tokens, stats = sparse(1), channel_stats(sparse(0))
    assert 0.5 < (tokens == 0).float().mean() < 0.95
    mostly_zero = torch.from_numpy(stats.offset == 0)
    assert 100 < mostly_zero.sum() < 200, "channels with fewer zeros take their mean"
    restored = restore(tokens, precision, stats)[..., mostly_zero]
    assert (restored[tokens[..., mostly_zero] == 0] == 0).all()


def test_the_offset_is_the_value_most_of_the_sample_shares_and_else_the_mean():
    sample = torch.zeros(100, 3)
    sample[:, 0] = 0.1  # constant
    sample[51:, 1] = 5.0  # 51 of 100 are zero
    sample[50:, 2] = 5.0  # half are zero
    stats = channel_stats(sample)
    assert stats.offset.tolist() == [np.float32(0.1), 0.0, 2.5]


@pytest.mark.parametrize("sample_value", ["constant", "noise"])
@pytest.mark.parametrize("precision", QUANTISED)
def test_a_channel_dead_in_the_sample_does_not_spoil_its_group_where_it_is_alive(precision, sample_value):
    sample, tokens = (layernorm_like(seed=seed, num_frames=2, num_tokens=50, dim=128) for seed in (1, 2))
    all_alive = relative_error(tokens, restore(tokens, precision, channel_stats(sample)))
    sample[..., 7] = tokens[..., 7].mean()
    if sample_value == "noise":
        sample[..., 7] += 1e-5 * torch.randn(sample.shape[:-1], generator=torch.Generator().manual_seed(0))
    one_dead = relative_error(tokens, restore(tokens, precision, channel_stats(sample)))
    assert one_dead < 1.1 * all_alive


def test_no_std_is_far_below_the_others_and_wide_channels_keep_theirs():
    sample = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    sample[:, 0] *= 0.01
    sample[:, 1] *= 100
    stats = channel_stats(sample)
    assert 1 / 40 < stats.std[0] / np.median(stats.std) <= 1 / 30
    assert 50 < stats.std[1] / np.median(stats.std) < 120
    few = channel_stats(sample[:16])
    assert few.std[1] / np.median(few.std) > 30, "as many tokens as CLS may have in a sample"


def test_a_sample_of_constant_channels_has_usable_statistics():
    stats = channel_stats(torch.full((10, 4), 3.0))
    assert stats.offset.tolist() == [3.0] * 4
    assert stats.std.tolist() == [1.0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("precision", QUANTISED)
def test_a_token_that_is_not_finite_is_seen_in_its_scale_and_nowhere_else(precision, bad):
    tokens = some_tokens(200, shape=(2000, 3))  # several blocks
    stats = channel_stats(tokens)
    whole = to_stored(tokens, precision, stats)
    tokens[0, 1, 150] = bad
    stored = to_stored(tokens, precision, stats)
    finite = torch.ones(2000, 3, 2, dtype=torch.bool)
    finite[0, 1, 1] = False
    assert torch.equal(torch.isfinite(stored.scale), finite)
    assert torch.equal(stored.scale[finite], whole.scale[finite])
    restored = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=200)
    assert not torch.isfinite(restored[0, 1, 128:]).any()
    assert torch.isfinite(restored[0, 1, :128]).all()
    stored.payload[0, 1] = whole.payload[0, 1]
    assert torch.equal(stored.payload, whole.payload)


@pytest.mark.parametrize("precision", QUANTISED)
def test_values_far_outside_the_sample_are_clipped_and_keep_their_sign(precision):
    tokens = torch.tensor([[1e5, -1e5], [1e20, -1e20], [1e38, 0.0]])
    stored = to_stored(tokens, precision, plain(2))
    assert torch.isfinite(stored.scale).all()
    restored = restore(tokens, precision, plain(2))
    assert torch.equal(restored.sign(), tokens.sign())
    assert restored[1].abs().min() > 4e5
    np.testing.assert_allclose(restored[0], tokens[0], rtol=0.1)


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("distance", [0.0, 1e-12])
def test_a_token_at_its_offset_is_stored_as_zeros_whose_scale_is_not(precision, distance):
    stats = plain(130)
    stored = to_stored(torch.full((3, 130), distance), precision, stats)
    assert not stored.payload.any()
    assert (stored.scale != 0).all()


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("shape", [(0, 5, 200), (4, 0, 200), (200,), (3, 200), (2, 2, 3, 200)])
def test_any_leading_dimensions_work(precision, shape):
    stats = plain(200)
    stored = to_stored(torch.ones(shape), precision, stats)
    assert stored.scale.shape == (*shape[:-1], 2)
    restored = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=200)
    assert restored.shape == shape


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("num_channels", [96, 131, 1024])
def test_a_token_has_the_same_bits_whatever_is_beside_it(precision, num_channels):
    tokens = some_tokens(num_channels, shape=(9, 201))
    stats = channel_stats(tokens[:4])
    whole = to_stored(tokens, precision, stats)
    restored = expand(whole.payload, whole.scale, precision=precision, stats=stats, dim=num_channels)
    for part in (slice(0, 1), slice(1, 4), slice(8, 9)):
        stored = to_stored(tokens[part], precision, stats)
        assert torch.equal(stored.payload, whole.payload[part])
        assert torch.equal(stored.scale, whole.scale[part])
        again = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=num_channels)
        assert torch.equal(again, restored[part])
    for token in range(0, 201, 50):
        stored = to_stored(tokens[3, token], precision, stats)
        assert torch.equal(stored.payload, whole.payload[3, token])
        assert torch.equal(stored.scale, whole.scale[3, token])


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_layout_and_dtype_of_the_tokens_do_not_matter_and_they_are_left_alone(precision):
    tokens = some_tokens(130).requires_grad_()
    stats = channel_stats(tokens)
    expected = to_stored(tokens, precision, stats)
    strided = tokens.detach().transpose(0, 2).contiguous().transpose(0, 2)
    for other in (strided, tokens.detach().double()):
        before = other.clone()
        assert torch.equal(to_stored(other, precision, stats).payload, expected.payload)
        channel_stats(other)
        assert torch.equal(other, before)
    half = tokens.detach().half()
    assert torch.equal(to_stored(half, precision, stats).payload, to_stored(half.float(), precision, stats).payload)


def test_tokens_that_are_not_finite_are_left_out_of_statistics():
    sample = some_tokens(6, shape=(100,))
    expected = channel_stats(sample[1:])
    sample[0, 3] = float("nan")
    stats = channel_stats(sample)
    assert np.array_equal(stats.offset, expected.offset)
    assert np.array_equal(stats.std, expected.std)
    with pytest.raises(EncoderError, match="no finite token"):
        channel_stats(sample[:1])
    with pytest.raises(EncoderError, match="no finite token"):
        channel_stats(torch.empty(0, 3, 6))


def test_the_relative_error_counts_channels_alike_whatever_their_unit():
    tokens = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1000.0])
    restored = tokens + torch.tensor([0.1, 100.0])
    assert relative_error(tokens, restored) == pytest.approx(0.1, rel=0.03)
    assert relative_error(tokens, tokens) == 0
    assert relative_error(tokens, restored, plain(2)) == pytest.approx(0.1, rel=0.03)
    tokens[:, 0] = restored[:, 0] = 0.1
    assert relative_error(tokens, restored + 1e-6) == pytest.approx(0.1, rel=0.03), "a constant channel has no spread"
    assert relative_error(tokens[:1], restored[:1]) == relative_error(tokens[:0], restored[:0]) == 0
    restored[0, 1] = float("inf")
    assert relative_error(tokens, restored) == float("inf")


def test_precisions_are_those_of_the_recipe_and_others_are_refused():
    assert [name for name in PRECISIONS if is_quantised(name)] == list(QUANTISED)
    tokens = torch.ones(2, 4)
    with pytest.raises(UsageError, match="'int3' is not one of fp32, fp16, int8, int4"):
        to_stored(tokens, "int3")
    with pytest.raises(UsageError, match="'int3' is not one of fp32, fp16, int8, int4"):
        expand(tokens, None, precision="int3", stats=None, dim=4)


def test_statistics_that_are_missing_or_do_not_fit_are_refused():
    tokens = torch.ones(2, 4)
    with pytest.raises(UsageError, match="int8 needs the channel statistics"):
        to_stored(tokens, "int8")
    with pytest.raises(UsageError, match="of 5 channels, the tokens have 4"):
        to_stored(tokens, "int4", plain(5))
    stored = to_stored(tokens, "int4", plain(4))
    with pytest.raises(CacheFormatError, match=r"int4 payload \[2, 2\] and scale \[2, 1\] are not those of 5 channels"):
        expand(stored.payload, stored.scale, precision="int4", stats=plain(5), dim=5)
    with pytest.raises(CacheFormatError, match="scale None"):
        expand(stored.payload, None, precision="int4", stats=plain(4), dim=4)
    good = plain(4)
    for changes in (
        {"std": np.zeros(4, np.float32)},
        {"std": np.ones(4)},
        {"std": np.ones(3, np.float32)},
        {"offset": np.full(4, np.nan, np.float32)},
    ):
        with pytest.raises(CacheFormatError, match="calibration"):
            dataclasses.replace(good, **changes)
