"""The layer mixers equal the implementation of the paper's authors, from the same weights."""

import pytest
from helpers.reference import Reference

from vfz.temporal.reference.checkpoints import load_mixer


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
