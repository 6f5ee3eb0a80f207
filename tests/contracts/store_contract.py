"""What every store must do. A store's test subclasses `StoreContract` and names the store.

This file holds what is about writing; what is about reading is inherited from `store_reading_contract.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from contracts.store_reading_contract import StoreReadingContract
from helpers.shards import (
    COLUMNS,
    HARD_IDS,
    NUM_FRAMES,
    SCALES,
    SMALL,
    SPECS,
    append_frames,
    lengths_of_videos,
    make_arrays,
    make_video,
    window,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.errors import EncoderError
from vfz.pipeline.files import sha256_file
from vfz.pipeline.stores import ShardData, ShardVideo, StoredVideo
from vfz.pipeline.stores.metadata import PTS_KEY

quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)


class StoreContract(StoreReadingContract):
    """Subclass it, name the class `Test...` and set `store`."""

    # --- what is written ---

    @pytest.mark.quick
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
