"""The selective scan equals the loop it stands for, in value and in every gradient, whatever the block size."""

import pytest
import torch
from helpers.measure import peak_bytes
from helpers.reference import plain_scan, published_scan

from vfz.temporal.cores import selective_scan as module
from vfz.temporal.cores.selective_scan import selective_scan


def make_inputs(num_sequences=5, num_frames=6, channels=4, states=3, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    inputs = [
        normal(num_sequences, num_frames, channels),
        normal(num_sequences, num_frames, channels).exp() * 0.1,
        -normal(channels, states).exp(),
        normal(num_sequences, num_frames, states),
        normal(num_sequences, num_frames, states),
        normal(channels),
        normal(num_sequences, states, channels),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


def gradients(scan, inputs):
    y, last = scan(*inputs)
    return torch.autograd.grad(y.sin().sum() + last.square().sum(), inputs)


@pytest.fixture(params=[1, 30 * 3, 1 << 20], ids=["one sequence a block", "uneven blocks", "one block"])
def block_elements(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS_CPU", request.param)


def test_the_scan_equals_the_plain_loop(block_elements):
    inputs = make_inputs()
    for ours, expected in zip(selective_scan(*inputs), plain_scan(*inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_both_baselines_are_the_same_recurrence():
    inputs = make_inputs()[:-1]
    for one, other in zip(published_scan(*inputs), plain_scan(*inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_of_the_plain_loop(block_elements):
    inputs = make_inputs()
    for ours, expected in zip(gradients(selective_scan, inputs), gradients(plain_scan, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_no_state_is_the_zero_state():
    inputs = make_inputs()
    zero = torch.zeros_like(inputs[-1])
    assert torch.equal(selective_scan(*inputs[:-1])[0], selective_scan(*inputs[:-1], zero)[0])


def test_a_sequence_longer_than_one_piece_equals_the_plain_loop():
    inputs = make_inputs(num_sequences=2, num_frames=module._MAX_FRAMES * 2 + 3)
    torch.testing.assert_close(selective_scan(*inputs)[0], plain_scan(*inputs)[0], rtol=1e-4, atol=1e-5)
    for ours, expected in zip(gradients(selective_scan, inputs), gradients(plain_scan, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_gradients_pass_a_numerical_check_in_float64(block_elements):
    inputs = make_inputs(num_sequences=3, num_frames=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(selective_scan, inputs)


def test_gradients_of_several_pieces_pass_a_numerical_check_in_float64(monkeypatch):
    monkeypatch.setattr(module, "_MAX_FRAMES", 3)
    inputs = make_inputs(num_sequences=2, num_frames=7, dtype=torch.float64)
    assert torch.autograd.gradcheck(selective_scan, inputs)


@pytest.mark.parametrize("max_frames", [64, 4])
def test_a_gradient_of_the_last_state_alone_is_right(monkeypatch, max_frames):
    monkeypatch.setattr(module, "_MAX_FRAMES", max_frames)
    inputs = make_inputs()
    ours = torch.autograd.grad(selective_scan(*inputs)[1].sum(), inputs[:1])
    expected = torch.autograd.grad(plain_scan(*inputs)[1].sum(), inputs[:1])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_inputs_are_scanned_in_float32():
    inputs = [tensor.detach().bfloat16() for tensor in make_inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = selective_scan(*inputs)
    expected, _ = plain_scan(*(tensor.float() for tensor in inputs))
    assert (y.dtype, last.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_only_the_inputs_are_kept_for_the_backward_pass():
    inputs = make_inputs(num_sequences=50)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        selective_scan(*inputs)
    assert sum(kept) <= sum(tensor.numel() for tensor in inputs)


@pytest.mark.parametrize("num_frames", [6, 3 * module._MAX_FRAMES - 5])
def test_the_workspace_does_not_grow_with_the_number_of_sequences(monkeypatch, num_frames):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS_CPU", 5 * min(num_frames, module._MAX_FRAMES) * 4 * 3)

    def workspace(num_sequences):
        inputs = make_inputs(num_sequences=num_sequences, num_frames=num_frames)
        cotangents = [torch.ones_like(output) for output in selective_scan(*inputs)]
        peak = peak_bytes(lambda: torch.autograd.grad(selective_scan(*inputs), inputs, cotangents))
        return peak - sum(tensor.nbytes for tensor in [*cotangents, *inputs])  # outputs and gradients are as large

    few, many = workspace(50), workspace(500)
    assert few > 3 * 5 * 6 * 4 * 3 * 4  # the buffers are in what was measured
    assert many < few + 1000
