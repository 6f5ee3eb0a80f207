"""The cores equal the implementation of the paper's authors, from the same weights."""

import pytest
import torch
from helpers.reference import Reference

from vfz.temporal.cores import build_core

pytestmark = pytest.mark.quick

PREFIX = "model.sequential_core."
CORES = {
    "core_m": ("m", {}),
    "core_mmix": ("mmix", {}),
    "core_gmmix": ("gmmix", {}),
    "core_gmmix_hidden": ("gmmix", {"gate_hidden_dim": 16}),
    "core_rvm_rnn": ("rvm_rnn", {}),
}


def load(file_name):
    reference = Reference(file_name)
    name, kwargs = CORES[file_name]
    sizes = {key: reference.sizes[key] for key in ("num_layers", "num_heads")}
    core = build_core(name, dim=reference.sizes["D"], **sizes, **kwargs).eval()
    core.load_state_dict(reference.group("weights", prefix=PREFIX), strict=True)
    return core, reference


@pytest.mark.parametrize("file_name", CORES)
def test_a_core_gives_the_reference_output(file_name):
    core, reference = load(file_name)
    y, _ = core(reference.group("input")["tokens"])
    assert (y - reference.group("output")["tokens"]).abs().max() <= 1e-5


@pytest.mark.parametrize("file_name", ["core_m", "core_gmmix", "core_rvm_rnn"])
def test_a_core_gives_the_reference_gradients(file_name):
    core, _ = load(file_name)
    reference = Reference(f"{file_name}_grad")
    tokens = reference.group("input")["tokens"].requires_grad_()
    (core(tokens)[0] * reference.group("input")["cotangent"]).sum().backward()
    expected = reference.group("grad", prefix=PREFIX)
    ours = {name: parameter.grad for name, parameter in core.named_parameters()}
    assert ours.keys() == expected.keys()
    ours["tokens"], expected["tokens"] = tokens.grad, reference.group("grad")["tokens"]
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("file_name", CORES)
def test_stepping_a_core_gives_the_reference_output(file_name):
    core, reference = load(file_name)
    state = None
    for x, expected in zip(
        reference.group("input")["tokens"].unbind(1), reference.group("output")["tokens"].unbind(1), strict=True
    ):
        y, state = core.step(x, state)
        assert (y - expected).abs().max() <= 1e-5


def test_the_tokens_of_these_tests_are_not_degenerate():
    for file_name in CORES:
        assert torch.std(Reference(file_name).group("output")["tokens"]) > 0.1
