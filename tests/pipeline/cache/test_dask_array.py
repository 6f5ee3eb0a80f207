"""All tokens of a cache as a dask array, reduced shard by shard."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.tiny_cache import add_layer, columns_of, expected_tokens, fill_cache, new_cache, num_frames_of

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError

dask_array = pytest.importorskip("dask.array")


@pytest.fixture(scope="module", params=["fp16", "int8"])
def cache(request, tmp_path_factory):
    """Seven videos in three shards; v3 failed, v1 lacks layer 23."""
    folder = tmp_path_factory.mktemp("dask") / "cache"
    new_cache(folder, num_videos=7, shard_size_videos=3, precision=request.param)
    fill_cache(folder, bad=("v3",))
    add_layer(folder, "23")
    fill_cache(folder, number=1, layers=("23",), bad=("v1",))
    return FeatureCache(folder)


def _all_tokens(cache, names, column):
    (column,) = (one for one in cache.contents.columns if one.key == column)
    return np.concatenate([expected_tokens(name, column) for name in names])


def test_it_is_all_tokens_of_all_ok_videos_with_a_chunk_per_shard(cache):
    tokens = cache.to_dask(11)
    names = ["v0", "v1", "v2", "v4", "v5", "v6"]
    assert tokens.dtype == np.float32
    assert tokens.chunks[0] == (3 + 4 + 5, 7 + 8, 9)
    np.testing.assert_array_equal(tokens.compute(scheduler="sync"), _all_tokens(cache, names, "layer_11/patch"))
    val = cache.to_dask(11, "prefix", split="val")
    expected = _all_tokens(cache, ["v2", "v5"], "layer_11/prefix")
    np.testing.assert_array_equal(val.compute(scheduler="threads"), expected)
    later = cache.to_dask(23, split="train")
    expected = _all_tokens(cache, ["v0", "v4", "v6"], "layer_23/patch")
    np.testing.assert_array_equal(later.compute(scheduler="threads"), expected)


def test_reductions_equal_those_of_numpy(cache):
    tokens = cache.to_dask(2)
    expected = _all_tokens(cache, ["v0", "v1", "v2", "v4", "v5", "v6"], "layer_2/patch")
    mean_D, std_D = tokens.mean(axis=(0, 1)), tokens.std(axis=(0, 1))
    np.testing.assert_allclose(mean_D.compute(scheduler="threads"), expected.mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(std_D.compute(scheduler="threads"), expected.std(axis=(0, 1)), atol=1e-6)
    rows_MD, flat_MD = tokens.reshape(-1, 8), expected.reshape(-1, 8)
    covariance_DD = (rows_MD - mean_D).T @ (rows_MD - mean_D) / (len(flat_MD) - 1)
    np.testing.assert_allclose(covariance_DD.compute(scheduler="threads"), np.cov(flat_MD.T), atol=1e-5)


def test_nothing_is_read_before_it_is_computed(cache, tmp_path):
    folder = shutil.copytree(cache.path, tmp_path / "cache")
    tokens = FeatureCache(folder).to_dask(2)
    (path,) = folder.glob("shards/00001-*/layer_2/patch/c/0/0/0")
    content = bytearray(path.read_bytes())
    content[3] ^= 4
    path.write_bytes(content)
    tokens[:12].compute(scheduler="sync")
    with pytest.raises(CacheFormatError, match=r"video 'v4', layer_2/patch, shard 00001: .*crc32c"):
        tokens.compute(scheduler="sync")


def test_what_cannot_be_is_refused(cache):
    with pytest.raises(UnknownNameError, match="unknown layer '5'"):
        cache.to_dask(5)
    with pytest.raises(UnknownNameError, match="unknown part"):
        cache.to_dask(2, "all")
    with pytest.raises(UsageError, match=r"no video of .* has layer_2/patch"):
        cache.to_dask(2, view=3)


CLUSTER = """
import sys
import numpy as np
from vfz.pipeline.cache.feature_cache import FeatureCache

if __name__ == "__main__":
    from dask.distributed import Client, LocalCluster

    cache = FeatureCache(sys.argv[1])
    tokens = cache.to_dask(2)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        there = tokens.sum(axis=(0, 1)).compute()
    here = tokens.sum(axis=(0, 1)).compute(scheduler="sync")
    print(np.allclose(there, here))
"""


def test_processes_of_a_dask_cluster_read_the_shards_themselves(tmp_path):
    pytest.importorskip("distributed")
    new_cache(tmp_path / "cache", precision="int8")
    fill_cache(tmp_path / "cache")
    (tmp_path / "program.py").write_text(CLUSTER)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py", "cache"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_the_frames_add_up(cache):
    names = [row.id for row in cache.ok_videos(layers=(2,))]
    assert cache.to_dask(2).shape == (sum(map(num_frames_of, names)), 4, 8)
    assert {column.key for column in columns_of()} < {column.key for column in cache.contents.columns}
