"""Faults of caches: flipped bytes, lost and truncated files, writers that race, are killed or run out of disk.

A seeded sample runs in `make test`; the whole campaign in `make faults`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess

import numpy as np
import pytest
from helpers.built_cache import (
    KINDS,
    VIDEO_IDS,
    Originals,
    build,
    commit,
    data_path,
    files_of,
    flip,
    num_frames_of,
    plan_and_commit,
)
from helpers.extraction import all_tokens
from helpers.processes import killed_before

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError, StorageError
from vfz.pipeline.format.catalog import is_current, write_catalog
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import read_header
from vfz.pipeline.format.plan import read_plans
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.stores import STORES

kinds = pytest.mark.parametrize(("store", "precision"), KINDS)
sample_and_campaign = pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.faults)])
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


# --- bytes ---


@kinds
@sample_and_campaign
def test_every_flipped_byte_anywhere_is_found(originals, tmp_path, store, precision, count):
    path = originals.copy(tmp_path / "cache", store, precision)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    rng = random.Random(f"{store} {precision}")
    missed = []
    for number in range(count):
        # Small files as often as large ones, and now and then any byte of all of them.
        weights = [file.stat().st_size for file in files] if number % 2 else None
        (file,) = rng.choices(files, weights)
        before = file.read_bytes()
        place, bit = rng.randrange(len(before)), rng.randrange(8)
        flip(file, place, bit)
        report = verify_cache(path)
        if report.intact or not any(_is_about(problem, file, path) for problem in report.damage):
            missed.append((file.relative_to(path).as_posix(), place, bit, report.problems))
        file.write_bytes(before)
    assert missed == []
    assert verify_cache(path).problems == ()


def _is_about(problem, file, path):
    """Whether a problem names the file, or the data it is a part of."""
    name = file.relative_to(path).as_posix()
    return problem.file == name or problem.file.split("/")[:2] == name.split("/")[:2]


@kinds
@pytest.mark.parametrize("checksums", ["first", "always"])
@sample_and_campaign
def test_a_read_that_meets_a_flipped_byte_names_shard_video_and_layer(
    originals, tmp_path, store, precision, checksums, count
):
    path = originals.copy(tmp_path / "cache", store, precision)
    rng = random.Random(f"{store} {precision} {checksums}")
    for _ in range(count // 4):
        (shard, number), index_path = rng.choice(list(committed_paths(path).items()))
        data = read_shard_index(index_path).data
        video = rng.choice(data.videos)
        spec = rng.choice([spec for column in data.columns for spec in column.arrays])
        start = next(row.frame_start for row in read_shard_index(index_path).rows if row.key == (video.id, video.view))
        frame = rng.randrange(video.num_frames)
        reader = STORES[store].reader(path / "shards" / data.name, data)
        needle = reader.read(spec.key, np.array([start + frame])).tobytes()
        reader.close()
        names = [name for name in data.files if store == "webdataset" or name.startswith(f"{spec.key}/c/")]
        file = path / "shards" / data.name / names[0]
        before = file.read_bytes()
        if before.count(needle) != 1:  # too few bytes to be unique
            continue
        flip(file, before.index(needle) + rng.randrange(len(needle)), rng.randrange(8))
        layer, part = spec.key.removesuffix("_scale").removeprefix("layer_").split("/")
        cache = FeatureCache(path, checksums=checksums)
        with pytest.raises(CacheFormatError) as raised:
            cache.read(video.id, frames=[frame], layers=(layer,), parts=(part,), view=video.view)
        cache.close()
        for word in (f"shard {shard}", repr(video.id), f"layer_{layer}/{part}"):
            assert word in str(raised.value), number
        file.write_bytes(before)


# --- files ---


def _largest(data):
    return max((file for file in [data, *data.rglob("*")] if file.is_file()), key=lambda file: file.stat().st_size)


def _truncate(path):
    file = _largest(data_path(path, "00001"))
    os.truncate(file, file.stat().st_size // 2)


def _empty(path):
    os.truncate(_largest(data_path(path, "00001")), 0)


def _lengthen(path):
    with _largest(data_path(path, "00001")).open("ab") as file:
        file.write(b"\0")


def _remove_file(path):
    _largest(data_path(path, "00001")).unlink()


def _remove_data(path):
    data = data_path(path, "00001")
    shutil.rmtree(data) if data.is_dir() else data.unlink()


def _swap_data(path):
    """The data of two shards under each other's names."""
    one, other = data_path(path, "00001"), data_path(path, "00002")
    one.rename(path / "aside")
    other.rename(one)
    (path / "aside").rename(other)


@kinds
@pytest.mark.parametrize("damage", [_truncate, _empty, _lengthen, _remove_file, _remove_data, _swap_data])
def test_files_that_are_lost_or_cut_are_found_by_verify_and_by_reading(originals, tmp_path, store, precision, damage):
    path = originals.copy(tmp_path / "cache", store, precision)
    damage(path)
    report = verify_cache(path)
    assert ("00001", 0) in {problem.commit for problem in report.damage}
    cache = FeatureCache(path)
    videos = [row for row in cache.ok_videos() if row.shard == "00001"]
    with pytest.raises(CacheFormatError, match="shard 00001"):
        [cache.read(row.id, view=row.view) for row in videos]
    for row in cache.ok_videos():
        if row.shard in {"00000", "00003"}:
            cache.read(row.id, view=row.view)
    cache.close()


