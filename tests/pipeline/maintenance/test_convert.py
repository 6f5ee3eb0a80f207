"""Conversion: every store and precision, interruption, growth, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.store_contract import flip_bytes
from helpers.built_cache import FAILED, FIRST, LATER, MISSING, build, columns_of, grow, plan_and_commit, tokens_of
from helpers.plain_read import plain_arrays, plain_tokens

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, CacheIncompleteError, CacheMismatchError, UsageError
from vfz.pipeline.files import checked_json_bytes, sha256_file
from vfz.pipeline.format.golden import read_golden
from vfz.pipeline.maintenance import convert as convert_shard
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.convert_source import expand_arrays, open_source
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.maintenance.verify.encoder import verify_encoder
from vfz.pipeline.recipe import PRECISIONS, STORE_NAMES
from vfz.pipeline.stores.quantization import relative_error, to_stored

TESTS = Path(__file__).parents[2]
MAX_ERROR = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.012, "int4": 0.15}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A cache in every store and precision, of two commits a shard, made when first asked for."""
    made = {}

    def source(store: str, precision: str) -> Path:
        if (store, precision) not in made:
            folder = tmp_path_factory.mktemp("source") / f"{store}-{precision}"
            made[store, precision] = build(folder, store=store, precision=precision)
            grow(folder)
        return made[store, precision]

    return source


def run(cache: Path, out: Path, **options):
    """The report of a conversion, and the folder it made."""
    report = convert(ConvertOptions(cache=cache, out=out, **options))
    return report, Path(report.cache)


def stored(folder: Path) -> dict[tuple[str, int, str], np.ndarray]:
    """Every stored array of every video, by id, view and array key, read with every checksum compared."""
    source, found = open_source(folder), {}
    for index in source.commits:
        for row in index.rows:
            if row.status == "ok":
                frames = row.frame_start + np.arange(row.num_frames)
                with source.reader(index) as reader:
                    found[row.id, row.view, "pts_seconds"] = reader.pts_seconds(frames)
                    for column in index.data.columns:
                        for key, array in reader.arrays(column, frames).items():
                            found[row.id, row.view, key] = array
    return found


def same_arrays(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one
    )


def tokens(folder: Path) -> dict[tuple[str, int, str], np.ndarray]:
    """float32 tokens of every column of every video, by id, view and column key."""
    source, arrays, found = open_source(folder), stored(folder), {}
    for video_id, view in {key[:2] for key in arrays}:
        of_video = {key[2]: array for key, array in arrays.items() if key[:2] == (video_id, view)}
        for column in source.contents.columns:
            if column.key in of_video:
                expanded = expand_arrays(column, of_video, source.calibrations.get(column.key))
                found[video_id, view, column.key] = expanded.numpy()
    return found


def errors(old: Path, new: Path) -> dict[str, float]:
    """Relative error of the tokens of each column, over all videos."""
    before, after = tokens(old), tokens(new)
    assert before.keys() == after.keys()
    found = {}
    for column in open_source(new).calibrations:
        keys = [key for key in before if key[2] == column]
        one, other = (torch.from_numpy(np.concatenate([arrays[key] for key in keys])) for arrays in (before, after))
        found[column] = relative_error(one, other)
    return found


