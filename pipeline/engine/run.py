"""Shards made in this process, one after the other, or on a dask cluster; and a share of them for several processes.

The processes of `--rank R --world-size W` know nothing of each other. Shards are dealt by their numbers, so that all
processes agree without a word; what they share is the cache's folder. A process that starts over does the rest of its
own share. One that never comes back leaves its shards pending in the cache: any run with other ranks, or none, does
them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfz.pipeline.encoder.model import FrozenEncoder
    from vfz.pipeline.engine.tasks import ExtractionJob, ShardResult, ShardTask
    from vfz.pipeline.progress import Progress


def run_tasks(
    job: ExtractionJob,
    tasks: Sequence[ShardTask],
    *,
    dask: str | None,
    progress: Progress,
    encoder: FrozenEncoder | None = None,
) -> Iterator[ShardResult]:
    """The result of each task as it is committed, in this process or by the workers that `dask` names.

    Args:
        job: how shards are made.
        tasks: the shards.
        dask: see `vfz.pipeline.engine.dask.run_dask`; None for this process.
        progress: is told of what happens.
        encoder: the job's where this process has built it already.
    """
    if dask is None:
        return _run_here(job, tasks, progress=progress, encoder=encoder)
    from vfz.pipeline.engine.dask import run_dask

    return run_dask(job, tasks, cluster=dask, progress=progress)


def _run_here(
    job: ExtractionJob, tasks: Iterable[ShardTask], *, progress: Progress, encoder: FrozenEncoder | None = None
) -> Iterator[ShardResult]:
    """The result of each task, as it is committed; `encoder` is the job's where it is built already."""
    from vfz.pipeline.engine.extractor import ShardExtractor  # and torch, which `choose_share` does without

    extractor = ShardExtractor(job, progress=progress, encoder=encoder)
    with stop_on_signals() as stop:
        yield from extractor.extract_all(tasks, stop=stop)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work is done here: share number `rank`, counted from 0, of `world_size`."""

    rank: int = 0
    world_size: int = 1

    def of(self, tasks: Iterable[ShardTask]) -> list[ShardTask]:
        """The tasks that are done here; those of one shard stay together, whichever columns they add."""
        return [task for task in tasks if int(task.shard) % self.world_size == self.rank]


_SLURM_NAMES = ("ID", "MIN", "MAX", "COUNT")


def choose_share(rank: str | None, world_size: int | None, *, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that `--rank` and `--world-size` ask for; all of the work without them.

    Variables of torchrun and SLURM are looked at for `--rank auto` only: a shell that was opened in a SLURM job has
    some of them, too, and a command typed there means all of the work.

    Raises:
        UsageError: `auto` where neither torchrun nor a SLURM array says which share this is.
    """
    if rank is None:
        return Share()
    if rank != "auto":
        return Share(rank=int(rank), world_size=world_size or 1)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Share(rank=int(environment["RANK"]), world_size=int(environment["WORLD_SIZE"]))
    if "SLURM_ARRAY_TASK_ID" in environment:
        return _slurm_share({name: int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in _SLURM_NAMES})
    raise UsageError(
        "--rank auto: neither torchrun (RANK, WORLD_SIZE) nor a SLURM array (SLURM_ARRAY_TASK_ID) says which share "
        "this is; give --rank and --world-size"
    )


def _slurm_share(array: Mapping[str, int]) -> Share:
    if array["MAX"] - array["MIN"] + 1 != array["COUNT"]:
        raise UsageError(
            f"--rank auto: this SLURM array has {array['COUNT']} tasks numbered {array['MIN']} to {array['MAX']}, with "
            "gaps; give --rank $SLURM_ARRAY_TASK_ID and the --world-size that the numbers are shares of"
        )
    return Share(rank=array["ID"] - array["MIN"], world_size=array["COUNT"])
