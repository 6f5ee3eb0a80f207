"""Columns that were added to a cache later: a second commit of its shards, which a video may lack."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.tiny_cache import (
    add_layer,
    columns_of,
    expected_tokens,
    fill_cache,
    new_cache,
    prepare_shard,
    records,
    video_tokens,
)

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, CacheIncompleteError, UnknownNameError
from vfz.pipeline.files import checked_json_bytes
from vfz.pipeline.format.commits import commit_shard
from vfz.pipeline.format.plan import extend_plans

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Six videos in three shards; v3 failed."""
    cache = tmp_path_factory.mktemp("template") / "cache"
    new_cache(cache)
    fill_cache(cache, bad=("v3",))
    return cache


@pytest.fixture
def folder(tmp_path, template):
    """A copy of the template that a test may change."""
    return shutil.copytree(template, tmp_path / "cache")


@pytest.fixture
def grown(folder):
    """The cache with layer 23 added in a second commit of every shard, in which v1 failed."""
    add_layer(folder, "23")
    fill_cache(folder, number=1, layers=("23",), bad=("v1",))
    return folder


def _tokens_of_layer_23(video_id):
    return expected_tokens(video_id, columns_of("fp16", ("23",))[0])


def test_a_layer_of_a_later_commit_is_read_like_any_other(grown):
    cache = FeatureCache(grown, checksums="always")
    assert list(cache.layers) == ["2", "11", "23"]
    for video_id in ("v0", "v2", "v5"):
        clip = cache.read(video_id, [2, 1])
        np.testing.assert_array_equal(clip.tokens(23), _tokens_of_layer_23(video_id)[[2, 1]])
        np.testing.assert_array_equal(clip.tokens(2), video_tokens(video_id)[0]["layer_2/patch"][[2, 1]])
        np.testing.assert_array_equal(clip.pts_seconds, np.array([2, 1]) / 6)
    batch = cache.read_batch([("v5", [0, 7]), ("v0", [2, 2])], layers=(23, 2), parts=("patch",))
    np.testing.assert_array_equal(batch.tokens(23)[0].numpy(), _tokens_of_layer_23("v5")[[0, 7]])
    assert cache.num_bytes == sum(
        path.stat().st_size for path in (grown / "shards").rglob("*") if path.is_file() and path.suffix != ".json"
    ) + sum(path.stat().st_size for path in (grown / "shards").rglob("zarr.json"))


def test_a_video_that_lacks_a_column_is_told_and_left_out(grown):
    cache = FeatureCache(grown)
    assert cache.videos[1].status == "ok", "the row is that of the first commit"
    assert cache.read("v1", layers=(2, 11)).tokens(2).shape == (4, 4, 8)
    with pytest.raises(CacheError, match=r"video 'v1' has no layer_23/patch: failed: no picture in it"):
        cache.read("v1")
    with pytest.raises(CacheError, match=r"video 'v1' has no layer_23/prefix: failed"):
        cache.read_batch([("v1", [0])], layers=(23,), parts=("prefix",))
    assert [row.id for row in cache.ok_videos()] == ["v0", "v2", "v4", "v5"]
    assert [row.id for row in cache.ok_videos(layers=(2, "11"))] == ["v0", "v1", "v2", "v4", "v5"]
    assert [row.id for row in cache.ok_videos("train", layers=(23,), parts=("prefix",))] == ["v0", "v4"]
    with pytest.raises(UnknownNameError, match="unknown layer '5'"):
        cache.ok_videos(layers=(5,))


def test_a_column_whose_commit_is_pending_makes_a_cache_incomplete(folder):
    complete = FeatureCache(folder).ledger_digest
    add_layer(folder, "23")
    with pytest.raises(CacheIncompleteError, match=r"layer_23/patch of 5 videos is pending.*vfz extract"):
        FeatureCache(folder)
    (plan,) = new_cache(folder)
    commit_shard(folder, prepare_shard(folder, plan, "00000", number=1, layers=("23",)))
    with pytest.raises(CacheIncompleteError, match=r"layer_23/patch of 3 videos is pending, layer_23/prefix of 3"):
        FeatureCache(folder)
    half = FeatureCache(folder, allow_incomplete=True)
    assert [row.id for row in half.ok_videos()] == ["v0", "v1"]
    assert half.ledger_digest != complete
    with pytest.raises(
        CacheError, match=r"'v4' has no layer_23/patch: not extracted yet; run the same vfz extract again"
    ):
        half.read("v4")
    fill_cache(folder, number=1, layers=("23",))
    assert FeatureCache(folder).ledger_digest == complete, "a column that nobody lacks changes nothing"


def test_a_column_tried_again_in_a_still_later_commit_is_found(grown):
    (plan,) = new_cache(grown)
    again = prepare_shard(grown, plan, "00000", number=2, layers=("23",), bad=("v0",))
    commit_shard(grown, again)
    cache = FeatureCache(grown)
    assert cache.ok_videos() == cache.ok_videos(layers=(2,))
    for video_id in ("v0", "v1"):
        np.testing.assert_array_equal(cache.read(video_id).tokens(23), _tokens_of_layer_23(video_id))


def test_a_lacking_video_planned_again_counts_by_the_later_plan(grown):
    plan = extend_plans(grown / "plan", records(6), shard_size_videos=2, again={("v1", 0): "00000"})[1]
    before = FeatureCache(grown)
    assert {row.id: row.status for row in before.videos}["v1"] == "ok", "what it has is not hidden meanwhile"
    assert before.table()["lacking"].to_pylist()[1]
    commit_shard(grown, prepare_shard(grown, plan, "00003"))
    cache = FeatureCache(grown)
    assert cache.table()["lacking"].to_pylist() == [[]] * 6
    np.testing.assert_array_equal(cache.read("v1").tokens(23), _tokens_of_layer_23("v1"))


def test_commits_that_do_not_fit_their_shard_are_refused(grown):
    path = grown / "shards/00002.1.index.json"
    content = json.loads(path.read_bytes())
    del content["digest"], content["format_version"]

    def refused(message, **changes):
        path.write_bytes(checked_json_bytes(content | changes))
        with pytest.raises(CacheFormatError, match=message):
            FeatureCache(grown)

    refused("name different videos", plan=1)
    row = content["rows"][0]
    refused(
        "which is not in the contents",
        data=None,
        column_keys=["layer_5/patch"],
        rows=[row | {"status": "failed", "reason": "x", "num_frames": 0, "frame_start": 0}],
    )
    (grown / "shards/00002.0.index.json").unlink()
    path.write_bytes(checked_json_bytes(content))
    with pytest.raises(CacheFormatError, match="name different videos"):
        FeatureCache(grown)
