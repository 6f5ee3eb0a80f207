"""Several arrays of a shard at once: what is left to copy, and what is found before."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.shards import COLUMNS, LARGE, NUM_FRAMES, SPECS, append_frames, flip_bytes, make_arrays, make_video

from vfz.pipeline.errors import CacheFormatError
from vfz.pipeline.stores import STORES
from vfz.pipeline.stores.mapped import copy_frames

pytestmark = pytest.mark.quick

LENGTHS = (5, 64, 1, 100, 35)


@pytest.fixture(scope="module", params=sorted(STORES))
def shard(request, tmp_path_factory):
    """Kind of store, path, record and arrays of five videos."""
    store = STORES[request.param]
    path, arrays = tmp_path_factory.mktemp("shard") / f"shard{store.suffix}", make_arrays(COLUMNS, NUM_FRAMES)
    with store.writer(path, COLUMNS) as writer:
        start = 0
        for number, length in enumerate(LENGTHS):
            writer.begin_video(make_video(number))
            append_frames(writer, arrays, start, start + length)
            start += length
        return store, path, writer.finish(), arrays


@pytest.mark.parametrize(
    "frames",
    [
        range(10, 26),
        range(70, 170, 7),
        range(60, 80),  # of three videos
        range(NUM_FRAMES),
        range(90, 80, -1),
        range(5, 5),
        np.array([200, 3, 3, 77]),
        np.arange(12, 20),
    ],
    ids=str,
)
@pytest.mark.parametrize("checksums", ["never", "first", "always"])
def test_all_arrays_of_some_frames_are_read_at_once(shard, frames, checksums):
    store, path, data, arrays = shard
    reader = store.reader(path, data, checksums=checksums)
    outs = {key: np.zeros((len(frames), *spec.frame_shape), spec.dtype) for key, spec in SPECS.items()}
    later = []
    reader.read_into(frames, outs, later)
    reader.close()  # what is left to copy stays where it is
    for out, source in later:
        copy_frames(out, source)
    for key, out in outs.items():
        np.testing.assert_array_equal(out, arrays[key][np.asarray(frames, np.int64)])


def test_damage_is_found_before_anything_is_put_off(shard, tmp_path):
    store, _, _, arrays = shard
    path = tmp_path / f"damaged{store.suffix}"
    with store.writer(path, COLUMNS) as writer:
        writer.begin_video(make_video(0))
        append_frames(writer, arrays, 0, 40)
        data = writer.finish()
    flip_bytes(path, data, arrays[LARGE][30].tobytes()[:16])
    out, later = np.zeros((10, *SPECS[LARGE].frame_shape), SPECS[LARGE].dtype), []
    with pytest.raises(CacheFormatError, match=rf"{LARGE}.*crc32c"):
        store.reader(path, data).read_into(range(25, 35), {LARGE: out}, later)
    assert later == []


@pytest.mark.parametrize("gap", [0, 4], ids=["side by side", "apart"])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("num_frames", [1, 66])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_frames_are_copied_bit_by_bit(gap, step, num_frames, dtype):
    """Numbers that are none, too; and doubles at odd addresses."""
    itemsize = np.dtype(dtype).itemsize
    frame_bytes = 64 * 129 * itemsize
    memory = np.frombuffer(np.random.default_rng(0).bytes(70 * (frame_bytes + gap)), np.uint8)
    frames = np.ndarray((70, 64, 129), dtype, memory, 0, (frame_bytes + gap, 129 * itemsize, itemsize))
    window = frames[3 : 3 + num_frames : step]
    out = np.zeros(window.shape, dtype)
    copy_frames(out, window)
    assert out.tobytes() == window.tobytes()
