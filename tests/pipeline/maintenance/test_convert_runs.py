"""Conversions that are killed, repeated, grown or of damaged caches; what is refused; the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.built_cache import FAILED, FIRST, LATER, MISSING, build, columns_of, grow, plan_and_commit, tokens_of
from helpers.conversion import MAX_ERROR, data_digests, errors, ledger, run, same_arrays, stored
from helpers.shards import flip_bytes

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, CacheIncompleteError, CacheMismatchError, UsageError
from vfz.pipeline.files import checked_json_bytes
from vfz.pipeline.format.golden import read_golden
from vfz.pipeline.maintenance.convert_source import open_source
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.recipe import STORE_NAMES

# --- interrupted, repeated, grown ---

KILLED = """
import os, signal, sys
from pathlib import Path
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.stores.base import ShardWriter

appended, limit = 0, int(sys.argv[4])
append = ShardWriter.append

def counted(self, arrays, pts_seconds):
    global appended
    appended += 1
    if appended > limit:
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, arrays, pts_seconds)

ShardWriter.append = counted
convert(ConvertOptions(cache=Path(sys.argv[1]), out=Path(sys.argv[2]), store=sys.argv[3], precision="int8"))
"""


@pytest.mark.parametrize("to", STORE_NAMES)
def test_a_conversion_killed_in_the_middle_goes_on_and_gives_the_same_files(sources, tmp_path, to):
    source = sources("zarr", "fp16")
    _, expected = run(source, tmp_path / "whole", precision="int8", store=to)
    for limit in (0, 5):
        out = tmp_path / f"killed-{limit}"
        done = subprocess.run([sys.executable, "-c", KILLED, source, out, to, str(limit)], timeout=120)
        assert done.returncode == -9
        report, folder = run(source, out, precision="int8", store=to)
        assert report.new_commits == (8 if limit == 0 else 6), "what was committed is not made again"
        assert data_digests(folder) == data_digests(expected)
        assert verify_cache(folder).intact
        assert ledger(folder) == ledger(expected)
        assert open_source(folder).contents.columns == open_source(expected).contents.columns
        assert open_source(folder).contents.calibrations == open_source(expected).contents.calibrations
        report, _ = run(source, out, precision="int8", store=to)
        assert (report.new_commits, report.new_videos, report.bytes_read) == (0, 0, 0)


def test_two_processes_may_convert_at_the_same_time(sources, tmp_path):
    source = sources("webdataset", "fp16")
    command = [sys.executable, "-c", KILLED, source, tmp_path / "both", "zarr", "1000000"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    _, alone = run(source, tmp_path / "alone", precision="int8", store="zarr")
    both = tmp_path / "both" / alone.name
    assert data_digests(both) == data_digests(alone)
    names = {index.data.name for index in open_source(both).commits if index.data}
    left = {path.name for path in (both / "shards").iterdir() if not path.name.endswith(".index.json")}
    assert left == names, "whoever was second has removed its own"


def test_a_source_that_is_not_complete_is_converted_as_far_as_it_goes_and_later_to_the_end(tmp_path):
    source = build(tmp_path / "source", leave_out=("00001", "00003"))
    report, folder = run(source, tmp_path / "out", precision="int8")
    assert (report.new_commits, report.num_pending) == (2, 6)
    assert FeatureCache(folder, allow_incomplete=True).ledger_digest == (
        FeatureCache(source, allow_incomplete=True).ledger_digest
    )
    plan_and_commit(source, [*("v0", "v1", FAILED, "v4", MISSING, "v5"), "v6"])  # the rest, and a new video
    again, same = run(source, tmp_path / "out", precision="int8")
    assert (same, again.new_commits, again.num_pending) == (folder, 4, 0)
    assert FeatureCache(folder).ledger_digest == FeatureCache(source).ledger_digest
    assert "v6" in {key[0] for key in stored(folder)}


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_columns_that_the_source_gained_are_added(tmp_path, precision):
    source = build(tmp_path / "source")
    _, folder = run(source, tmp_path / "out", precision=precision, store="webdataset")
    before = data_digests(folder)
    grow(source)
    report, same = run(source, tmp_path / "out", precision=precision, store="webdataset")
    assert (same, report.new_commits, report.new_videos) == (folder, 4, 0)
    assert before.items() <= data_digests(folder).items()
    cache = open_source(folder)
    assert {column.key for column in cache.contents.columns} == {
        column.key for column in columns_of(FIRST + LATER, precision)
    }
    golden = read_golden(folder, cache.contents)
    assert {spec.key for column in cache.contents.columns for spec in column.arrays} == golden.arrays.keys()
    assert max(errors(source, folder).values()) <= MAX_ERROR[precision]


def test_a_damaged_source_is_told_by_its_shard_and_leaves_nothing_half_written(tmp_path):
    source = build(tmp_path / "source")
    index = next(index for index in open_source(source).commits if index.shard == "00003")
    path = source / "shards" / index.data.name
    needle = tokens_of("v5", 1, columns_of(FIRST, "fp16")[0]).astype(np.float16).tobytes()[:64]
    flip_bytes(path, index.data, needle)
    with pytest.raises(CacheFormatError, match=r"shard 00003 of .*source: .*(damaged|crc32c)"):
        run(source, tmp_path / "out", precision="int8")
    (folder,) = (tmp_path / "out").iterdir()
    committed = open_source(folder).commits
    assert [index.shard for index in committed] == ["00000", "00001", "00002"]
    left = {path.name for path in (folder / "shards").iterdir() if not path.name.endswith(".index.json")}
    assert left == {index.data.name for index in committed}
    (path / "layer_2/patch/c/0/0/0").write_bytes(b"")  # even shorter
    with pytest.raises(CacheFormatError, match="shard 00003"):
        run(source, tmp_path / "out", precision="int8")


# --- tokens that the new precision cannot hold ---


def test_a_video_that_fp16_cannot_hold_fails_by_name_and_nothing_of_it_is_stored(tmp_path):
    big = {("v1", "layer_5/patch"): np.float32(1e6)}
    source = build(tmp_path / "source", precision="fp32", extra=big, shard_videos=2)
    grow(source)
    report, folder = run(source, tmp_path / "out", precision="fp16")
    assert (report.num_ok, report.num_failed) == (6, 4)
    assert report.unstorable.keys() == {"v1", "v1 (view 1)"}
    assert "layer_5/patch, frame 0: a token is too large for fp16" in report.unstorable["v1"]
    assert re.search(r"; the largest value is 1\.0000\de\+06, and int8 holds it$", report.unstorable["v1"])
    found, expected = stored(folder), stored(source)
    assert {key[0] for key in found} == {"v0", "v4", "v5"}
    for key, array in found.items():
        np.testing.assert_array_equal(array, expected[key].astype(array.dtype))
    cache = FeatureCache(folder)
    row = next(row for row in cache.videos if row.id == "v1")
    assert (row.status, row.num_frames, row.attempts) == ("failed", 0, 1)
    later = [index for index in open_source(folder).commits if index.number == 1]
    assert {row.id for index in later for row in index.rows} == {"v0", "v4", "v5"}
    again, _ = run(source, tmp_path / "out", precision="fp16")
    assert (again.new_commits, again.num_failed, again.unstorable) == (0, 4, {})


def test_a_video_that_fails_in_a_later_layer_only_keeps_its_others(tmp_path):
    source = build(tmp_path / "source", precision="fp32")
    grow(source, extra={("v0", "layer_final/patch"): np.float32(1e6)})
    report, folder = run(source, tmp_path / "out", precision="fp16")
    assert report.unstorable.keys() == {"v0", "v0 (view 1)"}
    assert report.num_ok == 8
    found = stored(folder)
    assert ("v0", 0, "layer_2/patch") in found
    assert ("v0", 0, "layer_final/patch") not in found
    assert ("v1", 0, "layer_final/patch") in found
    cache = FeatureCache(folder)
    np.testing.assert_array_equal(cache.read("v0", layers=["2"]).payload("2"), found["v0", 0, "layer_2/patch"])
    with pytest.raises(CacheError, match="too large for fp16"):
        cache.read("v0", layers=["final"])
    assert verify_cache(folder).problems == ()


def test_a_cache_of_which_no_video_of_a_shard_can_be_converted_is_still_a_cache(tmp_path):
    big = {("v1", "layer_5/patch"): np.float32(1e6)}
    source = build(tmp_path / "source", precision="fp32", extra=big, shard_videos=1)
    grow(source)
    report, folder = run(source, tmp_path / "out", precision="fp16")
    assert (report.num_ok, report.num_failed, report.num_pending) == (6, 4, 0)
    assert FeatureCache(folder).ok_videos()
    assert run(source, tmp_path / "out", precision="fp16")[0].new_commits == 0


# --- what is refused ---


def test_a_higher_precision_is_refused_and_says_why(sources, tmp_path):
    with pytest.raises(UsageError, match=r"stores int8, and what that rounded off cannot be given back; .*int8, int4"):
        run(sources("zarr", "int8"), tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()


def test_a_second_lossy_conversion_is_refused_and_names_the_original(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, once = run(source, tmp_path, precision="int8")
    with pytest.raises(UsageError, match=f"was itself converted from fp16.*{source}"):
        run(once, tmp_path / "twice", precision="int4")
    report, copy = run(once, tmp_path / "copy", store="webdataset")  # a copy of the same numbers is fine
    assert same_arrays(stored(copy), stored(once))
    assert report.fingerprint == open_source(once).header.fingerprint


def test_compression_of_a_store_without_is_refused(sources, tmp_path):
    with pytest.raises(UsageError, match="--compression zstd: the webdataset store"):
        run(sources("zarr", "fp16"), tmp_path / "out", store="webdataset", compression="zstd")
    assert not (tmp_path / "out").exists()


def test_the_source_itself_is_never_written(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, folder = run(source, tmp_path)
    for out in (folder.parent, folder):  # the same name in the same place; a folder inside
        with pytest.raises(UsageError, match=r"is the cache that is converted|lies in the cache that is converted"):
            run(folder, out)


def test_a_folder_that_holds_something_else_is_refused(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, folder = run(source, tmp_path / "out", precision="int8")
    with pytest.raises(CacheMismatchError, match="is there as a zarr cache"):
        run(source, tmp_path / "out", precision="int8", store="webdataset")
    other = build(tmp_path / "other", video_ids=("w0", "w1"))
    with pytest.raises(CacheMismatchError, match="holds other videos"):
        run(other, tmp_path / "out", precision="int8")
    extracted = build(tmp_path / "out2" / Path(run(other, tmp_path / "out3")[0].cache).name)
    with pytest.raises(CacheMismatchError, match="was not converted from"):
        run(other, extracted.parent)
    assert len(list((folder / "plan").iterdir())) == 1


def test_a_source_without_tokens_is_refused(tmp_path):
    source = build(tmp_path / "source", leave_out=("00000", "00001", "00002", "00003"))
    with pytest.raises(CacheIncompleteError, match="no tokens of any video yet"):
        run(source, tmp_path / "out", precision="int8")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_shard_of_another_calibration_is_refused(tmp_path):
    source = build(tmp_path / "source", precision="int8")
    index = next((source / "shards").glob("*.index.json"))
    content = json.loads(index.read_bytes())
    del content["digest"], content["format_version"]
    index.write_bytes(checked_json_bytes({**content, "calibration_digest": "0" * 64}))
    with pytest.raises(CacheFormatError, match="quantised with another calibration"):
        run(source, tmp_path / "out", store="webdataset")


# --- the command, and a cache of a real encoder ---


def test_the_command_prints_the_report_as_plain_json(sources, tmp_path, capsys):
    command = [
        "cache",
        "convert",
        str(sources("zarr", "fp16")),
        "--out",
        str(tmp_path),
        "--precision",
        "int8",
        "--json",
    ]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["num_ok"], report["precision"], report["new_commits"]) == (8, "int8", 8)
    assert main([*command[:-1], "--precision", "fp32"]) == 2
    assert "cannot be given back" in capsys.readouterr().err


def test_the_command_says_what_was_done_and_when_nothing_was_left(tmp_path, capsys):
    source = build(tmp_path / "source", precision="fp32", extra={("v1", "layer_5/patch"): np.float32(1e6)})
    command = ["cache", "convert", str(source), "--out", str(tmp_path / "out"), "--precision", "fp16"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "too large for fp16" in shown
    assert "fp16, zarr" in shown
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
