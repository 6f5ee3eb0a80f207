"""What vfz claims about speed, measured: `make bench`. No bound is asserted; the ratios are the result."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from timing import seconds_of

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.extract import extract
from vfz.pipeline.live import LiveEncoder
from vfz.pipeline.options import ExtractOptions

pytestmark = pytest.mark.bench

VIDEO = Path(__file__).parents[1] / "data/videos/bikes.mp4"


def test_help_against_importing_what_it_needs(record):
    def run(*arguments):
        return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    shown, imported = seconds_of(
        run("-m", "vfz.cli", "--help"), run("-c", "import click, rich.console, rich.table, rich.progress"), rounds=15
    )
    record("help_seconds", value=shown, unit="s", baseline="importing click and rich", baseline_value=imported)


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
