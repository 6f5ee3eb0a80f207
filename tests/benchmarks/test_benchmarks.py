"""What vfz claims about speed, measured: `make bench`. No bound is asserted; the ratios are the result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.plain_scan import plain_scan
from timing import seconds_of

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.extract import extract
from vfz.pipeline.live import LiveEncoder
from vfz.pipeline.options import ExtractOptions
from vfz.temporal.cores.selective_scan import selective_scan

pytestmark = pytest.mark.bench

VIDEO = Path(__file__).parents[1] / "data/videos/bikes.mp4"


def test_help_against_importing_what_it_needs(record):
    def run(*arguments):
        return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    shown, imported = seconds_of(
        run("-m", "vfz.cli", "--help"), run("-c", "import click, rich.console, rich.table, rich.progress"), rounds=15
    )
    record("help_seconds", value=shown, unit="s", baseline="importing click and rich", baseline_value=imported)


def test_selective_scan_against_the_plain_loop_under_autograd(record):
    generator = torch.Generator().manual_seed(0)
    S, T, E, K = 201, 16, 768, 16
    shapes = {"x": (S, T, E), "delta": (S, T, E), "B": (S, T, K), "C": (S, T, K), "D": (E,)}
    inputs = {name: torch.rand(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    A_EK = (-torch.rand(E, K, generator=generator)).requires_grad_()

    def run(scan):
        def forward_and_backward():
            y, _ = scan(inputs["x"], inputs["delta"], A_EK, inputs["B"], inputs["C"], inputs["D"])
            y.sum().backward()

        return forward_and_backward

    ours, theirs = (1 / seconds for seconds in seconds_of(run(selective_scan), run(plain_scan)))
    record("selective_scan", value=ours, unit="passes/s", baseline="plain loop under autograd", baseline_value=theirs)


def test_extraction_against_the_encoder_alone(record, tmp_path):
    """ViT-S/16 (random weights) at 224 px in float32, on real videos; the baseline has its frames in memory."""
    for number in range(2):
        target = tmp_path / "clips/train/a" / f"{number}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(VIDEO)
    options = ExtractOptions(
        dataset="folder", root=tmp_path / "clips", encoder="vit_small_patch16_224", random_weights=True,
        out=tmp_path, batch_size=32,
    )  # fmt: skip
    report = extract(options)
    cache = FeatureCache(report.cache)
    live = LiveEncoder(cache, layers=tuple(cache.layers), device=torch.device("cpu"))
    row = cache.ok_videos()[0]
    pixels = live.pixels(row, np.arange(32))
    (seconds,) = seconds_of(lambda: live.encode(pixels), rounds=4)
    record(
        "extraction",
        value=report.frames_per_second,
        unit="frames/s",
        baseline="encoder alone",
        baseline_value=32 / seconds,
    )
