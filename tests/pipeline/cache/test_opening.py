"""Opening a cache: what is refused before anything is read, and what may be missing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import (
    FINGERPRINT,
    RECIPE,
    columns_of,
    contents_of,
    fill_cache,
    new_cache,
    prepare_shard,
    records,
    video_tokens,
)

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, CacheIncompleteError, UnknownNameError, UsageError
from vfz.pipeline.files import checked_json_bytes
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import ShardIndex, commit_shard
from vfz.pipeline.format.folder import CacheFolder, find_cache
from vfz.pipeline.format.header import create_cache
from vfz.pipeline.format.plan import extend_plans

pytestmark = pytest.mark.quick


def test_an_incomplete_cache_is_refused_unless_asked_for(folder):
    (folder / "shards/00001.0.index.json").unlink()
    with pytest.raises(CacheIncompleteError, match=r"2 of 6 videos are pending.*vfz extract"):
        FeatureCache(folder)
    cache = FeatureCache(folder, allow_incomplete=True)
    assert [row.status for row in cache.videos] == ["ok", "ok", "pending", "pending", "ok", "ok"]
    assert cache.read("v5").pts_seconds.size == 8
    with pytest.raises(CacheError, match="pending: not extracted yet"):
        cache.read("v2")


def test_a_cache_tells_in_a_line_what_it_is_and_counts_what_can_be_read(folder):
    cache = FeatureCache(folder)
    assert len(cache) == len(cache.ok_videos()) == 5, "one has failed"
    (line,) = repr(cache).splitlines()
    assert line.startswith(f"<FeatureCache {str(folder)!r}: videos {{'")
    assert line.endswith(f" layers {list(cache.layers)}, {cache.precision}, {cache.store}>")


def test_a_cache_without_a_plan_is_incomplete(tmp_path):
    create_cache(tmp_path / "cache", recipe=RECIPE, provenance={}, fill=contents_of)
    with pytest.raises(CacheIncompleteError, match="no video is planned"):
        FeatureCache(tmp_path / "cache")
    assert FeatureCache(tmp_path / "cache", allow_incomplete=True).videos == []


def test_a_video_tried_again_counts_by_its_latest_plan(folder):
    plan = extend_plans(folder / "plan", records(6), shard_size_videos=2, again={("v3", 0): "00001"})[1]
    waiting = {row.id: row for row in FeatureCache(folder, allow_incomplete=True).videos}["v3"]
    assert (waiting.status, waiting.attempts, waiting.shard) == ("pending", 1, "00003")
    commit_shard(folder, prepare_shard(folder, plan, "00003"))
    cache = FeatureCache(folder)
    assert len(cache.videos) == 6
    np.testing.assert_array_equal(cache.read("v3").payload(2), video_tokens("v3")[0]["layer_2/patch"])


def test_things_that_are_no_cache_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "not a folder"), ("file", "not a folder"), ("empty", r"has no vfz\.json")):
        with pytest.raises(CacheFormatError, match=message):
            FeatureCache(tmp_path / name)


def test_another_format_version_is_refused_as_such(folder):
    content = json.loads((folder / "vfz.json").read_bytes())
    (folder / "vfz.json").write_text(json.dumps({**content, "format_version": 2, "new": "things"}))
    with pytest.raises(CacheFormatError, match="format version 2; this vfz reads 1: upgrade vfz"):
        FeatureCache(folder)


@pytest.mark.parametrize(
    ("old", "new"), [(b'"image_size":32', b'"image_size":33'), (b'"left"', b'"lift"'), (b",\n", b", ")]
)
def test_an_edited_header_is_refused(folder, old, new):
    data = (folder / "vfz.json").read_bytes()
    assert old in data
    (folder / "vfz.json").write_bytes(data.replace(old, new))
    with pytest.raises(CacheFormatError, match=r"vfz\.json was changed"):
        FeatureCache(folder)


def test_a_fingerprint_of_another_recipe_is_refused(folder):
    content = json.loads((folder / "vfz.json").read_bytes())
    del content["digest"], content["format_version"]
    recipe = {**content["recipe"], "other": 1}
    (folder / "vfz.json").write_bytes(checked_json_bytes({**content, "recipe": recipe}))
    with pytest.raises(CacheFormatError, match="not that of the recipe"):
        FeatureCache(folder)


def test_plans_and_shards_must_name_the_same_videos(folder):
    shutil.copy(folder / "plan/0.json", folder / "saved.json")
    (folder / "plan/0.json").unlink()
    with pytest.raises(CacheFormatError, match=r"no plan names the shards \['00000', '00001', '00002'\]"):
        FeatureCache(folder)
    new_cache(folder, num_videos=6, shard_size_videos=3)
    with pytest.raises(CacheFormatError, match="name different videos"):
        FeatureCache(folder)


def test_a_moved_or_copied_cache_is_the_same(folder, tmp_path):
    here = FeatureCache(folder)
    there = FeatureCache(shutil.copytree(folder, tmp_path / "elsewhere" / "renamed"))
    shutil.rmtree(folder)
    assert (there.fingerprint, there.ledger_digest) == (here.fingerprint, here.ledger_digest)
    np.testing.assert_array_equal(there.read("v5").payload(2), video_tokens("v5")[0]["layer_2/patch"])


def test_a_shard_quantised_with_another_calibration_is_refused(tmp_path):
    new_cache(tmp_path / "cache", num_videos=2, precision="int8")
    fill_cache(tmp_path / "cache")
    path = tmp_path / "cache/shards/00000.0.index.json"
    content = json.loads(path.read_bytes())
    del content["digest"], content["format_version"]
    path.write_bytes(checked_json_bytes({**content, "calibration_digest": "0" * 64}))
    with pytest.raises(
        CacheFormatError, match=r"the calibration of layer_2/patch.* is not the one this shard was quant"
    ):
        FeatureCache(tmp_path / "cache")


def test_a_quantised_cache_without_its_calibration_is_refused_at_once(tmp_path):
    for precision in ("int8", "fp16"):
        folder = tmp_path / precision
        new_cache(folder, num_videos=2, precision=precision)
        fill_cache(folder)
        (folder / "calibration/layer_2.patch.json").unlink()
    with pytest.raises(CacheFormatError, match=r"layer_2\.patch\.json"):
        FeatureCache(tmp_path / "int8")
    cache = FeatureCache(tmp_path / "fp16")
    assert cache.read("v0").tokens(2).shape == (3, 4, 8), "floating point needs none"
    with pytest.raises(CacheFormatError, match=r"layer_2\.patch\.json"):
        cache.calibrations  # noqa: B018


def test_names_that_are_no_utf8_are_kept(tmp_path):
    strange = [os.fsdecode(b"caf\xe9"), "\0null", 'quote"', "ok"]
    made = [dataclasses.replace(record, id=name) for record, name in zip(records(4), strange, strict=True)]
    folder = tmp_path / "cache"
    new_cache(folder, num_videos=1)
    plan = extend_plans(folder / "plan", made, shard_size_videos=8)[1]
    rows = [
        dataclasses.replace(video.pending_row("00001", attempts=1), status="failed", reason=f"bad {video.id}")
        for video in plan.shards["00001"]
    ]
    fill_cache_of_rows(folder, plan, rows)
    for _ in range(2):
        cache = FeatureCache(folder, allow_incomplete=True)
        assert [row.id for row in cache.videos][1:] == strange
        assert cache.videos[1].reason == f"bad {strange[0]}"
        with pytest.raises(CacheError, match="has no tokens: failed: bad"):
            cache.read(strange[0])
        write_catalog(CacheFolder(folder))


def fill_cache_of_rows(folder, plan, rows):
    index = ShardIndex(
        shard="00001",
        number=0,
        plan=plan.number,
        fingerprint=FINGERPRINT,
        calibration_digest=None,
        data=None,
        rows=tuple(rows),
        column_keys=tuple(column.key for column in columns_of()),
    )
    commit_shard(folder, index)


def test_a_cache_is_opened_by_its_bare_name_and_what_is_no_path_is_told(folder, monkeypatch, tmp_path):
    (tmp_path / "caches").mkdir(exist_ok=True)
    shutil.copytree(folder, tmp_path / "caches/named")
    monkeypatch.chdir(tmp_path)
    assert FeatureCache("named").path == find_cache("named") == Path("caches/named")
    assert len(FeatureCache("named")) == len(FeatureCache(folder))
    for wrong in (3, None):
        with pytest.raises(UsageError, match="is no cache; give its name, or the path of its folder"):
            FeatureCache(wrong)
    with pytest.raises(UnknownNameError, match="unknown cache 'nmed'; did you mean named"):
        find_cache("nmed")
