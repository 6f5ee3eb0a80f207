"""What every store must do. A store's test subclasses `StoreContract` and names the store."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.errors import CacheFormatError, EncoderError, UnknownNameError, UsageError
from vfz.pipeline.stores import STORES, Column, ShardData, ShardReader
from vfz.pipeline.stores.records import PTS_KEY

Arrays = dict[str, np.ndarray]

COLUMNS = (
    Column(layer="2", part="patch", num_tokens=9, dim=40, dtype="float16"),
    Column(layer="2", part="prefix", num_tokens=2, dim=40, dtype="float16"),
    Column(layer="final", part="patch", num_tokens=128, dim=150, dtype="float32"),  # above 64 KiB a frame
)
NUM_FRAMES = 205


def make_arrays(columns: tuple[Column, ...], num_frames: int, seed: int = 0) -> Arrays:
    """Seeded tokens per column key, and times."""
    rng = np.random.default_rng(seed)
    arrays = {
        column.key: rng.standard_normal((num_frames, column.num_tokens, column.dim)).astype(column.dtype)
        for column in columns
    }
    return {**arrays, PTS_KEY: np.cumsum(rng.uniform(0.1, 0.2, num_frames))}


def window(arrays: Arrays, start: int, end: int) -> tuple[Arrays, np.ndarray]:
    """Frames start to end, as `ShardWriter.append` takes them."""
    return {key: array[start:end] for key, array in arrays.items() if key != PTS_KEY}, arrays[PTS_KEY][start:end]


def _read_in_child(reader: ShardReader, key: str, frames: np.ndarray, connection) -> None:
    connection.send_bytes(reader.read(key, frames).tobytes())


class StoreContract:
    """Subclass it, name the class `Test...` and set `store`."""

    store: str

    def write(self, folder: Path, columns: tuple[Column, ...], arrays: Arrays, step: int = 7) -> ShardData:
        num_frames = len(arrays[PTS_KEY])
        with STORES[self.store].writer(folder, columns) as writer:
            for start in range(0, num_frames, step):
                writer.append(*window(arrays, start, min(start + step, num_frames)))
            return writer.finish()

    def reader(self, folder: Path, data: ShardData, checksums="first") -> ShardReader:
        return STORES[self.store].reader(folder, data, checksums=checksums)

    @pytest.fixture
    def shard(self, tmp_path) -> tuple[Path, ShardData, Arrays]:
        arrays = make_arrays(COLUMNS, NUM_FRAMES)
        return tmp_path / "00000-abc", self.write(tmp_path / "00000-abc", COLUMNS, arrays), arrays

    @given(
        key=st.sampled_from([*(column.key for column in COLUMNS), PTS_KEY]),
        frames=st.one_of(
            st.builds(range, st.integers(0, 204), st.integers(0, 205), st.integers(1, 9)).map(list),
            st.lists(st.integers(0, NUM_FRAMES - 1), max_size=20),
        ),
        checksums=st.sampled_from(["never", "first", "always"]),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def test_any_frames_come_back_equal(self, shard, key, frames, checksums):
        folder, data, arrays = shard
        read = self.reader(folder, data, checksums).read(key, np.array(frames, np.int64))
        assert read.dtype == arrays[key].dtype
        np.testing.assert_array_equal(read, arrays[key][frames])

    def test_the_record_lists_every_file_and_survives_json(self, shard):
        folder, data, _ = shard
        on_disk = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        assert on_disk.keys() == data.files.keys()
        assert all(on_disk[name].stat().st_size == record.num_bytes for name, record in data.files.items())
        assert ShardData.from_dict(json.loads(json.dumps(data.to_dict()))) == data

    def test_the_recorded_sha256_is_that_of_the_file(self, shard):
        from vfz.pipeline.files import sha256_file

        folder, data, _ = shard
        assert {name: sha256_file(folder / name) for name in data.files} == {
            name: record.sha256 for name, record in data.files.items()
        }

    def test_the_same_frames_give_the_same_bytes_however_they_are_dealt(self, tmp_path):
        arrays = make_arrays(COLUMNS, 90)
        first, second = (self.write(tmp_path / str(step), COLUMNS, arrays, step=step) for step in (1, 64))
        assert first.files == second.files
        assert first.chunks == second.chunks

    @given(
        kept=st.integers(0, 100),
        dropped=st.integers(0, 100),
        after=st.integers(0, 30),
        step=st.sampled_from([1, 5, 64]),
    )
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def test_a_rolled_back_video_leaves_nothing(self, kept, dropped, after, step):
        good, bad = make_arrays(COLUMNS, kept + after + 1), make_arrays(COLUMNS, dropped, seed=1)
        with tempfile.TemporaryDirectory() as parent:
            expected = self.write(Path(parent) / "plain", COLUMNS, good)
            with STORES[self.store].writer(Path(parent) / "rolled", COLUMNS) as writer:
                writer.append(*window(good, 0, kept))
                for start in range(0, dropped, step):
                    writer.append(*window(bad, start, min(start + step, dropped)))
                writer.rollback(kept)
                assert writer.num_frames == kept
                writer.append(*window(good, kept, kept + after + 1))
                assert writer.finish().files == expected.files

    def test_an_abort_leaves_nothing(self, tmp_path):
        arrays = make_arrays(COLUMNS, 80)
        writer = STORES[self.store].writer(tmp_path / "shard", COLUMNS)
        writer.append(*window(arrays, 0, 80))
        writer.abort()
        writer.abort()
        assert list(tmp_path.iterdir()) == []

    def test_an_error_inside_a_with_block_leaves_nothing(self, tmp_path):
        def extract() -> None:
            with STORES[self.store].writer(tmp_path / "shard", COLUMNS) as writer:
                writer.append(*window(make_arrays(COLUMNS, 3), 0, 3))
                raise RuntimeError("somebody pulled the cable")

        with pytest.raises(RuntimeError, match="cable"):
            extract()
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_exists_is_not_touched(self, tmp_path):
        (tmp_path / "shard").mkdir()
        (tmp_path / "shard" / "mine").write_text("keep")
        with pytest.raises(FileExistsError):
            STORES[self.store].writer(tmp_path / "shard", COLUMNS)
        assert (tmp_path / "shard" / "mine").read_text() == "keep"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("key", [*(column.key for column in COLUMNS), PTS_KEY])
    def test_numbers_that_are_not_finite_are_refused_and_nothing_is_added(self, tmp_path, key, value):
        good, bad = make_arrays(COLUMNS, 10), make_arrays(COLUMNS, 10)
        bad[key][6].reshape(-1)[-1:] = value
        if key == PTS_KEY:
            bad[key][6] = value
        with STORES[self.store].writer(tmp_path / "shard", COLUMNS) as writer:
            writer.append(*window(good, 0, 4))
            with pytest.raises(EncoderError, match="NaN or infinite"):
                writer.append(*window(bad, 4, 10))
            assert writer.num_frames == 4
            writer.append(*window(good, 4, 10))
            data = writer.finish()
        assert data.files == self.write(tmp_path / "plain", COLUMNS, good).files

    def test_another_shape_dtype_or_set_of_columns_is_refused(self, tmp_path):
        tokens, pts_seconds = window(make_arrays(COLUMNS, 4), 0, 4)
        key = COLUMNS[0].key
        wrong = [
            {**tokens, key: tokens[key][:3]},
            {**tokens, key: tokens[key][:, :-1]},
            {**tokens, key: tokens[key].astype(np.float32)},
            {name: array for name, array in tokens.items() if name != key},
            {**tokens, "layer_9/patch": tokens[key]},
        ]
        with STORES[self.store].writer(tmp_path / "shard", COLUMNS) as writer:
            for case in wrong:
                with pytest.raises(EncoderError, match=r"layer_2/patch"):
                    writer.append(case, pts_seconds)
            assert writer.num_frames == 0
            with pytest.raises(ValueError, match="abort"):
                writer.finish()

    def test_a_given_buffer_is_filled(self, shard):
        folder, data, arrays = shard
        reader = self.reader(folder, data)
        for column in COLUMNS:
            out = np.empty((5, column.num_tokens, column.dim), column.dtype)
            assert reader.read(column.key, np.arange(3, 8), out) is out
            np.testing.assert_array_equal(out, arrays[column.key][3:8])
            with pytest.raises(UsageError, match="out is"):
                reader.read(column.key, np.arange(3, 9), out)

    def test_a_frame_or_array_that_is_not_there_is_refused(self, shard):
        folder, data, _ = shard
        reader = self.reader(folder, data)
        for frames in ([NUM_FRAMES], [-1], [0, 10_000]):
            with pytest.raises(UsageError, match="0 to 204"):
                reader.read(PTS_KEY, np.array(frames))
        with pytest.raises(UnknownNameError, match="layer_2/patch"):
            reader.read("layer_3/patch", np.arange(2))

    @pytest.mark.parametrize("checksums", ["first", "always"])
    @pytest.mark.parametrize("key", [*(column.key for column in COLUMNS), PTS_KEY])
    def test_a_flipped_byte_is_found_by_the_read_that_meets_it(self, tmp_path, key, checksums):
        arrays = make_arrays(COLUMNS, 60)
        data = self.write(tmp_path / "shard", COLUMNS, arrays)
        needle = arrays[key][30].tobytes()[:8]
        path, place = next(
            (path, place)
            for path in map((tmp_path / "shard").joinpath, data.files)
            if (place := path.read_bytes().find(needle)) >= 0
        )
        content = bytearray(path.read_bytes())
        content[place] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(CacheFormatError, match=r"chunk \d+ .*crc32c"):
            self.reader(tmp_path / "shard", data, checksums).read(key, np.arange(28, 34))
        never = self.reader(tmp_path / "shard", data, "never").read(key, np.arange(28, 34))
        assert (never != arrays[key][28:34]).sum() == 1

    def test_first_checks_a_chunk_once_and_always_every_time(self, tmp_path):
        arrays = make_arrays(COLUMNS, 30)
        data = self.write(tmp_path / "shard", COLUMNS, arrays)
        key = COLUMNS[2].key
        first, always = (self.reader(tmp_path / "shard", data, mode) for mode in ("first", "always"))
        for reader in (first, always):
            reader.read(key, np.arange(10))
        path, place = next(
            (path, place)
            for path in map((tmp_path / "shard").joinpath, data.files)
            if (place := path.read_bytes().find(arrays[key][5].tobytes())) >= 0
        )
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\x00" * 8)
        first.close()  # what was checked stays known
        first.read(key, np.arange(10))
        with pytest.raises(CacheFormatError):
            always.read(key, np.arange(10))

    @pytest.mark.parametrize("num_lost", [1, 4, 1000])
    def test_a_truncated_or_missing_file_is_found_at_opening(self, tmp_path, num_lost):
        arrays = make_arrays(COLUMNS, 60)
        data = self.write(tmp_path / "shard", COLUMNS, arrays)
        largest = max(data.files, key=lambda name: data.files[name].num_bytes)
        path = tmp_path / "shard" / largest
        os.truncate(path, path.stat().st_size - num_lost)
        for gone in (False, True):
            if gone:
                path.unlink()
            reader = self.reader(tmp_path / "shard", data, "never")
            with pytest.raises(CacheFormatError, match="cannot read" if gone else "bytes"):
                [reader.read(column.key, np.array([0])) for column in COLUMNS]

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    # Python 3.12 warns of any fork while threads run; that readers survive it is the point here.
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_an_open_reader_works_in_another_process(self, shard, method):
        folder, data, arrays = shard
        reader, key = self.reader(folder, data), COLUMNS[0].key
        reader.read(key, np.arange(4))
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=_read_in_child, args=(reader, key, np.arange(50, 60), theirs))
        process.start()
        assert ours.poll(30)
        assert ours.recv_bytes() == arrays[key][50:60].tobytes()
        process.join(30)
        assert process.exitcode == 0

    def test_a_pickled_reader_reads(self, shard):
        folder, data, arrays = shard
        reader = self.reader(folder, data)
        reader.read(PTS_KEY, np.arange(4))
        again = pickle.loads(pickle.dumps(reader))  # noqa: S301
        np.testing.assert_array_equal(again.read(PTS_KEY, np.arange(9)), arrays[PTS_KEY][:9])
