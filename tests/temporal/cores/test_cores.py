"""Every registered core keeps the contract; names, sizes and defaults of `build_core`."""

from typing import ClassVar

import pytest
import torch
from contracts.core_contract import CoreContract

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.cores import CORES, build_core


class TestIdentity(CoreContract):
    name = "identity"
    has_activations = False

    # The one core without memory: nothing of the past can reach a later frame, everything else holds.
    def test_a_frame_does_not_see_earlier_frames(self, core, tokens):
        changed = tokens.clone()
        changed[:, :3] += 1.0
        assert torch.equal(core(tokens)[0][:, 3:], core(changed)[0][:, 3:])


class RemembersContract(CoreContract):
    """For the cores that do have a memory."""

    def test_the_last_output_depends_on_the_first_frame(self, core, tokens):
        tokens.requires_grad_()
        core(tokens)[0][:, -1].square().sum().backward()
        assert tokens.grad[:, 0].abs().sum() > 0


class TokenwiseContract(RemembersContract):
    """For the cores in which every token position is its own sequence over time."""

    def test_a_token_does_not_see_other_tokens_of_the_frame(self, core, tokens):
        changed = tokens.clone()
        changed[:, :, 0] += torch.randn_like(changed[:, :, 0])
        torch.testing.assert_close(core(tokens)[0][:, :, 1:], core(changed)[0][:, :, 1:], rtol=0, atol=1e-6)


class TestM(TokenwiseContract):
    name = "m"


class TestGru(TokenwiseContract):
    name = "gru"


class TestMinGru(TokenwiseContract):
    name = "mingru"


class TestAttention(TokenwiseContract):
    name = "attention"
    frames_until_constant = 64


class TestAttentionInAWindow(TokenwiseContract):
    """Seven frames are more than the window here, so the cache is full in most tests."""

    name = "attention"
    kwargs: ClassVar[dict] = {"window": 4}
    frames_until_constant = 4


class TestMMix(RemembersContract):
    name = "mmix"


class TestGMMix(RemembersContract):
    name = "gmmix"


class TestGMMixHiddenGate(RemembersContract):
    name = "gmmix"
    kwargs: ClassVar[dict] = {"gate_hidden_dim": 8}


class TestRvmRnn(RemembersContract):
    name = "rvm_rnn"


def subclasses(cls):
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def test_every_registered_core_is_held_to_the_contract():
    assert {cls.name for cls in subclasses(CoreContract) if hasattr(cls, "name")} == set(CORES.names())


def test_an_unknown_core_offers_the_nearest_name():
    with pytest.raises(UnknownNameError, match=r"unknown core 'gmix'; did you mean .*gmmix"):
        build_core("gmix", dim=8)


def test_heads_that_do_not_divide_the_channels_are_refused_in_one_line():
    with pytest.raises(UsageError, match="5 attention heads do not divide 16 channels; use one of 1, 2, 4, 8, 16"):
        build_core("gmmix", dim=16, num_heads=5)


def test_an_option_that_a_core_does_not_have_is_refused_with_those_it_has():
    with pytest.raises(UsageError, match="core m has no option window; it takes dropout"):
        build_core("m", dim=8, window=4)
    with pytest.raises(UsageError, match="core identity has no option dropout; it has no options"):
        build_core("identity", dim=8, dropout=0.0)


@pytest.mark.parametrize("sizes", [{"dim": 0}, {"dim": 8, "num_layers": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(UsageError, match="is 0; a core needs at least 1"):
        build_core("m", **sizes)


@pytest.mark.parametrize(("dim", "heads"), [(64, 16), (24, 12), (40, 8), (18, 6), (20, 4), (10, 2), (7, 1)])
def test_default_heads_are_the_first_of_the_list_that_divide(dim, heads):
    assert build_core("mmix", dim=dim, num_layers=1).spatial_blocks[0].sa_attn.num_heads == heads


@pytest.mark.parametrize(("dim", "heads"), [(384, 8), (768, 12), (1024, 16), (64, 16)])
def test_default_heads_of_rvm_rnn_are_those_of_the_published_models(dim, heads):
    with torch.device("meta"):
        core = build_core("rvm_rnn", dim=dim, num_layers=1)
    assert core.transformer.layers[0].ca_attn.num_heads == heads
