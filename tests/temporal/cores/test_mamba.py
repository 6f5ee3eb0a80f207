"""The Mamba layer: its published start values, what stays in float32, and what carries no weight decay."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vfz.temporal.cores.mamba import Mamba

pytestmark = pytest.mark.quick


def make_layer():
    torch.manual_seed(0)
    return Mamba(40)


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    layer = make_layer()
    delta = F.softplus(layer.dt_proj.bias)
    assert delta.min() >= 0.99e-3
    assert delta.max() <= 0.101
    assert delta.log().std() > 0.8
    assert layer.dt_proj.weight.shape == (80, 3)
    assert layer.dt_proj.weight.abs().max() <= 3**-0.5


def test_decay_rates_start_at_one_to_sixteen_and_the_direct_path_at_one():
    layer = make_layer()
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17.0).expand(80, 16))
    assert torch.equal(layer.D, torch.ones(80))


@pytest.mark.parametrize("copied", [lambda layer: layer, copy.deepcopy])
def test_only_the_decay_rates_and_the_direct_path_are_marked_against_weight_decay(copied):
    layer = copied(make_layer())
    assert {name for name, parameter in layer.named_parameters() if hasattr(parameter, "_no_weight_decay")} == {
        "A_log",
        "D",
    }


def test_the_carried_state_is_float32_under_autocast():
    layer = make_layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(torch.randn(3, 5, 40))
    assert y.dtype == torch.bfloat16
    assert state.ssm_SKE.dtype == torch.float32
    assert state.ssm_SKE.shape == (3, 16, 80)
    assert state.conv_SWE.shape == (3, 3, 80)


def test_the_convolution_sees_the_three_frames_before():
    layer = make_layer()
    u = torch.randn(1, 6, 40)
    whole = layer._convolve(layer.in_proj(u).chunk(2, -1)[0], None)[0]
    expected = F.conv1d(
        F.pad(layer.in_proj(u).chunk(2, -1)[0].mT, (3, 0)), layer.conv1d.weight, layer.conv1d.bias, groups=80
    ).mT
    torch.testing.assert_close(whole, expected)
