"""One cache, many readers: threads, pickles, and DataLoader workers of every start method."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import add_layer, expected_tokens, fill_cache, new_cache, num_frames_of, video_tokens
from torch.utils.data import DataLoader, Dataset

from vfz.pipeline.cache.feature_cache import FeatureCache

TESTS = Path(__file__).parents[2]
METHODS = ("fork", "spawn", "forkserver")
NUM_VIDEOS = 12
FILES_PER_SHARD = 13
"""Payload and scale of six columns, and the times; in the webdataset store two files."""


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def folder(request, tmp_path_factory) -> Path:
    """Twelve int8 videos in six shards; layer 23 came later."""
    cache = tmp_path_factory.mktemp("workers") / "cache"
    new_cache(cache, num_videos=NUM_VIDEOS, precision="int8", store=request.param)
    fill_cache(cache)
    add_layer(cache, "23")
    fill_cache(cache, number=1, layers=("23",))
    return cache


class Clips(Dataset):
    """Every video: its tokens, the process that read it, and that process's open files."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return NUM_VIDEOS

    def __getitem__(self, index):
        clip = self.cache.read(f"v{index}", [0, 2, 1])
        tokens = np.concatenate([clip.tokens(layer, "all") for layer in (2, 23)], axis=1)
        return tokens, os.getpid(), _num_open_data_files(self.cache.path)


def _num_open_data_files(cache):
    # `resolve` puts up with files that another thread closes meanwhile.
    shards = f"{cache}/shards/"
    return sum(shards in str(path.resolve()) for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, when other tests left threads
def test_workers_of_every_start_method_read_the_same(folder, method):
    cache = FeatureCache(folder, checksums="first")
    cache._shards.max_open = 2
    expected = [Clips(cache)[index][0] for index in range(NUM_VIDEOS)]  # open here before the workers start
    loader = DataLoader(Clips(cache), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=60)
    pids = set()
    for (tokens, pid, num_open), wanted in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(tokens, wanted)
        pids.add(pid)
        # A forked worker keeps the bound, and lets go of the files it was born with.
        assert method != "fork" or num_open <= 2 * FILES_PER_SHARD
    assert len(pids) == 2
    assert os.getpid() not in pids
    np.testing.assert_array_equal(Clips(cache)[3][0], expected[3], "the parent reads on")


def test_threads_read_the_same_as_one(folder):
    cache = FeatureCache(folder, checksums="always")
    cache._shards.max_open = 1  # every read closes the shard that another thread may be reading
    names = [f"v{number}" for number in range(NUM_VIDEOS)] * 8
    with ThreadPoolExecutor(8) as pool:
        clips = list(pool.map(cache.read, names))
    for name, clip in zip(names, clips, strict=True):
        column = clip.columns["11", "patch"]
        np.testing.assert_array_equal(clip.tokens(11), expected_tokens(name, column))


def test_a_fork_while_another_thread_reads_does_not_hang(folder):
    """The child must not wait for a lock that was held in its parent."""
    code = f"""
import os, sys, threading
sys.path.insert(0, {str(TESTS)!r})
from vfz.pipeline.cache.feature_cache import FeatureCache
cache = FeatureCache(sys.argv[1])
cache.read("v0")
cache._shards._lock.acquire()  # as if a thread were at it
child = os.fork()
if not child:
    cache.read("v5")
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "7\n", done.stderr


def test_a_pickled_cache_reads_and_is_no_larger_than_its_ledger(folder):
    cache = FeatureCache(folder)
    cache.read("v5")
    data = pickle.dumps(cache)
    assert len(data) < 40_000
    again = pickle.loads(data)  # noqa: S301
    assert again.ledger_digest == cache.ledger_digest
    assert again.videos == cache.videos
    np.testing.assert_array_equal(again.read("v5").payload(2), cache.read("v5").payload(2))


def test_each_chunk_is_checked_once_per_process_however_often_its_file_is_closed(folder, monkeypatch):
    import google_crc32c

    checked = []
    value = google_crc32c.value
    monkeypatch.setattr(google_crc32c, "value", lambda data: checked.append(1) or value(data))
    cache = FeatureCache(folder, checksums="first")
    first = [cache.read(f"v{number}") for number in range(4)]
    once = len(checked)
    assert once
    cache.close()
    chunks_again = len(checked)
    for number, clip in enumerate(first):
        np.testing.assert_array_equal(cache.read(f"v{number}").payload(2), clip.payload(2))
    # What a file is opened with may be compared again; the chunks are not.
    assert len(checked) - chunks_again < once


def test_the_number_of_open_shards_follows_the_limit_of_the_system(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert 1 <= FeatureCache(folder)._shards.max_open <= 128 // FILES_PER_SHARD
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_videos_in_any_order_through_few_open_shards(folder):
    cache = FeatureCache(folder)
    cache._shards.max_open = 2
    for number in np.random.default_rng(0).integers(0, NUM_VIDEOS, 40).tolist():
        clip = cache.read(f"v{number}", layers=(11,))
        assert clip.payload(11).shape == (num_frames_of(f"v{number}"), 4, 8)
        assert clip.pts_seconds.tolist() == video_tokens(f"v{number}")[1].tolist()
