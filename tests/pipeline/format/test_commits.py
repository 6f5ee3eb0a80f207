"""A shard is committed whole or not at all, by one writer, whatever dies when."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import COLUMNS, new_cache, prepare_shard, video_tokens

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.files import checked_json_bytes
from vfz.pipeline.format.commits import commit_shard, read_shard_index
from vfz.pipeline.format.folder import CacheFolder

TESTS = Path(__file__).parents[2]


def _folders(cache: Path) -> set[str]:
    return {path.name for path in (cache / "shards").iterdir() if path.is_dir()}


@pytest.mark.quick
def test_a_committed_shard_reads_back(tmp_path):
    (plan,) = new_cache(tmp_path / "cache")
    index = prepare_shard(tmp_path / "cache", plan, "00001")
    assert commit_shard(tmp_path / "cache", index)
    assert CacheFolder(tmp_path / "cache").commits() == (index,)


@pytest.mark.quick
def test_the_second_writer_loses_and_deletes_only_its_own_data(tmp_path):
    (plan,) = new_cache(tmp_path / "cache")
    first, second = (prepare_shard(tmp_path / "cache", plan, "00000", seed=seed) for seed in (0, 1))
    assert commit_shard(tmp_path / "cache", first)
    assert not commit_shard(tmp_path / "cache", second)
    assert commit_shard(tmp_path / "cache", first), "committing the same data again changes nothing"
    assert CacheFolder(tmp_path / "cache").commits() == (first,)
    assert _folders(tmp_path / "cache") == {first.data.name}


def test_a_shard_without_any_good_video_commits_without_data(tmp_path):
    (plan,) = new_cache(tmp_path / "cache", num_videos=2)
    index = prepare_shard(tmp_path / "cache", plan, "00000", bad=("v0", "v1"))
    assert index.data is None
    assert commit_shard(tmp_path / "cache", index)
    assert not commit_shard(tmp_path / "cache", index)
    cache = FeatureCache(tmp_path / "cache")
    assert [row.status for row in cache.videos] == ["failed", "failed"]
    assert cache.ok_videos() == []
    assert _folders(tmp_path / "cache") == set()


def _race(folder: Path, seed: int, barrier, results) -> None:
    from vfz.pipeline.format.plan import read_plans

    (plan,) = read_plans(folder / "plan")
    for shard in plan.shards:
        index = prepare_shard(folder, plan, shard, seed=seed)
        barrier.wait(30)
        results.put((shard, seed, commit_shard(folder, index)))


def test_of_two_processes_committing_the_same_shards_one_wins_each_and_nothing_mixes(tmp_path):
    folder = tmp_path / "cache"
    (plan,) = new_cache(folder, num_videos=12)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_race, args=(folder, seed, barrier, results)) for seed in (1, 2)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=30) for _ in range(2 * len(plan.shards))]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    winners = {shard: seed for shard, seed, won in outcomes if won}
    assert winners.keys() == plan.shards.keys()
    assert sum(won for _, _, won in outcomes) == len(plan.shards)
    cache = FeatureCache(folder, checksums="always")
    for row in cache.ok_videos():
        expected, _ = video_tokens(row.id, seed=winners[row.shard])
        clip = cache.read(row.id)
        for column in COLUMNS:
            np.testing.assert_array_equal(clip.payload(column.layer, column.part), expected[column.key])
    assert len(_folders(folder)) == len(plan.shards)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.tiny_cache import new_cache, prepare_shard
from vfz.pipeline.format.commits import commit_shard
from vfz.pipeline.format.plan import read_plans

folder = Path(sys.argv[2])
STEPS = ("fsync", "fdatasync", "link", "unlink", "replace", "rename", "rmdir")

def write(step, report):
    child = os.fork()  # before any thread is started; it dies at that step, or reports how many there are
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    count = 0
    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapper
    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    (plan,) = read_plans(folder / "plan")
    commit_shard(folder, prepare_shard(folder, plan, "00001", seed=step))
    os.write(report, str(count).encode())
    os._exit(0)

index = folder / "shards" / "00001.0.index.json"
ours, theirs = os.pipe()
write(0, theirs)
total = int(os.read(ours, 100))
index.unlink()
for step in [*range(1, total - 8, 10), *range(total - 8, total + 2)]:
    killed = write(step, theirs)
    print(step, "killed" if killed else "done", int(index.exists()), flush=True)
    if killed and index.exists():
        index.unlink()
"""


