"""Every video is planned once, in shards that never change."""

from __future__ import annotations

import json

import pytest
from helpers.tiny_cache import records

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.format.plan import Plan, PlannedVideo, extend_plans, make_plan, read_plans, write_plan

pytestmark = pytest.mark.quick


def _ids(plan: Plan) -> dict[str, list[str]]:
    return {shard: [video.id for video in videos] for shard, videos in plan.shards.items()}


def test_videos_are_dealt_in_order(tmp_path):
    plan = make_plan(records(5), shard_size_videos=2)
    assert _ids(plan) == {"00000": ["v0", "v1"], "00001": ["v2", "v3"], "00002": ["v4"]}
    assert plan.shards["00001"][0] == PlannedVideo(id="v2", view=0, split="val", label=0, path="/videos/v2.mp4")


def test_a_plan_reads_back_equal(tmp_path):
    plans = extend_plans(tmp_path, records(5), shard_size_videos=2)
    assert read_plans(tmp_path) == plans == (make_plan(records(5), shard_size_videos=2),)


def test_a_plan_keeps_the_official_folds(tmp_path):
    (plan,) = extend_plans(tmp_path, records(4, folds=True), shard_size_videos=4)
    assert [video.folds["fold1"] for video in read_plans(tmp_path)[0].shards["00000"]] == ["test"] * 3 + ["train"]
    assert plan.shards["00000"][0].pending_row("00000", attempts=0).folds == {"fold1": "test"}


def test_a_shard_holds_one_view_only_and_a_view_may_come_later(tmp_path):
    extend_plans(tmp_path, records(3), shard_size_videos=2, views=(0, 1))
    first, second = extend_plans(tmp_path, records(3), shard_size_videos=2, views=(0, 1, 2))
    views = {shard: {video.view for video in videos} for shard, videos in first.shards.items()}
    assert views == {"00000": {0}, "00001": {0}, "00002": {1}, "00003": {1}}
    assert _ids(second) == {"00004": ["v0", "v1"], "00005": ["v2"]}
    assert {video.view for videos in second.shards.values() for video in videos} == {2}


def test_new_videos_go_to_the_next_plan_in_new_shards(tmp_path):
    extend_plans(tmp_path, records(3), shard_size_videos=2)
    first = (tmp_path / "0.json").read_bytes()
    plans = extend_plans(tmp_path, records(6), shard_size_videos=2)
    assert [_ids(plan) for plan in plans] == [
        {"00000": ["v0", "v1"], "00001": ["v2"]},
        {"00002": ["v3", "v4"], "00003": ["v5"]},
    ]
    assert (tmp_path / "0.json").read_bytes() == first
    assert extend_plans(tmp_path, records(6), shard_size_videos=1) == plans, "nothing is left to plan"


def test_a_video_may_be_planned_again_once(tmp_path):
    extend_plans(tmp_path, records(3), shard_size_videos=2)
    plans = extend_plans(tmp_path, records(3), shard_size_videos=2, again={("v1", 0): "00000"})
    assert [_ids(plan) for plan in plans[1:]] == [{"00002": ["v1"]}]


def test_a_video_that_was_planned_again_since_it_was_seen_is_not_planned_once_more(tmp_path):
    extend_plans(tmp_path, records(3), shard_size_videos=2)
    again = {("v1", 0): "00000", ("v2", 0): "00001"}
    first = extend_plans(tmp_path, records(3), shard_size_videos=2, again={("v1", 0): "00000"})
    second = extend_plans(tmp_path, records(3), shard_size_videos=2, again=again)
    assert _ids(first[-1]) == {"00002": ["v1"]}
    assert _ids(second[-1]) == {"00003": ["v2"]}
    assert extend_plans(tmp_path, records(3), shard_size_videos=2, again=again) == second


def test_the_second_writer_of_a_plan_gets_the_winners(tmp_path):
    winner, loser = make_plan(records(3), shard_size_videos=2), make_plan(records(4), shard_size_videos=3)
    assert write_plan(tmp_path, winner) == winner
    assert write_plan(tmp_path, loser) == winner
    assert [_ids(plan) for plan in extend_plans(tmp_path, records(4), shard_size_videos=3)] == [
        _ids(winner),
        {"00002": ["v3"]},
    ]


def test_the_same_id_twice_is_refused():
    with pytest.raises(ValueError, match=r"'v0'.*twice"):
        make_plan([*records(2), *records(1)], shard_size_videos=4)


def test_a_shard_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="shard_size_videos is 0"):
        make_plan(records(2), shard_size_videos=0)


def test_a_missing_or_edited_plan_is_refused(tmp_path):
    for num_videos in (2, 4):
        extend_plans(tmp_path, records(num_videos), shard_size_videos=2)
    (tmp_path / "1.json").write_bytes((tmp_path / "1.json").read_bytes().replace(b"v3", b"v9"))
    with pytest.raises(CacheFormatError, match=r"1\.json was changed"):
        read_plans(tmp_path)
    (tmp_path / "0.json").rename(tmp_path / "1.json")
    with pytest.raises(CacheFormatError, match="one is missing"):
        read_plans(tmp_path)
    (tmp_path / "1.json").rename(tmp_path / "0.json")
    (tmp_path / "0.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(CacheFormatError, match="format version 2"):
        read_plans(tmp_path)
