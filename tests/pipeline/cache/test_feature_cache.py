"""Reading windows of a cache, in every store and precision, and what damage, full disks and writers do to a reader."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import (
    FINGERPRINT,
    RECIPE,
    columns_of,
    contents_of,
    expected_tokens,
    fill_cache,
    new_cache,
    num_frames_of,
    prepare_shard,
    stored_arrays,
    video_tokens,
)

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.format.commits import commit_shard
from vfz.pipeline.stores import STORES

pytestmark = pytest.mark.quick

TESTS = Path(__file__).parents[2]


def test_the_attributes_describe_the_cache(folder):
    cache = FeatureCache(folder)
    assert cache.fingerprint == FINGERPRINT
    assert cache.recipe == RECIPE
    assert cache.contents == contents_of(folder)
    assert (cache.precision, cache.store, cache.splits, cache.views) == ("fp16", "zarr", ("train", "val"), (0,))
    assert cache.calibrations.keys() == {column.key for column in columns_of()}
    assert list(cache.layers) == ["2", "11"]
    assert cache.layers["2"] == {"patch": (4, 8), "prefix": (1, 8)}
    assert cache.class_names == ("left", "right")
    assert [row.id for row in cache.videos] == ["v0", "v1", "v2", "v3", "v4", "v5"]
    assert [row.id for row in cache.ok_videos()] == ["v0", "v1", "v2", "v4", "v5"]
    assert [row.id for row in cache.ok_videos("val")] == ["v2", "v5"]
    assert cache.ok_videos(view=1) == []
    assert (cache.num_planned(), cache.num_planned("train"), cache.num_planned(view=1)) == (6, 4, 0)
    data = [path for path in (folder / "shards").rglob("*") if path.is_file() and path.parent != folder / "shards"]
    assert cache.num_bytes == sum(path.stat().st_size for path in data)
    with pytest.raises(UnknownNameError, match="did you mean train"):
        cache.ok_videos("trian")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        (slice(1, 6, 2), [1, 3, 5]),
        (slice(4, 400), [4, 5, 6]),
        (slice(None, None, -3), [6, 3, 0]),
        ([5, 0, 0, 6], [5, 0, 0, 6]),
        (np.array([2], np.uint8), [2]),
        ([], []),
    ],
)
def test_any_frames_of_a_video_are_read(folder, frames, expected):
    clip = FeatureCache(folder).read("v4", frames)
    tokens, pts_seconds = video_tokens("v4")
    assert clip.frame_numbers.tolist() == expected
    np.testing.assert_array_equal(clip.pts_seconds, pts_seconds[expected])
    for layer in ("2", 11):
        patch, prefix = (tokens[f"layer_{layer}/{part}"][expected] for part in ("patch", "prefix"))
        assert clip.payload(layer).dtype == np.float16
        assert clip.tokens(layer).dtype == np.float32
        np.testing.assert_array_equal(clip.tokens(layer), patch)
        np.testing.assert_array_equal(clip.tokens(layer, part="prefix"), prefix)
        together = clip.tokens(layer, part="all")
        assert together.dtype == np.float32
        np.testing.assert_array_equal(together, np.concatenate([prefix, patch], axis=1))
        np.testing.assert_array_equal(clip.expand(layer, "all").numpy(), together)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((0, 0.5), [0, 1, 2]), ((0.5, 100), [3, 4, 5, 6]), ((1 / 6, 2 / 6), [1]), ((-5, 0.01), [0])],
)
def test_frames_are_chosen_by_their_times(folder, seconds, expected):
    clip = FeatureCache(folder).read("v4", seconds=seconds, layers=(2,))
    assert clip.frame_numbers.tolist() == expected
    np.testing.assert_array_equal(clip.tokens(2), video_tokens("v4")[0]["layer_2/patch"][expected])


@pytest.mark.parametrize("store", sorted(STORES))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_every_store_and_precision_gives_back_what_was_stored(tmp_path, store, precision):
    folder = tmp_path / "cache"
    new_cache(folder, num_videos=3, precision=precision, store=store, dim=130)
    fill_cache(folder)
    cache = FeatureCache(folder)
    assert (cache.precision, cache.store) == (precision, store)
    columns = {(column.layer, column.part): column for column in columns_of(precision, dim=130)}
    clip = cache.read("v1", [2, 0, 3])
    stored = stored_arrays(video_tokens("v1", columns=tuple(columns.values()))[0], tuple(columns.values()))
    assert clip.arrays.keys() == stored.keys()
    for key, array in stored.items():
        assert clip.arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(clip.arrays[key], array[[2, 0, 3]])
    for (layer, part), column in columns.items():
        np.testing.assert_array_equal(clip.tokens(layer, part), expected_tokens("v1", column)[[2, 0, 3]])
    expected = [expected_tokens("v1", columns["11", part])[[2, 0, 3]] for part in ("prefix", "patch")]
    np.testing.assert_array_equal(clip.tokens(11, "all"), np.concatenate(expected, axis=1))

    batch = cache.read_batch([("v1", [2, 0]), ("v2", [1, 1])], layers=(11,))
    assert batch.arrays.keys() == {key for key in stored if key.startswith("layer_11/")}
    tokens_BTND = batch.tokens(11, "patch").numpy()
    np.testing.assert_array_equal(tokens_BTND[0], expected_tokens("v1", columns["11", "patch"])[[2, 0]])
    np.testing.assert_array_equal(tokens_BTND[1], expected_tokens("v2", columns["11", "patch"])[[1, 1]])
    assert batch.tokens(11, "all").shape == (2, 2, 5, 130)


def test_layers_and_parts_can_be_chosen(folder):
    clip = FeatureCache(folder).read("v0", layers=(11,), parts=("patch",))
    assert clip.arrays.keys() == {"layer_11/patch"}
    np.testing.assert_array_equal(clip.tokens(11, part="all"), clip.tokens(11))
    for layer, part in ((2, "patch"), (11, "prefix"), (2, "all")):
        with pytest.raises(UnknownNameError, match="layer and part of this clip"):
            clip.tokens(layer, part)


def test_what_cannot_be_read_is_refused_in_one_clear_line(folder):
    cache = FeatureCache(folder)
    cases = [
        (UnknownNameError, "did you mean v", {"video_id": "v44"}),
        (CacheError, "'v3' has no tokens: failed: no picture in it", {"video_id": "v3"}),
        (UnknownNameError, r"unknown layer '23'.* has 2, 11", {"video_id": "v0", "layers": (23,)}),
        (UnknownNameError, "unknown part", {"video_id": "v0", "parts": ("cls",)}),
        (UsageError, "frames 0 to 2; 1 to 3 requested", {"video_id": "v0", "frames": [1, 3]}),
        (UsageError, "frames 0 to 2; -1 to -1 requested", {"video_id": "v0", "frames": [-1]}),
        (UsageError, "whole numbers", {"video_id": "v0", "frames": [0.5]}),
        (UsageError, "exclude each other", {"video_id": "v0", "frames": [0], "seconds": (0, 1)}),
        (
            UsageError,
            r"no frame from 4 up to 5 s; its 3 frames lie at 0\.000 to 0\.333",
            {"video_id": "v0", "seconds": (4, 5)},
        ),
        (UsageError, "no frame from 0.1 up to 0.1", {"video_id": "v0", "seconds": (0.1, 0.1)}),
        (UsageError, "views \\[0\\], not in view 1", {"video_id": "v0", "view": 1}),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message) as caught:
            cache.read(**arguments)
        assert "\n" not in str(caught.value)


def test_damage_is_reported_with_shard_video_and_layer(folder):
    (path,) = folder.glob("shards/00002-*/layer_11/prefix/c/0/0/0")
    content = bytearray(path.read_bytes())
    content[3] ^= 4
    path.write_bytes(content)
    cache = FeatureCache(folder)
    assert cache.read("v4", parts=("patch",)).frame_numbers.size == 7
    with pytest.raises(CacheFormatError, match=r"video 'v4', shard 00002: layer_11/prefix: .*crc32c"):
        cache.read("v4")
    shutil.rmtree(path.parents[4])
    with pytest.raises(CacheFormatError, match=r"shard 00002: layer_\w+/patch: cannot read"):
        FeatureCache(folder).read("v4")


def _num_open_files(folder: Path) -> int:
    opened = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum(name.startswith(f"{folder}/") for name in opened)


def test_few_shards_are_open_at_a_time(folder):
    cache = FeatureCache(folder)
    cache._shards.max_open = 2
    for video_id in ("v0", "v2", "v4", "v0", "v5", "v2") * 3:
        np.testing.assert_array_equal(cache.read(video_id).payload(2), video_tokens(video_id)[0]["layer_2/patch"])
        assert 5 <= _num_open_files(folder) <= 2 * 5  # per shard four columns and the times
    cache.close()
    assert _num_open_files(folder) == 0
    assert cache.read("v0").pts_seconds.size == 3


def test_official_folds_choose_videos(tmp_path):
    new_cache(tmp_path / "cache", folds=True)
    fill_cache(tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    assert [row.id for row in cache.ok_videos("test", fold="fold1")] == ["v0", "v1", "v2"]
    assert [row.id for row in cache.ok_videos("val")] == ["v2", "v5"]
    assert len(cache.ok_videos(fold="fold1")) == 6
    assert cache.videos[0].folds == {"fold1": "test"}
    with pytest.raises(UnknownNameError, match=r"split of fold fold1 of .* 'val'"):
        cache.ok_videos("val", fold="fold1")
    with pytest.raises(UnknownNameError, match="did you mean fold1"):
        cache.ok_videos("val", fold="fold2")


def test_a_shard_that_is_replaced_while_the_cache_is_open_is_not_mixed_with_the_old_one(folder):
    cache = FeatureCache(folder)
    assert cache.read("v0").pts_seconds.size == 3
    (folder / "shards/00002.0.index.json").unlink()
    (plan,) = new_cache(folder)
    commit_shard(folder, prepare_shard(folder, plan, "00002", bad=("v4",)))
    with pytest.raises(CacheError, match=r"shard 00002 was replaced since .* was opened: open the cache again"):
        cache.read("v5")
    assert FeatureCache(folder).read("v5").pts_seconds.size == num_frames_of("v5")


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.tiny_cache import prepare_shard
from vfz.pipeline.format.commits import commit_shard
from vfz.pipeline.errors import StorageError
from vfz.pipeline.format.plan import read_plans

folder = Path(sys.argv[2])
(plan,) = read_plans(folder / "plan")
if sys.argv[3] == "data":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    prepare_shard(folder, plan, "00002")
index = prepare_shard(folder, plan, "00002")
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
commit_shard(folder, index)
"""


@pytest.mark.parametrize("when", ["data", "commit"])
def test_a_full_disk_is_one_clear_line_and_leaves_what_was_committed(folder, when):
    """The file size limit stands in for the full disk: the write fails at the same calls."""
    (folder / "shards/00002.0.index.json").unlink()
    for path in folder.glob("shards/00002-*"):
        shutil.rmtree(path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(TESTS), str(folder), when], capture_output=True, text=True, timeout=60
    )
    last_line = done.stderr.splitlines()[-1]
    assert "StorageError: cannot write" in last_line
    assert str(folder / "shards") in last_line
    assert "ulimit -f" in last_line
    assert sorted(path.name[:5] for path in (folder / "shards").iterdir() if path.is_dir()) == ["00000", "00001"]
    assert not list((folder / "shards").glob(".*"))
    cache = FeatureCache(folder, allow_incomplete=True)
    assert cache.read("v0").pts_seconds.size == 3
