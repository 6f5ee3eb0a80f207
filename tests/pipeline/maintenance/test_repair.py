"""Repair: what is damaged or left over goes, what is good and what is at work stays, and a kill does no harm."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest
from helpers.built_cache import KINDS, Originals, build, data_path, files_of, flip, plan_and_commit, writer_process
from helpers.extraction import all_tokens
from helpers.processes import killed_before

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.format.catalog import is_current
from vfz.pipeline.format.commits import committed_paths
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache

kinds = pytest.mark.parametrize(("store", "precision"), KINDS)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def cache(originals, tmp_path):
    return originals.copy(tmp_path / "cache")


def _damage_data(path, shard, number=0):
    data = data_path(path, shard, number)
    files = [file for file in [data, *data.rglob("*")] if file.is_file() and file.name != "zarr.json"]
    flip(max(files, key=lambda file: file.stat().st_size), 700)


def _pending(path):
    return {row.shard for row in FeatureCache(path, allow_incomplete=True).videos if row.status == "pending"}


@kinds
def test_an_undamaged_cache_is_left_as_it_is(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    before = files_of(path)
    report = repair_cache(path)
    assert (report.steps, report.not_repaired, report.notes) == ((), (), ())
    assert report.result == "nothing to repair"
    assert files_of(path) == before


@kinds
def test_a_damaged_shard_is_dropped_with_what_was_added_to_it(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    gone = {data_path(path, "00001", number) for number in (0, 1)}
    others = {name: content for name, content in files_of(path).items() if "/00001" not in name}
    _damage_data(path, "00001")
    report = repair_cache(path)
    assert [step.action for step in report.steps] == ["drop", "drop", "remove", "remove", "rebuild"]
    assert "00001.1" in report.steps[0].file, "the later commit goes first: it cannot stand alone"
    assert "run the same vfz extract again" in report.result
    assert not any(data.exists() for data in gone)
    assert _pending(path) == {"00001"}
    assert is_current(CacheFolder(path))
    assert verify_cache(path).problems == ()
    after = files_of(path)
    assert all(after[name] == content for name, content in others.items() if not name.startswith("index."))


@kinds
def test_of_a_damaged_later_commit_the_first_one_stays(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    _damage_data(path, "00001", 1)
    repair_cache(path)
    assert committed_paths(path).keys() == originals_commits() - {("00001", 1)}
    assert _pending(path) == set()
    assert verify_cache(path).problems == ()


def originals_commits():
    return {(f"0000{shard}", number) for shard in range(4) for number in (0, 1)}


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_index_is_dropped_and_its_data_with_it(cache, number):
    data = data_path(cache, "00002", number)
    flip(cache / f"shards/00002.{number}.index.json", 99)
    repair_cache(cache)
    assert not data.exists()
    assert ("00002", number) not in committed_paths(cache)
    assert verify_cache(cache).problems == ()


def test_data_that_is_gone_is_made_again(cache):
    shutil.rmtree(data_path(cache, "00002"))
    assert repair_cache(cache).num_to_extract == 1
    assert _pending(cache) == {"00002"}


def test_what_stopped_runs_left_is_removed_and_nothing_else(cache):
    before = files_of(cache)
    (cache / "shards/00000-0123456789abcdef/layer_2").mkdir(parents=True)
    (cache / "shards/00001-0123456789abcdef.tar").write_bytes(b"half")
    (cache / "shards/00000-0123456789abcdef.lock").touch()
    (cache / "plan/.1.json.abc.tmp").touch()
    os.utime(cache / "plan/.1.json.abc.tmp", (0, time.time() - 7200))
    (data_path(cache, "00000") / "more").write_bytes(b"more")
    (cache / "plan/.2.json.abc.tmp").touch()  # young: its writer may be at work
    (cache / "plan/.3.json.abc.tmp").touch()
    os.utime(cache / "plan/.3.json.abc.tmp", (0, time.time() + 7200))  # the clock was set back
    (cache / "mine.txt").write_text("mine")
    report = repair_cache(cache)
    notes = {problem.file: problem.text for problem in report.notes}
    assert notes.keys() == {"plan/.2.json.abc.tmp", "plan/.3.json.abc.tmp", "mine.txt"}
    assert "younger than an hour" in notes["plan/.2.json.abc.tmp"]
    assert "its time is in the future" in notes["plan/.3.json.abc.tmp"]
    left = files_of(cache)
    assert left.keys() - before.keys() == notes.keys()
    assert {name: left[name] for name in before} == before
    assert not (cache / "shards/00000-0123456789abcdef").exists()


def test_a_catalogue_that_is_damaged_old_or_gone_is_made_again(cache):
    expected = files_of(cache)
    for spoil in (
        lambda: flip(cache / "index.parquet", 50),
        lambda: flip(cache / "index.json", 50),
        (cache / "index.json").unlink,
        (cache / "index.parquet").unlink,
    ):
        spoil()
        assert [step.action for step in repair_cache(cache).steps] == ["rebuild"]
        assert files_of(cache).keys() == expected.keys()
        assert is_current(CacheFolder(cache))


def test_a_living_writer_is_not_touched(cache):
    data = cache / "shards/00000-00000000000000aa.tar"
    _damage_data(cache, "00000")
    with writer_process(data):
        report = repair_cache(cache)
        assert data.read_bytes() == b"half"
        assert any("being written now" in problem.text for problem in report.notes)
        assert _pending(cache) == {"00000"}
    repair_cache(cache)
    assert not data.exists()
    assert not data.with_name(f"{data.name}.lock").exists()


def test_data_committed_after_it_was_looked_at_is_not_removed(cache, tmp_path, monkeypatch):
    """A writer ends between the verification, which finds its data without an index, and the removal."""
    from vfz.pipeline.maintenance import repair

    index = cache / "shards/00003.1.index.json"
    hidden = index.rename(tmp_path / "index")
    verify = repair.verify_cache

    def verify_and_commit(path, progress):
        found = verify(path, progress=progress)
        hidden.rename(index)
        return found

    monkeypatch.setattr(repair, "verify_cache", verify_and_commit)
    repair_cache(cache)
    assert verify_cache(cache).problems == ()
    assert index.exists()


@kinds
def test_a_dry_run_says_the_same_and_touches_nothing(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    _damage_data(path, "00001")
    flip(path / "shards/00002.1.index.json", 99)
    (path / "shards/00001-0123456789abcdef").mkdir()
    before = files_of(path)
    dry = repair_cache(path, dry_run=True)
    assert files_of(path) == before
    assert dry.dry_run
    assert dry.steps
    assert repair_cache(path).steps == dry.steps


# --- what cannot be repaired ---


@pytest.mark.parametrize("name", ["vfz.json", "contents/1.json", "plan/0.json"])
def test_without_what_says_what_the_cache_is_nothing_is_touched(cache, name):
    flip(cache / name, 99)
    _damage_data(cache, "00001")
    before = files_of(cache)
    report = repair_cache(cache)
    assert report.steps == ()
    assert name in {problem.file for problem in report.not_repaired}
    assert "nothing was touched" in report.result
    assert files_of(cache) == before


@pytest.mark.parametrize("name", ["golden/frames.npz", "calibration/layer_5.patch.json"])
def test_the_rest_is_repaired_when_calibration_or_golden_frames_are_lost(cache, name):
    (cache / name).unlink()
    _damage_data(cache, "00001")
    report = repair_cache(cache)
    assert [problem.file for problem in report.not_repaired] == [name]
    assert "restore it from a copy" in report.not_repaired[0].text
    assert [problem.file for problem in verify_cache(cache).problems] == [name]


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    with pytest.raises(CacheFormatError, match="not a cache"):
        repair_cache(tmp_path)


# --- kills ---


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("share", [0.15, pytest.param(1.0, marks=pytest.mark.faults)])
def test_a_repair_killed_at_any_step_can_be_run_again(originals, tmp_path, store, share):
    damaged = originals.copy(tmp_path / "damaged", store)
    _damage_data(damaged, "00001")
    flip(damaged / "shards/00002.1.index.json", 99)
    (damaged / "shards/00003-0123456789abcdef").mkdir()
    whole = shutil.copytree(damaged, tmp_path / "whole")
    repair_cache(whole)
    expected = {name: content for name, content in files_of(whole).items() if name != "index.json"}
    rng, killed, operation = random.Random(0), True, 0
    while killed:
        operation += 1
        if rng.random() > share and operation > 2:
            continue
        path = shutil.copytree(damaged, tmp_path / "killed")
        killed = killed_before(operation, lambda path=path: repair_cache(path))
        if killed:
            assert FeatureCache(path, allow_incomplete=True).num_bytes if operation > 6 else True
        repair_cache(path)
        after = files_of(path)
        temporary = {name for name in after if name.endswith(".tmp")}  # too young to be removed
        assert {name: after[name] for name in after.keys() - temporary - {"index.json"}} == expected
        assert all(problem.file in temporary for problem in verify_cache(path).problems)
        shutil.rmtree(path)


# --- and then the extraction ---


def _same_but_for_names(path):
    """What a cache holds, whatever random names its data has."""
    return all_tokens(path), verify_cache(path).problems


def test_after_repair_and_the_same_extraction_the_cache_equals_an_undamaged_one(synthetic_options, tmp_path):
    options = synthetic_options(out=tmp_path / "caches", shard_videos=12, layers=("2",))
    path = FeatureCache(extract(options).cache).path
    extract(synthetic_options(out=tmp_path / "caches", shard_videos=12, layers=("2", "3")))
    expected = _same_but_for_names(path)
    _damage_data(path, "00000")
    _damage_data(path, "00001", 1)
    flip(path / "shards/00002.0.index.json", 99)
    flip(path / "index.parquet", 99)
    assert repair_cache(path).num_to_extract == 3
    report = extract(synthetic_options(out=tmp_path / "caches", shard_videos=12, layers=("2", "3")))
    assert report.new_videos == 36
    assert _same_but_for_names(path) == expected


def test_a_repaired_cache_may_be_committed_to_again(tmp_path):
    path = build(tmp_path / "cache")
    expected = all_tokens(path)
    _damage_data(path, "00001")
    _damage_data(path, "00003")
    repair_cache(path)
    plan_and_commit(path)
    repair_cache(path)
    assert verify_cache(path).problems == ()
    assert all_tokens(path) == expected
