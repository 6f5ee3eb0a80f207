"""What a caller may ask a cache for: one or several of each, and one clear line for everything else."""

from __future__ import annotations

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from helpers.tiny_cache import add_layer, fill_cache, new_cache, video_tokens

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, UnknownNameError, UsageError

pytestmark = pytest.mark.quick

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six videos in three shards; v3 failed, v1 lacks layer 23."""
    cache = tmp_path_factory.mktemp("requests") / "cache"
    new_cache(cache)
    fill_cache(cache, bad=("v3",))
    add_layer(cache, "23")
    fill_cache(cache, number=1, layers=("23",), bad=("v1",))
    return cache


@pytest.fixture(scope="module")
def cache(folder):
    return FeatureCache(folder)


def refused(error, message, call):
    """The call raises this error, in one line that is not endless."""
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("layers", [11, "11", np.int64(11), (11,), ["11"], {"11": None}])
@pytest.mark.parametrize("parts", ["patch", np.str_("patch"), ["patch"]])
def test_one_layer_or_part_is_a_selection_of_one(cache, layers, parts):
    clip = cache.read("v0", layers=layers, parts=parts)
    assert clip.arrays.keys() == {"layer_11/patch"}
    np.testing.assert_array_equal(clip.tokens(11), video_tokens("v0")[0]["layer_11/patch"])


def test_one_layer_or_part_is_a_selection_of_one_wherever_they_are_chosen(cache):
    batch = cache.read_batch([("v0", [0])], layers=11, parts="patch", out=cache.new_batch(1, 1, 11, "patch"))
    assert batch.arrays.keys() == {"layer_11/patch"}
    assert cache.read_batch([("v0", [0])], "11", "prefix").arrays.keys() == {"layer_11/prefix"}
    assert cache.read_batch([("v0", [0])], iter(["11"]), iter(["prefix"])).arrays.keys() == {"layer_11/prefix"}
    assert [row.id for row in cache.ok_videos(layers=23, parts="patch")] == ["v0", "v2", "v4", "v5"]
    assert [row.id for row in cache.ok_videos(layers="2")] == ["v0", "v1", "v2", "v4", "v5"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"layers": ()}, r"layers is empty; name some of the layers 2, 11, 23 of \S+, or None for all"),
        ({"layers": []}, "layers is empty"),
        ({"parts": []}, r"parts is empty; name some of the parts patch, prefix of layers 2, 11, 23 in \S+, or None"),
        ({"layers": 2, "parts": ()}, "parts is empty; name some of the parts patch, prefix of layers 2 in"),
        ({"layers": 1.5}, "layers is 1.5; a name, a number or several"),
        ({"parts": 1.5}, "parts is 1.5"),
        ({"layers": "1"}, r"unknown layer '1'.* has 2, 11, 23"),
        ({"parts": "pre"}, "unknown part of layers 2, 11, 23 in .*did you mean prefix"),
    ],
)
def test_a_selection_of_none_or_of_what_is_not_there_is_refused(cache, selection, message):
    refused(UsageError, message, lambda: cache.read("v0", **selection))
    refused(UsageError, message, lambda: cache.read_batch([("v0", [0])], **selection))
    refused(UsageError, message, lambda: cache.new_batch(1, 1, **selection))
    refused(UsageError, message, lambda: cache.ok_videos(**selection))


@pytest.mark.parametrize("checksums", ["sometimes", None, True])
def test_another_time_to_compare_checksums_is_refused(folder, checksums):
    refused(
        UsageError,
        "checksums is .*; allowed are never, first, always",
        lambda: FeatureCache(folder, checksums=checksums),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": slice(None, None, 0)}, r"frames is slice\(None, None, 0\); .*zero"),
        ({"frames": slice(0, 1.5)}, r"frames is slice\(0, 1\.5, None\); a slice of whole numbers"),
        ({"frames": [[0], [1, 2]]}, r"frames is \[\[0\], \[1, 2\]\]; a slice, whole numbers or None"),
        ({"frames": np.zeros((40, 2), int)}, "a slice, whole numbers or None"),
        ({"frames": 1}, "frames is 1; a slice, whole numbers or None"),
        ({"frames": "01"}, "frames is '01'"),
        ({"frames": [True, False, True]}, "whole numbers"),
        ({"frames": [2**70]}, "whole numbers"),
        ({"frames": range(3, -3, -1)}, "frames 0 to 2; -2 to 3 requested"),
        ({"frames": np.zeros((40, 2)), "seconds": (0, 1)}, "exclude each other"),
        ({"seconds": (0, 1, 2)}, r"seconds is \(0, 1, 2\); two numbers are needed: \(start, end\)"),
        ({"seconds": (1,)}, "two numbers"),
        ({"seconds": 1.0}, "two numbers"),
        ({"seconds": "12"}, "seconds is '12'; two numbers"),
        ({"seconds": ("1", "2")}, "two numbers"),
        ({"seconds": (0, float("nan"))}, "two numbers"),
        ({"seconds": (2.0, 1.0)}, r"seconds is \(2\.0, 1\.0\), which ends before it starts"),
        ({"video_id": 0}, "video 0, view 0 cannot be looked up; the id is a text"),
        ({"video_id": ["v0"]}, r"video \['v0'\]"),
        ({"view": "0"}, "view '0' cannot be looked up"),
        ({"view": [0]}, r"view \[0\] cannot be looked up"),
    ],
)
def test_arguments_of_read_that_cannot_be_meant_are_refused(cache, arguments, message):
    refused(UsageError, message, lambda: cache.read(**{"video_id": "v0", **arguments}))


@pytest.mark.parametrize("seconds", [(0, 0.5), [np.float32(0), np.int64(1)], np.array([0.0, 0.5])])
def test_a_time_window_is_any_two_numbers(cache, seconds):
    assert cache.read("v0", seconds=seconds).frame_numbers.tolist() == [0, 1, 2]


def test_an_endless_time_window_goes_to_the_end_of_the_video(cache):
    whole = cache.read("v0").frame_numbers.tolist()
    assert cache.read("v0", seconds=(0, float("inf"))).frame_numbers.tolist() == whole


class Triple(NamedTuple):
    """A clip that is a tuple, too."""

    id: str
    frames: list[int]
    view: int


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([["v0", [0]]], r"a clip of the batch is \['v0', \[0\]\]; each must be a tuple \(video id, frames\), or"),
        ([("v0", 0, [0])], r"a clip of the batch is \('v0', 0, \[0\]\)"),
        (["v0"], "a clip of the batch is 'v0'"),
        (("v0", [0]), "a clip of the batch is 'v0'"),
        ({"v0": [0]}, "a clip of the batch is 'v0'"),
        ([None], "a clip of the batch is None"),
        (None, "clips is None; a list of clips is needed"),
        ([(0, [0])], "video 0, view 0 cannot be looked up"),
        ([("v0", 0)], "frames is 0"),
        ([("v0", [])], "a batch of 1 clips of 0 frames"),
    ],
)
def test_things_that_are_no_clips_are_refused(cache, clips, message):
    refused(UsageError, message, lambda: cache.read_batch(clips))


def test_a_clip_may_be_a_tuple_with_attributes(cache):
    batch = cache.read_batch([Triple("v0", [2], 0), ("v1", [1])], layers=2)
    assert batch.frame_numbers.tolist() == [[2], [1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.new_batch(2.5, 1), "a batch of 2.5 clips of 1 frames"),
        (lambda cache: cache.new_batch(1, "2"), "clips of '2' frames"),
        (lambda cache: cache.read_batch([("v0", [0])], 2, out="x"), r"out is 'x'; buffers made by new_batch\(\)"),
        (lambda cache: cache.ok_videos(5), "split is 5; its name is needed, or None"),
        (lambda cache: cache.ok_videos(fold=["a"]), r"fold is \['a'\]"),
        (lambda cache: cache.ok_videos(view="0"), "view is '0'; its number is needed"),
        (lambda cache: cache.num_planned(["train"]), r"split is \['train'\]"),
    ],
)
def test_other_arguments_that_cannot_be_meant_are_refused(cache, call, message):
    refused(UsageError, message, lambda: call(cache))


def test_a_part_that_was_not_read_is_refused_whatever_it_is(cache):
    refused(UnknownNameError, "layer and part of this clip", lambda: cache.read("v0").tokens(2, ["patch"]))


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (UnknownNameError, lambda cache, many: cache.read("v00", many)),
        (CacheError, lambda cache, many: cache.read("v3", many)),
        (CacheError, lambda cache, many: cache.read("v1", many, layers=23)),
        (CacheError, lambda cache, many: cache.read_batch([("v0", many), ("v1", many)], layers=23)),
        (UsageError, lambda cache, _: cache.read("v0", range(10**7))),
        (UsageError, lambda cache, _: cache.read_batch([("v0", range(10**7))])),
    ],
)
def test_nothing_large_is_made_for_a_clip_that_is_not_there(folder, error, call):
    cache = FeatureCache(folder)
    cache.read("v0", layers=23)
    many = np.zeros(10**6, np.int64)  # tokens of a layer: 64 MB
    tracemalloc.start()
    try:
        with pytest.raises(error):
            call(cache, many)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
