"""The Zarr store: the store contract, and that zarr-python alone reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from contracts.store_contract import COLUMNS, StoreContract, make_arrays, window
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from vfz.pipeline.errors import CacheFormatError, UnknownNameError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.stores import STORES, Column, ShardData, get_store
from vfz.pipeline.stores.records import PTS_KEY, FileRecord
from vfz.pipeline.stores.zarr_store import chunk_index


class TestZarrStore(StoreContract):
    store = "zarr"


def _write(folder: Path, columns: tuple[Column, ...], num_frames: int) -> tuple[ShardData, dict[str, np.ndarray]]:
    arrays = make_arrays(columns, num_frames)
    return TestZarrStore().write(folder, columns, arrays), arrays


@pytest.mark.parametrize("num_frames", [1, 2, 63, 64, 65, 131])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "dtype", "frames_per_chunk"),
    [
        (1, 1, "float32", 16384),
        (1, 384, "float16", 86),
        (4, 256, "float16", 32),
        (36, 112, "float16", 9),
        (128, 128, "float32", 1),
        (201, 384, "float16", 1),
    ],
)
def test_zarr_alone_reads_every_array_equal(tmp_path, num_frames, num_tokens, dim, dtype, frames_per_chunk):
    column = Column(layer="11", part="patch", num_tokens=num_tokens, dim=dim, dtype=dtype)
    data, arrays = _write(tmp_path / "shard", (column,), num_frames)
    group = zarr.open_group(tmp_path / "shard", mode="r")
    for key, expected in arrays.items():
        found = group[key]
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[:], expected)
    assert group["layer_11"]["patch"].chunks == (frames_per_chunk, num_tokens, dim)
    assert data.chunks[column.key].frames_per_chunk == frames_per_chunk


def test_each_array_is_one_file_with_its_index_at_the_end(tmp_path):
    data, arrays = _write(tmp_path / "shard", COLUMNS, 70)
    data_files = {name for name in data.files if not name.endswith("zarr.json")}
    assert data_files == {
        "layer_2/patch/c/0/0/0",
        "layer_2/prefix/c/0/0/0",
        "layer_final/patch/c/0/0/0",
        "pts_seconds/c/0",
    }
    chunk_bytes = arrays["layer_final/patch"][0].nbytes + 4
    content = (tmp_path / "shard/layer_final/patch/c/0/0/0").read_bytes()
    assert content.endswith(chunk_index(70, chunk_bytes))
    assert data.files["layer_final/patch/c/0/0/0"].num_bytes == 70 * chunk_bytes + 70 * 16 + 4


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


def test_memory_does_not_grow_with_the_shard(tmp_path):
    import tracemalloc

    column = Column(layer="0", part="patch", num_tokens=201, dim=384, dtype="float16")
    arrays = make_arrays((column,), 8)
    peaks = []
    for num_batches in (4, 40):
        tracemalloc.start()
        with STORES["zarr"].writer(tmp_path / str(num_batches), (column,)) as writer:
            for _ in range(num_batches):
                writer.append(*window(arrays, 0, 8))
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000  # 320 frames are 49 MB


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


@pytest.mark.parametrize("checksums", ["never", "first"])
def test_compressed_chunks_are_read_through_zarr(tmp_path, checksums):
    folder, key = tmp_path / "shard", COLUMNS[0].key
    data, arrays = _write(folder, COLUMNS, 150)
    frames_per_chunk = data.chunks[key].frames_per_chunk
    data = _rewrite(folder, data, key, arrays[key], [BytesCodec(), ZstdCodec(), Crc32cCodec()], frames_per_chunk)
    reader = STORES["zarr"].reader(folder, data, checksums=checksums)
    for frames in (np.arange(3, 140, 7), np.array([149, 0, 5, 5, 148])):
        np.testing.assert_array_equal(reader.read(key, frames), arrays[key][frames])
    path = folder / key / "c/0/0/0"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheFormatError, match="cannot be decoded"):
        reader.read(key, np.arange(150))


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
        get_store("zar")
