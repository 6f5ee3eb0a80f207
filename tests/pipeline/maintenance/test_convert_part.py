"""A part of a cache: some layers, parts, splits and videos, bit for bit those of the whole."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.built_cache import FAILED, MISSING, VIDEO_IDS, build, commit, grow, plan_and_commit
from helpers.conversion import data_digests, run, same_arrays, stored
from helpers.extraction import Notes
from helpers.reference import plain_arrays

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.golden import read_golden
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.convert_source import open_source
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.maintenance.verify.encoder import verify_encoder
from vfz.pipeline.recipe import STORE_NAMES

LAYERS = (None, ("2",), ("5",), ("final",), ("2", "final"), ("-1",))
VIDEOS = (None, ("v1",), ("v0", "v4", FAILED), (MISSING, "v5"))
SPLITS = (None, ("train",), ("val", "train"))
PARTS = (None, ("patch",), ("prefix",))


def expected_part(source, layers=None, parts=None, splits=None, videos=None):
    """The stored arrays of a part, and the ids, views and states of its rows, out of the whole."""
    names = [name if name != "-1" else "final" for name in layers or ("2", "5", "final")]
    rows = {
        (row.id, row.view): row.status
        for row in FeatureCache(source).videos
        if (splits is None or row.split in splits) and (videos is None or row.id in videos)
    }
    keys = [f"layer_{layer}/{part}" for layer in names for part in parts or ("patch", "prefix")]
    wanted = {"pts_seconds", *keys, *(f"{key}_scale" for key in keys)}
    arrays = {key: array for key, array in stored(source).items() if key[:2] in rows and key[2] in wanted}
    return arrays, rows


def parts():
    """A seeded sample of what can be asked for; layers 5 and final have no prefix tokens, v1 is in train."""
    every = [
        {"layers": layers, "parts": some, "splits": splits, "videos": videos}
        for layers, some, splits, videos in itertools.product(LAYERS, PARTS, SPLITS, VIDEOS)
        if some != ("prefix",) or layers in (None, ("2",))
    ]
    return random.Random(16).sample([one for one in every if one["splits"] != ("val",)], 8)


@pytest.mark.parametrize("of", STORE_NAMES)
def test_a_part_has_what_the_whole_has_of_it_bit_for_bit(sources, tmp_path, of):
    source = sources(of, "int8")
    for number, part in enumerate(parts()):
        options = {name: values for name, values in part.items() if values}
        arrays, rows = expected_part(source, **options)
        report, folder = run(source, tmp_path / str(number), store=STORE_NAMES[number % 2], **options)
        assert same_arrays(stored(folder), arrays), part
        assert report.fingerprint == open_source(source).header.fingerprint
        cache = FeatureCache(folder)
        assert {(row.id, row.view): row.status for row in cache.videos} == rows, part
        assert cache.class_names == FeatureCache(source).class_names
        assert verify_cache(folder).problems == (), part
        plain = plain_arrays(folder)
        assert {(*key, name) for key, found in plain.items() for name in found} == arrays.keys(), part
        golden, known = read_golden(folder, cache.contents), {column.key for column in cache.contents.columns}
        assert {key.removesuffix("_scale") for key in golden.arrays} == known
        assert set(cache.folder.calibrations(cache.contents)) == known
        assert run(source, tmp_path / str(number), store=STORE_NAMES[number % 2], **options)[0].new_commits == 0


def test_a_part_of_lower_precision_is_the_part_of_the_whole_in_that_precision(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, whole = run(source, tmp_path / "whole", precision="int4")
    _, part = run(source, tmp_path / "part", precision="int4", layers=("5",), splits=("train",))
    arrays, _ = expected_part(whole, layers=("5",), splits=("train",))
    assert same_arrays(stored(part), arrays)


def test_videos_may_stand_in_a_file_and_ids_have_commas(tmp_path):
    source = build(tmp_path / "source", video_ids=("a, b", "c", "d"))
    names = tmp_path / "ids.txt"
    names.write_text("\ufeffa, b\r\n\r\nd\n", encoding="utf-8")
    _, folder = run(source, tmp_path / "out", videos=(str(names),))
    assert {key[0] for key in stored(folder)} == {"a, b", "d"}
    names.write_text("c\nnobody\n")
    with pytest.raises(UsageError, match=r"unknown video \(.*ids.txt, line 2\) 'nobody'; .*--videos takes ids of"):
        run(source, tmp_path / "other", videos=(names,))


def test_the_part_grows_with_its_source_and_by_what_belongs_to_it(tmp_path):
    source = build(tmp_path / "source", leave_out=("00001", "00003"))
    part = {"layers": ("2",), "splits": ("train",)}
    report, folder = run(source, tmp_path / "out", **part)
    assert (report.num_ok, report.num_pending) == (4, 4)
    before = data_digests(folder)
    plan_and_commit(source, [*VIDEO_IDS, "v6", "v7", "v8"])  # the rest, and new videos: v6 and v7 in train, v8 in val
    grow(source)
    again, same = run(source, tmp_path / "out", **part)
    assert (same, again.num_pending) == (folder, 0)
    assert before.items() <= data_digests(folder).items()
    assert same_arrays(stored(folder), expected_part(source, **part)[0])
    assert {"v6", "v7"} <= {key[0] for key in stored(folder)}
    assert list(FeatureCache(folder).layers) == ["2"], "a layer that came later was not asked for"
    assert verify_cache(folder).problems == ()


def _later(source, number, video_ids):
    """Another commit of shard 00000 with the layer that came later, for some of its videos."""
    cache = CacheFolder(source)
    plan = cache.plans()[0]
    columns = [column for column in cache.contents().columns if column.layer == "final"]
    videos = [video for video in plan.shards["00000"] if video.id in video_ids]
    commit(source, plan.number, "00000", number, columns, videos, {})


@pytest.fixture
def by_and_by(tmp_path):
    """A cache whose shard 00000 has its later layer of no video yet."""
    source = build(tmp_path / "source", views=(0,), video_ids=("v0", "v1", "v4"))
    grow(source)
    path = committed_paths(source)["00000", 1]
    shutil.rmtree(source / "shards" / read_shard_index(path).data.name)
    path.unlink()
    return source


def test_a_layer_that_came_in_several_commits_is_one_commit_of_the_part(by_and_by, tmp_path):
    _later(by_and_by, 1, ["v4"])
    report, folder = run(by_and_by, tmp_path / "out", layers=("final",))
    assert (report.new_commits, report.num_pending) == (0, 3), "it waits for the others"
    _later(by_and_by, 2, ["v1", "v0"])
    report, _ = run(by_and_by, tmp_path / "out", layers=("final",))
    assert (report.new_commits, report.num_ok, report.num_pending) == (1, 3, 0)
    assert same_arrays(stored(folder), expected_part(by_and_by, layers=("final",))[0])
    assert verify_cache(folder).problems == ()


def test_a_video_that_failed_in_a_layer_says_so_in_the_part_and_a_later_success_is_told(by_and_by, tmp_path):
    _later(by_and_by, 2, ["v0", "v1"])
    cache = CacheFolder(by_and_by)
    first = read_shard_index(committed_paths(by_and_by)["00000", 0])
    row = next(row for row in first.rows if row.id == "v4")
    failed = replace(row, status="failed", reason="no memory", num_frames=0, frame_start=0, duration_seconds=0.0)
    keys = ("layer_final/patch",)
    assert cache.commit(replace(first, number=1, data=None, rows=(failed,), column_keys=keys, calibration_digest=None))
    _, folder = run(by_and_by, tmp_path / "out", layers=("final",))
    found = {row.id: (row.status, row.reason) for row in FeatureCache(folder).videos}
    assert found == {"v0": ("ok", ""), "v1": ("ok", ""), "v4": ("failed", "no memory")}
    _later(by_and_by, 3, ["v4"])
    notes = Notes()
    convert(ConvertOptions(cache=by_and_by, out=tmp_path / "out", layers=("final",)), progress=notes)
    assert "1 videos (first: v4) failed in these layers before" in notes.lines[-1]
    _, anew = run(by_and_by, tmp_path / "anew", layers=("final",))
    assert len(FeatureCache(anew).read("v4").pts_seconds) == row.num_frames
    assert verify_cache(folder).problems == verify_cache(anew).problems == ()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"layers": ("3",)}, r"--layers '3' is not in .*; it has the layers 2, 5, final"),
        ({"layers": ("-4",)}, r"--layers '-4' is not in .*layers 2, 5, final"),
        ({"splits": ("test",)}, r"--splits 'test' is not in .*; it has the splits train, val"),
        ({"layers": ("5",), "parts": ("prefix",)}, r"--parts prefix: .* has only patch tokens of layers 5"),
        ({"videos": ("v9",)}, r"unknown video 'v9'; did you mean v5 or .*--videos takes ids of .*, or a file"),
        ({"videos": ("v1",), "splits": ("val",)}, r"none of the --videos is in the --splits val"),
    ],
)
def test_what_the_source_does_not_have_is_one_line_with_what_it_has(sources, tmp_path, part, words):
    with pytest.raises(UsageError, match=words) as caught:
        run(sources("zarr", "fp16"), tmp_path / "out", **part)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_part_in_the_same_folder_is_refused_and_says_which_is_there(sources, tmp_path):
    source = sources("zarr", "fp16")
    _, folder = run(source, tmp_path, layers=("2",))
    before = data_digests(folder)
    with pytest.raises(CacheMismatchError, match=r"another part of .*: layers: it has 2, asked 2,5; give another"):
        run(source, tmp_path, layers=("5", "2"))
    with pytest.raises(
        CacheMismatchError, match="layers: it has 2, asked all; videos: it has all, asked 1 with sha256"
    ):
        run(source, tmp_path, videos=("v1",))
    assert data_digests(folder) == before
    other, _ = run(source, tmp_path, layers=("5",), name="five")
    assert other.new_commits
    with pytest.raises(UsageError, match=r"is the cache that is converted: .*choose another --out, --name or"):
        run(folder, tmp_path, layers=("2",), parts=("patch",))


def test_the_encoder_is_recognised_by_the_layer_that_was_kept(vit_cache, tmp_path, capsys):
    line = ["cache", "convert", str(vit_cache.path), "--out", str(tmp_path), "--layers", "-1", "--precision", "int8"]
    assert main([*line, "--splits", "test", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["part"] == {"layers": "11", "splits": "test"}
    cache = FeatureCache(report["cache"])
    assert (list(cache.layers), cache.splits) == (["11"], ("test",))
    video = cache.videos[0].id
    np.testing.assert_allclose(cache.read(video).tokens(11), vit_cache.read(video).tokens(11), atol=0.2)
    found = verify_encoder(cache.path)
    assert found.passed
    assert [column.column for column in found.columns] == ["layer_11/patch", "layer_11/prefix"]
    assert main([*line, "--splits", "test"]) == 0
    shown = capsys.readouterr().out
    assert "layers 11; splits test" in shown
    assert "nothing to do" in shown
    assert main([*line, "--splits", "tset"]) == 2
    assert "it has the splits test, train" in capsys.readouterr().err
