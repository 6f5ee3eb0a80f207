"""Speed and memory of the selective scan and of streaming, measured: `make bench`. Nothing is asserted."""

import resource
import statistics
import time
from pathlib import Path

import pytest
import torch
from helpers.measure import peak_bytes, seconds_of
from helpers.reference import plain_scan, published_scan
from mambapy.pscan import pscan

from vfz.temporal.cores import CORES, build_core
from vfz.temporal.cores.selective_scan import selective_scan

pytestmark = pytest.mark.bench

TOKENS_PER_CLIP, NUM_FRAMES, CHANNELS, STATES = 201, 16, 768, 16  # a ViT-S at 224 px, Mamba's E = 2 D and K


def mambapy_scan(x, delta, A, B, C, D):
    """The scan as mambapy's Mamba layer does it: decays and inputs of all frames, then its parallel scan."""
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = pscan(decay, delta.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1))
    return (states @ C.unsqueeze(-1)).squeeze(-1) + D * x, states[:, -1]


def make_inputs(num_clips):
    generator = torch.Generator().manual_seed(0)
    frames = (num_clips * TOKENS_PER_CLIP, NUM_FRAMES)
    shapes = [(*frames, CHANNELS), (*frames, CHANNELS), (CHANNELS, STATES), (*frames, STATES), (*frames, STATES)]
    x, delta, A, B, C = (torch.rand(shape, generator=generator) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (x, delta, -A, B, C, torch.rand(CHANNELS, generator=generator))]


def forward_and_backward(scan, inputs):
    def run():
        torch.autograd.grad(scan(*inputs)[0].sum(), inputs)

    return run


def test_selective_scan_against_other_scans_in_torch(record):
    inputs = make_inputs(num_clips=1)
    scans = (selective_scan, published_scan, plain_scan, mambapy_scan)
    ours, published, plain, mambapy = (
        1 / s for s in seconds_of(*(forward_and_backward(scan, inputs) for scan in scans))
    )
    for name, baseline, value, goal in (
        ("scan_published", "loop under autograd, as published", published, "at least 5"),
        ("scan_plain", "loop under autograd, in our layout", plain, "at least 5"),
        ("scan_mambapy", "mambapy's pscan", mambapy, "at least 2.5"),
    ):
        record(name, value=ours, unit="passes/s", baseline=baseline, baseline_value=value, goal=goal)


def test_memory_of_the_selective_scan_against_the_plain_loop_at_16_clips(record):
    inputs = make_inputs(num_clips=16)
    given = sum(tensor.nbytes for tensor in inputs)
    ours, plain = (
        (given + peak_bytes(forward_and_backward(scan, inputs))) / 1e6 for scan in (selective_scan, plain_scan)
    )
    record(
        "scan_memory", value=ours, unit="MB", baseline="loop under autograd, in our layout", baseline_value=plain,
        goal="at most 0.25",
    )  # fmt: skip


@pytest.mark.parametrize("name", CORES.names())
@torch.no_grad()
def test_streaming_ten_thousand_frames(record, name):
    """Median time of a step in the last 1,000 frames against the first 1,000, and memory at the end of both."""
    core, state, seconds, resident = build_core(name, dim=64, num_layers=2).eval(), None, [], []
    frames = torch.randn(100, 1, 49, 64, generator=torch.Generator().manual_seed(0))
    for number in range(10_000):
        started = time.perf_counter()
        _, state = core.step(frames[number % 100], state)
        seconds.append(time.perf_counter() - started)
        if number in (999, 9_999):
            resident.append(resident_mb())
    first, last = (1000 * statistics.median(part) for part in (seconds[:1000], seconds[-1000:]))
    record(f"step_time_{name}", value=last, unit="ms", baseline="first 1,000 frames", baseline_value=first, goal="1")
    record(
        f"step_memory_{name}", value=resident[1], unit="MB", baseline="after 1,000 frames", baseline_value=resident[0],
        goal="1",
    )  # fmt: skip


def resident_mb():
    """Memory this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
