"""What extraction claims: the encoder's own speed, end to end, and memory that does not grow with the videos.

Speed is a ratio to the encoder alone, in the same process, with its frames already in memory; the rounds alternate.
"""

import dataclasses
import statistics
import subprocess
import sys
import time

import pytest
import torch
from benchmarks.pipeline.clips import write_clip
from benchmarks.pipeline.memory import peak_mb
from helpers.extraction import command_line

from vfz.pipeline.encoder.model import EncoderRequest
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions

pytestmark = pytest.mark.bench

BATCH_SIZE = 32
ROUNDS = 3


@pytest.mark.parametrize(("autocast", "num_videos"), [("bfloat16", 16), ("float32", 8)])
def test_extraction_against_the_encoder_alone(record, tmp_path, autocast, num_videos):
    """ViT-S/16 (random weights) at 224 px, over 256 x 256 videos of 30 frames/s of which 6 are taken."""
    clip = write_clip(tmp_path / "clip.mp4", side=256, seconds=10)
    options = ExtractOptions(
        dataset="folder", root=_copies(clip, tmp_path / "clips", count=num_videos), encoder="vit_small_patch16_224",
        random_weights=True, autocast=autocast, batch_size=BATCH_SIZE, shard_videos=4,
    )  # fmt: skip
    encoder = EncoderRequest(name=options.encoder, random_weights=True, autocast=autocast, batch_size=BATCH_SIZE).load()
    frames_BCHW = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
    encoder.encode(frames_BCHW)
    reports, alone = [], []
    for number in range(ROUNDS):
        report = extract(dataclasses.replace(options, out=tmp_path / str(number)))
        reports.append(report)
        num_batches = report.new_frames // BATCH_SIZE // ROUNDS
        started = time.perf_counter()
        for _ in range(num_batches):
            encoder.encode(frames_BCHW)
        alone.append(num_batches * BATCH_SIZE / (time.perf_counter() - started))
    record(
        f"extraction[{autocast}]",
        value=statistics.median(report.frames_per_second for report in reports),
        unit="frames/s",
        baseline="encoder alone",
        baseline_value=statistics.median(alone),
        goal="at least 0.9",
    )
    for stage, found in reports[-1].stages.items():
        record(
            f"extraction[{autocast}, {stage} busy]",
            value=found.busy, unit="of the time", baseline="all of it", baseline_value=1,
        )  # fmt: skip


ENCODE = """
import sys, time, torch
from vfz.pipeline import devices
from vfz.pipeline.encoder.model import EncoderRequest
if sys.argv[1] == "given back":
    devices._keep_freed_memory = lambda: None
encoder = EncoderRequest(name=sys.argv[2], random_weights=True, batch_size=32, device="cpu").load()
frames = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8)
encoder.encode(frames)
started = time.perf_counter()
for _ in range(4):
    encoder.encode(frames)
print(128 / (time.perf_counter() - started))
"""


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_small_patch16_224"])
def test_encoding_with_memory_kept_against_memory_given_back(record, name):
    """In processes of their own, in turn: glibc's thresholds and torch's pages are those of a process."""
    speeds = {"kept": [], "given back": []}
    for _ in range(ROUNDS):
        for kind, found in speeds.items():
            ran = subprocess.run([sys.executable, "-c", ENCODE, kind, name], capture_output=True, text=True, check=True)
            found.append(float(ran.stdout))
    kept, given_back = map(statistics.median, speeds.values())
    record(
        f"encoding[{name}, memory kept]",
        value=kept, unit="frames/s", baseline="memory given back", baseline_value=given_back,
    )  # fmt: skip


def test_the_memory_of_a_long_video_against_a_short_one(record, tmp_path):
    peaks = {}
    for name, seconds in (("10 s", 10), ("10 min", 600)):
        clip = write_clip(tmp_path / f"{seconds}.mp4", side=128, seconds=seconds)
        peaks[name] = _peak_mb(_copies(clip, tmp_path / name, count=1), tmp_path / "caches" / name)
    record(
        "peak memory[one video of 10 min]",
        value=peaks["10 min"], unit="MB", baseline="one of 10 s", baseline_value=peaks["10 s"], goal="at most 1.1",
    )  # fmt: skip


def test_the_memory_of_many_videos_against_few(record, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", side=128, seconds=1)
    peaks = {
        count: _peak_mb(_copies(clip, tmp_path / str(count), count=count), tmp_path / "caches" / str(count))
        for count in (200, 2000)
    }
    record(
        "peak memory[2000 videos]",
        value=peaks[2000], unit="MB", baseline="200 videos", baseline_value=peaks[200], goal="at most 1.1",
    )  # fmt: skip


def _peak_mb(root, out):
    options = ExtractOptions(
        dataset="folder", root=root, encoder="test_vit", random_weights=True, batch_size=BATCH_SIZE, image_size=64,
        out=out,
    )  # fmt: skip
    return peak_mb(command_line(options))


def _copies(clip, root, *, count):
    folder = root / "train" / "street"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:04d}.mp4").hardlink_to(clip)
    return root
