"""Several processes train one model as one process does: the same losses and figures, and one of them writes."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import wait_until
from helpers.training import arguments_of, lines_of, losses_of, small_options

from vfz.pipeline.errors import RunError, UsageError
from vfz.temporal.kept import read_evaluation
from vfz.temporal.mixers import build_mixer
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    """Without dropout and batch statistics, which several processes draw and gather otherwise than one."""
    return small_options(
        synthetic_cache, tmp_path / "runs", dropout=0.0, drop_path=0.0, epochs=4, eval_every=2, tensorboard=False,
        device="cpu",
    )  # fmt: skip


def start_two(arguments):
    """Two processes of a command that meet, as torchrun starts them."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "vfz.cli", *map(str, arguments), "--json"],
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_two_processes_train_as_one_does_also_when_stopped_in_between(options):
    alone = train_temporal(dataclasses.replace(options, name="alone"))
    run = options.out / "run"
    processes = start_two(arguments_of(options))
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(losses_of(run)) >= 7)
    processes[1].send_signal(signal.SIGTERM)  # one is asked, both stop after the same step
    shown = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130]
    assert all("stopped as asked after step" in text for text in shown)

    together = start_two(arguments_of(dataclasses.replace(options, resume=True)))
    printed = [process.communicate(timeout=60)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    torch.testing.assert_close(
        torch.tensor(losses_of(run)), torch.tensor(losses_of(options.out / "alone")), rtol=0, atol=1e-5
    )
    assert printed[1] == "", "only the first process reports"
    report = json.loads(printed[0])
    assert report["top1"] == alone.top1
    assert report["num_eval_videos"] == alone.evaluation.num_videos == 12
    assert [line["top1"] for line in lines_of(run, "eval")] == [
        line["top1"] for line in lines_of(options.out / "alone", "eval")
    ]
    check_kept(report["kept"], alone.kept)
    with pytest.raises(RunError, match="is finished"):
        train_temporal(dataclasses.replace(options, resume=True))


def check_kept(one, other):
    """Both evaluations have the same answers to the same videos."""
    first, second = (read_evaluation(Path(path)).videos for path in (one, other))
    assert first.ids == second.ids
    assert first.values.keys() == second.values.keys()
    for name, values in first.values.items():
        np.testing.assert_allclose(values, second.values[name], rtol=1e-3, atol=1e-5)


def test_two_processes_evaluate_as_one_does_and_keep_the_same_of_every_video(options):
    """Of 24 clips in batches of 23 the last has one clip, so that one process has none of it."""
    report = train_temporal(dataclasses.replace(options, task="boxes", epochs=1))
    flags = ["--segments", "2", "--clip-frames", "3", "--batch-size", "23", "--device", "cpu"]
    alone = evaluate(EvaluateOptions(run=report.run, segments=2, clip_frames=3, batch_size=23, device="cpu"))
    before = shutil.copytree(Path(alone.kept).parent, options.out / "before")
    printed = [process.communicate(timeout=60)[0] for process in start_two(["evaluate", report.run, *flags])]
    assert printed[1] == "", "only the first process reports"
    together = json.loads(printed[0])
    assert together["kept"] == alone.kept
    assert together["miou"] == pytest.approx(alone.evaluation.value, rel=1e-5)
    check_kept(together["kept"], before / Path(alone.kept).name)


def test_batch_statistics_are_not_shared_by_processes_without_gpus():
    """On GPUs they become SyncBatchNorm."""
    ranks = Ranks(rank=0, world_size=2, device=torch.device("cpu"))
    with pytest.raises(UsageError, match="--mixer mean has batch statistics, which 2 processes can share on GPUs only"):
        ranks.wrap(build_mixer("mean", dim=8, num_layers=2))
