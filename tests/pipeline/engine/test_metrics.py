"""The log of shards: a line each, appended whole, and damage to it is found."""

import random

import pytest

from vfz.pipeline.engine.metrics import LOG, read_log
from vfz.pipeline.engine.tasks import STAGES
from vfz.pipeline.maintenance.verify import verify_cache

pytestmark = pytest.mark.quick


@pytest.fixture
def log(synthetic_cache, tmp_path):
    """A copy of the log of a cache that was extracted."""
    path = tmp_path / LOG
    path.write_bytes((synthetic_cache.path / LOG).read_bytes())
    return path


def test_every_shard_has_a_line(log, synthetic_cache):
    lines, damaged = read_log(log.parent)
    assert not damaged
    assert [line["shard"] for line in lines] == sorted(
        path.name.partition(".")[0] for path in (synthetic_cache.path / "shards").glob("*.0.index.json")
    )
    for line in lines:
        assert line["committed"]
        assert line["videos"]["ok"] > 0
        assert line["num_frames"] > 0
        assert set(line["stage_seconds"]) == set(STAGES)


def test_a_change_of_any_byte_is_found(log):
    whole = log.read_bytes()
    choice = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        log.write_bytes(data)
        assert read_log(log.parent)[1]
    log.write_bytes(whole[:-1])
    assert read_log(log.parent)[1], "a line without its end"


def test_a_cache_without_a_log_is_whole(tmp_path):
    assert read_log(tmp_path) == ([], [])


def test_verify_tells_of_a_damaged_log_and_repair_may_remove_it(log, synthetic_cache, tmp_path):
    assert not [problem for problem in verify_cache(synthetic_cache.path).problems if problem.file == LOG]
    original = (synthetic_cache.path / LOG).read_bytes()
    try:
        (synthetic_cache.path / LOG).write_bytes(original[:40] + b"?" + original[41:])
        (problem,) = [problem for problem in verify_cache(synthetic_cache.path).problems if problem.file == LOG]
    finally:
        (synthetic_cache.path / LOG).write_bytes(original)
    assert "line 1" in problem.text
    assert problem.remedy == "remove"