def data_digests(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    """SHA-256 of every data file by shard and commit, whose folders have random names."""
    return {
        (index.shard, index.number): {
            name: sha256_file(folder / "shards" / index.data.name / name)
            if name != "."
            else sha256_file(folder / "shards" / index.data.name)
            for name in index.data.files
        }
        for index in open_source(folder).commits
        if index.data
    }


def ledger(folder: Path) -> dict[str, list]:
    """The rows of every commit."""
    return {
        f"{index.shard}.{index.number}": [row.to_dict() for row in index.rows] for index in open_source(folder).commits
    }


PAIRS = [(before, after) for n, before in enumerate(PRECISIONS) for after in PRECISIONS[n:]]


@pytest.mark.parametrize(("before", "after"), PAIRS)
@pytest.mark.parametrize("to", STORE_NAMES)
@pytest.mark.parametrize("of", STORE_NAMES)
def test_every_store_and_precision_becomes_every_other(sources, tmp_path, of, to, before, after):
    source = sources(of, before)
    report, folder = run(source, tmp_path, store=to, precision=after)
    assert (report.store, report.precision, report.num_pending) == (to, after, 0)
    assert (report.num_ok, report.num_failed, report.num_missing, report.unstorable) == (8, 2, 2, {})
    assert ledger(folder) == ledger(source)
    assert FeatureCache(folder).ledger_digest == FeatureCache(source).ledger_digest
    assert verify_cache(folder).problems == ()
    for plan in (source / "plan").iterdir():
        assert (folder / "plan" / plan.name).read_bytes() == plan.read_bytes()
    if before == after:
        assert report.fingerprint == open_source(source).header.fingerprint
        assert same_arrays(stored(folder), stored(source))
        for file in (source / "calibration").iterdir():
            assert (folder / "calibration" / file.name).read_bytes() == file.read_bytes()
        return
    for column, error in errors(source, folder).items():
        assert 0 < error <= MAX_ERROR[after], column


def test_tokens_and_golden_frames_are_what_rounding_the_old_ones_gives_bit_for_bit(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, folder = run(source, tmp_path, precision="int8")
    old, new = open_source(source), open_source(folder)
    old_golden, new_golden = read_golden(source, old.contents), read_golden(folder, new.contents)
    np.testing.assert_array_equal(new_golden.pixels_GCHW, old_golden.pixels_GCHW)
    assert (new_golden.video_ids, new_golden.pts_seconds) == (old_golden.video_ids, old_golden.pts_seconds)
    expected, found = stored(source), stored(folder)
    for column in new.contents.columns:
        stats = new.calibrations[column.key].stats
        for video_id, view in {key[:2] for key in expected}:
            given = to_stored(torch.from_numpy(expected[video_id, view, column.key]).float(), "int8", stats)
            np.testing.assert_array_equal(found[video_id, view, column.key], given.payload.numpy())
            np.testing.assert_array_equal(found[video_id, view, f"{column.key}_scale"], given.scale.numpy())
        given = to_stored(torch.from_numpy(old_golden.arrays[column.key]).float(), "int8", stats)
        np.testing.assert_array_equal(new_golden.arrays[column.key], given.payload.numpy())
        before, after = old.calibrations[column.key], new.calibrations[column.key]
        assert after.precision_error > before.precision_error, "both roundings count"


def test_fp32_to_fp16_gives_the_tokens_that_extraction_gives(sources, tmp_path):
    _, folder = run(sources("zarr", "fp32"), tmp_path, precision="fp16")
    assert same_arrays(stored(folder), stored(sources("zarr", "fp16")))


def test_the_recipe_changes_in_how_tokens_are_stored_only_and_provenance_tells_the_origin(sources, tmp_path):
    source = open_source(sources("zarr", "fp16"))
    _, folder = run(source.path, tmp_path, precision="int4", name="mine")
    new = open_source(folder)
    assert folder.name == f"mine-built_patch16_8-{new.header.fingerprint[:12]}"
    assert new.header.recipe["storage"] == {
        "precision": "int4",
        "precision_version": 1,
        "calibration_seed": 0,
        "calibration_frames": 48,
        "converted_from": "fp16",
    }
    assert {**new.header.recipe, "storage": None} == {**source.header.recipe, "storage": None}
    assert {**new.header.provenance, "converted_from": None} == {**source.header.provenance, "converted_from": None}
    origin = new.header.provenance["converted_from"]
    assert (origin["path"], origin["fingerprint"]) == (str(source.path), source.header.fingerprint)


def test_names_and_samples_are_as_an_extraction_makes_them(sources, tmp_path):
    from vfz.pipeline.format.folder import cache_name

    report, folder = run(sources("webdataset", "int4"), tmp_path)
    assert folder.name == cache_name("built", "built_patch16_8.for_tests", report.fingerprint)


@pytest.mark.parametrize("to", STORE_NAMES)
def test_a_converted_cache_is_read_by_the_plain_libraries(sources, tmp_path, to):
    _, folder = run(sources("webdataset", "fp16"), tmp_path, store=to, precision="int4")
    found, expected = plain_arrays(folder), tokens(folder)
    assert {(*key, name) for key, arrays in found.items() for name in arrays} == set(stored(folder))
    for (video_id, view, key), values in expected.items():
        layer, part = key.removeprefix("layer_").split("/")
        plain = plain_tokens(folder, found[video_id, view], layer, part)
        np.testing.assert_allclose(plain, values, rtol=1e-5, atol=1e-5)


def test_a_converted_cache_is_opened_as_any_other(sources, tmp_path):
    _, folder = run(sources("zarr", "fp16"), tmp_path, precision="int8", store="webdataset")
    with_later = FeatureCache(folder, checksums="always")
    clip = with_later.read("v1", frames=[2, 0], view=1)
    expected = tokens(folder)
    for layer, part in (("2", "patch"), ("2", "prefix"), ("5", "patch"), ("final", "patch")):
        np.testing.assert_allclose(
            clip.tokens(layer, part), expected["v1", 1, f"layer_{layer}/{part}"][[2, 0]], rtol=1e-6, atol=1e-6
        )
    assert (folder / "index.parquet").is_file()


def test_blocks_of_any_size_give_the_same_files(sources, tmp_path, monkeypatch):
    _, whole = run(sources("zarr", "fp16"), tmp_path / "whole", precision="int8")
    monkeypatch.setattr(convert_shard, "BLOCK_BYTES", 1)  # frame by frame
    _, parts = run(sources("zarr", "fp16"), tmp_path / "parts", precision="int8")
    assert data_digests(whole) == data_digests(parts)


def test_chunks_may_be_compressed_and_uncompressed_again(sources, tmp_path):
    source = sources("zarr", "fp32")
    report, packed = run(source, tmp_path / "packed", compression="zstd")
    assert set(report.compression.values()) == {"zstd"}
    report, plain = run(packed, tmp_path / "plain", compression="none")
    assert set(report.compression.values()) == {"none"}
    assert same_arrays(stored(packed), stored(source))
    assert same_arrays(stored(plain), stored(source))
    origin = open_source(plain).header.provenance["converted_from"]
    assert origin["before"]["path"] == str(source), "a copy of a copy tells the whole way"


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


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_encoder_is_still_recognised_after_conversion(synthetic_cache, tmp_path, precision):
    _, folder = run(synthetic_cache.path, tmp_path, precision=precision, store="webdataset")
    report = verify_encoder(folder)
    assert report.passed
    assert report.num_decoded == report.num_frames == 16
