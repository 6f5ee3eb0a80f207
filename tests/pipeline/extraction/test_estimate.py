"""What there is to do, counted over tasks and the headers of real videos, and how long it takes, worked out by hand."""

import dataclasses
import shutil
import subprocess
from dataclasses import replace

import pytest
from helpers.video_files import VIDEOS, write_video

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.engine.tasks import ShardTask
from vfz.pipeline.errors import StorageError
from vfz.pipeline.extraction.estimate import (
    CLIP_FRAMES,
    SHARD_BYTES,
    ColumnEstimate,
    WorkEstimate,
    check_space,
    draw,
    estimate_work,
    forecast,
    free_bytes,
)
from vfz.pipeline.extraction.measure import Machine
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.format.plan import PlannedVideo
from vfz.pipeline.recipe import FrameSpec
from vfz.pipeline.stores.metadata import Column
from vfz.temporal.training.options import TrainOptions

SIX = FrameSpec(fps=6.0, decoder="pyav", decoder_version=1)
PATCH = Column(layer="11", part="patch", num_tokens=196, dim=384, precision="fp16")
PREFIX = Column(layer="11", part="prefix", num_tokens=5, dim=384, precision="fp16")


@pytest.fixture
def sources(tmp_path):
    """`ten` lasts 10 s, `five` 5.3 s, `gone` is not there and `text` is no video."""
    shutil.copy(VIDEOS / "bikes.mp4", tmp_path / "ten.mp4")
    shutil.copy(VIDEOS / "bigbuckbunny.mp4", tmp_path / "five.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    return {name: VideoSource(path=tmp_path / f"{name}.mp4") for name in ("ten", "five", "gone", "text")}


def task(sources, names, *, columns=(PATCH, PREFIX), shard="00000", view=0):
    return ShardTask(
        shard=shard,
        plan=0,
        number=0,
        columns=columns,
        videos=tuple(
            PlannedVideo(id=name, view=view, split="train", label=0, path=str(sources[name])) for name in names
        ),
        sources={name: sources[name] for name in names},
        attempts={},
    )


def done(name, num_frames):
    return LedgerRow(
        id=name, view=0, split="train", label=0, status="ok", reason="", attempts=1, num_frames=num_frames,
        frame_start=0, shard="00000", source_digest="0", source_path="", duration_seconds=1.0,
    )  # fmt: skip


def estimate(sources, tasks, frames=SIX, rows=(), folder=None):
    present = {name for name, source in sources.items() if source.exists()}
    return estimate_work(tasks, frames, folder=folder or sources["ten"].path.parent, rows=rows, present=present)


def test_frames_follow_from_durations_and_bytes_from_the_columns(sources):
    work = estimate(sources, [task(sources, ["ten", "five", "gone"])])
    assert (work.num_videos, work.num_missing, work.num_frames) == (2, 1, 60 + 32)
    assert work.frames_from == "the headers of 2 videos"
    assert work.frames_error == 0, "every one was looked at"
    assert [column.num_bytes for column in work.columns] == [92 * 196 * 384 * 2, 92 * 5 * 384 * 2]
    assert work.needed_bytes == 92 * 201 * 384 * 2 + SHARD_BYTES


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (dataclasses.replace(SIX, fps=30.0), 250),  # its own rate is 25
        (dataclasses.replace(SIX, start_seconds=4.0), 36),
        (dataclasses.replace(SIX, end_seconds=2.0), 12),
        (dataclasses.replace(SIX, start_seconds=20.0), 0),
        (dataclasses.replace(SIX, fps=None, rule="uniform", num_frames=8), 8),
        (dataclasses.replace(SIX, rule="centred", num_frames=16), 16),
    ],
)
def test_the_rule_that_takes_frames_is_followed(sources, frames, expected):
    assert estimate(sources, [task(sources, ["ten"])], frames).num_frames == expected


def test_what_the_cache_knows_already_is_not_guessed(sources):
    other_view = task(sources, ["ten", "text"], view=1)
    work = estimate(sources, [other_view], rows=[done("ten", 61), done("text", 7)])
    assert (work.num_frames, work.frames_from) == (68, "the cache")


def test_each_column_counts_the_videos_that_get_it(sources):
    tasks = [task(sources, ["ten"]), task(sources, ["five"], columns=(PATCH,), shard="00001")]
    work = estimate(sources, tasks, rows=[done("ten", 60), done("five", 32)])
    assert [(column.part, column.num_frames) for column in work.columns] == [("patch", 92), ("prefix", 60)]


