"""The options of `vfz probe`, `vfz probe compare` and `vfz demo`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import DEVICE_HELP
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS
from vfz.temporal.training.options import (
    CACHE_HELP,
    LABELS_HELP,
    PARTS,
    PARTS_HELP,
    TARGETS_HELP,
    check_depth_size,
)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """What `vfz probe` does: fit a probe on tokens, or on what a trained temporal module makes of them."""

    cache: Path | None = option(None, help=CACHE_HELP)
    task: str = option(
        "classify",
        help="classify: --probe reads classes off frozen features; else the task's readout is trained on them.",
        choices=tuple(TASKS),
    )
    probe: str = option(
        "linear",
        help="linear: a classifier of one vector a clip; attentive: a learned query over all tokens; knn: a vote.",
        choices=("linear", "attentive", "knn"),
    )
    temporal: Path | None = option(
        None,
        help="A run of vfz train-temporal, by path or by name under runs/: probe its outputs instead of the tokens.",
    )
    layers: tuple[str, ...] | None = option(
        None, help="Cached encoder layers, comma separated; default: -1, the last one."
    )
    layer: str | None = option(None, help="Short for --layers with one of them.")
    sweep: bool = option(default=False, help="A probe for each of --layers (default: all that are cached).")
    parts: str | None = option(None, help=f"{PARTS_HELP} Default: the run's, else all.", choices=PARTS)
    pool: str | None = option(
        None,
        help="Frames: their `mean`, the `last`, each `frame` on its own, or `all` together; default: all for "
        "attentive, else last with --temporal and mean without.",
        choices=("mean", "last", "frame", "all"),
    )
    clip_frames: int | None = option(None, help="Frames per clip; default: the run's, else 16.", minimum=1)
    clip_stride: int | None = option(
        None, help="Cached frames from one to the next; default: the run's, else 1.", minimum=1
    )
    clip_seconds: float | None = option(
        None, help="Seconds from one to the next, instead of a stride; default: the run's.", above=0
    )
    segments: int = option(1, help="Clips along each video, whose answers are averaged.", minimum=1)
    views: int = option(1, help="Cached crops of each video, whose answers are averaged.", minimum=1)
    solver: str = option(
        "auto",
        help="linear: exact logistic regression, sgd as published, or auto: exact where that takes minutes at most.",
        choices=("auto", "exact", "sgd"),
    )
    depth: int = option(1, help="attentive: 1, or 4 with three self-attention blocks in front.", minimum=1)
    epochs: int = option(20, help="attentive, sgd: passes over the training split.", minimum=1)
    batch_size: int = option(32, help="attentive, sgd: videos per step.", minimum=1)
    lrs: tuple[float, ...] | None = option(
        None,
        help="attentive, sgd, other tasks: learning rates to choose from; default: as published, 5 and 13, or 3.",
        above=0,
    )
    weight_decays: tuple[float, ...] | None = option(
        None, help="attentive: weight decays to choose from; default: 0.01, 0.1, 0.4, 0.8.", minimum=0
    )
    neighbours: tuple[int, ...] | None = option(
        None, help="knn: numbers of neighbours to choose from; default: 10, 20, 100, 200.", minimum=1
    )
    labels: str | None = option(None, help=LABELS_HELP, added_later=True)
    targets: Path | None = option(None, help=f"boxes, points, depth, pose: {TARGETS_HELP}")
    protocol: str = option(
        "streaming", help="boxes, points, depth, pose: of the readout.", choices=("streaming", "clip")
    )
    readout_dim: int | None = option(
        None, help="boxes, points, depth, pose: width of the readout; default: the paper's, 1024.", minimum=1
    )
    readout_heads: int | None = option(
        None, help="boxes, points, depth, pose: its attention heads; default: the paper's.", minimum=1
    )
    depth_size: int | None = option(
        None, help="depth: side of the maps, a multiple of 8; default: the encoder's image size.", minimum=8
    )
    train_split: str = option("train", help="The split to fit on; a part of it chooses the settings.")
    eval_split: str | None = option(None, help="The split to report on; default: val, else test.")
    held_out: float = option(0.1, help="Share of each training class that chooses the settings.", above=0, maximum=0.9)
    folds: int | None = option(None, help="Choose the settings by cross-validation with so many folds.", minimum=2)
    shots: tuple[str, ...] | None = option(
        None,
        help="Fit on few videos: a share of each training class (`5%`) or a number (`5`); several: one probe each.",
    )
    seeds: int = option(1, help="Fit with so many seeds, from --seed on; reports mean and deviation.", minimum=1)
    seed: int = option(0, help="Decides the held-out part, the few videos, initial weights and order.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)
    out: Path = option(Path("runs"), help="The folder that results are written in.")
    name: str | None = option(None, help="Name of the result; default: cache or run, and probe.")
    force: bool = option(default=False, help="Probe again although the result is there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
        if self.layer is not None:
            if self.layers not in (None, (self.layer,)):
                raise UsageError(f"--layer {self.layer} contradicts --layers {','.join(self.layers or ())}; give one")
            object.__setattr__(self, "layers", (self.layer,))
        for shots in self.shots or ():
            parse_shots(shots)
        if self.pool == "all" and self.probe != "attentive":
            raise UsageError(f"--pool all is for --probe attentive; {self.probe} takes mean, last or frame")
        if self.sweep and self.temporal is not None:
            raise UsageError("--sweep contradicts --temporal: the run fixes its layers; leave one of them out")
        check_depth_size(self.depth_size)
        if self.probe == "attentive" and self.depth not in (1, 4):
            raise UsageError(f"--depth {self.depth} is not allowed; choose 1 or 4")
        if self.task not in TASK_OF_LABELS.values():
            self._check_dense()

    def _check_dense(self) -> None:
        alone = {"segments": 1, "views": 1, "folds": None, "shots": None, "pool": None, "neighbours": None}
        for name, default in alone.items():
            if getattr(self, name) != default:
                raise UsageError(
                    f"--{name} {getattr(self, name)} is for --task classify, not {self.task}; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """What `vfz probe compare` does: put probes side by side and write tables and a page."""

    runs: tuple[Path, ...] = option(help="Folders that vfz probe has written, or their names under runs/.")
    baseline: str | None = option(None, help="Name of the one that the others are tested against; default: the first.")
    out: Path = option(Path("runs"), help="The folder that the comparison is written in.")
    name: str = option("comparison", help="Name of the comparison; one that is there is replaced.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)


@dataclass(frozen=True, kw_only=True)
class CompareRunsOptions(CompareOptions):
    """What `vfz compare` does: put runs, and probes among them, side by side and write tables and a page."""

    runs: tuple[Path, ...] = option(
        help="Folders of vfz train-temporal and vfz probe, or their names under runs/; others are named and left out."
    )


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """What `vfz demo` does: extract, train-temporal and probe on built-in videos."""

    out: Path = option(
        Path(".demo"), help="The folder for videos, cache, runs and summary.json; an earlier demo there is replaced."
    )
    num_videos: int = option(480, help="Synthetic videos; a quarter of them is held out.", minimum=24)
    epochs: int = option(16, help="Training epochs per core.", minimum=1)
    seed: int = option(0, help="Decides the videos and the training.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)


def parse_shots(shots: str) -> tuple[float | None, int]:
    """A share of each class, or None and a number of videos.

    Raises:
        UsageError: when it is neither, or none at all.
    """
    text = shots.strip()
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else None
        count = 0 if share is not None else int(text)
    except ValueError:
        raise UsageError(f"--shots {shots!r} is neither a share such as 5% nor a number of videos a class") from None
    if share is not None and not 0 < share <= 1:
        raise UsageError(f"--shots {shots} is no share of the training split; give more than 0% and at most 100%")
    if share is None and count < 1:
        raise UsageError(f"--shots {shots} leaves no video; give 1 or more a class, or a share such as 5%")
    return share, count
