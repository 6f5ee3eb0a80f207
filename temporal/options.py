"""The options of `vfz train-temporal` and `vfz probe`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.options import DEVICE_HELP

CACHE_HELP = "The cache; may be left out when caches/ holds just one."
PARTS_HELP = "Which tokens: `all` (prefix in front of patch), `patch` or `prefix`."
PARTS = ("all", "patch", "prefix")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """What `vfz train-temporal` does: train a temporal module and its readout on cached tokens."""

    cache: Path | None = option(None, help=CACHE_HELP)
    core: str = option("gmmix", help="The recurrent core: gmmix, rvm_rnn, m, mmix or identity (no memory).")
    core_dim: int | None = option(
        None, help="Width of the core; a Linear stands in front where it differs from the encoder's.", minimum=1
    )
    num_layers: int = option(4, help="Layers of the core.", minimum=1)
    num_heads: int | None = option(
        None, help="Attention heads of the core; default: 16 or what divides its width.", minimum=1
    )
    task: str = option("classify", help="What the readout predicts.", choices=("classify",))
    protocol: str = option(
        "streaming",
        help="streaming: the last frame's answer; clip: attends to all frames.",
        choices=("streaming", "clip"),
    )
    readout_dim: int = option(768, help="Width of the attention readout.", minimum=1)
    readout_heads: int = option(12, help="Attention heads of the readout.", minimum=1)
    layers: tuple[str, ...] | None = option(None, help="Cached encoder layers to use; default: the last one.")
    mixer: str = option("last", help="How several encoder layers become one.")
    parts: str = option("all", help=PARTS_HELP, choices=PARTS)
    clip_frames: int = option(16, help="Frames per clip; shorter videos repeat their last frame.", minimum=1)
    clip_stride: int = option(1, help="Cached frames from one frame of a clip to the next.", minimum=1)
    train_split: str = option("train", help="The split to train on.")
    eval_split: str | None = option(None, help="The split to evaluate on; default: val, else test.")
    epochs: int = option(10, help="Passes over the training split.", minimum=1)
    batch_size: int = option(16, help="Clips per step.", minimum=1)
    lr: float = option(1e-3, help="Peak learning rate.", above=0)
    weight_decay: float = option(0.05, help="AdamW weight decay; none on norms, biases, A_log and D.", minimum=0)
    warmup_epochs: float = option(1.0, help="Epochs of linear warm-up before the cosine.", minimum=0)
    clip_grad: float = option(1.0, help="Largest gradient norm; 0 turns clipping off.", minimum=0)
    dtype: str = option("auto", help="Autocast: auto takes bfloat16 on a GPU.", choices=("auto", "float32", "bfloat16"))
    seed: int = option(0, help="Decides initial weights, order of clips and dropout.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)
    online: bool = option(
        default=False, help="Decode and encode in every epoch instead of reading tokens: slow, for comparison."
    )
    root: Path | None = option(None, help="--online: where the videos lie now; default: where they were at extraction.")
    weights: Path | None = option(
        None, help="--online: the encoder's weights file; default: the one used at extraction."
    )
    out: Path = option(Path("runs"), help="The folder that runs are made in.")
    name: str | None = option(None, help="Name of the run; default: cache and core.")
    resume: bool = option(default=False, help="Continue an interrupted run from its last finished epoch.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)


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
