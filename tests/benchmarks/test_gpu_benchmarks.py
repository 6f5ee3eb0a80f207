"""What a GPU gets out of vfz: extraction against the encoder alone, and the selective scan. Skipped without a GPU."""

import pytest
import torch
from benchmarks.pipeline.clips import write_clip
from helpers.measure import seconds_of
from helpers.reference import plain_scan, published_scan

from vfz.pipeline.decoding.pool import default_num_workers
from vfz.pipeline.devices import num_cores
from vfz.pipeline.encoder.model import EncoderRequest
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.cores.selective_scan import selective_scan

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

BATCH_SIZE, NUM_CLIPS, SECONDS = 128, 320, 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """256 x 256 H.264 of 30 frames/s, of which 6 are taken."""
    folder = tmp_path_factory.mktemp("videos")
    clip = write_clip(folder / "clip.mp4", side=256, seconds=SECONDS)
    (folder / "clips" / "train" / "street").mkdir(parents=True)
    for number in range(NUM_CLIPS):
        (folder / "clips" / "train" / "street" / f"{number:04d}.mp4").hardlink_to(clip)
    return folder / "clips"


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_extraction_of_a_large_vit_against_the_encoder_alone(record, videos, tmp_path, precision):
    """ViT-L/16 (random weights), bfloat16, the last layer stored; as many decode processes as there are by default."""
    options = ExtractOptions(
        dataset="folder", root=videos, encoder="vit_large_patch16_224", random_weights=True, layers=("23",),
        autocast="bfloat16", batch_size=BATCH_SIZE, device="cuda", precision=precision, shard_videos=40, out=tmp_path,
    )  # fmt: skip
    encoder = EncoderRequest(
        name=options.encoder, random_weights=True, layers=options.layers, autocast="bfloat16", batch_size=BATCH_SIZE,
        device="cuda",
    ).load()  # fmt: skip
    frames_BCHW = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8, device="cuda")

    def encode():
        for _ in range(20):
            encoder.encode(frames_BCHW)
        torch.cuda.synchronize()

    (alone,) = seconds_of(encode, rounds=3)
    report = extract(options)
    name = f"extraction on a GPU[{precision}]"
    record(
        name,
        value=report.frames_per_second, unit="frames/s",
        baseline="encoder alone", baseline_value=20 * BATCH_SIZE / alone, goal="at least 0.9",
    )  # fmt: skip
    decode, num_workers = report.stages["decode"], default_num_workers(encoder.device)
    record(
        f"{name[:-1]}, decoding needed]",
        value=decode.busy * num_workers, unit="processes",
        baseline="cores", baseline_value=num_cores(),
    )  # fmt: skip
    record(
        f"{name[:-1]}, source frames decoded]",
        value=5 * report.new_frames / (decode.seconds * num_workers), unit="frames/s of a process",
        baseline="of all", baseline_value=5 * report.frames_per_second,
    )  # fmt: skip
    for stage, found in report.stages.items():
        record(
            f"{name[:-1]}, {stage} busy]", value=found.busy, unit="of the time", baseline="all of it", baseline_value=1
        )


def test_the_selective_scan_against_loops(record):
    """16 clips of a ViT-S: 3,216 sequences of 16 frames, 768 channels, state 16."""
    generator = torch.Generator().manual_seed(0)
    frames = (16 * 201, 16)
    shapes = [(*frames, 768), (*frames, 768), (768, 16), (*frames, 16), (*frames, 16), (768,)]
    x, delta, A, B, C, D = (torch.rand(shape, generator=generator).cuda() for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (x, delta, -A, B, C, D)]
    peaks = []

    def passes(scan):
        def run():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.autograd.grad(scan(*inputs)[0].sum(), inputs)
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)

        return run

    scans = (selective_scan, published_scan, plain_scan)
    ours, published, plain = seconds_of(*(passes(scan) for scan in scans), rounds=3)
    for name, baseline, seconds in (("published", "loop as published", published), ("plain", "our loop", plain)):
        record(f"scan on a GPU[{name}]", value=1 / ours, unit="passes/s", baseline=baseline, baseline_value=1 / seconds)
    ours, _, plain = (peak / 1e6 for peak in peaks[:3])
    record("memory of the scan on a GPU", value=ours, unit="MB", baseline="our loop", baseline_value=plain)
