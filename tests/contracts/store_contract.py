"""What every store must do. A store's test subclasses `StoreContract` and names the store.

The data of a shard may be a folder of files or one file: tests find bytes through `ShardData.files`, where `.` is the
data itself. That a plain library reads the same arrays is for each store's own test.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.disk import bytes_from_disk, can_evict, evict
from helpers.shards import (
    COLUMNS,
    HARD_IDS,
    LARGE,
    NUM_FRAMES,
    SCALES,
    SMALL,
    SPECS,
    Arrays,
    append_frames,
    flip_bytes,
    lengths_of_videos,
    make_arrays,
    make_video,
    read_in_process,
    window,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.errors import CacheFormatError, EncoderError, UnknownNameError, UsageError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.stores import STORES, Column, ShardData, ShardReader, ShardVideo, ShardWriter, StoredVideo
from vfz.pipeline.stores.metadata import PTS_KEY

quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
many = settings(quick, max_examples=80)


class StoreContract:
    """Subclass it, name the class `Test...` and set `store`."""

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

    # --- what is written ---

    def test_the_record_lists_every_file_and_video_and_survives_json(self, shard):
        path, data, _ = shard
        on_disk = {found.relative_to(path).as_posix(): found for found in path.rglob("*") if found.is_file()}
        on_disk = {".": path} if path.is_file() else on_disk
        assert {name: found.stat().st_size for name, found in on_disk.items()} == {
            name: record.num_bytes for name, record in data.files.items()
        }
        videos = [(make_video(number), length) for number, length in enumerate(lengths_of_videos(NUM_FRAMES))]
        assert data.videos == tuple(
            StoredVideo(id=video.id, view=video.view, num_frames=length) for video, length in videos
        )
        assert (data.store, data.name, data.columns) == (self.store, path.name, COLUMNS)
        assert ShardData.from_dict(json.loads(json.dumps(data.to_dict()))) == data

    def test_the_recorded_sha256_is_that_of_the_file(self, shard):
        path, data, _ = shard
        assert {name: sha256_file(path / name) for name in data.files} == {
            name: record.sha256 for name, record in data.files.items()
        }

    def test_the_same_frames_give_the_same_bytes_however_they_are_dealt(self, tmp_path):
        arrays = make_arrays(COLUMNS, 90)
        first, second = (self.write(self.new_path(tmp_path, str(step)), COLUMNS, arrays, step) for step in (1, 64))
        assert first.files == second.files
        assert first.chunks == second.chunks

    @given(
        videos=st.lists(st.tuples(st.integers(0, 80), st.booleans()), min_size=1, max_size=5),
        step=st.sampled_from([1, 5, 64]),
    )
    @quick
    def test_a_dropped_video_leaves_nothing(self, videos, step):
        """The bytes equal those of a shard in which it was never begun, wherever in the shard it was."""
        kept = [(number, length) for number, (length, drop) in enumerate(videos) if length and not drop] + [(9, 3)]
        arrays = {number: make_arrays(COLUMNS, length, seed=number) for number, (length, _) in enumerate(videos)}
        arrays[9] = make_arrays(COLUMNS, 3, seed=9)
        with tempfile.TemporaryDirectory() as parent:
            with self.writer(self.new_path(Path(parent), "plain")) as writer:
                for number, length in kept:
                    writer.begin_video(make_video(number))
                    append_frames(writer, arrays[number], 0, length)
                expected = writer.finish()
            with self.writer(self.new_path(Path(parent), "dropped")) as writer:
                for number in [*range(len(videos)), 9]:
                    before = writer.num_frames
                    writer.begin_video(make_video(number))
                    append_frames(writer, arrays[number], 0, len(arrays[number][PTS_KEY]), step)
                    if (number, len(arrays[number][PTS_KEY])) not in kept:
                        writer.drop_video()
                        assert writer.num_frames == before
                found = writer.finish()
        assert (found.files, found.chunks, found.videos) == (expected.files, expected.chunks, expected.videos)

    def test_a_dropped_video_may_be_begun_again(self, tmp_path):
        arrays = make_arrays(COLUMNS, 90)
        expected = self.write(self.new_path(tmp_path, "plain"), COLUMNS, arrays)
        with self.writer(self.new_path(tmp_path)) as writer:
            start = 0
            for number, length in enumerate(lengths_of_videos(90)):
                for _ in range(2):
                    writer.begin_video(make_video(number))
                    append_frames(writer, arrays, start, start + length, 16)
                    writer.drop_video()
                writer.begin_video(make_video(number))
                append_frames(writer, arrays, start, start + length, 16)
                start += length
            assert writer.finish().files == expected.files

    def test_an_abort_leaves_nothing(self, tmp_path):
        writer = self.writer(self.new_path(tmp_path))
        writer.begin_video(make_video(0))
        append_frames(writer, make_arrays(COLUMNS, 80), 0, 80, 80)
        writer.abort()
        writer.abort()
        assert list(tmp_path.iterdir()) == []

    def test_an_error_inside_a_with_block_leaves_nothing(self, tmp_path):
        def extract() -> None:
            with self.writer(self.new_path(tmp_path)) as writer:
                writer.begin_video(make_video(0))
                writer.append(*window(make_arrays(COLUMNS, 3), 0, 3))
                raise RuntimeError("somebody pulled the cable")

        with pytest.raises(RuntimeError, match="cable"):
            extract()
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_is_taken_is_not_touched(self, tmp_path):
        for number, make in enumerate((Path.mkdir, Path.touch)):
            path = self.new_path(tmp_path, str(number))
            make(path)
            with pytest.raises(FileExistsError):
                self.writer(path)
            assert path.is_dir() == (make is Path.mkdir)
            assert path.exists()

    # --- what a writer refuses ---

    def test_frames_of_no_video_and_videos_of_no_frame_are_refused(self, tmp_path):
        arrays = make_arrays(COLUMNS, 4)
        with self.writer(self.new_path(tmp_path)) as writer:
            with pytest.raises(ValueError, match="begin_video"):
                writer.append(*window(arrays, 0, 4))
            with pytest.raises(ValueError, match="no video to drop"):
                writer.drop_video()
            with pytest.raises(ValueError, match="abort"):
                writer.finish()
            writer.begin_video(make_video(0))
            with pytest.raises(ValueError, match="no frame"):
                writer.begin_video(make_video(1))
            writer.append(*window(arrays, 0, 4))
            writer.begin_video(make_video(1))
            with pytest.raises(ValueError, match="drop_video"):
                writer.finish()
            writer.drop_video()
            with pytest.raises(ValueError, match="begin_video"):
                writer.append(*window(arrays, 0, 4))  # would be the first video's
            with pytest.raises(ValueError, match="no video to drop"):
                writer.drop_video()
            data = writer.finish()
            for misuse in (lambda: writer.begin_video(make_video(2)), writer.drop_video, writer.finish):
                with pytest.raises(ValueError, match="finished"):
                    misuse()
        assert data.files == self.write(self.new_path(tmp_path, "plain"), COLUMNS, arrays).files

    def test_a_video_is_in_a_shard_once_per_view(self, tmp_path):
        arrays = make_arrays(COLUMNS, 4)
        with self.writer(self.new_path(tmp_path)) as writer:
            for view in (0, 1):
                writer.begin_video(ShardVideo(id="a", view=view, split="test", label=None))
                writer.append(*window(arrays, 2 * view, 2 * view + 2))
            with pytest.raises(ValueError, match="'a', view 1, is in the shard already"):
                writer.begin_video(ShardVideo(id="a", view=1, split="test", label=3))
            assert [(video.id, video.view) for video in writer.finish().videos] == [("a", 0), ("a", 1)]

    def test_a_video_may_have_any_name(self, tmp_path):
        path, arrays = self.new_path(tmp_path), make_arrays(COLUMNS, len(HARD_IDS))
        with self.writer(path) as writer:
            for number, name in enumerate(HARD_IDS):
                writer.begin_video(ShardVideo(id=name, view=0, split="train", label=number))
                writer.append(*window(arrays, number, number + 1))
            data = writer.finish()
        assert [video.id for video in data.videos] == list(HARD_IDS)
        for key in SPECS:
            read = self.reader(path, data).read(key, np.arange(len(HARD_IDS)))
            np.testing.assert_array_equal(read, arrays[key])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("key", [key for key, spec in SPECS.items() if spec.dtype.kind == "f"])
    def test_numbers_that_are_not_finite_are_refused_and_nothing_is_added(self, tmp_path, key, value):
        good, bad = make_arrays(COLUMNS, 5), make_arrays(COLUMNS, 5)
        bad[key][3:4].reshape(-1)[-1:] = value
        with self.writer(self.new_path(tmp_path)) as writer:
            writer.begin_video(make_video(0))
            writer.append(*window(good, 0, 2))
            with pytest.raises(EncoderError, match="NaN or infinite"):
                writer.append(*window(bad, 2, 5))
            assert writer.num_frames == 2
            writer.append(*window(good, 2, 5))
            data = writer.finish()
        assert data.files == self.write(self.new_path(tmp_path, "plain"), COLUMNS, good).files

    def test_another_shape_dtype_or_set_of_arrays_is_refused(self, tmp_path):
        tokens, pts_seconds = window(make_arrays(COLUMNS, 4), 0, 4)
        wrong = [
            {**tokens, SMALL: tokens[SMALL][:3]},
            {**tokens, SMALL: tokens[SMALL][:, :-1]},
            {**tokens, SMALL: tokens[SMALL].astype(np.float32)},
            {key: array for key, array in tokens.items() if key != SCALES},
            {**tokens, "layer_9/patch": tokens[SMALL]},
        ]
        with self.writer(self.new_path(tmp_path)) as writer:
            writer.begin_video(make_video(0))
            for case in wrong:
                with pytest.raises(EncoderError, match=r"layer_2/patch"):
                    writer.append(case, pts_seconds)
            with pytest.raises(EncoderError, match=PTS_KEY):
                writer.append(tokens, pts_seconds.astype(np.float32))
            assert writer.num_frames == 0

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
