"""A cache's folder as one object: files that were read are kept, and what is added meanwhile is seen."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import add_layer, calibration_of, columns_of, fill_cache, new_cache, records

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.format.calibration import write_calibration
from vfz.pipeline.format.catalog import current_catalog
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.plan import extend_plans

pytestmark = pytest.mark.quick


@pytest.fixture
def folder(tmp_path):
    new_cache(tmp_path / "cache", num_videos=3, precision="int8")
    return tmp_path / "cache"


def _read_all(cache: CacheFolder) -> tuple:
    return cache.header, cache.contents(), cache.plans(), cache.calibrations(cache.contents())


def test_a_file_that_was_read_is_not_read_again(folder, monkeypatch):
    cache = CacheFolder(folder)
    before = _read_all(cache)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    assert _read_all(cache) == before


def test_what_another_adds_meanwhile_is_seen(folder):
    cache = CacheFolder(folder)
    _read_all(cache)
    grown = add_layer(folder, "5")
    plans = extend_plans(folder / "plan", records(6), shard_size_videos=2)
    assert cache.contents() == grown
    assert cache.calibrations(grown).keys() == {column.key for column in grown.columns}
    assert cache.plans() == plans
    assert len(plans) == 2
    fill_cache(folder)
    assert len(cache.commit_paths()) == len(cache.commits()) == 4
    assert current_catalog(cache).table.num_rows == 6


def test_plans_of_another_process_are_seen_before_videos_are_planned(folder):
    cache = CacheFolder(folder)
    cache.plans()
    theirs = extend_plans(folder / "plan", records(5), shard_size_videos=2)
    ours = cache.extend_plans(records(6), shard_size_videos=2)
    assert ours[:2] == theirs
    assert [video.id for videos in ours[2].shards.values() for video in videos] == ["v5"]
    assert cache.plans() == ours


def test_a_preview_plans_nothing(folder):
    cache = CacheFolder(folder)
    before = cache.plans()
    assert len(cache.extend_plans(records(6), shard_size_videos=2, preview=True)) == len(before) + 1
    assert cache.plans() == before == CacheFolder(folder).plans()


def test_a_plan_that_is_gone_is_not_remembered(folder):
    extend_plans(folder / "plan", records(6), shard_size_videos=2)
    cache = CacheFolder(folder)
    first, _ = cache.plans()
    (folder / "plan/1.json").unlink()
    assert cache.plans() == (first,)
    assert cache.extend_plans(records(6), shard_size_videos=2) == CacheFolder(folder).plans()


def test_a_folder_that_is_not_there_yet_has_nothing_and_is_read_when_it_is(tmp_path):
    cache = CacheFolder(tmp_path / "cache")
    assert (cache.plans(), cache.commits()) == ((), ())
    with pytest.raises(CacheFormatError, match="is not a folder"):
        cache.contents()
    new_cache(tmp_path / "cache")
    assert _read_all(cache) == _read_all(CacheFolder(tmp_path / "cache"))


def test_it_is_pickled_as_its_path(folder):
    cache = CacheFolder(folder)
    before = _read_all(cache)
    sent = pickle.dumps(cache)
    assert len(sent) < 500
    assert _read_all(pickle.loads(sent)) == before  # noqa: S301 - written by this test
    shutil.rmtree(folder)
    with pytest.raises(CacheFormatError, match="is not a folder"):
        pickle.loads(sent).contents()  # noqa: S301 - written by this test


def _add_in_child(folder: Path, layers: tuple[str, ...], barrier, results) -> None:
    cache = CacheFolder(folder)
    columns = columns_of("int8", layers)
    held = [write_calibration(folder, column, calibration_of(column)) for column in columns]
    cache.contents()
    barrier.wait(60)
    contents = cache.add_columns(held, {column.key: np.zeros((1, 2), np.int8) for column in columns})
    results.put((layers, list(contents.layers)))


def test_processes_that_add_columns_at_once_undo_nothing_and_leave_nothing(folder):
    context = multiprocessing.get_context("spawn")
    wanted = [("5", "7"), ("7", "9"), ("5", "7")]
    barrier, results = context.Barrier(len(wanted)), context.Queue()
    processes = [context.Process(target=_add_in_child, args=(folder, one, barrier, results)) for one in wanted]
    for process in processes:
        process.start()
    for layers, there in [results.get(timeout=60) for _ in processes]:
        assert set(layers) <= set(there)
    for process in processes:
        process.join(60)
    contents = CacheFolder(folder).contents()
    assert list(contents.layers) == ["2", "5", "7", "9", "11"]
    assert {path.name for path in (folder / "golden").iterdir()} == set(contents.golden)
