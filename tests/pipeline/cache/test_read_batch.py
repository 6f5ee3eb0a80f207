"""Batches of clips, copied into buffers that are used again."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tiny_cache import fill_cache, new_cache, video_tokens

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, UnknownNameError, UsageError

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos in three shards; v3 failed."""
    cache = tmp_path_factory.mktemp("template") / "cache"
    new_cache(cache)
    fill_cache(cache, bad=("v3",))
    return cache


def test_a_batch_is_read_into_buffers_that_are_used_again(folder):
    cache = FeatureCache(folder)
    buffers = cache.new_batch(3, 2, layers=(2,), parts=("patch",))
    memory = buffers.arrays["layer_2/patch"]
    first = cache.read_batch([("v0", [0, 1]), ("v4", [5, 3]), ("v5", [7, 7])], (2,), ("patch",), out=buffers)
    tokens = first.tokens(2)
    expected = [video_tokens(name)[0]["layer_2/patch"][at] for name, at in (("v0", [0, 1]), ("v4", [5, 3]))]
    np.testing.assert_array_equal(tokens[:2].numpy(), expected)
    assert (first.video_ids, first.views) == (("v0", "v4", "v5"), (0, 0, 0))
    assert first.frame_numbers.tolist() == [[0, 1], [5, 3], [7, 7]]
    np.testing.assert_allclose(first.pts_seconds * 6, first.frame_numbers)
    assert np.shares_memory(first.arrays["layer_2/patch"], memory)

    second = cache.read_batch([cache_clip("v5", [0, 2])], (2,), ("patch",), out=buffers)
    assert second.tokens(2).shape == (1, 2, 4, 8), "a smaller batch is a view of the first clips"
    np.testing.assert_array_equal(second.tokens(2)[0].numpy(), video_tokens("v5")[0]["layer_2/patch"][[0, 2]])
    assert np.shares_memory(second.arrays["layer_2/patch"], memory)
    np.testing.assert_array_equal(tokens[:2].numpy(), expected, "tokens taken before are kept")


def test_tokens_of_a_batch_are_never_the_buffer_itself(tmp_path):
    new_cache(tmp_path / "cache", num_videos=2, precision="fp32")
    fill_cache(tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    buffers = cache.new_batch(1, 3)
    before = cache.read_batch([("v0", range(3))], out=buffers).tokens(2)
    kept = before.clone()
    cache.read_batch([("v1", range(3))], out=buffers)
    assert (before == kept).all()


def test_layers_of_what_was_read_are_counted_from_the_last(folder):
    cache = FeatureCache(folder)
    clip, batch = cache.read("v0", frames=slice(0, 2)), cache.read_batch([("v0", [0, 1])])
    assert tuple(cache.layers) == ("2", "11")
    for asked in ({}, {"layer": -1}, {"layer": "-1"}, {"layer": 11}):
        np.testing.assert_array_equal(clip.tokens(**asked), clip.tokens("11"))
        np.testing.assert_array_equal(batch.tokens(**asked, part="all"), batch.tokens("11", "all"))
    np.testing.assert_array_equal(clip.payload(-2), clip.payload(2))
    for beyond in (-3, 0, "-0"):
        with pytest.raises(UnknownNameError, match=f"'{beyond} patch'"):
            clip.tokens(beyond)


def cache_clip(video_id, frames, view=0):
    """What a program of one's own may hand to `read_batch`."""

    class Clip:
        id = video_id

    Clip.frames, Clip.view = frames, view
    return Clip()


def test_a_batch_that_cannot_be_is_refused(folder):
    cache = FeatureCache(folder)
    buffers = cache.new_batch(1, 2)
    two = [("v0", [0, 1]), ("v1", [0, 1])]
    cases = [
        (UsageError, r"clips of \[2, 3\] frames", {"clips": [("v0", [0, 1]), ("v1", [0, 1, 2])]}),
        (UsageError, r"clips of \[\] frames", {"clips": []}),
        (UsageError, "out holds up to 1 clips of 2 frames", {"clips": two, "out": buffers}),
        (UsageError, "out holds", {"clips": [("v0", [1])], "out": buffers}),
        (UsageError, "out holds", {"clips": [("v0", [1, 1])], "layers": (2,), "out": buffers}),
        (CacheError, "'v3' has no tokens", {"clips": [("v3", [0, 1])]}),
        (UsageError, "frames 0 to 2; 0 to 3", {"clips": [("v0", [0, 3])]}),
        (UnknownNameError, "v0", {"clips": [("v00", [0, 3])]}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message) as caught:
            cache.read_batch(**arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="batch of 0 clips"):
        cache.new_batch(0, 2)


def test_views_are_kept_apart(tmp_path):
    new_cache(tmp_path / "cache", num_videos=2, views=(0, 1))
    fill_cache(tmp_path / "cache", bad=())
    cache = FeatureCache(tmp_path / "cache")
    assert cache.views == (0, 1)
    assert [(row.id, row.view) for row in cache.ok_videos(view=1)] == [("v0", 1), ("v1", 1)]
    assert cache.read("v1", view=1).view == 1
    batch = cache.read_batch([cache_clip("v1", [0], view=1), ("v1", [0])])
    assert batch.views == (1, 0)
