"""What int8 and int4 cost in accuracy: the same training from the same tokens at three precisions, paired by seed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal

SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class AccuracyChange:
    """Accuracy at a precision less that of fp16, in points, over the seeds: mean and standard error."""

    name: str
    precision: str
    fp16_percent: float
    change_points: float
    standard_error_points: float


def accuracy_changes(folder: Path, *, num_videos: int = 480, epochs: int = 12) -> list[AccuracyChange]:
    """gmmix on efficientnet-lite0 (pretrained) tokens of the synthetic set, and a linear probe on its outputs."""
    caches = {"fp16": _extract(folder, num_videos)}
    for precision in ("int8", "int4"):
        caches[precision] = Path(convert(ConvertOptions(cache=caches["fp16"], out=folder, precision=precision)).cache)
    found = {
        (precision, seed): _accuracies(folder, cache, precision, seed, epochs)
        for precision, cache in caches.items()
        for seed in SEEDS
    }
    changes = []
    for number, name in enumerate(("gmmix", "linear probe on gmmix")):
        base = [100 * found["fp16", seed][number] for seed in SEEDS]
        for precision in ("int8", "int4"):
            differences = [100 * found[precision, seed][number] - base[n] for n, seed in enumerate(SEEDS)]
            changes.append(
                AccuracyChange(
                    name=name,
                    precision=precision,
                    fp16_percent=statistics.mean(base),
                    change_points=statistics.mean(differences),
                    standard_error_points=statistics.stdev(differences) / len(SEEDS) ** 0.5,
                )
            )
    return changes


def _extract(folder: Path, num_videos: int) -> Path:
    options = ExtractOptions(
        dataset="synthetic", root=folder / "videos", encoder="demo", layers=("3",), image_size=96,
        num_videos=num_videos, out=folder,
    )  # fmt: skip
    return Path(extract(options).cache)


def _accuracies(folder: Path, cache: Path, precision: str, seed: int, epochs: int) -> tuple[float, float]:
    """Top-1 of a trained gmmix, and of a linear probe on its last frame."""
    name = f"{precision}-{seed}"
    trained = train_temporal(
        TrainOptions(
            cache=cache, core="gmmix", core_dim=64, num_layers=2, num_heads=4, readout_dim=64, readout_heads=4,
            clip_frames=12, batch_size=8, epochs=epochs, lr=3e-3, seed=seed, eval_every=0, out=folder, name=name,
        )
    )  # fmt: skip
    probed = probe(ProbeOptions(cache=cache, temporal=Path(trained.run), seed=seed, out=folder, name=f"probe-{name}"))
    return trained.top1, probed.top1
