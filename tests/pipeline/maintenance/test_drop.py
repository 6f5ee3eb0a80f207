"""`vfz cache drop`: videos go out of sight with a reason and come back; commits, plans and other videos stay."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.built_cache import Originals, flip
from helpers.processes import killed_before
from helpers.tiny_cache import add_layer, fill_cache, new_cache, records
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, DatasetError, UnknownNameError, UsageError
from vfz.pipeline.format.catalog import is_current
from vfz.pipeline.format.drops import Drop, current_drops, drop_paths, read_drop, write_drop
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.drop import drop_videos
from vfz.pipeline.maintenance.info import describe_cache
from vfz.pipeline.maintenance.options import ConvertOptions, DropOptions
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "tiny"
    new_cache(folder, views=(0, 1))
    fill_cache(folder)
    return folder


@pytest.fixture
def cache(original, tmp_path):
    """v0 to v5, each in two views, two a shard."""
    return shutil.copytree(original, tmp_path / "cache")


def _drop(cache, *ids, **options):
    return drop_videos(DropOptions(cache=cache, video=ids, **options))


def _ok(cache, view=0):
    return [row.id for row in FeatureCache(cache).ok_videos(view=view)]


def test_a_dropped_video_is_missing_in_all_views_with_who_and_why(cache):
    before = {path: path.read_bytes() for folder in ("plan", "shards") for path in (cache / folder).rglob("*.json")}
    digest = FeatureCache(cache).ledger_digest
    report = _drop(cache, "v1", "videos/v4.mp4", why="the subject\nwithdrew")
    assert (report.videos, report.num_ok, report.num_videos) == (("v1", "v4"), 4, 6)
    opened = FeatureCache(cache)
    assert _ok(cache) == _ok(cache, view=1) == ["v0", "v2", "v3", "v5"]
    row = opened.videos[1]
    assert (row.id, row.status, row.reason, row.num_frames) == ("v1", "missing", report.reason, 0)
    assert report.reason.startswith("dropped by ")
    assert report.reason.endswith(": the subject withdrew")
    with pytest.raises(CacheError, match="withdrew"):
        opened.read("v1")
    assert opened.ledger_digest != digest, "results of before are not taken for those of now"
    assert is_current(CacheFolder(cache))
    assert {path: path.read_bytes() for path in before} == before, "plans and commits stay"
    assert describe_cache(cache).failures == {report.reason: 4}


def test_a_drop_is_undone_and_done_again(cache):
    tokens = FeatureCache(cache).read("v1").tokens(layer="2")
    _drop(cache, "v1", "v2")
    assert _drop(cache, "v1").unchanged == ("v1",)
    report = _drop(cache, "v1", "v0", undo=True)
    assert (report.videos, report.unchanged, report.reason) == (("v1",), ("v0",), "")
    assert _ok(cache) == ["v0", "v1", "v3", "v4", "v5"]
    assert (FeatureCache(cache).read("v1").tokens(layer="2") == tokens).all()
    _drop(cache, "v1")
    assert _ok(cache) == ["v0", "v3", "v4", "v5"]
    assert len(drop_paths(cache)) == 3


def test_a_file_of_videos_and_a_dry_run(cache, tmp_path):
    (tmp_path / "ids.txt").write_text("v0\n\n v3.mp4 \nv0\n")
    options = {"cache": cache, "videos": tmp_path / "ids.txt"}
    assert drop_videos(DropOptions(**options, dry_run=True)).videos == ("v0", "v3")
    assert not (cache / "drops").exists()
    assert drop_videos(DropOptions(**options)).num_ok == 4


def test_a_video_that_is_not_there_is_told_and_nothing_is_dropped(cache, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown video 'v9'; did you mean v"):
        _drop(cache, "v0", "v9")
    (tmp_path / "none.txt").write_text("\n")
    for options, match in (
        ({"videos": tmp_path / "none.txt"}, "names no video"),
        ({"videos": tmp_path / "nowhere"}, "cannot read --videos"),
    ):
        with pytest.raises(UsageError, match=match):
            drop_videos(DropOptions(cache=cache, **options))
    with pytest.raises(UsageError, match="--video ID or --videos FILE"):
        DropOptions(cache=cache)
    assert not (cache / "drops").exists()


def test_what_fits_two_videos_is_refused(tmp_path):
    folder = tmp_path / "two"
    new_cache(folder, num_videos=0)
    cache = CacheFolder(folder)
    two = [replace(record, id=f"{split}/walk/1") for record, split in zip(records(2), ("train", "val"), strict=True)]
    cache.extend_plans(two, shard_size_videos=2)
    with pytest.raises(DatasetError, match="may be 'train/walk/1', 'val/walk/1'"):
        _drop(folder, "walk/1")


def test_a_later_plan_is_not_hidden_and_an_old_decision_hides_nothing_newer(cache):
    folder = CacheFolder(cache)
    write_drop(cache, Drop.now("replaced", {"v1": 0}, why="another file"))
    folder.extend_plans(records(6), shard_size_videos=2, views=(0, 1), again={("v1", 0): "00000"})
    pending = FeatureCache(cache, allow_incomplete=True)
    assert {(row.id, row.view) for row in pending.videos if row.status == "pending"} == {("v1", 0)}
    assert [row.id for row in pending.ok_videos()] == ["v0", "v2", "v3", "v4", "v5"]
    fill_cache(cache, seed=1)
    write_drop(cache, Drop.now("replaced", {"v1": 0}, why="decided by another process on what it saw before"))
    assert _ok(cache) == ["v0", "v1", "v2", "v3", "v4", "v5"]
    assert _ok(cache, view=1) == ["v0", "v2", "v3", "v4", "v5"], "that view was not made again"
    _drop(cache, "v1")
    assert "v1" not in _ok(cache)
    write_drop(cache, Drop.now("dropped", {"v1": 0}, why="decided on what it saw before"))
    _drop(cache, "v1", undo=True)
    assert FeatureCache(cache).ok_videos()[1].shard == "00006", "what was replaced does not come back"


def test_a_failed_attempt_does_not_bring_the_old_tokens_back(cache):
    folder = CacheFolder(cache)
    write_drop(cache, Drop.now("replaced", {"v1": 0}, why=""))
    folder.extend_plans(records(6), shard_size_videos=2, again={("v1", 0): "00000"})
    fill_cache(cache, bad=("v1",))
    (row,) = [row for row in FeatureCache(cache).videos if row.id == "v1" and not row.view]
    assert (row.status, row.reason) == ("failed", "no picture in it")


def test_layers_that_are_added_later_lack_nothing_of_dropped_videos(cache):
    _drop(cache, "v0", "v1")
    add_layer(cache, "23")
    table = FeatureCache(cache, allow_incomplete=True).table().to_pydict()
    lacking = {row for row, keys in zip(table["id"], table["lacking"], strict=True) if keys}
    assert lacking == {"v2", "v3", "v4", "v5"}


def test_several_writers_get_a_number_each_and_all_count(cache):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: _drop(cache, f"v{number}"), range(6)))
    assert len(drop_paths(cache)) == 6
    assert _ok(cache) == []


def test_a_kill_before_any_operation_leaves_it_dropped_or_not(cache, tmp_path):
    seen = set()
    for operation in range(1, 40):
        copy = shutil.copytree(cache, tmp_path / "killed")
        killed = killed_before(operation, lambda copy=copy: _drop(copy, "v1"))
        seen.add("v1" in _ok(copy))
        assert verify_cache(copy).intact
        _drop(copy, "v1")
        assert _ok(copy) == ["v0", "v2", "v3", "v4", "v5"]
        shutil.rmtree(copy)
        if not killed:
            break
    assert not killed
    assert seen == {True, False}


@given(
    st.lists(
        st.tuples(st.sampled_from(["dropped", "replaced", "restored"]), st.sampled_from("ab"), st.integers(0, 3)),
        max_size=8,
    )
)
def test_whatever_is_recorded_what_is_replaced_stays_hidden(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("cache")
    for kind, video, plan in steps:
        drop = Drop.now(kind, {video: plan}, why="")
        assert read_drop(write_drop(folder, drop)) == drop
    drops = current_drops(folder)
    for video in "ab":
        mine = [(kind, plan) for kind, name, plan in steps if name == video]
        replaced = [plan for kind, plan in mine if kind == "replaced"]
        last = next((kind for kind, _ in reversed(mine)), "restored")
        if last == "restored" and not replaced:
            assert video not in drops
        elif last == "dropped":
            assert drops[video].kind == "dropped"
        if replaced:
            assert drops[video].videos[video] >= replaced[-1]


def test_a_record_that_is_gone_or_changed_is_damage(cache):
    for video in ("v0", "v1"):
        _drop(cache, video)
    shutil.copytree(cache, whole := cache.parent / "whole")
    (whole / "drops/2.json").unlink()
    assert [problem.file for problem in verify_cache(whole).damage] == ["drops/2.json"]
    assert repair_cache(whole).steps == (), "that would forget that there was one"
    shutil.rmtree(whole / "drops")
    with pytest.raises(CacheFormatError, match=r"has 0 records, index\.json knows of 2.*restore it"):
        FeatureCache(whole)
    flip(cache / "drops/2.json", 30)
    assert [problem.file for problem in verify_cache(cache).damage] == ["drops/2.json"]
    (cache / "drops/1.json").unlink()
    (cache / "index.json").unlink()
    with pytest.raises(CacheFormatError, match="restore it"):
        FeatureCache(cache)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


def test_verify_repair_and_convert_know_drops(originals, tmp_path):
    path = originals.copy(tmp_path / "cache")
    assert _drop(path, "v0").num_ok == 3
    assert verify_cache(path).problems == ()
    assert repair_cache(path).result == "nothing to repair"
    options = ConvertOptions(cache=path, out=tmp_path / "out", precision="int4")
    target = Path(convert(options).cache)
    assert "v0" not in _ok(target)
    assert verify_cache(target).problems == ()
    _drop(path, "v0", undo=True)
    _drop(target, "v1")
    convert(options)
    assert "v0" in _ok(target)
    assert "v1" not in _ok(target), "what was dropped there stays so"
    assert verify_cache(target).problems == ()
