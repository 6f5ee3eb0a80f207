"""What a step does to the weights: parts that add up, a moving average, any optimizer, decay where it belongs."""

import dataclasses

import pytest
import torch
from helpers.training import lines_of, losses_of, small_options
from safetensors.torch import load_file

from vfz.pipeline.errors import RunInterruptedError, UnknownNameError, UsageError
from vfz.pipeline.progress import StopRequest
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.optim import build_optimizer
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs", dropout=0.0, drop_path=0.0)


@pytest.mark.parametrize("task", ["classify", "pose"])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(options, task):
    """36 clips in steps of 8: the last has 4, which are fewer parts."""
    options = dataclasses.replace(options, task=task, readout_heads=None if task == "pose" else 2, clip_frames=8)
    for name, accumulate in (("one", 1), ("four", 4)):
        train_temporal(dataclasses.replace(options, name=name, accumulate=accumulate))
    one, four = (torch.tensor(losses_of(options.out / name)) for name in ("one", "four"))
    assert len(one) == 15
    torch.testing.assert_close(four, one, rtol=0, atol=1e-5)


def test_micro_batches_must_divide_a_batch(options):
    with pytest.raises(UsageError, match="--batch-size 8 cannot be computed in 3"):
        dataclasses.replace(options, accumulate=3)


def test_a_moving_average_is_what_is_evaluated_and_saved(options, monkeypatch):
    """After step 1 it is the weights; step 2 counts 2^(-2/3), for the decay warms up; then it would go on to 0.9."""
    options = dataclasses.replace(options, batch_size=36, epochs=2, ema=0.9)
    states = []
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)  # stopped after every step
        for resume in (False, True):
            with pytest.raises(RunInterruptedError):
                train_temporal(dataclasses.replace(options, resume=resume))
            states.append(torch.load(options.out / "run" / "checkpoint.pt", weights_only=True))
    report = train_temporal(dataclasses.replace(options, resume=True))
    saved = load_file(options.out / "run" / "model.safetensors")
    for key, value in saved.items():
        first, second = (state["model"][key] for state in states)
        assert torch.equal(states[0]["ema"][key], first)
        torch.testing.assert_close(value, first + (second - first) * 2 ** (-2 / 3), rtol=0, atol=1e-6)
    again = evaluate(EvaluateOptions(run=report.run, cache=options.cache))
    assert again.evaluation.metrics == report.evaluation.metrics


@pytest.mark.parametrize("optimizer", ["lamb", "sgd", "lion"])
def test_any_optimizer_of_timm_trains(options, optimizer):
    train_temporal(dataclasses.replace(options, optimizer=optimizer, epochs=1))
    assert len(losses_of(options.out / "run")) == 5


def test_an_optimizer_that_is_not_there_is_refused_with_the_nearest(options):
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'admaw'; did you mean .*adamw"):
        train_temporal(dataclasses.replace(options, optimizer="admaw"))
    assert not options.out.exists()


def test_an_optimizer_that_needs_second_derivatives_is_refused(options):
    with pytest.raises(UsageError, match="adahessian needs second derivatives"):
        train_temporal(dataclasses.replace(options, optimizer="adahessian"))
    assert not options.out.exists()


def test_gradients_are_clipped_and_their_norm_is_logged(options):
    train_temporal(dataclasses.replace(options, epochs=1, clip_grad=1e-9, name="clipped", lr=1e-1, weight_decay=0))
    assert all(line["grad_norm"] > 1e-6 for line in lines_of(options.out / "clipped", "step"))


def test_the_learning_rate_warms_up_and_falls_to_nothing(options):
    train_temporal(dataclasses.replace(options, epochs=4, warmup_epochs=1))
    rates = [line["lr"] for line in lines_of(options.out / "run", "step")]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[5] == pytest.approx(1e-3, rel=0.2)
    assert rates[-1] < 0.05 * max(rates)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_weight_decay_spares_norms_biases_and_what_mamba_marks(options):
    train_temporal(dataclasses.replace(options, epochs=1))
    model, _ = load_model(options.out / "run")
    groups = build_optimizer(model, lr=1.0, weight_decay=0.5).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed
    assert not any(name.endswith(("bias", "A_log", ".D", "norm.weight")) for name in decayed)
    assert {name for name in names.values() if name.endswith("A_log")} == {"core.mamba_blocks.0.mamba.A_log"}
