"""Every registered mixer keeps the contract; what is special about each; equality with the paper's own."""

import pytest
import torch
from contracts.mixer_contract import NUM_LAYERS, MixerContract
from helpers.reference import Reference

from vfz.pipeline.errors import UnknownNameError
from vfz.temporal.mixers import MIXERS, build_mixer
from vfz.temporal.reference.checkpoints import load_mixer

pytestmark = pytest.mark.quick


class TestLast(MixerContract):
    name = "last"
    mixed_layers = (NUM_LAYERS - 1,)

    def test_it_returns_the_last_layer_untouched(self, mixer, layers):
        assert mixer(layers) is layers[-1]


class TestMean(MixerContract):
    name = "mean"

    def test_in_training_the_scale_of_a_layer_is_taken_out_before_its_mlp(self, layers):
        mixer = self.build().train()
        scaled = [3.0 * layer + 5.0 for layer in layers]
        added, added_to_scaled = (mixer(x) - torch.stack(x).mean(0) for x in (layers, scaled))
        torch.testing.assert_close(added_to_scaled, added, rtol=0, atol=1e-4)
        mixer.eval()
        added, added_to_scaled = (mixer(x) - torch.stack(x).mean(0) for x in (layers, scaled))
        assert not torch.allclose(added_to_scaled, added, atol=1e-2)

    def test_prefix_tokens_are_in_no_statistics(self, layers):
        mixer = self.build(num_prefix=2).train()
        for layer in layers:
            layer[..., :2, :] = 1e6
        mixer(layers)
        assert all(block.bn.running_mean.abs().max() < 1 for block in mixer.blocks)

    def test_of_two_layers_it_is_the_mean_of_what_each_gives_alone(self, layers):
        mixer = build_mixer("mean", dim=16, num_layers=2).eval()
        alone = [block(layer) for block, layer in zip(mixer.blocks, layers[:2], strict=True)]
        torch.testing.assert_close(mixer(layers[:2]), (alone[0] + alone[1]) / 2)


class TestCrossAttention(MixerContract):
    name = "xattn"

    def test_it_tells_the_layers_apart(self, layers):
        mixer = self.build()
        with torch.no_grad():
            mixer.layer_embed.normal_()
        assert not torch.allclose(mixer(layers), mixer([layers[1], layers[0], layers[2]]), atol=1e-4)

    @pytest.mark.parametrize(("dim", "heads"), [(384, 8), (12, 6), (20, 4), (9, 3), (7, 1)])
    def test_heads_are_8_where_that_divides_the_channels(self, dim, heads):
        assert build_mixer("xattn", dim=dim, num_layers=1).attn.num_heads == heads


def test_every_registered_mixer_is_held_to_the_contract():
    assert {cls.name for cls in MixerContract.__subclasses__()} == set(MIXERS.names())


def test_an_unknown_mixer_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown mixer 'lst'; did you mean last"):
        build_mixer("lst", dim=8, num_layers=1)


# --- equal to the implementation of the paper's authors, from the same weights ---


def load(name):
    reference = Reference(f"mixer_{name}")
    return load_mixer(reference.group("weights")), list(reference.group("input")["layers"]), reference.group("output")


@pytest.mark.parametrize("name", ["mean", "xattn"])
def test_a_mixer_gives_the_reference_output(name):
    mixer, layers, expected = load(name)
    assert (mixer(layers) - expected["eval"]).abs().max() <= 1e-5


def test_the_mean_mixer_gives_the_reference_output_in_training_too():
    mixer, layers, expected = load("mean")
    assert (mixer.train()(layers) - expected["train"]).abs().max() <= 1e-5
    assert (expected["train"] - expected["eval"]).abs().max() > 1e-2


def test_the_mean_mixer_has_the_reference_statistics_after_one_training_step():
    mixer, layers, _ = load("mean")
    mixer.train()(layers)
    ours, theirs = mixer.state_dict(), Reference("mixer_mean").group("output", prefix="after_train.")
    before = Reference("mixer_mean").group("weights")
    assert len(theirs) == 8
    for name, value in theirs.items():
        assert (ours[name.replace("model.encoder.interm_mlps.", "blocks.")] - value).abs().max() <= 1e-5, name
        assert (before[name] - value).abs().max() > 1e-3, name
