"""Shares of the work: which process does which shard, and who says which process this is."""

from pathlib import Path

import pytest

from vfz.pipeline.engine.tasks import ShardTask
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.listing import Share, choose_share
from vfz.pipeline.extraction.options import ExtractOptions

pytestmark = pytest.mark.quick


def task(shard, number=0):
    return ShardTask(
        shard=f"{shard:05d}", plan=0, number=number, columns=(), videos=(), sources={}, attempts={}
    )  # fmt: skip


def options(**given):
    return ExtractOptions(dataset="folder", root=Path("videos"), **given)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_shard_is_in_exactly_one_share(world_size):
    tasks = [task(shard, number) for shard in range(20) for number in (0, 1)]
    shares = [Share(rank=rank, world_size=world_size).of(tasks) for rank in range(world_size)]
    assert sorted((found.shard, found.number) for share in shares for found in share) == [
        (found.shard, found.number) for found in tasks
    ]
    assert max(map(len, shares)) - min(map(len, shares)) <= 2, "dealt evenly, whole shards at a time"


def test_without_a_rank_all_of_the_work_is_done_whatever_the_environment_says():
    assert choose_share(None, None, environment={"RANK": "1", "WORLD_SIZE": "4"}) == Share(rank=0, world_size=1)


def test_a_rank_that_is_given_stands():
    assert choose_share("2", 3, environment={"RANK": "0", "WORLD_SIZE": "8"}) == Share(rank=2, world_size=3)


SLURM = {"ID": "7", "MIN": "5", "MAX": "8", "COUNT": "4"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, Share(rank=3, world_size=8)),
        ({f"SLURM_ARRAY_TASK_{name}": value for name, value in SLURM.items()}, Share(rank=2, world_size=4)),
    ],
    ids=["torchrun", "a SLURM array numbered from 5"],
)
def test_auto_takes_what_torchrun_or_a_slurm_array_says(environment, expected):
    assert choose_share("auto", None, environment=environment) == expected


def test_auto_where_nobody_says_it_is_refused():
    with pytest.raises(UsageError, match=r"neither torchrun.*nor a SLURM array.*give --rank and --world-size"):
        choose_share("auto", None, environment={})


def test_auto_in_an_array_with_gaps_is_refused():
    gaps = {f"SLURM_ARRAY_TASK_{name}": value for name, value in (SLURM | {"COUNT": "2"}).items()}
    with pytest.raises(UsageError, match=r"2 tasks numbered 5 to 8, with gaps"):
        choose_share("auto", None, environment=gaps)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dask": "2", "rank": "0", "world_size": 2}, "give one of them"),
        ({"dask": "0"}, "neither a number of workers nor an address"),
        ({"dask": "host:8786"}, "neither a number of workers nor an address"),
        ({"rank": "1"}, "--world-size must say of how many"),
        ({"world_size": 2}, "--rank must say which"),
        ({"rank": "2", "world_size": 2}, "give 0 to 1"),
        ({"rank": "-1", "world_size": 2}, "neither a number from 0 nor auto"),
        ({"rank": "auto", "world_size": 2}, "leave --world-size out"),
    ],
)
def test_contradictory_requests_are_refused_before_anything_starts(given, message):
    with pytest.raises(UsageError, match=message):
        options(**given)


@pytest.mark.parametrize(
    "given", [{"dask": "2"}, {"dask": "tcp://host:8786"}, {"rank": "auto"}, {"rank": "0", "world_size": 1}]
)
def test_each_way_to_share_the_work_is_accepted_alone(given):
    assert options(**given).dask == given.get("dask")