@pytest.mark.parametrize(
    ("frames", "source", "num_frames"),
    [
        (SIX, "the headers of 1 videos", 60),
        (dataclasses.replace(SIX, fps=None, rule="uniform", num_frames=8), "--frames uniform", 8),
    ],
)
def test_a_video_whose_header_cannot_be_read_counts_as_failing(sources, frames, source, num_frames):
    work = estimate(sources, [task(sources, ["ten", "text"])], frames)
    assert work.frames_from == f"{source}; 1 of the 2 looked at cannot be decoded"
    assert (work.num_videos, work.num_frames) == (2, num_frames)
    assert (work.num_sampled, work.num_failing) == (2, 1)


def test_as_many_of_the_others_are_taken_to_fail_as_of_the_sample(sources):
    many = {f"{name}{number}": sources[name] for name in ("ten", "text") for number in range(40)}
    work = estimate(sources | many, [task(sources | many, list(many))])
    assert 0 < work.num_failing < work.num_sampled == 32
    assert work.num_frames == round(80 * 60 * (1 - work.num_failing / 32))
    assert work.num_frames == pytest.approx(40 * 60, rel=3 * work.frames_error)


def test_a_video_that_is_known_to_be_broken_counts_as_failing_whatever_its_header_says(sources):
    present = {"ten", "five"}
    work = estimate_work(
        [task(sources, ["ten", "five"])], SIX, folder=sources["ten"].path.parent, rows=(), present=present,
        decoded={"ten": False, "five": True},
    )  # fmt: skip
    assert (work.num_frames, work.num_failing) == (32, 1)


def test_as_much_damage_behind_good_headers_is_expected_as_was_found_by_decoding(sources):
    many = {f"ten{number}": sources["ten"] for number in range(200)}
    tasks = [task(sources | many, list(many))]

    def told(decoded):
        return estimate_work(tasks, SIX, folder=sources["ten"].path.parent, rows=(), present=set(many), decoded=decoded)

    drawn = told({f"ten{number}": number % 4 != 0 for number in range(200)})
    assert drawn.num_frames == pytest.approx(200 * 60 * (1 - drawn.num_failing / 32), abs=1)
    few = told(dict.fromkeys(many, True) | {"ten0": False})
    assert few.num_frames >= 200 * 60 * 31 / 32
    of_eight = told({name: place >= 2 for place, name in enumerate(draw(list(many), 8))})
    assert of_eight.num_frames == round(200 * 60 * (24 * 0.75 + 6) / 32)
    assert of_eight.frames_from.endswith("2 of the 32 looked at cannot be decoded, nor 25% of the others, "
                                         "as of those that were tried")  # fmt: skip
    assert of_eight.num_frames == pytest.approx(200 * 60 * 0.75, rel=of_eight.frames_error)


def test_a_video_that_does_not_say_how_long_it_is_is_taken_for_an_ordinary_one(sources, tmp_path):
    silent = VideoSource(path=write_video(tmp_path / "silent.h264", range(30)))
    work = estimate(sources | {"silent": silent}, [task(sources | {"silent": silent}, ["ten", "silent"])])
    assert work.frames_from == "the headers of 1 videos; 1 more say nothing"
    assert (work.num_frames, work.num_failing) == (120, 0)


def test_a_dataset_larger_than_the_sample_has_an_error(sources):
    many = {f"{name}{number}": sources[name] for name in ("ten", "five") for number in range(40)}
    work = estimate(sources | many, [task(sources | many, list(many))])
    assert work.num_frames == pytest.approx(40 * (60 + 32), rel=3 * work.frames_error)
    assert 0.01 < work.frames_error < 0.1


def test_the_folder_need_not_be_there(sources, tmp_path):
    work = estimate(sources, [task(sources, ["ten"])], folder=tmp_path / "not" / "yet" / "there")
    assert work.free_bytes == pytest.approx(free_bytes(tmp_path), rel=0.1)


