"""The options of `vfz predict`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, option
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import DEVICE_HELP
from vfz.temporal.training.options import DTYPE_HELP, DTYPES

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """What `vfz predict` does: ask a trained run, or a probe, about videos."""

    videos: tuple[Path, ...] | None = option(
        None, help="Video files, or folders with all videos in them; none: the videos of --cache."
    )
    run: Path | None = option(None, help="A run of vfz train-temporal, by path or by name under runs/.")
    probe: Path | None = option(None, help="A result of vfz probe, by path or by name under runs/.")
    cache: Path | None = option(
        None, help="Without VIDEOS: predict the videos of this cache. With them: where the run's own cache lies now."
    )
    targets: Path | None = option(
        None, help="--cache, boxes and points: the targets.npz with what they start from; default: beside the videos."
    )
    split: str | None = option(None, help="--cache: only the videos of this split; default: all.")
    weights: Path | None = option(
        None, help="The encoder's weights file, where it was moved; default: as used at extraction."
    )
    segments: int | None = option(
        None, help="Clips of each video, spread over it; default: 1, or the probe's.", minimum=1
    )
    views: tuple[int, ...] | None = option(
        None, help="Crops of each video, 0 is the centre; default: 0, or the probe's.", minimum=0
    )
    top_k: int = option(1, help="classify: how many of the likeliest classes to show.", minimum=1)
    probabilities: bool = option(default=False, help="classify: the probabilities of all classes.")
    out: Path | None = option(None, help="Write rows to this .csv or .jsonl file; default: CSV on stdout.")
    force: bool = option(default=False, help="Replace --out where it is there.")
    batch_size: int = option(16, help="--cache: clips per batch.", minimum=1)
    decode_workers: int | None = option(
        None, help="Processes that decode ahead of the encoder; default: half the CPUs, at most 8.", minimum=1
    )
    video_timeout: float = option(600.0, help="Seconds that decoding one video may take; past it, it failed.", above=0)
    dtype: str = option("auto", help=DTYPE_HELP, choices=DTYPES)
    device: str = option("auto", help=DEVICE_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.run is None) == (self.probe is None):
            both = "contradict each other" if self.run else "say what is asked, and neither was given"
            raise UsageError(f"--run and --probe {both}; give one of them")
        if not self.videos and self.cache is None:
            raise UsageError("no videos; name files or folders, or --cache for the videos of a cache")
        if self.split is not None and self.videos:
            raise UsageError(f"--split {self.split} is of a --cache, and videos are named; leave one of them out")
        if self.targets is not None and self.videos:
            raise UsageError(f"--targets {self.targets} is of a --cache, and videos are named; leave one of them out")
        if self.views is not None and len(set(self.views)) < len(self.views):
            raise UsageError(f"--views {','.join(map(str, self.views))} names one twice; give each once")
        if self.out is not None and self.out.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"--out {self.out} ends neither in {' nor in '.join(SUFFIXES)}; its ending says the format"
            )
