"""Caches that earlier versions wrote are read to the same bits. `make_caches.py` made them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.built_cache import FAILED
from helpers.reference import plain_arrays, plain_tokens

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.recipe import PRECISIONS, QUANTISED

pytestmark = pytest.mark.quick

CACHES = Path(__file__).parent / "caches"
VERSIONS = sorted(path.name for path in CACHES.iterdir() if path.is_dir())
NAMES = sorted(path.parent.relative_to(CACHES).as_posix() for path in CACHES.glob("*/*/vfz.json"))
STORES = {"v1": ("zarr", "webdataset")}
"""The stores that each version of the format was released with."""
COLUMNS = (("2", "patch"), ("2", "prefix"), ("5", "patch"), ("final", "patch"))
VIDEOS = [(video_id, view) for view in (0, 1) for video_id in ("v0", "v1", "v4")]

every_cache = pytest.mark.parametrize("name", NAMES)


def test_every_version_is_there_in_each_of_its_stores_and_precisions():
    kinds = [f"{version}/{store}" for version in VERSIONS for store in STORES[version]]
    assert set(NAMES) == {f"{kind}-{precision}" for kind in kinds for precision in PRECISIONS}


def expected_arrays(name: str) -> dict[str, np.ndarray]:
    """What the cache must give, by `<id>/<view>/<array key>`; tokens where they are quantised."""
    version, precision = name.partition("/")[0], name.rpartition("-")[2]
    with np.load(CACHES / version / "expected.npz", allow_pickle=False) as content:
        return {key.partition("/")[2]: content[key] for key in content.files if key.partition("/")[0] == precision}


@every_cache
def test_every_token_is_read_as_it_was_written(name):
    expected = expected_arrays(name)
    cache = FeatureCache(CACHES / name, checksums="always")
    assert {(row.id, row.view) for row in cache.videos if row.status == "ok"} == set(VIDEOS)
    assert {row.id for row in cache.videos if row.status == "failed"} == {FAILED}
    for video_id, view in VIDEOS:
        clip = cache.read(video_id, view=view)
        np.testing.assert_array_equal(clip.pts_seconds, expected[f"{video_id}/{view}/pts_seconds"])
        for layer, part in COLUMNS:
            key = f"{video_id}/{view}/layer_{layer}/{part}"
            payload = clip.payload(layer, part)
            assert payload.dtype == expected[key].dtype
            np.testing.assert_array_equal(payload, expected[key])
            tokens = expected.get(f"{key}/tokens", expected[key])
            np.testing.assert_allclose(clip.tokens(layer, part), tokens, rtol=1e-6, atol=1e-6)


@every_cache
def test_verifying_finds_nothing(name):
    report = verify_cache(CACHES / name)
    assert report.problems == ()
    assert report.num_videos == len(VIDEOS)


@every_cache
def test_the_plain_libraries_read_the_same(name):
    expected, found = expected_arrays(name), plain_arrays(CACHES / name)
    assert found.keys() == set(VIDEOS)
    for (video_id, view), arrays in found.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, expected[f"{video_id}/{view}/{key}"])
        for layer, part in COLUMNS if name.endswith(QUANTISED) else ():
            tokens = expected[f"{video_id}/{view}/layer_{layer}/{part}/tokens"]
            np.testing.assert_allclose(plain_tokens(CACHES / name, arrays, layer, part), tokens, rtol=1e-5, atol=1e-5)


@every_cache
def test_nothing_in_them_depends_on_the_machine_that_made_them(name):
    header = json.loads((CACHES / name / "vfz.json").read_bytes())
    assert header["provenance"].keys() == {"root", "encoder_request", "versions"}, "no host, no Python, no device"
    for path in (CACHES / name).rglob("*.json"):
        folders = re.findall(r'"(/[^"/]+)', path.read_text(encoding="utf-8"))
        assert set(folders) <= {"/videos"}, path


def test_they_stay_small():
    assert sum(path.stat().st_size for path in CACHES.rglob("*") if path.is_file()) < 1.6e6 * len(VERSIONS)
