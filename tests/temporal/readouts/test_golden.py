"""The readouts equal the implementation of the paper's authors, from the same weights."""

import pytest
import torch
from helpers.reference import READOUTS, Reference, each_box_from_the_one_before

from vfz.temporal.reference.checkpoints import load_readout

pytestmark = pytest.mark.quick


def load(task, protocol):
    reference = Reference(f"readout_{task}_{protocol}")
    readout = load_readout(reference.group("weights"), task, protocol, num_heads=reference.sizes["readout_heads"])
    inputs = reference.group("input")
    return readout, inputs.pop("tokens"), inputs, reference.group("output")


@pytest.mark.parametrize(("task", "protocol"), [readout for readout in READOUTS if readout[0] != "boxes"])
def test_a_readout_gives_the_reference_outputs(task, protocol):
    readout, tokens, inputs, expected = load(task, protocol)
    outputs = readout(tokens, **inputs)
    if not isinstance(outputs, dict):
        (name,) = expected
        outputs = {name: outputs}
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        assert outputs[name].shape == value.shape
        assert (outputs[name] - value).abs().max() <= 1e-5, name


def test_every_box_follows_from_the_reference_box_before_it():
    readout, tokens, inputs, expected = load("boxes", "streaming")
    boxes = each_box_from_the_one_before(readout, tokens, inputs["init_box_cxcywh"], expected["boxes_cxcywh"])
    assert boxes.shape == expected["boxes_cxcywh"].shape
    assert (boxes - expected["boxes_cxcywh"]).abs().max() <= 1e-5


def test_every_box_of_a_clip_follows_from_the_one_before_it_and_the_first_is_the_reference_box():
    readout, tokens, inputs, expected = load("boxes", "streaming")
    boxes = readout(tokens, **inputs)
    assert boxes.shape == expected["boxes_cxcywh"].shape
    assert (boxes - expected["boxes_cxcywh"])[:, 0].abs().max() <= 1e-5
    followed = each_box_from_the_one_before(readout, tokens, inputs["init_box_cxcywh"], boxes)
    assert (boxes - followed).abs().max() <= 1e-5


def test_several_points_of_a_clip_give_each_the_answer_of_one():
    readout, tokens, inputs, expected = load("points", "clip")
    twice = {name: torch.stack([value, value.flip(0)], dim=1) for name, value in inputs.items()}
    outputs = readout(tokens, **twice)
    for name, value in expected.items():
        assert (outputs[name][:, 0] - value).abs().max() <= 1e-5


@pytest.mark.parametrize(("task", "protocol"), READOUTS)
def test_the_outputs_of_these_tests_are_not_degenerate(task, protocol):
    for value in Reference(f"readout_{task}_{protocol}").group("output").values():
        assert value.std() > 0.01
