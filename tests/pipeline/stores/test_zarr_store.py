"""The Zarr store: the store contract, and that zarr-python alone reads it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from contracts.store_contract import StoreContract
from helpers.measure import bytes_from_disk, can_evict, evict
from helpers.shards import (
    COLUMNS,
    LARGE,
    NUM_FRAMES,
    SPECS,
    append_frames,
    lengths_of_videos,
    make_arrays,
    make_video,
    read_in_process,
    window,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from vfz.pipeline.errors import CacheFormatError, UnknownNameError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.stores import STORES, Column, ShardData
from vfz.pipeline.stores.metadata import PTS_KEY, FileRecord
from vfz.pipeline.stores.zarr_writer import chunk_index

CODECS = ("zstd", "blosc-zstd")


class TestZarrStore(StoreContract):
    store = "zarr"


@pytest.fixture(params=CODECS)
def compressed(request, tmp_path) -> tuple[Path, ShardData, dict[str, np.ndarray]]:
    """A shard with every column compressed, tokens mostly zero, so that chunks have lengths of their own."""
    arrays = sparse_arrays(NUM_FRAMES)
    path = tmp_path / "shard"
    return path, TestZarrStore().write(path, with_codec(request.param), arrays), arrays


def with_codec(name: str) -> tuple[Column, ...]:
    return tuple(dataclasses.replace(column, compression=name) for column in COLUMNS)


def sparse_arrays(num_frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    arrays = make_arrays(COLUMNS, num_frames, seed)
    for key in set(arrays) - {PTS_KEY}:
        arrays[key][np.random.default_rng(seed).random(arrays[key].shape) < 0.9] = 0
    return arrays


def _write(folder: Path, columns: tuple[Column, ...], num_frames: int) -> tuple[ShardData, dict[str, np.ndarray]]:
    arrays = make_arrays(columns, num_frames)
    return TestZarrStore().write(folder, columns, arrays), arrays


@pytest.mark.parametrize("num_frames", [1, 2, 63, 64, 65, 131])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "precision", "frames_per_chunk"),
    [
        (1, 1, "fp32", 16384),
        (1, 384, "fp16", 86),
        (4, 256, "fp16", 32),
        (36, 112, "fp16", 9),
        (128, 128, "fp32", 1),
        (201, 384, "fp16", 1),
        (201, 384, "int8", 1),
        (201, 384, "int4", 2),
    ],
)
def test_zarr_alone_reads_every_array_equal(tmp_path, num_frames, num_tokens, dim, precision, frames_per_chunk):
    column = Column(layer="11", part="patch", num_tokens=num_tokens, dim=dim, precision=precision)
    data, arrays = _write(tmp_path / "shard", (column,), num_frames)
    group = zarr.open_group(tmp_path / "shard", mode="r")
    for key, expected in arrays.items():
        found = group[key]
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[:], expected)
    assert group["layer_11"]["patch"].chunks == (frames_per_chunk, *column.payload.frame_shape)
    assert data.chunks[column.key].frames_per_chunk == frames_per_chunk


def test_zarr_alone_tells_which_frames_are_whose(tmp_path):
    _write(tmp_path / "shard", COLUMNS, 70)
    group, start = zarr.open_group(tmp_path / "shard", mode="r"), 0
    for number, (found, length) in enumerate(zip(group.attrs["videos"], lengths_of_videos(70), strict=True)):
        assert found == {**vars(make_video(number)), "frame_start": start, "num_frames": length}
        start += length
    assert start == 70


def test_each_array_is_one_file_with_its_index_at_the_end(tmp_path):
    data, arrays = _write(tmp_path / "shard", COLUMNS, 70)
    data_files = {name for name in data.files if not name.endswith("zarr.json")}
    assert data_files == {f"{key}/c/0{'/0/0' if spec.frame_shape else ''}" for key, spec in SPECS.items()}
    chunk_bytes = arrays[LARGE][0].nbytes + 4
    content = (tmp_path / "shard" / LARGE / "c/0/0/0").read_bytes()
    assert content.endswith(chunk_index(range(chunk_bytes, 71 * chunk_bytes, chunk_bytes)))
    assert data.files[f"{LARGE}/c/0/0/0"].num_bytes == 70 * chunk_bytes + 70 * 16 + 4


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_window_touches_only_the_frames_asked_for(tmp_path, step):
    """Every other frame and every other layer is destroyed; the window is still read, checksums and all."""
    data, arrays = _write(tmp_path / "shard", COLUMNS, 40)
    key = "layer_final/patch"
    frames = np.arange(9, 33, step)
    path = tmp_path / "shard" / key / "c/0/0/0"
    content = bytearray(path.read_bytes())
    chunk_bytes = arrays[key][0].nbytes + 4
    for frame in set(range(40)) - set(frames.tolist()):
        content[frame * chunk_bytes : (frame + 1) * chunk_bytes] = b"\xff" * chunk_bytes
    path.write_bytes(content)
    (tmp_path / "shard/layer_2/patch/c/0/0/0").unlink()
    reader = STORES["zarr"].reader(tmp_path / "shard", data, checksums="always")
    np.testing.assert_array_equal(reader.read(key, frames), arrays[key][frames])


@pytest.mark.parametrize("compression", ["none", *CODECS])
def test_memory_does_not_grow_with_the_shard(tmp_path, compression):
    import tracemalloc

    column = Column(layer="0", part="patch", num_tokens=201, dim=384, precision="fp16", compression=compression)
    arrays = {key: np.abs(array).round() for key, array in make_arrays((column,), 8).items()}
    peaks = []
    for num_batches in (4, 40):
        tracemalloc.start()
        with STORES["zarr"].writer(tmp_path / str(num_batches), (column,)) as writer:
            writer.begin_video(make_video(0))
            for _ in range(num_batches):
                writer.append(*window(arrays, 0, 8))
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000  # 320 frames are 49 MB


def test_windows_of_somebody_elses_file_are_fetched_exactly_too(tmp_path, monkeypatch):
    """The kernel does not tell which pages of a file one may not write are in memory: all are asked for, then."""
    if not can_evict(tmp_path):
        pytest.skip("this file system keeps its files in memory, or the kernel does not count what is read")
    data, arrays = _write(tmp_path / "shard", COLUMNS, 60)
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    evict(tmp_path / "shard")
    before = bytes_from_disk()
    read = STORES["zarr"].reader(tmp_path / "shard", data, checksums="never").read(LARGE, np.arange(20, 40))
    assert read.nbytes <= bytes_from_disk() - before <= 1.1 * read.nbytes
    np.testing.assert_array_equal(read, arrays[LARGE][20:40])


def _rewrite(folder: Path, data: ShardData, key: str, values: np.ndarray, codecs: list, frames: int) -> ShardData:
    """Stores one array again by zarr-python with other codecs, and records the file's new size."""
    num_padded = -(-len(values) // frames) * frames
    zarr.open_group(folder, mode="r+").create_array(
        key,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(num_padded, *values.shape[1:]),
        serializer=ShardingCodec(
            chunk_shape=(frames, *values.shape[1:]), codecs=codecs, index_codecs=[BytesCodec(), Crc32cCodec()]
        ),
        filters=None,
        compressors=None,
        fill_value=0,
        overwrite=True,
    )[:] = values
    name = f"{key}/c/0/0/0"
    record = FileRecord(num_bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
    return ShardData.from_dict({**data.to_dict(), "files": {**data.to_dict()["files"], name: vars(record)}})


def test_zarr_alone_reads_compressed_arrays_equal(compressed):
    path, data, arrays = compressed
    group = zarr.open_group(path, mode="r")
    for key, expected in arrays.items():
        np.testing.assert_array_equal(group[key][:], expected)
    assert data.num_bytes < 0.7 * sum(array.nbytes for array in arrays.values())


@given(frames=st.lists(st.integers(0, NUM_FRAMES - 1), max_size=20), key=st.sampled_from(list(SPECS)))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_any_frames_of_compressed_arrays_come_back_equal(compressed, key, frames):
    path, data, arrays = compressed
    for checksums in ("never", "first", "always"):
        reader = STORES["zarr"].reader(path, data, checksums=checksums)
        np.testing.assert_array_equal(reader.read(key, np.array(frames, np.int64)), arrays[key][frames])
        reader.close()
        assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("step", [1, 50])
def test_a_dropped_video_leaves_nothing_among_compressed_chunks(tmp_path, name, step):
    """Dropped with its chunks in the buffer, half in the file, and wholly behind a chunk that is not full."""
    kept = [sparse_arrays(count, seed) for seed, count in enumerate((60, 7, 30))]
    dropped = [sparse_arrays(count, 9 + seed) for seed, count in enumerate((3, 150, 0))]

    def write(folder: Path, others: list[dict[str, np.ndarray]]) -> ShardData:
        with STORES["zarr"].writer(folder, with_codec(name)) as writer:
            for number, arrays in enumerate(kept):
                for other in others[number : number + 1]:
                    writer.begin_video(make_video(20))
                    append_frames(writer, other, 0, len(other[PTS_KEY]), step)
                    writer.drop_video()
                writer.begin_video(make_video(number))
                append_frames(writer, arrays, 0, len(arrays[PTS_KEY]), step)
            return writer.finish()

    expected, found = write(tmp_path / "plain", []), write(tmp_path / "dropped", dropped)
    assert (found.files, found.chunks) == (expected.files, expected.chunks)


def test_the_same_frames_give_the_same_compressed_bytes(tmp_path):
    arrays = sparse_arrays(90)
    for name in CODECS:
        one, other = (
            TestZarrStore().write(tmp_path / f"{name}{step}", with_codec(name), arrays, step) for step in (1, 64)
        )
        assert (one.files, one.chunks) == (other.files, other.chunks)


@pytest.mark.parametrize("checksums", ["never", "first", "always"])
def test_a_damaged_compressed_chunk_is_named_and_harms_no_other(compressed, checksums):
    """A window decodes its own chunks only: the others may be anything."""
    path, data, arrays = compressed
    file = path / LARGE / "c/0/0/0"
    content = bytearray(file.read_bytes())
    ends = np.frombuffer(content[-4 - 16 * NUM_FRAMES : -4], "<u8").reshape(-1, 2).sum(1)
    content[: int(ends[9])] = b"\xff" * int(ends[9])
    file.write_bytes(content)
    reader = STORES["zarr"].reader(path, data, checksums=checksums)
    with pytest.raises(CacheFormatError, match=r"chunk 8 \(frames 8 to 8 .*crc32c"):
        reader.read(LARGE, np.arange(8, 20))
    np.testing.assert_array_equal(reader.read(LARGE, np.arange(10, 20)), arrays[LARGE][10:20])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_open_reader_of_compressed_chunks_works_in_another_process(compressed, method):
    path, data, arrays = compressed
    reader = STORES["zarr"].reader(path, data)
    reader.read(LARGE, np.arange(4))
    assert read_in_process(method, reader, LARGE, np.arange(50, 60)) == arrays[LARGE][50:60].tobytes()


@pytest.mark.parametrize("codec", [ZstdCodec(level=9), BloscCodec(cname="lz4", typesize=2)])
def test_chunks_compressed_again_by_zarr_are_refused_by_the_old_index_and_read_by_a_new_one(tmp_path, codec):
    folder, key = tmp_path / "shard", "layer_2/patch"
    arrays = sparse_arrays(NUM_FRAMES)
    data = TestZarrStore().write(folder, COLUMNS, arrays)
    codecs = [BytesCodec(), codec, Crc32cCodec()]
    data = _rewrite(folder, data, key, arrays[key], codecs, data.chunks[key].frames_per_chunk)
    np.testing.assert_array_equal(zarr.open_group(folder, mode="r")[key][:], arrays[key])
    with pytest.raises(CacheFormatError, match="crc32c"):
        STORES["zarr"].reader(folder, data).read(key, np.arange(9))
    data = _with_crc32c(folder, data, key)
    reader = STORES["zarr"].reader(folder, data)
    for frames in (np.arange(3, 140, 7), np.array([149, 0, 5, 5, 148])):
        np.testing.assert_array_equal(reader.read(key, frames), arrays[key][frames])


def test_chunks_of_a_codec_that_vfz_does_not_read_are_refused(tmp_path):
    folder, key = tmp_path / "shard", "layer_2/patch"
    data, arrays = _write(folder, COLUMNS, 30)
    for codecs, told in (
        ([BytesCodec(), GzipCodec(), Crc32cCodec()], "compressed by .*gzip"),
        ([BytesCodec(endian="big"), Crc32cCodec()], "little-endian"),
        ([BytesCodec()], "crc32c"),
    ):
        data = _rewrite(folder, data, key, arrays[key], codecs, data.chunks[key].frames_per_chunk)
        with pytest.raises(CacheFormatError, match=told):
            STORES["zarr"].reader(folder, data).read(key, np.arange(3))


def test_chunks_in_another_order_are_read(tmp_path):
    """zarr-python lays the chunks of a shard out in Morton order and leaves the same bytes readable."""
    folder, key = tmp_path / "shard", COLUMNS[2].key
    data, arrays = _write(folder, COLUMNS, 12)
    data = _rewrite(folder, data, key, arrays[key], [BytesCodec(), Crc32cCodec()], 1)
    reader = STORES["zarr"].reader(folder, data)
    np.testing.assert_array_equal(reader.read(key, np.array([7, 2, 11])), arrays[key][[7, 2, 11]])


def test_an_absent_chunk_is_an_error_and_never_zeros(tmp_path):
    folder, key = tmp_path / "shard", COLUMNS[2].key
    data, arrays = _write(folder, COLUMNS, 12)
    arrays[key][4] = 0  # zarr-python does not store chunks that equal the fill value
    data = _rewrite(folder, data, key, arrays[key], [BytesCodec(), Crc32cCodec()], 1)
    with pytest.raises(CacheFormatError, match="chunk 4 is absent"):
        STORES["zarr"].reader(folder, data).read(key, np.array([0]))


@pytest.mark.parametrize("place", [-1, -10, -100])
def test_a_damaged_chunk_index_is_found_whatever_the_checksum_policy(tmp_path, place):
    data, _ = _write(tmp_path / "shard", COLUMNS, 30)
    path = tmp_path / "shard/layer_final/patch/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheFormatError, match="index of its chunks is damaged"):
        STORES["zarr"].reader(tmp_path / "shard", data, checksums="never").read("layer_final/patch", np.array([0]))


def _with_crc32c(folder: Path, data: ShardData, key: str) -> ShardData:
    """The record of an array that was written again, with the checksums that now stand behind its chunks."""
    content, values = (folder / key / "c/0/0/0").read_bytes(), data.to_dict()
    num_chunks = len(data.chunks[key].crc32c)
    ends = np.frombuffer(content[-4 - 16 * num_chunks : -4], "<u8").reshape(-1, 2).sum(1)
    values["chunks"][key]["crc32c"] = [int.from_bytes(content[int(end) - 4 : int(end)], "little") for end in ends]
    return ShardData.from_dict(values)


@pytest.mark.parametrize(("old", "new"), [("float16", "float32"), ("41", "40"), ('"end"', '"bad"'), ("{", "")])
def test_metadata_that_describes_another_array_is_refused(tmp_path, old, new):
    data, _ = _write(tmp_path / "shard", COLUMNS, 41)
    path = tmp_path / "shard/layer_2/patch/zarr.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CacheFormatError, match=r"zarr\.json"):
        STORES["zarr"].reader(tmp_path / "shard", data).read("layer_2/patch", np.array([0]))


def test_times_are_float64(tmp_path):
    data, arrays = _write(tmp_path / "shard", COLUMNS, 5)
    times = STORES["zarr"].reader(tmp_path / "shard", data).read(PTS_KEY, np.arange(5))
    assert times.dtype == np.float64
    np.testing.assert_array_equal(times, arrays[PTS_KEY])


def test_an_unknown_store_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean zarr"):
        STORES["zar"]
