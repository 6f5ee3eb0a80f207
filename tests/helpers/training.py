"""Training runs for tests: small options, the command line as a process of its own, and what a run wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

from vfz.temporal.training.options import TrainOptions

SMALL = {
    "core": "gmmix", "core_dim": 32, "num_layers": 1, "num_heads": 2, "readout_dim": 32, "readout_heads": 2,
    "clip_frames": 6, "epochs": 3, "batch_size": 8, "eval_every": 0, "name": "run",
}  # fmt: skip
"""Of the session's `synthetic_cache`: 36 training clips, 5 steps an epoch."""


def small_options(cache, out, **changes):
    """`SMALL`, on a cache."""
    return TrainOptions(**{**SMALL, "cache": cache.path, "out": out, **changes})


def arguments_of(options):
    """What to type for those options."""
    arguments = ["train-temporal"]
    for field in TrainOptions.option_fields():
        value = getattr(options, field.name)
        if value is None or value == field.default:
            continue
        if field.kind is bool:
            arguments.append(field.flag if value else f"--no-{field.flag[2:]}")
        else:
            arguments += [field.flag, ",".join(map(str, value)) if field.many else str(value)]
    return arguments


def start(options, *, torchrun=0):
    """`vfz train-temporal` as a process of its own, or as some under torchrun; its session is its own, too."""
    launch = ["-m", "vfz.cli"]
    if torchrun:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun), *launch]
    return subprocess.Popen(
        [sys.executable, *launch, *arguments_of(options)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def lines_of(run, kind):
    """The lines of one kind in metrics.jsonl."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses_of(run):
    """The loss of every step."""
    return [line["loss"] for line in lines_of(run, "step")]
