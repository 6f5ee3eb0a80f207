"""The recurrence of the core `mingru` equals its definition, in value and in every gradient."""

import pytest
import torch

from vfz.temporal.cores.gru import gated_average

pytestmark = pytest.mark.quick


def make_inputs(num_frames=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    z, c = torch.randn(2, num_frames, 3, 4, generator=generator, dtype=dtype)
    before = torch.randn(3, 4, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (z.sigmoid(), c, before)]


def test_it_equals_its_definition_written_out():
    z, c, h = make_inputs()
    expected = []
    for t in range(6):
        h = (1 - z[t]) * h + z[t] * c[t]
        expected.append(h)
    torch.testing.assert_close(gated_average(*make_inputs()), torch.stack(expected))


def test_gradients_pass_a_numerical_check_in_float64():
    assert torch.autograd.gradcheck(gated_average, make_inputs())
    assert torch.autograd.gradcheck(gated_average, make_inputs()[:2])


def test_it_stays_between_its_candidates_over_ten_thousand_frames():
    z, c, h = make_inputs(num_frames=10_000, dtype=torch.float32)
    y = gated_average(z, c.clamp(-1, 1), h.clamp(-1, 1))
    assert y.abs().max() <= 1.0 + 1e-6


def test_gates_at_their_ends_keep_the_state_or_replace_it():
    c, h = torch.randn(5, 3, 4), torch.randn(3, 4)
    assert torch.equal(gated_average(torch.zeros_like(c), c, h), h.expand(5, 3, 4))
    torch.testing.assert_close(gated_average(torch.ones_like(c), c, h), c)


def test_half_precision_is_averaged_in_float32():
    z, c, h = (tensor.detach().bfloat16() for tensor in make_inputs())
    y = gated_average(z, c, h)
    assert y.dtype == torch.float32
    assert torch.equal(y, gated_average(z.float(), c.float(), h.float()))


def test_nothing_but_inputs_and_output_is_kept_for_the_backward_pass():
    inputs, kept = make_inputs(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        y = gated_average(*inputs)
    assert sum(kept) <= sum(tensor.numel() for tensor in inputs) + y.numel()
