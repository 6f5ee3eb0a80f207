"""The readouts equal the implementation of the paper's authors, from the same weights."""

import pytest
from contracts.reference import Reference

from vfz.temporal.readouts import build_readout

PREFIXES = {"streaming": "model.readout.", "clip": "model.readout.readout."}


@pytest.mark.parametrize("protocol", PREFIXES)
def test_classify_gives_the_reference_logits(protocol):
    reference = Reference(f"readout_classify_{protocol}")
    sizes, expected = reference.sizes, reference.group("output")["logits"]
    readout = build_readout(
        "classify",
        dim=sizes["D"],
        protocol=protocol,
        num_classes=expected.shape[-1],
        readout_dim=sizes["readout_dim"],
        num_heads=sizes["readout_heads"],
        num_frames=sizes["T"],
    ).eval()
    readout.load_state_dict(reference.group("weights", prefix=PREFIXES[protocol]), strict=True)
    logits = readout(reference.group("input")["tokens"])
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 1e-5