@kinds
def test_a_file_too_many_is_found(originals, tmp_path, store, precision):
    path = originals.copy(tmp_path / "cache", store, precision)
    folders = [path, *(folder for folder in path.rglob("*") if folder.is_dir())]
    for folder in random.Random(0).sample(folders, min(6, len(folders))):
        (folder / "extra.bin").write_bytes(b"extra")
        (problem,) = verify_cache(path).problems
        assert problem.file == (folder / "extra.bin").relative_to(path).as_posix()
        (folder / "extra.bin").unlink()


@kinds
def test_an_old_catalogue_does_not_mislead_readers(tmp_path, store, precision):
    path = build(tmp_path / "cache", store=store, precision=precision, leave_out=("00001",))
    write_catalog(CacheFolder(path))
    plan_and_commit(path)
    assert not is_current(CacheFolder(path))
    report = verify_cache(path)
    assert report.intact
    assert [problem.file for problem in report.notes] == ["index.parquet"]
    assert len(FeatureCache(path).ok_videos()) == 4


# --- writers ---


def _commit_shard(path, offset, barrier=None):
    """One commit of shard 00001 whose tokens are `offset` too large; fails when another one was first."""
    extra = {(video_id, "layer_5/patch"): np.float32(offset) for video_id in VIDEO_IDS}
    header = read_header(path)
    plan = read_plans(path / "plan")[0]
    if barrier is not None:
        barrier.wait()
    try:
        commit(path, plan.number, "00001", 0, header.contents.columns, plan.shards["00001"], extra)
    except AssertionError:
        return


@kinds
@pytest.mark.parametrize("count", [2, pytest.param(30, marks=pytest.mark.faults)])
@forks
def test_of_two_processes_that_write_the_same_shard_one_wins_and_nothing_mixes(tmp_path, store, precision, count):
    context = multiprocessing.get_context("fork")
    started = build(tmp_path / "started", store=store, precision=precision, leave_out=("00001",))
    expected = []
    for offset in (0, 1):
        whole = shutil.copytree(started, tmp_path / f"whole-{offset}")
        _commit_shard(whole, offset)
        expected.append(_tokens(whole))
    assert expected[0] != expected[1]
    for number in range(count):
        path = shutil.copytree(started, tmp_path / str(number))
        barrier = context.Barrier(2)
        writers = [context.Process(target=_commit_shard, args=(path, offset, barrier)) for offset in (0, 1)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
            assert writer.exitcode == 0
        assert [problem.file for problem in verify_cache(path).problems] == ["index.parquet"], "and it is not there yet"
        assert _tokens(path) in expected
        shutil.rmtree(path)


def _tokens(path):
    cache = FeatureCache(path, allow_incomplete=True, checksums="always")
    return {
        row.key: {key: value.tobytes() for key, value in cache.read(row.id, view=row.view).arrays.items()}
        for row in cache.videos
        if row.status == "ok"
    }


@pytest.mark.parametrize(
    ("store", "precision", "share"),
    [
        ("zarr", "fp16", 0.1),
        pytest.param("zarr", "int8", 1.0, marks=pytest.mark.faults),
        ("webdataset", "int8", 1.0),
    ],
)
@forks
def test_a_writer_killed_at_any_step_leaves_the_shard_pending_or_whole(tmp_path, store, precision, share):
    started = build(tmp_path / "started", store=store, precision=precision, leave_out=("00001",))
    before = _tokens(started)
    whole = shutil.copytree(started, tmp_path / "whole")
    _commit_shard(whole, 0)
    expected = _tokens(whole)
    rng, killed, operation, outcomes = random.Random(0), True, 0, set()
    while killed:
        operation += 1
        if rng.random() > share:
            continue
        path = shutil.copytree(started, tmp_path / "killed")
        killed = killed_before(operation, lambda path=path: _commit_shard(path, 0))
        report = verify_cache(path)
        assert report.intact
        found = _tokens(path)
        outcomes.add(len(found))
        assert found in (before, expected)
        repair_cache(path)
        assert not [name for name in files_of(path) if name.endswith(".lock")]
        if found == before:
            _commit_shard(path, 0)
        assert _tokens(path) == expected
        assert all(problem.file.endswith((".tmp", ".parquet")) for problem in verify_cache(path).problems)
        shutil.rmtree(path)
    assert outcomes == {len(before), len(expected)}


@kinds
def test_a_full_disk_costs_no_committed_shard(tmp_path, store, precision):
    """A file system of 3 MB, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        path = small / "cache"
        names = [f"v{number}" for number in range(10, 400)]
        with pytest.raises(StorageError, match=r"no space.*free some space"):
            build(path, store=store, precision=precision, video_ids=names, views=(0,), shard_videos=4)
        committed = {shard for shard, _ in committed_paths(path)}
        assert committed
        data = {entry.name.split("-")[0] for entry in (path / "shards").iterdir() if "-" in entry.name}
        assert data == committed, "nothing is left of the shard that did not fit"
        assert verify_cache(path).intact
        rows = FeatureCache(path, allow_incomplete=True).ok_videos()
        assert {row.shard for row in rows} == committed
        assert all_tokens(path).keys() == {row.id for row in rows}
        assert all(row.num_frames == num_frames_of(row.id) for row in rows)
    finally:
        subprocess.run(["umount", str(small)], check=True)
