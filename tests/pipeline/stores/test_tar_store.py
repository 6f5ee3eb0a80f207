"""The WebDataset store: the store contract, and that webdataset and tarfile alone read it."""

from __future__ import annotations

import dataclasses
import errno
import gc
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from contracts.store_contract import StoreContract
from helpers.shards import (
    COLUMNS,
    HARD_IDS,
    LARGE,
    NUM_FRAMES,
    SPECS,
    TAR_VIDEO,
    append_frames,
    lengths_of_videos,
    make_arrays,
    make_video,
    read_tar,
    window,
    write_tar,
)

from vfz.pipeline.errors import StorageError
from vfz.pipeline.stores import STORES, Column, ShardVideo
from vfz.pipeline.stores.metadata import PTS_KEY, ArraySpec
from vfz.pipeline.stores.tar_reader import check_layout
from vfz.pipeline.stores.tar_writer import array_header, end_of_archive, padding, sample_name, tar_header

IDS = (
    *HARD_IDS,
    "..",
    "../../etc/passwd",
    "/abs",
    "-rf",
    "_x",
    "__meta__",
    "%2E",
    ".%2E",
    "日本語.mp4",
    "é" * 150,
    "a\\b\n",
    "~",
)


class TestWebDatasetStore(StoreContract):
    store = "webdataset"


@pytest.fixture
def shard(tmp_path):
    """As the contract's: videos of several lengths in all precisions."""
    arrays = make_arrays(COLUMNS, NUM_FRAMES)
    return tmp_path / "s.tar", TestWebDatasetStore().write(tmp_path / "s.tar", COLUMNS, arrays), arrays


# --- plain readability ---


def read_with_webdataset(path: Path, **options) -> list[dict]:
    """Every sample, decoded. webdataset leaves files to the garbage collector, and tells of a default to change."""
    with warnings.catch_warnings(action="ignore"):
        samples = list(webdataset.WebDataset(str(path), **options).decode())
        gc.collect()
    return samples


def expected_samples(arrays):
    """What a reader without vfz should find, video by video."""
    start = 0
    for number, length in enumerate(lengths_of_videos(NUM_FRAMES)):
        about = {**dataclasses.asdict(make_video(number)), "num_frames": length}
        yield about, {f"{key.replace('/', '.')}.npy": array[start : start + length] for key, array in arrays.items()}
        start += length


def assert_samples_equal(samples, arrays):
    for sample, (about, expected) in zip(samples, expected_samples(arrays), strict=True):
        assert sample.pop("json") == about
        assert {name for name in sample if not name.startswith("__")} == expected.keys()
        for name, array in expected.items():
            assert sample[name].dtype == array.dtype
            np.testing.assert_array_equal(sample[name], array)


@pytest.mark.parametrize("options", [{}, {"shardshuffle": False}, {"shardshuffle": 10}])
def test_webdataset_alone_reads_every_array_equal(shard, options):
    path, _, arrays = shard
    assert_samples_equal(read_with_webdataset(path, **options), arrays)


def test_tarfile_and_numpy_alone_read_every_array_equal(shard):
    path, _, arrays = shard
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mode, member.uid, member.gid, member.uname, member.mtime) == (0o644, 0, 0, "", 0)
            name, kind = member.name.split(".", 1)
            content = tar.extractfile(member).read()
            value = json.loads(content) if kind == "json" else np.load(io.BytesIO(content), allow_pickle=False)
            samples.setdefault(name, {})[kind] = value
    assert_samples_equal(samples.values(), arrays)


