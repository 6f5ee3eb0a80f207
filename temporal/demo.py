"""The demo: all three commands on built-in videos, with a real pretrained encoder, in a few minutes on a laptop.

The class of a synthetic video is the order of three gestures and lies in nothing else. So whatever is blind to order
(the mean of all tokens, or a core without memory) must be at chance, and a temporal module must not be. The demo
shows both, and measures what the cache saves: the same epoch is trained with the encoder in the loop.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.extraction.extract import ExtractReport, extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.files import make_folder, write_file_atomic
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.checks import DEMO_MARKER, check_demo
from vfz.temporal.probes.options import DemoOptions, ProbeOptions
from vfz.temporal.probes.record import ProbeReport
from vfz.temporal.probes.run import probe
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import TrainReport, train_temporal

COMPARED_CORES = ("identity", "gmmix", "rvm_rnn")
TIMED_CORE = "gmmix"
NUM_FRAMES = 12
IMAGE_SIZE = 96
LAYER = "3"  # the stage of efficientnet-lite0 with 36 tokens of 112 channels at 96 pixels


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """The demo's table; also `<out>/summary.json`. Accuracies are shares of the held-out clips."""

    chance: float
    standard_error: float
    order_blind_accuracy: float
    identity_accuracy: float
    gmmix_accuracy: float
    rvm_rnn_accuracy: float
    gmmix_probe_accuracy: float
    num_test_clips: int
    cached_epoch_speedup: float
    cached_epoch_seconds: float
    online_epoch_seconds: float
    extract_frames_per_second: float
    cache_bytes: int
    seconds: float


def run_demo(options: DemoOptions, *, progress: Progress | None = None) -> DemoSummary:
    """Render, extract, train three cores, probe, time an epoch with the encoder in the loop.

    Raises:
        UsageError: as `check_demo`.
    """
    started = time.perf_counter()
    progress = progress or SilentProgress()
    check_demo(options)
    load_encoder("demo", layers=(LAYER,), image_size=IMAGE_SIZE)  # says what to install before anything is written
    _make_room(options.out)
    extracted = _extract(options, progress)
    cache = Path(extracted.cache)
    blind = _probe(options, cache, None, progress)
    runs = {core: _train(options, cache, core, progress) for core in COMPARED_CORES}
    probed = _probe(options, cache, Path(runs[TIMED_CORE].run), progress)
    online = _train(options, cache, TIMED_CORE, progress, online=True)
    cached_epoch = statistics.median(runs[TIMED_CORE].epoch_seconds)
    chance = blind.chance
    summary = DemoSummary(
        chance=chance,
        standard_error=(chance * (1 - chance) / blind.num_eval_clips) ** 0.5,
        order_blind_accuracy=blind.top1,
        **_accuracies(runs),
        gmmix_probe_accuracy=probed.top1,
        num_test_clips=blind.num_eval_clips,
        cached_epoch_speedup=online.epoch_seconds[0] / cached_epoch,
        cached_epoch_seconds=cached_epoch,
        online_epoch_seconds=online.epoch_seconds[0],
        extract_frames_per_second=extracted.frames_per_second,
        cache_bytes=extracted.cache_bytes,
        seconds=time.perf_counter() - started,
    )
    text = json.dumps(dataclasses.asdict(summary), indent=2) + "\n"
    write_file_atomic(options.out / "summary.json", text.encode())
    return summary


def _accuracies(runs: Mapping[str, TrainReport]) -> dict[str, float]:
    return {f"{core}_accuracy": report.top1 for core, report in runs.items()}


def _make_room(out: Path) -> None:
    """Empty the folder of an earlier demo."""
    if out.is_dir():
        for name in ("caches", "runs", "videos"):
            shutil.rmtree(out / name, ignore_errors=True)
    make_folder(out)
    (out / DEMO_MARKER).touch()


def _extract(options: DemoOptions, progress: Progress) -> ExtractReport:
    return extract(
        ExtractOptions(
            dataset="synthetic",
            root=options.out / "videos",
            encoder="demo",
            layers=(LAYER,),
            image_size=IMAGE_SIZE,
            num_videos=options.num_videos,
            num_frames=NUM_FRAMES,
            size=IMAGE_SIZE,
            seed=options.seed,
            out=options.out / "caches",
            device=options.device,
        ),
        progress=progress,
    )


def _train(options: DemoOptions, cache: Path, core: str, progress: Progress, *, online: bool = False) -> TrainReport:
    """A core trained from the cache, or one epoch of it with the encoder in the loop."""
    progress.note(f"training {core}{' with the encoder in the loop (one epoch)' if online else ''}")
    return train_temporal(
        TrainOptions(
            cache=(cache,),
            core=core,
            core_dim=64,
            num_layers=2,
            num_heads=4,
            readout_dim=64,
            readout_heads=4,
            clip_frames=NUM_FRAMES,
            epochs=1 if online else options.epochs,
            batch_size=8,
            lr=3e-3,
            seed=options.seed,
            device=options.device,
            online=online,
            eval_split="test",
            eval_every=0,
            out=options.out / "runs",
            name=f"{core}-online" if online else core,
        ),
        progress=progress,
    )


def _probe(options: DemoOptions, cache: Path, run: Path | None, progress: Progress) -> ProbeReport:
    return probe(
        ProbeOptions(
            cache=cache,
            temporal=run,
            clip_frames=NUM_FRAMES,
            eval_split="test",
            seed=options.seed,
            device=options.device,
            out=options.out / "runs",
            name=f"{run.name if run else 'tokens'}-linear-probe",
        ),
        progress=progress,
    )
