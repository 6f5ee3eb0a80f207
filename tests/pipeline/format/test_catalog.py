"""The consolidated ledger: quick where it is up to date, not believed where it is not, and never an error."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.tiny_cache import add_layer, fill_cache, make_large_cache, new_cache, prepare_shard, records

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError, UnknownNameError
from vfz.pipeline.files import checked_json_bytes, read_checked_json_digest
from vfz.pipeline.format.catalog import build_catalog, is_current, open_catalog, write_catalog
from vfz.pipeline.format.commits import commit_shard
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.plan import extend_plans


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Six videos in three shards, with folds; v3 failed, v1 lacks layer 23; with its catalog."""
    cache = tmp_path_factory.mktemp("template") / "cache"
    new_cache(cache, folds=True)
    fill_cache(cache, bad=("v3",))
    add_layer(cache, "23")
    fill_cache(cache, number=1, layers=("23",), bad=("v1",))
    write_catalog(CacheFolder(cache))
    return cache


@pytest.fixture
def folder(tmp_path, template) -> Path:
    return shutil.copytree(template, tmp_path / "cache")


def _expected(folder):
    """What plans and indexes say, put together anew."""
    return build_catalog(CacheFolder(folder)).table


def test_a_written_catalog_is_what_plans_and_indexes_say(folder):
    assert is_current(CacheFolder(folder))
    catalog = open_catalog(CacheFolder(folder))
    assert catalog.table.equals(_expected(folder))
    assert catalog.table.column_names == [
        *("id", "view", "split", "label", "status", "reason", "attempts", "num_frames", "frame_start", "shard"),
        *("source_digest", "source_path", "duration_seconds", "fold_fold1", "lacking", "lacking_reasons"),
    ]
    row = catalog.table.slice(1, 1).to_pylist()[0]
    assert row["lacking"] == ["layer_23/patch", "layer_23/prefix"]
    assert row["lacking_reasons"] == ["failed: no picture in it"] * 2
    assert pq.read_table(folder / "index.parquet").equals(catalog.table), "any program can read it"
    fresh = FeatureCache(folder)
    (folder / "index.parquet").unlink()
    rebuilt = FeatureCache(folder)
    assert (fresh.ledger_digest, fresh.num_bytes) == (rebuilt.ledger_digest, rebuilt.num_bytes)
    assert fresh.videos == list(rebuilt.videos)


def test_opening_with_a_catalog_reads_no_plan_and_no_index(folder):
    before = FeatureCache(folder)
    (folder / "plan/0.json").write_text("not a plan")
    for path in folder.glob("shards/*.index.json"):
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    cache = FeatureCache(folder)
    assert cache.ledger_digest == before.ledger_digest
    assert [row.id for row in cache.ok_videos()] == ["v0", "v2", "v4", "v5"]
    with pytest.raises(CacheFormatError, match=r"00002\.0\.index\.json is damaged"):
        cache.read("v5")


def _add_commit(folder):
    commit_shard(folder, prepare_shard(folder, extend_plans(folder / "plan", records(6), shard_size_videos=2)[0],
                                       "00000", number=2, layers=("23",)))  # fmt: skip


def _swap_commit(folder):
    """The same name, another outcome: as after a repair and an extraction that was killed before its end."""
    path = folder / "shards/00002.1.index.json"
    path.unlink()
    (plan,) = new_cache(folder)
    commit_shard(folder, prepare_shard(folder, plan, "00002", number=1, layers=("23",), bad=("v4",)))


def _edit_side(folder):
    content = json.loads((folder / "index.json").read_bytes())
    del content["digest"], content["format_version"]
    content["shard_bytes"]["00000"] += 1
    (folder / "index.json").write_bytes(checked_json_bytes(content).replace(b'"num_plans":1', b'"num_plans":2'))


CHANGES = {
    "a commit more": _add_commit,
    "a commit less": lambda folder: (folder / "shards/00002.1.index.json").unlink(),
    "another commit of that name": _swap_commit,
    "a plan more": lambda folder: extend_plans(folder / "plan", records(8), shard_size_videos=2),
    "a layer more": lambda folder: add_layer(folder, "5"),
    "no side file": lambda folder: (folder / "index.json").unlink(),
    "an edited side file": _edit_side,
    "a side file of a later version": lambda folder: (folder / "index.json").write_text('{"format_version": 2}'),
    "no table": lambda folder: (folder / "index.parquet").unlink(),
    "an empty table": lambda folder: (folder / "index.parquet").write_bytes(b""),
    "a changed byte in the table": lambda folder: _flip(folder / "index.parquet"),
}


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_catalog_that_is_old_or_damaged_is_not_believed_and_no_error(folder, change):
    CHANGES[change](folder)
    assert not is_current(CacheFolder(folder))
    cache = FeatureCache(folder, allow_incomplete=True)
    assert cache.table().equals(_expected(folder))
    write_catalog(CacheFolder(folder))
    assert is_current(CacheFolder(folder))
    assert FeatureCache(folder, allow_incomplete=True).table().equals(cache.table())


