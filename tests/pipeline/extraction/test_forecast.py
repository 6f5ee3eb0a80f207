"""How long an extraction takes and what it saves, from figures chosen so that the answers can be worked out by hand."""

from dataclasses import replace

import pytest

from vfz.pipeline.extraction.estimate import CLIP_FRAMES, ColumnEstimate, Machine, WorkEstimate, forecast
from vfz.temporal.training.options import TrainOptions

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
