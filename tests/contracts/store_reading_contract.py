"""What every reader of a store must do: the half of `StoreContract` that is about reading.

The data of a shard may be a folder of files or one file: tests find bytes through `ShardData.files`, where `.` is the
data itself. That a plain library reads the same arrays is for each store's own test.
"""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.measure import bytes_from_disk, can_evict, evict
from helpers.shards import (
    COLUMNS,
    LARGE,
    NUM_FRAMES,
    SMALL,
    SPECS,
    Arrays,
    append_frames,
    flip_bytes,
    lengths_of_videos,
    make_arrays,
    make_video,
    read_in_process,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.stores import STORES, Column, ShardData, ShardReader, ShardWriter
from vfz.pipeline.stores.metadata import PTS_KEY

many = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None)


class StoreReadingContract:
    """What is written is read again, damage is found, and readers go to other processes and threads."""

    store: str

    def new_path(self, parent: Path, name: str = "shard") -> Path:
        """Where a shard's data of that name would lie."""
        return parent / f"{name}{STORES[self.store].suffix}"

    def writer(self, path: Path, columns: tuple[Column, ...] = COLUMNS) -> ShardWriter:
        return STORES[self.store].writer(path, columns)

    def reader(self, path: Path, data: ShardData, checksums="first") -> ShardReader:
        return STORES[self.store].reader(path, data, checksums=checksums)

    def write(self, path: Path, columns: tuple[Column, ...], arrays: Arrays, step: int = 7) -> ShardData:
        """All frames of `arrays`, as videos of various lengths, `step` frames at a time."""
        with self.writer(path, columns) as writer:
            start = 0
            for number, length in enumerate(lengths_of_videos(len(arrays[PTS_KEY]))):
                writer.begin_video(make_video(number))
                append_frames(writer, arrays, start, start + length, step)
                start += length
            return writer.finish()

    @pytest.fixture
    def shard(self, tmp_path) -> tuple[Path, ShardData, Arrays]:
        arrays, path = make_arrays(COLUMNS, NUM_FRAMES), self.new_path(tmp_path)
        return path, self.write(path, COLUMNS, arrays), arrays

    @pytest.fixture
    def small_shard(self, tmp_path) -> tuple[Path, ShardData, Arrays]:
        arrays, path = make_arrays(COLUMNS, 60), self.new_path(tmp_path)
        return path, self.write(path, COLUMNS, arrays), arrays

    # --- what is read ---

    @given(
        key=st.sampled_from(list(SPECS)),
        frames=st.one_of(
            st.builds(range, st.integers(0, NUM_FRAMES - 1), st.integers(0, NUM_FRAMES), st.integers(1, 9)).map(list),
            st.lists(st.integers(0, NUM_FRAMES - 1), max_size=20),
        ),
        checksums=st.sampled_from(["never", "first", "always"]),
    )
    @many
    def test_any_frames_come_back_equal(self, shard, key, frames, checksums):
        """Windows, windows with a step, any order, repeats, across the borders of videos."""
        path, data, arrays = shard
        read = self.reader(path, data, checksums).read(key, np.array(frames, np.int64))
        assert read.dtype == arrays[key].dtype
        np.testing.assert_array_equal(read, arrays[key][frames])

    @pytest.mark.quick
    @pytest.mark.parametrize("frames", [np.arange(60, 76), np.arange(2, 80, 5), np.array([199, 3, 3, 70])])
    def test_a_given_buffer_is_filled(self, shard, frames):
        path, data, arrays = shard
        reader = self.reader(path, data)
        for key, spec in SPECS.items():
            # The second is a layer's place in a batch, the third what no file can be read into directly.
            whole = np.zeros((len(frames), *spec.frame_shape), spec.dtype)
            between = np.zeros((len(frames), 3, *spec.frame_shape), spec.dtype)[:, 1]
            scattered = np.zeros((len(frames), *spec.frame_shape, 2), spec.dtype)[..., 0]
            for out in (whole, between, scattered):
                assert reader.read(key, frames, out) is out
                np.testing.assert_array_equal(out, arrays[key][frames])
            with pytest.raises(UsageError, match="out is"):
                reader.read(key, frames[1:], whole)
            with pytest.raises(UsageError, match="out is"):
                reader.read(key, frames, np.zeros(whole.shape, np.complex64))

    def test_a_frame_or_array_that_is_not_there_is_refused(self, shard):
        path, data, _ = shard
        reader = self.reader(path, data)
        for frames in ([NUM_FRAMES], [-1], [0, 10_000]):
            with pytest.raises(UsageError, match="0 to 204"):
                reader.read(PTS_KEY, np.array(frames))
        with pytest.raises(UnknownNameError, match="layer_2/patch"):
            reader.read("layer_3/patch", np.arange(2))
        with pytest.raises(ValueError, match="never, first, always"):
            self.reader(path, data, "sometimes")

    @pytest.mark.parametrize(
        ("layers", "frames"),
        [
            ((0, 1, 2, 3), range(48)),
            ((2,), range(48)),
            ((1,), range(0, 48, 2)),
            ((3,), range(20, 28)),
            ((0,), (40, 3, 17)),
        ],
        ids=["everything", "one layer of four", "every second frame", "a window", "some frames"],
    )
    def test_only_the_bytes_asked_for_leave_the_disk(self, tmp_path, layers, frames):
        if not can_evict(tmp_path):
            pytest.skip("this file system keeps its files in memory, or the kernel does not count what is read")
        columns = tuple(Column(layer=str(k), part="patch", num_tokens=201, dim=384, precision="fp16") for k in range(4))
        path = self.new_path(tmp_path)
        reader = self.reader(path, self.write(path, columns, make_arrays(columns, 48)), "never")
        evict(path)
        before = bytes_from_disk()
        wanted = sum(reader.read(columns[layer].key, np.array(frames)).nbytes for layer in layers)
        assert wanted <= bytes_from_disk() - before <= 1.1 * wanted

    # --- damage ---

    @pytest.mark.parametrize("checksums", ["first", "always"])
    @pytest.mark.parametrize("key", SPECS)
    def test_a_flipped_bit_is_found_by_the_read_that_meets_it(self, small_shard, key, checksums):
        path, data, arrays = small_shard
        flip_bytes(path, data, arrays[key][30].tobytes()[:16])
        with pytest.raises(CacheFormatError, match=r"chunk \d+ \(frames \d+ to \d+ .*crc32c"):
            self.reader(path, data, checksums).read(key, np.arange(28, 34))
        never = self.reader(path, data, "never").read(key, np.arange(28, 34))
        assert (never != arrays[key][28:34]).sum() == 1

    def test_first_checks_a_chunk_once_and_always_every_time(self, small_shard):
        path, data, arrays = small_shard
        first, always = (self.reader(path, data, checksums) for checksums in ("first", "always"))
        for reader in (first, always):
            reader.read(LARGE, np.arange(5, 15))
        flip_bytes(path, data, arrays[LARGE][8].tobytes(), 8)
        first.close()  # what was checked stays known
        first.read(LARGE, np.arange(5, 15))
        with pytest.raises(CacheFormatError):
            always.read(LARGE, np.arange(5, 15))

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_first_checks_a_chunk_once_in_each_process(self, small_shard):
        path, data, arrays = small_shard
        reader = self.reader(path, data)
        reader.read(LARGE, np.arange(5, 15))
        flip_bytes(path, data, arrays[LARGE][8].tobytes(), 8)
        assert read_in_process("fork", reader, LARGE, np.arange(5, 15)).startswith(b"refused: ")

    @pytest.mark.parametrize("num_bytes", [-1000, -4, -1, 1])
    def test_a_file_of_another_size_than_recorded_is_found_at_opening(self, small_shard, num_bytes):
        path, data, _ = small_shard
        largest = path / max(data.files, key=lambda name: data.files[name].num_bytes)
        os.truncate(largest, largest.stat().st_size + num_bytes)
        reader = self.reader(path, data, "never")
        with pytest.raises(CacheFormatError, match=r"has \d+ bytes"):
            [reader.read(key, np.array([0])) for key in SPECS]

    def test_a_file_that_is_gone_is_found_at_opening(self, small_shard):
        path, data, _ = small_shard
        (path / max(data.files, key=lambda name: data.files[name].num_bytes)).unlink()
        reader = self.reader(path, data, "never")
        with pytest.raises(CacheFormatError, match="cannot read"):
            [reader.read(key, np.array([0])) for key in SPECS]

    # --- processes and threads ---

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    # Python 3.12 warns of any fork while threads run; that readers survive it is the point here.
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_an_open_reader_works_in_another_process(self, shard, method):
        path, data, arrays = shard
        reader = self.reader(path, data)
        reader.read(SMALL, np.arange(4))
        assert read_in_process(method, reader, SMALL, np.arange(50, 60)) == arrays[SMALL][50:60].tobytes()
        np.testing.assert_array_equal(reader.read(SMALL, np.arange(50, 60)), arrays[SMALL][50:60])

    def test_a_pickled_reader_reads(self, shard):
        path, data, arrays = shard
        reader = self.reader(path, data)
        reader.read(PTS_KEY, np.arange(4))
        again = pickle.loads(pickle.dumps(reader))  # noqa: S301
        np.testing.assert_array_equal(again.read(PTS_KEY, np.arange(9)), arrays[PTS_KEY][:9])

    def test_a_reader_may_be_closed_by_another_thread_while_it_reads(self, shard):
        path, data, arrays = shard
        reader, wrong, done = self.reader(path, data), [], threading.Event()

        def read() -> None:
            try:
                for start in range(150):
                    for key in (SMALL, LARGE):
                        found = reader.read(key, np.arange(start, start + 20))
                        np.testing.assert_array_equal(found, arrays[key][start : start + 20])
            except Exception as error:  # noqa: BLE001 (told to the thread that asserts)
                wrong.append(error)
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        while not done.wait(0.0005):
            reader.close()
        thread.join(60)
        assert not wrong

    def test_a_closed_reader_holds_no_file_open(self, shard):
        path, data, _ = shard
        reader = self.reader(path, data)
        for _ in range(2):
            for key in SPECS:
                reader.read(key, np.arange(3))
            reader.close()
            held = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
            assert not [name for name in held if name.startswith(str(path))]
            assert str(path) not in Path("/proc/self/maps").read_text()
