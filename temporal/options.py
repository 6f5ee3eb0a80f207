"""The options of `vfz probe` and `vfz demo`; those of training and evaluation stand in a file of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.options import DEVICE_HELP
from vfz.temporal.train_options import CACHE_HELP, PARTS, PARTS_HELP, EvaluateOptions, TrainOptions

__all__ = ["DemoOptions", "EvaluateOptions", "ProbeOptions", "TrainOptions"]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """What `vfz probe` does: fit a probe on tokens, or on what a trained temporal module makes of them."""

    cache: Path | None = option(None, help=CACHE_HELP)
    probe: str = option(
        "linear", help="linear: logistic regression; attentive: attention readout.", choices=("linear", "attentive")
    )
    temporal: Path | None = option(None, help="A run of vfz train-temporal: probe its outputs instead of the tokens.")
    layer: str | None = option(None, help="The cached encoder layer; default: the last one.")
    parts: str | None = option(None, help=f"{PARTS_HELP} Default: the run's, else all.", choices=PARTS)
    pool: str | None = option(
        None,
        help="linear: `mean` over frames, or the `last` frame; default: last with --temporal, else mean.",
        choices=("mean", "last"),
    )
    clip_frames: int | None = option(None, help="Frames per clip; default: the run's, else 16.", minimum=1)
    clip_stride: int | None = option(
        None, help="Cached frames from one to the next; default: the run's, else 1.", minimum=1
    )
    train_split: str = option("train", help="The split to fit on; a tenth of it chooses the settings.")
    eval_split: str | None = option(None, help="The split to report on; default: val, else test.")
    epochs: int = option(20, help="attentive: passes over the training split.", minimum=1)
    batch_size: int = option(32, help="attentive: clips per step.", minimum=1)
    seed: int = option(0, help="Decides the held-out tenth, initial weights and order.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)
    out: Path = option(Path("runs"), help="The folder that results are written in.")
    name: str | None = option(None, help="Name of the result; default: cache or run, and probe.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """What `vfz demo` does: extract, train-temporal and probe on built-in videos."""

    out: Path = option(
        Path(".demo"), help="The folder for videos, cache, runs and summary.json; an earlier demo there is replaced."
    )
    num_videos: int = option(480, help="Synthetic videos; a quarter of them is held out.", minimum=24)
    epochs: int = option(12, help="Training epochs per core.", minimum=1)
    seed: int = option(0, help="Decides the videos and the training.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)
