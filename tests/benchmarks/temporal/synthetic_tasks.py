"""What temporal modules learn on the built-in videos: five tasks, several cores, three seeds, one table.

    python tests/benchmarks/temporal/synthetic_tasks.py                                          # the whole table
    python tests/benchmarks/temporal/synthetic_tasks.py --tasks boxes --cores gmmix --seeds 0    # a part of it

Videos, tokens and training all follow from their seeds. Each seed has its own videos: deviations are over data, order
and first weights together. The encoder is the demo's, with ImageNet weights. Runs are shared out over the machine's
cores, one thread each.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.cores import CORES
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.experiment import build_experiment
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal

SEEDS = (0, 1, 2)
CONSTANT = "constant"
"""Says the best that can be said without looking; see `Task.constant_predictor`."""
BASELINE = "identity"
SMALL = {
    "core_dim": 64, "num_layers": 2, "num_heads": 4, "readout_dim": 64, "batch_size": 8, "lr": 3e-3, "eval_every": 0,
    "dropout": 0.0, "drop_path": 0.0, "tensorboard": False, "device": "cpu",
}  # fmt: skip


LAYERS = ("2", "3")
"""Stages of the encoder: 8 x 8 tokens of 40 channels and 4 x 4 of 112, of pictures of 64 pixels."""
NUM_VIDEOS, NUM_FRAMES, IMAGE_SIZE = 2880, 6, 64
"""Of the set of each seed; a quarter is held out."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a task is set up.

    Attributes:
        cores: those that are compared.
        layer: of the encoder.
        options: of the training beyond `SMALL`.
    """

    cores: tuple[str, ...] = ("gmmix", BASELINE)
    layer: str = "3"
    options: dict[str, object]


SETTINGS = {
    "classify": Setting(
        cores=("gmmix", "mmix", "m", "rvm_rnn", "gru", "mingru", "attention", BASELINE),
        options={"epochs": 8, "readout_heads": 4},
    ),
    "boxes": Setting(options={"epochs": 7, "readout_heads": 4, "readout_hidden": 64}),
    "points": Setting(options={"epochs": 7, "readout_heads": 4, "readout_hidden": 64}),
    "depth": Setting(options={"epochs": 4, "readout_heads": 4, "depth_size": 32}),
    "pose": Setting(layer="2", options={"epochs": 8, "readout_hidden": 64, "lr": 2e-3}),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task and core over all seeds."""

    task: str
    metric: str
    core: str
    values: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def make_cache(seed: int, folder: Path, *, num_videos: int = NUM_VIDEOS) -> Path:
    """Tokens of the synthetic set of a seed; made once."""
    return Path(
        extract(
            ExtractOptions(
                dataset="synthetic", root=folder / "videos" / f"{num_videos}-{seed}", encoder="demo", layers=LAYERS,
                image_size=IMAGE_SIZE, size=IMAGE_SIZE, num_videos=num_videos, num_frames=NUM_FRAMES, seed=seed,
                out=folder / "caches",
            )
        ).cache
    )  # fmt: skip


def options_of(task: str, core: str, seed: int, cache: Path, out: Path) -> TrainOptions:
    """What is trained."""
    setting = SETTINGS[task]
    values = {**SMALL, **setting.options}
    taken = inspect.signature(CORES[core]).parameters
    values = {name: value for name, value in values.items() if name not in {"dropout", "drop_path"} - taken.keys()}
    return TrainOptions(
        task=task, core=core, cache=(cache,), layers=(setting.layer,), clip_frames=NUM_FRAMES, seed=seed, out=out,
        name=f"{task}-{core}-{seed}", **values,
    )  # fmt: skip


def run_one(job: tuple[str, str, int, Path, Path]) -> tuple[str, float, float]:
    """Trains one model, or fits the constant predictor; returns the metric's name, its value and the seconds."""
    torch.set_num_threads(1)
    task, core, seed, cache, out = job
    started = time.perf_counter()
    if core == CONSTANT:
        name, value = constant_value(options_of(task, BASELINE, seed, cache, out))
    else:
        evaluation = train_temporal(options_of(task, core, seed, cache, out)).evaluation
        name, value = evaluation.headline, evaluation.value
    return name, value, time.perf_counter() - started


def constant_value(options: TrainOptions) -> tuple[str, float]:
    """The headline metric of saying the same of every clip."""
    experiment = build_experiment(options, Ranks(device=torch.device("cpu")))
    task, metrics = experiment.task, experiment.task.new_metrics()
    predict = task.constant_predictor(experiment.train_clips.in_order())
    for batch in experiment.eval_clips.batches():
        metrics.update(predict(batch), batch)
    return task.headline, metrics.compute()[task.headline]


def run_table(
    folder: Path, *, tasks: list[str], cores: list[str] | None = None, seeds: tuple[int, ...] = SEEDS, workers: int
) -> list[Row]:
    """Every task with its cores, the baseline and the constant predictor, over the seeds."""
    jobs, caches = [], {seed: make_cache(seed, folder) for seed in seeds}
    for task in tasks:
        setting = SETTINGS[task]
        chosen = [core for core in (*setting.cores, CONSTANT) if cores is None or core in cores]
        jobs += [(task, core, seed, caches[seed], folder / "runs") for core in chosen for seed in seeds]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = pool.map(run_one, jobs, chunksize=1)
    rows: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for job, result in zip(jobs, results, strict=True):
        rows.setdefault(job[:2], []).append(result)
    return [
        Row(
            task=task,
            core=core,
            metric=of[0][0],
            values=tuple(value for _, value, _ in of),
            seconds=statistics.mean(seconds for *_, seconds in of),
        )
        for (task, core), of in rows.items()
    ]


def table_lines(rows: list[Row]) -> list[str]:
    """The table, aligned."""
    cells = [("task", "metric", "core", "mean", "deviation", "values", "s/run")]
    for row in rows:
        values = " ".join(f"{value:.4g}" for value in row.values)
        numbers = (f"{row.mean:.4g}", f"{row.deviation:.2g}", values, f"{row.seconds:.0f}")
        cells.append((row.task, row.metric, row.core, *numbers))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="A part of the table, or all of it.")
    parser.add_argument("--tasks", default=",".join(SETTINGS))
    parser.add_argument("--cores")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="synthetic-tasks-"))
    rows = run_table(
        folder,
        tasks=arguments.tasks.split(","),
        cores=arguments.cores.split(",") if arguments.cores else None,
        seeds=tuple(map(int, arguments.seeds.split(","))),
        workers=arguments.workers,
    )
    sys.stdout.write("\n".join(table_lines(rows)) + "\n")


if __name__ == "__main__":
    main()
