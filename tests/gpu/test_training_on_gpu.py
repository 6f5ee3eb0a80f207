"""Training and probing on a GPU: cores and the scan equal the CPU's, runs resume, every task trains."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.reference import plain_scan
from helpers.training import lines_of, losses_of, small_options

from vfz.pipeline.errors import RunInterruptedError
from vfz.pipeline.progress import StopRequest
from vfz.temporal.cores import CORES, build_core
from vfz.temporal.cores.selective_scan import selective_scan
from vfz.temporal.probes import fit_linear
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.train import train_temporal

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")


@pytest.fixture
def exact_kernels(monkeypatch):
    """No TF32, which torch allows recurrent and convolutional kernels unasked."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", CORES.names())
def test_outputs_and_gradients_of_a_core_are_the_cpus(name, exact_kernels):
    torch.manual_seed(0)
    core = build_core(name, dim=64, num_layers=2, num_heads=4).eval()
    if name == "gru":  # its kernel has gradients in this mode only
        core = build_core(name, dim=64, num_layers=2, num_heads=4, dropout=0.0).train()
    tokens, weights = torch.randn(2, 2, 9, 17, 64)

    def outcome(device):
        x = tokens.to(device).detach().requires_grad_()
        module = core.to(device)
        y, _ = module(x)
        (gradient,) = torch.autograd.grad((y * weights.to(device)).sum(), x)
        return y.detach().cpu(), gradient.cpu()

    for ours, expected in zip(outcome(CUDA), outcome(torch.device("cpu")), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", CORES.names())
def test_stepping_equals_the_full_pass(name):
    torch.manual_seed(0)
    core = build_core(name, dim=64, num_layers=2, num_heads=4).eval().to(CUDA)
    tokens = torch.randn(2, 9, 17, 64, device=CUDA)
    state, outputs = None, []
    for frame in tokens.unbind(1):
        y, state = core.step(frame, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), core(tokens)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [16, 200])
def test_the_scan_and_its_gradients_are_those_of_the_plain_loop(num_frames):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, num_frames, 24)] * 2 + [(24, 16)] + [(5, num_frames, 16)] * 2 + [(24,)]
    x, delta, A, B, C, D = (torch.rand(shape, generator=generator).to(CUDA) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (x, delta, -A, B, C, D)]
    (ours, _), (expected, _) = selective_scan(*inputs), plain_scan(*inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    weights = torch.rand(ours.shape, generator=generator).to(CUDA)
    for one, other in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", ["classify", "boxes", "points", "depth", "pose"])
def test_every_task_trains_in_bfloat16_and_is_evaluated_anywhere(vit_cache, tmp_path, task):
    sizes = {
        "classify": {},
        "boxes": {"readout_hidden": 32},
        "points": {"readout_hidden": 32},
        "depth": {"depth_size": 16},
        "pose": {"readout_hidden": 32, "readout_heads": None},
    }[task]
    report = train_temporal(small_options(vit_cache, tmp_path, task=task, device="cuda", **sizes))
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 15
    assert np.isfinite(losses).all()
    on_cpu = evaluate(EvaluateOptions(run=tmp_path / "run", cache=vit_cache.path, split="test", device="cpu"))
    assert np.isfinite(on_cpu.evaluation.value)
    assert on_cpu.evaluation.value == pytest.approx(report.evaluation.value, rel=0.2, abs=10)


def test_losses_in_float32_are_those_of_the_cpu(vit_cache, tmp_path):
    def losses(device):
        train_temporal(
            small_options(vit_cache, tmp_path, device=device, name=device, dtype="float32", dropout=0.0, drop_path=0.0)
        )
        return losses_of(tmp_path / device)

    np.testing.assert_allclose(losses("cuda"), losses("cpu"), atol=2e-3)


@pytest.mark.parametrize("core", ["gmmix", "rvm_rnn", "attention"])
def test_a_run_that_is_interrupted_and_resumed_is_the_uninterrupted_one(vit_cache, tmp_path, core, monkeypatch):
    changes = {"core": core, "device": "cuda", "dropout": 0.3 if core == "gmmix" else None, "ema": 0.9, "epochs": 2}
    whole = small_options(vit_cache, tmp_path / "whole", **changes)
    train_temporal(whole)
    options = dataclasses.replace(whole, out=tmp_path / "parts")
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "is_requested", True)
        for resume in (False, True, True):
            with pytest.raises(RunInterruptedError):
                train_temporal(dataclasses.replace(options, resume=resume))
    train_temporal(dataclasses.replace(options, resume=True))
    assert lines_of(tmp_path / "parts" / "run", "step") == lines_of(tmp_path / "whole" / "run", "step")


def test_a_linear_probe_finds_what_it_finds_on_the_cpu(vit_cache):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 32, generator=generator)
    labels = (features @ torch.randn(32, 5, generator=generator)).argmax(-1)
    on_cpu, on_gpu = (
        fit_linear(features[:300], labels[:300], device=device).predict_proba(features[300:]).argmax(-1)
        for device in ("cpu", "cuda")
    )
    assert (on_cpu == labels[300:]).float().mean() > 0.7
    assert (on_gpu == on_cpu).float().mean() > 0.97
