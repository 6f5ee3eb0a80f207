"""The processes of one training run under torchrun, and what they exchange.

Every process has a share of each step's clips. Gradients are averaged by DistributedDataParallel. Everything else that
all must know (the loss, a request to stop, sums of metrics) is a handful of numbers, added up once a step. A single
process, started without torchrun, exchanges nothing and pays nothing.

    torchrun --nproc-per-node 2 -m vfz.cli train-temporal --core gmmix
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfz.pipeline.devices import choose_device, device_for
from vfz.pipeline.errors import UsageError, VfzError

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: its number; the process of rank 0 writes the run folder.
        world_size: how many there are.
        device: what this process computes on.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def peak_bytes(self) -> int:
        """The most memory this process has had at a time: of a GPU what tensors took, else all of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def sum(self, values: Tensor) -> Tensor:
        """The values added up over all processes, on the device they came from."""
        if self.world_size == 1:
            return values
        summed = values.to(self.device, copy=True)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def first_does(self, work: Callable[[], ResultT]) -> ResultT:
        """What `work` returns in the first process, for all of them; a `VfzError` there is raised in every process."""
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = work()
            except VfzError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: ResultT = outcome[0]
        return result

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as it is trained: alone as it is, else by DistributedDataParallel.

        Raises:
            UsageError: for batch statistics (`--mixer mean`) of several processes without GPUs: they cannot be shared.
        """
        if self.world_size == 1:
            return module
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):  # noqa: SLF001
            if self.device.type != "cuda":
                raise UsageError(
                    f"--mixer mean has batch statistics, which {self.world_size} processes can share on GPUs only; "
                    "take one process, GPUs, or --mixer xattn"
                )
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return nn.parallel.DistributedDataParallel(
            module, device_ids=None if self.device.type == "cpu" else [self.device]
        )


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone, for as long as the block lasts.

    Args:
        device: as `--device`; several processes of a machine take its GPUs in turn.

    Raises:
        UsageError: when the variables of torchrun contradict each other, or there is no such device.
    """
    rank, world_size = _whole("RANK", 0), _whole("WORLD_SIZE", 1)
    if world_size == 1:
        yield Ranks(device=choose_device(device))
        return
    if rank >= world_size:
        raise UsageError(f"RANK {rank} of WORLD_SIZE {world_size}: ranks count from 0; start the run by torchrun")
    chosen = choose_device(device_for(device, _whole("LOCAL_RANK", rank)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (ValueError, dist.DistError) as error:
        raise UsageError(
            f"{world_size} processes cannot meet: {str(error).splitlines()[0]}; start by torchrun"
        ) from None
    try:
        yield Ranks(rank=rank, world_size=world_size, device=chosen)
    finally:
        dist.destroy_process_group()


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise UsageError(f"{name} is {text!r}; torchrun sets it to a number, unset it to train in one process")
    return int(text)
