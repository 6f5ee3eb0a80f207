"""What every layer mixer must do. Subclass `MixerContract`, set its attributes, and all of it is tested."""

import pytest
import torch

from vfz.pipeline.errors import UsageError
from vfz.temporal.mixers import build_mixer

NUM_LAYERS, NUM_PREFIX, DIM = 3, 2, 16
SHAPE = (2, 4, 7, DIM)  # B, T, N, D


class MixerContract:
    """Reusable tests of a `LayerMixer`, in evaluation mode unless a test says otherwise.

    Attributes:
        name: the registered name.
        mixed_layers: the layers that the result depends on.
    """

    name: str
    mixed_layers: tuple = tuple(range(NUM_LAYERS))

    def build(self, seed=0, **sizes):
        torch.manual_seed(seed)
        mixer = build_mixer(self.name, **{"dim": DIM, "num_layers": NUM_LAYERS, **sizes}).eval()
        if seed == 0:
            mixer(self.some_layers())
            mixer.train()(self.some_layers())  # statistics that are not those of a fresh mixer
        return mixer.eval()

    @staticmethod
    def some_layers():
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(SHAPE, generator=generator) for _ in range(NUM_LAYERS)]

    @pytest.fixture(params=[0, NUM_PREFIX])
    def mixer(self, request):
        return self.build(num_prefix=request.param)

    @pytest.fixture
    def layers(self):
        return self.some_layers()

    def test_the_result_has_the_shape_of_a_layer(self, mixer, layers):
        assert mixer(layers).shape == SHAPE
        assert mixer(layers).dtype == torch.float32

    def test_any_dimensions_may_stand_before_tokens_and_channels(self, mixer, layers):
        expected = mixer(layers)
        rows = mixer([layer.flatten(0, 1) for layer in layers])
        torch.testing.assert_close(rows.view(SHAPE), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixer([layer[0, 0] for layer in layers]), expected[0, 0], rtol=0, atol=1e-6)

    def test_it_depends_on_the_layers_it_says(self, mixer, layers):
        for layer in layers:
            layer.requires_grad_()
        mixer(layers)[..., NUM_PREFIX:, :].square().sum().backward()
        seen = tuple(k for k, layer in enumerate(layers) if layer.grad is not None and layer.grad.abs().sum() > 0)
        assert seen == self.mixed_layers

    def test_a_token_does_not_see_other_tokens(self, mixer, layers):
        changed = [layer.clone() for layer in layers]
        for layer in changed:
            layer[:, 1, 3] += 1.0
        difference = (mixer(changed) - mixer(layers)).abs().sum(dim=-1)
        assert (difference[:, 1, 3] > 1e-3).all()
        difference[:, 1, 3] = 0
        assert difference.max() < 1e-4

    def test_prefix_tokens_are_those_of_the_last_layer(self, layers):
        mixed = self.build(num_prefix=NUM_PREFIX)(layers)
        assert torch.equal(mixed[..., :NUM_PREFIX, :], layers[-1][..., :NUM_PREFIX, :])

    def test_patch_tokens_are_mixed_as_if_there_were_no_prefix_tokens(self, layers):
        mixer = self.build(num_prefix=NUM_PREFIX)
        without = self.build()
        without.load_state_dict(mixer.state_dict())
        patches = without([layer[..., NUM_PREFIX:, :] for layer in layers])
        torch.testing.assert_close(mixer(layers)[..., NUM_PREFIX:, :], patches, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("training", [False, True])
    def test_gradients_reach_every_parameter(self, mixer, layers, training):
        layers[-1].requires_grad_()
        y = mixer.train(training)(layers)
        (y * torch.randn_like(y)).sum().backward()
        for name, parameter in [*mixer.named_parameters(), ("last layer", layers[-1])]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    def test_it_runs_under_bf16_autocast_close_to_float32(self, mixer, layers):
        exact = mixer(layers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = mixer(layers)
        assert (y.float() - exact).norm() / exact.norm() < 0.05

    def test_a_state_dict_makes_the_same_mixer(self, mixer, layers):
        other = self.build(seed=1, num_prefix=mixer.num_prefix)
        other.load_state_dict(mixer.state_dict())
        assert torch.equal(other(layers), mixer(layers))

    def test_another_number_of_layers_than_built_for_is_refused_in_one_line(self, mixer, layers):
        with pytest.raises(UsageError, match=r"got 2 layers and was built for 3$"):
            mixer(layers[:2])

    def test_layers_that_do_not_fit_are_refused_in_one_line(self, mixer, layers):
        for wrong in ([layers[0], layers[1], layers[2][:, :, 1:]], [layer[..., 1:] for layer in layers]):
            with pytest.raises(
                UsageError, match=r"the mixer got layers of shapes \[2, 4, [^\n]* 3 of one shape [^\n]*$"
            ):
                mixer(wrong)

    @pytest.mark.parametrize(("size", "value"), [("dim", 0), ("num_layers", 0), ("num_prefix", -1)])
    def test_sizes_that_are_too_small_are_refused_in_one_line(self, size, value):
        with pytest.raises(UsageError, match=f"{size} is {value}; a mixer needs at least "):
            self.build(seed=1, **{size: value})