def test_a_writer_killed_at_any_step_leaves_a_cache_that_reads_as_before(tmp_path):
    folder = tmp_path / "cache"
    (plan,) = new_cache(folder, num_videos=4)
    commit_shard(folder, prepare_shard(folder, plan, "00000"))
    before = FeatureCache(folder, allow_incomplete=True).ledger_digest
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(TESTS), str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    steps = [line.split() for line in done.stdout.splitlines()]
    assert len(steps) > 10
    assert [int(exists) for *_, exists in steps] == sorted(int(exists) for *_, exists in steps), "once there, it stays"
    assert steps[0][1:] == ["killed", "0"]
    assert steps[-1][1:] == ["done", "1"]
    assert len(_folders(folder)) > 2, "killed writers left data behind, which nobody sees"
    # The last writer was not killed: its data counts, all of it, and nobody else's.
    cache = FeatureCache(folder, checksums="always")
    assert cache.ledger_digest != before
    for row in cache.ok_videos():
        expected, _ = video_tokens(row.id, seed=int(steps[-1][0]) if row.shard == "00001" else 0)
        np.testing.assert_array_equal(cache.read(row.id).payload(2), expected["layer_2/patch"])
    (folder / "shards/00001.0.index.json").unlink()
    assert FeatureCache(folder, allow_incomplete=True).ledger_digest == before


def _change(index: dict, path: str, value) -> dict:
    *parents, last = path.split(".")
    target = index
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[last] = value
    return index


@pytest.mark.quick
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("shard", "00001", "rows must be"),
        ("number", 3, "renamed"),
        ("rows", [], "rows must be"),
        ("rows.1.frame_start", 0, "starts at frame 0, expected 3"),
        ("rows.1.num_frames", 400, "different videos or frames"),
        ("rows.0.status", "fine", "none of ok, failed"),
        ("rows.0.status", "failed", "only ok has some"),
        ("rows.0.label", True, "label is True"),
        ("rows.0.extra", 1, "fields"),
        ("data", None, "different videos or frames"),
        ("data.name", "../../etc", "plain name"),
        ("rows.0.folds", None, "folds is None"),
        ("column_keys", ["layer_2/patch"], "other columns"),
        ("data.columns.0.dim", 0, "0 channels"),
        ("data.columns.0.layer", "..", "no name of a layer"),
        ("data.chunks", {}, "chunks"),
        ("extra", 1, "keys are"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused_with_its_name_and_the_reason(tmp_path, path, value, message):
    (plan,) = new_cache(tmp_path / "cache")
    commit_shard(tmp_path / "cache", prepare_shard(tmp_path / "cache", plan, "00000"))
    file = tmp_path / "cache/shards/00000.0.index.json"
    content = json.loads(file.read_bytes())
    del content["digest"], content["format_version"]
    file.write_bytes(checked_json_bytes(_change(content, path, value)))
    with pytest.raises(CacheFormatError, match=message) as caught:
        read_shard_index(file)
    assert str(file) in str(caught.value)


@pytest.mark.quick
def test_any_changed_byte_of_an_index_is_found(tmp_path):
    (plan,) = new_cache(tmp_path / "cache")
    commit_shard(tmp_path / "cache", prepare_shard(tmp_path / "cache", plan, "00000"))
    file = tmp_path / "cache/shards/00000.0.index.json"
    original = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(original), 200):
        changed = bytearray(original)
        changed[place] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        with pytest.raises(CacheFormatError, match=r"00000\.0\.index\.json"):
            read_shard_index(file)


def test_a_shard_of_another_recipe_is_refused(tmp_path):
    (plan,) = new_cache(tmp_path / "cache")
    index = dataclasses.replace(prepare_shard(tmp_path / "cache", plan, "00000"), fingerprint="f" * 64)
    commit_shard(tmp_path / "cache", index)
    with pytest.raises(CacheFormatError, match=r"ffffffffffff.*copied from another cache"):
        FeatureCache(tmp_path / "cache", allow_incomplete=True)