def test_quantised_tokens_come_back_by_the_formula_alone(shard):
    path, data, arrays = shard
    rng = np.random.default_rng(0)
    offset, std = rng.standard_normal(300), rng.uniform(0.5, 2, 300)
    sample = read_with_webdataset(path)[0]
    for layer, dim in (("5", 300), ("7", 41)):
        q, scale = sample[f"layer_{layer}.patch.npy"], sample[f"layer_{layer}.patch_scale.npy"]
        if q.dtype == np.uint8:  # two channels a byte, low nibble first, two's complement
            nibbles = np.stack([q & 15, q >> 4], axis=-1).reshape(*q.shape[:-1], -1)[..., :dim].astype(np.int8)
            q = np.where(nibbles < 8, nibbles, nibbles - 16)
        value = q * scale.astype(np.float32)[..., np.arange(dim) // 128] * std[:dim] + offset[:dim]
        frame, token, channel = 4, 8, dim - 1
        stored = arrays[f"layer_{layer}/patch"][frame, token]
        number = int(stored[channel]) if layer == "5" else (int(stored[channel // 2]) & 15 ^ 8) - 8
        by_hand = number * float(arrays[f"layer_{layer}/patch_scale"][frame, token, channel // 128])
        assert value[frame, token, channel] == pytest.approx(by_hand * std[channel] + offset[channel], rel=1e-6)
    assert data.columns == COLUMNS


def test_any_id_and_both_views_are_samples_of_their_own(tmp_path):
    videos = [ShardVideo(id=video_id, view=view, split="s", label=None) for video_id in IDS for view in (0, 1)]
    videos += [ShardVideo(id="a%view1", view=0, split="s", label=-1), ShardVideo(id="a", view=1, split="s", label=0)]
    data, arrays = write_tar(tmp_path / "s.tar", COLUMNS[:1], videos)
    check_layout(tmp_path / "s.tar", data)
    samples = read_with_webdataset(tmp_path / "s.tar")
    assert [(sample["json"]["id"], sample["json"]["view"]) for sample in samples] == [(v.id, v.view) for v in videos]
    assert [sample["json"]["label"] for sample in samples] == [video.label for video in videos]
    for key in (COLUMNS[0].key, PTS_KEY):
        np.testing.assert_array_equal(read_tar(tmp_path / "s.tar", data, key), arrays[key])
    (tmp_path / "out").mkdir()
    with tarfile.open(tmp_path / "s.tar") as tar:
        small = [member for member in tar if len(member.name.encode()) < 256]
        tar.extractall(tmp_path / "out", members=small, filter="data")
    assert len(list((tmp_path / "out").iterdir())) == len(small) == 3 * (len(videos) - 2)


# --- names and headers ---


@pytest.mark.parametrize(
    ("video_id", "view", "name"),
    [
        ("v_001-x", 0, "v_001-x"),
        ("v_001", 2, "v_001%view2"),
        ("a.b/c", 0, "a%2Eb%2Fc"),
        ("100%", 0, "100%25"),
        ("a%2Eb", 0, "a%252Eb"),
        ("a%view1", 0, "a%25view1"),
        ("", 0, "%empty"),
        ("Zürich 日本", 0, "Zürich 日本"),
        ("a\\b\n\x7f\u202e", 0, "a%5Cb%0A%7F%E2%80%AE"),
        ("\udc80", 0, "%ED%B2%80"),
    ],
)
def test_names_are_escaped_where_a_file_name_must_be(video_id, view, name):
    assert sample_name(video_id, view) == name


@pytest.mark.parametrize("name", ["a.json", "x" * 100, "x" * 101, "x" * 512, "é" * 50, "é" * 51, "é" * 3000])
@pytest.mark.parametrize("num_bytes", [0, 1, 8**11 - 1, 8**11, 2**43])
def test_headers_are_those_of_tarfile(name, num_bytes):
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    assert tar_header(name, num_bytes) == info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


@pytest.mark.parametrize("shape", [(), (1,), (9, 40), (10**5, 10**6)])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", "i1", "u1"])
def test_array_headers_are_those_of_numpy(shape, dtype):
    spec = ArraySpec(key="layer_5/patch", frame_shape=shape, dtype=np.dtype(dtype))
    for num_frames in (1, 60, 10**12):
        buffer = io.BytesIO()
        about = {"descr": spec.dtype.str, "fortran_order": False, "shape": (num_frames, *shape)}
        np.lib.format.write_array_header_1_0(buffer, about)
        npy = buffer.getvalue()
        expected = tar_header("v.layer_5.patch.npy", len(npy) + num_frames * spec.frame_bytes) + npy
        assert array_header("v", spec, num_frames) == expected


def test_the_archive_ends_as_tarfile_ends_it(shard):
    path, data, _ = shard
    check_layout(path, data)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + members[-1].size
    end += len(padding(end))
    assert path.read_bytes()[end:] == end_of_archive(end)
    assert path.stat().st_size % tarfile.RECORDSIZE == 0


def test_the_bytes_of_a_known_shard_stay_the_same(tmp_path):
    """Readers compare headers with these; another byte would be another format version."""
    columns = (Column(layer="3", part="patch", num_tokens=2, dim=130, precision="int8"),)
    with STORES["webdataset"].writer(tmp_path / "s.tar", columns) as writer:
        for video_id in ("ä.mp4", "x" * 120):
            writer.begin_video(ShardVideo(id=video_id, view=1, split="val", label=None))
            tokens, scale = np.full((2, 2, 130), 5, np.int8), np.full((2, 2, 2), 0.5, np.float16)
            writer.append({"layer_3/patch": tokens, "layer_3/patch_scale": scale}, np.array([0.0, 0.25]))
        data = writer.finish()
    assert data.files["."].sha256 == hashlib.sha256((tmp_path / "s.tar").read_bytes()).hexdigest()
    assert data.files["."].sha256 == "e46eda22832969d1d8bc20c0fe92ed6ca6553a1cd71086a913e0f843b3b6b795"


# --- the writer ---


def test_memory_grows_neither_with_the_video_nor_with_the_shard(tmp_path):
    columns = tuple(Column(layer=layer, part="patch", num_tokens=201, dim=384, precision="fp16") for layer in "01")
    arrays = make_arrays(columns, 8)
    peaks = []
    for num_videos, num_batches in ((1, 4), (1, 20), (5, 4)):
        tracemalloc.start()
        with STORES["webdataset"].writer(tmp_path / f"{num_videos}-{num_batches}.tar", columns) as writer:
            for number in range(num_videos):
                writer.begin_video(make_video(number))
                for _ in range(num_batches):
                    writer.append(*window(arrays, 0, 8))
            writer.finish()
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2_000_000  # 160 frames of two layers are 49 MB


def test_what_waits_has_no_name_beside_the_tar(tmp_path):
    writer = STORES["webdataset"].writer(tmp_path / "s.tar", COLUMNS)
    writer.begin_video(make_video(0))
    append_frames(writer, make_arrays(COLUMNS, 20), 0, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_only_names_that_begin_with_the_tars(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from helpers.shards import COLUMNS, append_frames, make_arrays, make_video
from vfz.pipeline.stores import STORES
from pathlib import Path
writer = STORES["webdataset"].writer(Path({str(tmp_path)!r}) / "s.tar", COLUMNS)
for number in range(2):
    writer.begin_video(make_video(number))
    append_frames(writer, make_arrays(COLUMNS, 20), 0, 20)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert all(path.name.startswith("s.tar") for path in tmp_path.iterdir())


@pytest.mark.parametrize("call", ["pwrite", "fsync", "preadv"])
def test_a_disk_that_is_full_is_told_and_nothing_stays(tmp_path, monkeypatch, call):
    arrays, num_calls, real = make_arrays(COLUMNS, 40), 0, getattr(os, call)

    def full(*args):
        nonlocal num_calls
        num_calls += 1
        if num_calls > (0 if call == "fsync" else 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, call, full)

    def extract() -> None:
        with STORES["webdataset"].writer(tmp_path / "s.tar", COLUMNS) as writer:
            for number in range(4):
                writer.begin_video(make_video(number))
                append_frames(writer, arrays, 0, 40)
            writer.finish()

    with pytest.raises(StorageError, match=r"s\.tar.*no space left.*free some space"):
        extract()
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_is_carried_on(tmp_path, monkeypatch):
    arrays, real = make_arrays(COLUMNS, 40), os.pwrite
    expected = TestWebDatasetStore().write(tmp_path / "plain.tar", COLUMNS, arrays)
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: real(file, memoryview(data)[:1000], offset))
    assert TestWebDatasetStore().write(tmp_path / "s.tar", COLUMNS, arrays).files == expected.files


# --- what is read ---


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_window_touches_only_the_frames_asked_for(tmp_path, step):
    """Every other frame and every other array is destroyed; the window is still read, checksums and all."""
    path = tmp_path / "s.tar"
    data, arrays = write_tar(path, COLUMNS, [TAR_VIDEO, make_video(1)], length=40)
    frames = np.arange(9, 33, step)
    content = np.fromfile(path, np.uint8)
    for key, record in data.chunks.items():
        spec = SPECS[key]
        for video, offset in enumerate(record.offsets):
            payload = content[offset : offset + 40 * spec.frame_bytes].reshape(40, -1)
            keep = frames if key == LARGE and video == 0 else []
            payload[np.setdiff1d(np.arange(40), keep)] = 255
    content.tofile(path)
    reader = STORES["webdataset"].reader(path, data, checksums="always")
    np.testing.assert_array_equal(reader.read(LARGE, frames), arrays[LARGE][frames])