def test_a_catalog_of_another_cache_is_not_believed(folder, tmp_path):
    new_cache(tmp_path / "other", precision="fp32", folds=True)
    fill_cache(tmp_path / "other")
    for name in ("index.parquet", "index.json"):
        shutil.copy(folder / name, tmp_path / "other")
    assert not is_current(CacheFolder(tmp_path / "other"))


def test_a_copied_cache_keeps_its_catalog_although_every_file_is_newer(folder):
    for path in folder.rglob("*.json"):
        os.utime(path, (1, 1))
    assert is_current(CacheFolder(folder))


def test_a_table_without_rows_is_a_table(tmp_path):
    new_cache(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache/plan")
    write_catalog(CacheFolder(tmp_path / "cache"))
    cache = FeatureCache(tmp_path / "cache", allow_incomplete=True)
    assert (len(cache.videos), cache.videos, cache.splits, cache.num_bytes) == (0, [], (), 0)
    assert cache.ok_videos() == []
    with pytest.raises(UnknownNameError):
        cache.read("v0")


def test_rows_are_a_sequence(folder):
    rows = FeatureCache(folder).videos
    everything = list(rows)
    assert (rows, rows[:]) == (everything, everything)
    assert (len(rows), rows[-1], rows[2]) == (6, everything[5], everything[2])
    assert rows[1:4] == everything[1:4]
    assert rows[::-2] == everything[::-2]
    assert rows[4:2] == []
    assert rows != everything[:5]
    assert rows != "abcdef"
    assert everything[3] in rows
    assert "6 ledger rows" in repr(rows)
    for index in (6, -7):
        with pytest.raises(IndexError):
            rows[index]


def test_a_sealed_file_tells_its_digest_without_being_read(folder):
    path = folder / "shards/00000.0.index.json"
    assert read_checked_json_digest(path) == json.loads(path.read_bytes())["digest"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CacheFormatError, match="does not end in its digest"):
        read_checked_json_digest(path)
    with pytest.raises(CacheFormatError, match="cannot read"):
        read_checked_json_digest(folder / "nothing.json")


def test_a_large_cache_opens_from_its_catalog_alone(tmp_path):
    """Its plan and indexes are empty files: whoever reads one fails."""
    make_large_cache(tmp_path / "cache", 20_000)
    cache = FeatureCache(tmp_path / "cache")
    assert len(cache.videos) == cache.num_planned() == 20_000
    assert len(cache.ok_videos(layers=(2,))) == 19_600
    assert len(cache.ok_videos()) == 19_400
    assert len(cache.ok_videos("val", layers=(2,))) == 2_000
    row = cache.ok_videos("val")[-1]
    assert (row.split, row.num_frames, row.shard) == ("val", 60, "00312")
    with pytest.raises(UnknownNameError, match=f"did you mean {row.id[:-7]}"):
        cache.read(row.id[:-7])
    assert cache.ledger_digest == FeatureCache(tmp_path / "cache").ledger_digest


def test_opening_imports_neither_torch_nor_dask_nor_a_dataset(template):
    code = (
        "import sys; from vfz.pipeline.cache.feature_cache import FeatureCache; cache = FeatureCache(sys.argv[1]);"
        "cache.read('v0').tokens(2);"
        "print([name for name in ('torch', 'dask', 'timm', 'av', 'pandas', 'vfz.pipeline.stores.quantization') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(template)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def _write_often(folder, barrier):
    barrier.wait(30)
    for _ in range(10):
        write_catalog(CacheFolder(folder))


def test_processes_that_write_at_the_same_time_leave_a_catalog_that_is_right_or_not_believed(folder):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_write_often, args=(folder, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    barrier.wait(30)
    expected = _expected(folder)
    while any(process.is_alive() for process in processes):
        assert open_catalog(CacheFolder(folder)).table.equals(expected)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    write_catalog(CacheFolder(folder))
    assert is_current(CacheFolder(folder))
    assert not list(folder.glob(".*"))
