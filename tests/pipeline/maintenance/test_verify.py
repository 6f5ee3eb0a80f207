"""Verification: what is intact is called intact, and everything that is not is found, named and listed."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from helpers.built_cache import (
    KINDS,
    Originals,
    build,
    commit,
    data_path,
    files_of,
    flip,
    grow,
    num_frames_of,
    writer_process,
)

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.plan import read_plans
from vfz.pipeline.maintenance.info import compare_caches
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.stores import STORES, base

kinds = pytest.mark.parametrize(("store", "precision"), KINDS)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def cache(originals, tmp_path):
    return originals.copy(tmp_path / "cache")


def _lines(path):
    return [str(problem) for problem in verify_cache(path).problems]


@pytest.mark.quick
@kinds
def test_an_undamaged_cache_is_intact_and_was_read_in_full(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    before = files_of(path)
    report = verify_cache(path)
    assert report.problems == ()
    assert report.intact
    catalog = {"index.parquet", "index.json"}
    assert report.num_files == len(before.keys() - catalog)
    assert report.num_bytes == sum(len(content) for name, content in before.items() if name not in catalog)
    assert (report.num_commits, report.num_videos, report.num_pending) == (8, 8, 0)
    assert files_of(path) == before


def test_videos_not_extracted_yet_are_no_problem(tmp_path):
    report = verify_cache(build(tmp_path / "cache", leave_out=("00001", "00003")))
    assert report.intact
    assert report.num_pending == 6


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vfz.json", "restore"),
        ("contents/1.json", "restore"),
        ("plan/0.json", "restore"),
        ("calibration/layer_5.patch.json", "restore"),
        ("golden/frames.npz", "--encoder"),
        ("shards/00001.0.index.json", "digest|JSON"),
        ("index.json", "digest|JSON"),
        ("index.parquet", "sha256"),
    ],
)
def test_a_changed_or_missing_file_is_named(cache, name, words):
    flip(cache / name, (cache / name).stat().st_size // 2)
    report = verify_cache(cache)
    (problem,) = [problem for problem in report.damage if problem.file == name]
    assert not report.intact
    assert any(word in problem.text for word in words.split("|"))
    (cache / name).unlink()
    lines = _lines(cache)
    if name == "contents/1.json":  # the newest: only commits know that there was one
        assert any("layer_final/patch'], which no contents name" in line for line in lines)
    elif name.startswith("shards/"):
        assert any("a first commit that is gone" in line for line in lines)
    else:
        assert any(f": {name}" in line for line in lines)


@kinds
def test_a_flipped_number_names_file_shard_video_and_array(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    data = read_shard_index(committed_paths(path)["00002", 0]).data
    reader = STORES[store].reader(path / "shards" / data.name, data)
    first = data.videos[0].num_frames
    needle = reader.read("layer_5/patch", np.array([first])).tobytes()  # the first frame of the second video
    reader.close()
    hit = next(name for name in data.files if needle in (path / "shards" / data.name / name).read_bytes())
    file = path / "shards" / data.name / hit
    flip(file, file.read_bytes().index(needle) + 1)
    report = verify_cache(path)
    assert {problem.file for problem in report.damage} == {file.relative_to(path).as_posix()}
    assert {(problem.shard, problem.array) for problem in report.damage} == {("00002", "layer_5/patch")}
    (problem,) = report.damage
    assert data.videos[1].id in problem.videos
    assert all("chunk" in problem.text for problem in report.damage)


@kinds
def test_a_damaged_chunk_is_one_line_with_the_videos_it_touches_and_one_error_when_it_is_read(
    tmp_path, store, precision
):
    path = build(tmp_path / "cache", store=store, precision=precision, views=(0,), video_ids=("v0", "v1", "v4", "v5"))
    index = read_shard_index(committed_paths(path)["00000", 0])
    reader = STORES[store].reader(path / "shards" / index.data.name, index.data)
    needle = reader.read("layer_5/patch", np.array([0])).tobytes()
    reader.close()
    names = [name for name in index.data.files if store == "webdataset" or name.startswith("layer_5/patch/c/")]
    file = path / "shards" / index.data.name / names[0]
    flip(file, file.read_bytes().index(needle))
    (problem,) = verify_cache(path).damage
    # In a Zarr shard small frames of several videos share a chunk; in a tar every video has its own.
    touched = ("v0", "v1", "v4") if store == "zarr" else ("v0",)
    assert problem.videos == touched
    named = f"video{'s' * (len(touched) > 1)} {', '.join(touched)}"
    assert f"(shard 00000, {named}, array layer_5/patch): " in str(problem)
    cache = FeatureCache(path)
    for video in touched:
        expected = rf"video '{video}', shard 00000: layer_5/patch: .*damaged"
        with pytest.raises(CacheFormatError, match=expected):
            cache.read(video, layers="5")
        with pytest.raises(CacheFormatError, match=expected):
            cache.read_batch([(video, [0])], layers=(5,))
        cache.read(video, layers="2")
    cache.close()


def test_a_run_of_damaged_chunks_is_one_line(tmp_path):
    shapes = (("11", "patch", 64, 768),)  # 98 kB a frame: one to a chunk
    path = build(tmp_path / "cache", shapes=shapes, views=(0,), compression="none", video_ids=("v0", "v1", "v4", "v5"))
    index = read_shard_index(committed_paths(path)["00000", 0])
    file = path / "shards" / index.data.name / "layer_11/patch/c/0/0/0"
    content, stride = bytearray(file.read_bytes()), 64 * 768 * 2 + 4
    for frame in (1, 2, 3, 4, num_frames_of("v0") + num_frames_of("v1")):
        content[frame * stride + 5] ^= 1
    file.write_bytes(content)
    run, alone = verify_cache(path).damage
    assert run.text.endswith("does not match, and so are 3 chunks after it, up to frame 4")
    assert (run.videos, alone.videos) == (("v0", "v1")[: 1 + (num_frames_of("v0") < 5)], ("v4",))


@kinds
def test_truncated_and_missing_data_are_found(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    truncated, gone = data_path(path, "00000"), data_path(path, "00001", 1)
    largest = max(
        (file for file in [truncated, *truncated.rglob("*")] if file.is_file()), key=lambda f: f.stat().st_size
    )
    os.truncate(largest, largest.stat().st_size - 100)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    report = verify_cache(path)
    found = {problem.commit: problem for problem in report.damage}
    assert found.keys() == {("00000", 0), ("00001", 1)}
    assert "were committed" in found["00000", 0].text
    assert "gone" in found["00001", 1].text


def test_a_missing_chunk_file_and_a_file_too_many_are_found(cache):
    data = data_path(cache, "00000")
    (data / "layer_5/patch/c/0/0/0").unlink()
    (data / "layer_2/patch/c/1").mkdir()
    (data / "layer_2/patch/c/1/0").write_bytes(b"more")
    found = {problem.file.partition("/")[2].partition("/")[2]: problem for problem in verify_cache(cache).damage}
    assert found["layer_5/patch/c/0/0/0"].text == "it is gone"
    assert "does not belong there" in found["layer_2/patch/c/1"].text


def test_all_that_is_wrong_is_listed_not_the_first(cache):
    flip(cache / "plan/0.json", 40)
    flip(cache / "calibration/layer_5.patch.json", 40)
    flip(cache / "shards/00003.1.index.json", 40)
    flip(data_path(cache, "00000") / "layer_5/patch/c/0/0/0", 10)
    (cache / "golden/frames.npz").unlink()
    (cache / "notes.txt").write_text("mine")
    files = {problem.file for problem in verify_cache(cache).problems}
    assert {"plan/0.json", "calibration/layer_5.patch.json", "shards/00003.1.index.json"} < files
    assert {"golden/frames.npz", "notes.txt"} < files
    assert any(name.endswith("layer_5/patch/c/0/0/0") for name in files)


def test_each_line_says_where(cache):
    flip(data_path(cache, "00000") / "layer_5/patch/c/0/0/0", 10)
    line = _lines(cache)[0]
    assert line.startswith("damage: shards/00000-")
    assert "(shard 00000, videos v0, v1, array layer_5/patch): chunk 0" in line
    assert "\n" not in line


# --- what does not fit together ---


def test_a_commit_of_another_cache_is_found(cache, originals, tmp_path):
    other = originals.copy(tmp_path / "other", "zarr", "int4")
    shutil.copy(other / "shards/00001.0.index.json", cache / "shards/00001.0.index.json")
    assert any("copied from another cache" in line for line in _lines(cache))


def test_a_lost_plan_is_found_by_the_commits_that_name_it(cache):
    (cache / "plan/0.json").unlink()
    problems = [problem for problem in verify_cache(cache).damage if problem.file == "plan/0.json"]
    assert len(problems) == 1
    assert "it is gone" in problems[0].text


def test_a_second_commit_without_the_first_is_found(cache):
    (cache / "shards/00002.0.index.json").unlink()
    (problem,) = verify_cache(cache).damage
    assert problem.commit == ("00002", 1)
    assert problem.remedy == "extract"


@kinds
def test_times_that_do_not_increase_are_found(tmp_path, monkeypatch, store, precision):
    append = base.ShardWriter.append
    monkeypatch.setattr(base.ShardWriter, "append", lambda self, arrays, pts: append(self, arrays, pts * 0))
    path = build(tmp_path / "cache", store=store, precision=precision, views=(0,))
    found = [problem for problem in verify_cache(path).damage if problem.array == "pts_seconds"]
    assert {video for problem in found for video in problem.videos} == {"v0", "v1", "v4", "v5"}
    assert all("strictly increasing" in problem.text for problem in found)


def test_times_that_differ_between_commits_are_found(tmp_path, monkeypatch):
    path = build(tmp_path / "cache", views=(0,))
    append = base.ShardWriter.append
    monkeypatch.setattr(base.ShardWriter, "append", lambda self, arrays, pts: append(self, arrays, pts + 0.5))
    grow(path)
    found = verify_cache(path).damage
    assert {problem.commit for problem in found} == {("00000", 1), ("00001", 1)}
    assert {video for problem in found for video in problem.videos} == {"v0", "v1", "v4", "v5"}


@kinds
def test_numbers_that_are_not_finite_are_found(tmp_path, monkeypatch, store, precision):
    monkeypatch.setattr(base, "all_finite", lambda _: True)
    frames = np.zeros((num_frames_of("v4"), 1, 1), np.float32)
    frames[2] = np.nan
    extra = {("v4", "layer_5/patch"): frames}
    path = build(tmp_path / "cache", store=store, precision=precision, views=(0,), extra=extra)
    found = verify_cache(path).damage
    assert {(problem.videos, problem.array.removesuffix("_scale")) for problem in found} == {(("v4",), "layer_5/patch")}
    assert all("frame 2 of the video" in problem.text for problem in found)


def test_a_catalogue_that_is_old_is_a_note(tmp_path):
    path = build(tmp_path / "cache", leave_out=("00002",))
    write_catalog(CacheFolder(path))
    assert verify_cache(path).problems == ()
    plan = read_plans(path / "plan")[0]
    columns = CacheFolder(path).contents().columns
    commit(path, 0, "00002", 0, columns, plan.shards["00002"], {})
    report = verify_cache(path)
    assert report.intact
    assert [(problem.file, problem.remedy) for problem in report.notes] == [("index.parquet", "rebuild")]


# --- files that nobody names ---


def test_what_stopped_runs_leave_is_a_note_each(cache):
    (cache / "shards/00000-0123456789abcdef").mkdir()
    (cache / "shards/00001-0123456789abcdef.tar").write_bytes(b"half")
    (cache / "shards/00000-0123456789abcdef.lock").touch()
    (cache / "shards/.00003.0.index.json.abc.tmp").touch()
    (cache / "plan/.1.json.abc.tmp").touch()
    os.utime(cache / "plan/.1.json.abc.tmp", (0, time.time() - 7200))
    (cache.parent / f".{cache.name}.abc.tmp").mkdir()
    (cache / "README").touch()
    (cache / "shards/strange").mkdir()
    report = verify_cache(cache)
    assert report.intact
    assert {problem.file: problem.remedy for problem in report.notes} == {
        "shards/00000-0123456789abcdef": "remove",
        "shards/00001-0123456789abcdef.tar": "remove",
        "shards/00000-0123456789abcdef.lock": "remove",
        "shards/.00003.0.index.json.abc.tmp": "none",
        "plan/.1.json.abc.tmp": "remove",
        f"../.{cache.name}.abc.tmp": "none",
        "README": "none",
        "shards/strange": "none",
    }


def test_data_that_a_living_process_writes_is_told_apart(cache):
    data = cache / "shards/00000-00000000000000aa.tar"
    with writer_process(data):
        (problem,) = verify_cache(cache).problems
        assert "being written now" in problem.text
    (problem, lock) = verify_cache(cache).problems
    assert "writer is gone" in problem.text
    assert "no process holds" in lock.text


def test_a_folder_that_is_no_cache_is_refused(tmp_path):
    with pytest.raises(CacheFormatError, match="not a cache"):
        verify_cache(tmp_path)
    with pytest.raises(CacheFormatError, match="not a folder"):
        verify_cache(tmp_path / "nowhere")


def test_memory_does_not_grow_with_the_shard(tmp_path):
    shapes = (("11", "patch", 196, 768),)
    path = build(tmp_path / "cache", shapes=shapes, video_ids=[f"w{n}" for n in range(40)], views=(0,), shard_videos=40)
    assert verify_cache(path).num_bytes > 40e6
    tracemalloc.start()
    verify_cache(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


# --- two caches ---


def test_caches_of_one_recipe_are_interchangeable_whatever_the_store(originals, tmp_path):
    a = build(tmp_path / "a", store="zarr", precision="fp16", compression="none")
    b = build(tmp_path / "b", store="webdataset", precision="fp16", leave_out=("00001",))
    report = compare_caches(a, b)
    assert report.interchangeable
    assert report.recipe_differences == ()
    assert (report.num_common, report.only_in_a, report.only_in_b) == (6, 2, 0)
    assert any(line == "store: A zarr, B webdataset" for line in report.contents_differences)
    assert not report.same_ledger
    assert compare_caches(a, a).same_ledger


def test_another_recipe_is_told_field_by_field(originals, tmp_path):
    a, b = (originals.copy(tmp_path / precision, "zarr", precision) for precision in ("fp16", "int4"))
    report = compare_caches(a, b)
    assert not report.interchangeable
    assert "storage.precision: A fp16, B int4" in report.recipe_differences


def test_another_file_or_number_of_frames_under_the_same_id_is_told(tmp_path, monkeypatch):
    from helpers import built_cache

    a = build(tmp_path / "a")
    length = built_cache.num_frames_of
    monkeypatch.setattr(built_cache, "num_frames_of", lambda name: length(name) + (name == "v0"))
    report = compare_caches(a, build(tmp_path / "b"))
    assert report.same_fingerprint
    assert not report.interchangeable
    assert [line.split(":")[0] for line in report.video_differences] == ["video 'v0'", "video 'v0' (view 1)"]