def test_what_does_not_fit_is_refused_unless_forced(sources, tmp_path):
    """On a file system of 1 MB, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        work = estimate(sources, [task(sources, ["ten"])], folder=small / "caches" / "mine")
        assert work.needed_bytes > work.free_bytes == 2**20
        with pytest.raises(StorageError, match=r"needs about 9\.4 MB for 60 frames and 1\.0 MB are free.*--force"):
            check_space(work, small, force=False)
        check_space(work, small, force=True)
        check_space(dataclasses.replace(work, needed_bytes=1000), small, force=False)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- the forecast: figures are chosen so that the answers can be worked out by hand ---

# 100 videos of 64 frames, 1 kB a frame
WORK = WorkEstimate(
    num_videos=100,
    num_missing=0,
    num_frames=6400,
    frames_per_video=64.0,
    frames_error=0.0,
    frames_from="",
    columns=(ColumnEstimate(layer="11", part="patch", num_frames=6400, frame_bytes=1000),),
    needed_bytes=6_400_000,
    free_bytes=10**9,
)
GPU = Machine(
    num_cores=16,
    num_encoders=1,
    encoder_cores=0,
    num_decoders=2,
    num_shares=1,
    decode_frames_per_second=200.0,
    encode_frames_per_second=100.0,
    write_bytes_per_second=1e6,
    read_bytes_per_second=1e6,
)


def test_on_a_gpu_the_slowest_stage_decides():
    found = forecast(WORK, GPU)
    assert found.stage_seconds == {"decode": 16.0, "encode": 64.0, "write": 6.4}
    assert (found.bottleneck, found.seconds) == ("encode", 64.0)
    assert forecast(WORK, replace(GPU, encode_frames_per_second=800.0)).bottleneck == "decode"
    assert forecast(WORK, replace(GPU, write_bytes_per_second=1e4)).bottleneck == "write"


def test_on_a_cpu_decoding_takes_its_time_from_the_encoder():
    machine = replace(GPU, num_cores=2, encoder_cores=2, num_decoders=1)
    # two cores for 6400 frames: 1 / 200 s of one core to decode, 1 / 100 s of both to encode
    assert forecast(WORK, machine).seconds == pytest.approx(6400 * (1 / 200 + 2 / 100) / 2)
    assert forecast(WORK, replace(machine, encoder_cores=1)).seconds == 64.0, "the other core decodes"


def test_processes_on_one_cpu_are_no_faster_than_its_cores():
    machine = replace(GPU, num_cores=2, encoder_cores=2, num_decoders=1)
    assert forecast(WORK, replace(machine, num_encoders=8, num_decoders=8)).seconds == forecast(WORK, machine).seconds


def test_shares_of_the_work_divide_the_time():
    assert forecast(WORK, replace(GPU, num_shares=4)).seconds == 16.0


def test_more_gpus_encode_faster():
    assert forecast(WORK, replace(GPU, num_encoders=4, num_decoders=8)).seconds == 16.0


def test_the_cache_has_paid_for_itself_when_the_epochs_it_saved_took_as_long_as_the_extraction():
    found = forecast(WORK, GPU)
    # an epoch: 16 of 64 frames of every video, encoded in 16 s or 1.6 MB read in 1.6 s
    assert (found.encoder_epoch_seconds, found.cached_epoch_seconds) == (16.0, 1.6)
    assert found.payback_epochs * (16.0 - 1.6) == pytest.approx(found.seconds)


def test_a_disk_slower_than_the_encoder_never_pays():
    assert forecast(WORK, replace(GPU, read_bytes_per_second=1e4)).payback_epochs is None


def test_short_videos_are_clips_as_they_are():
    short = replace(WORK, num_frames=400, frames_per_video=4.0)
    assert forecast(short, GPU).encoder_epoch_seconds == 4.0


def test_a_clip_is_what_training_takes_by_default():
    fields = {field.name: field.default for field in TrainOptions.option_fields()}
    assert fields["clip_frames"] == CLIP_FRAMES


def test_a_video_whose_header_says_days_is_named_where_the_work_does_not_fit(tmp_path, sources):
    """One that jumps by 60 days in a second; the header of its container says no more than how long it is."""
    write_video(tmp_path / "days.mkv", [0, 40, 60 * 86400 * 1000], codec="mjpeg", pix_fmt="yuvj420p")
    sources["days"] = VideoSource(path=tmp_path / "days.mkv")
    work = estimate(sources, [task(sources, ["ten", "five", "days"])])
    assert work.num_frames > 10**7
    assert "'days' alone says 31104" in work.frames_from
    with pytest.raises(StorageError, match=r"'days' alone says 31104\d+: look whether that is true.* --force"):
        check_space(replace(work, free_bytes=10**9), tmp_path, force=False)
