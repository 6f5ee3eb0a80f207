"""The options of `vfz train-temporal` and `vfz evaluate`: names, defaults, help and checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.encoder.names import check_optimizer_name
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import DEVICE_HELP
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.cores import CORES
from vfz.temporal.data.options import CLIP_FRAMES, CLIP_STRIDE, LAST_LAYER, TOKEN_PARTS, TRAIN_SPLIT
from vfz.temporal.tasks import TASKS

CACHE_HELP = "The cache; may be left out when caches/ holds just one."
CACHES_HELP = "The cache, or several of one recipe (given again, or by commas); may be left out when there is just one."
TARGETS_HELP = "The targets.npz of each cache; default: the one in the root that the cache was made from."
LABELS_HELP = (
    "A label set of the cache, with its splits if it has some; its kind chooses the task: classify, multilabel or "
    "regression. Default: the labels of the extraction."
)
PARTS_HELP = (
    "Which tokens: `patch`, one for each square of the image; `prefix`, CLS and registers, of the whole; `all` of them."
)
PARTS = TOKEN_PARTS
SIZES = ("tiny", "small", "paper")
SIZES_HELP = (
    "Core and readout where their sizes are not given: tiny (2 layers of 64 channels), small (3 of 256) or paper (4 as "
    "wide as the encoder); default: by training clips and channels, paper where one of the sizes is given."
)
_CORES = "gmmix, mmix, m, rvm_rnn, gru, mingru, attention or identity (no memory)"
DTYPES = ("auto", "float32", "bfloat16")
DTYPE_HELP = "Autocast: auto takes bfloat16 on a GPU; scans and losses stay float32."


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """What `vfz train-temporal` does: train a temporal module and its readout on cached tokens."""

    cache: tuple[Path, ...] | None = option(None, help=CACHES_HELP)
    task: str = option("classify", help="What the readout predicts.", choices=tuple(TASKS))
    targets: tuple[Path, ...] | None = option(None, help=f"{TARGETS_HELP} classify takes the cache's labels.")
    labels: str | None = option(None, help=LABELS_HELP, added_later=True)
    core: str = option("gmmix", help=f"The temporal core: {_CORES}.")
    size: str | None = option(None, help=SIZES_HELP, choices=SIZES, added_later=True)
    core_dim: int | None = option(
        None,
        help="Width of the core, by default that of --size; a Linear stands in front where the encoder's is another.",
        minimum=1,
    )
    num_layers: int | None = option(None, help="Layers of the core; default: that of --size.", minimum=1)
    num_heads: int | None = option(
        None, help="Attention heads of the core; default: that of --size, of paper 16 or what divides its width.",
        minimum=1,
    )  # fmt: skip
    dropout: float | None = option(None, help="Dropout in the core; default: the core's own.", minimum=0, maximum=1)
    drop_path: float | None = option(
        None, help="How often a frame skips a branch of the core in training; default: the core's own.", minimum=0,
        maximum=1,
    )  # fmt: skip
    window: int | None = option(None, help="Frames that core `attention` looks back on.", minimum=1)
    checkpointing: bool = option(
        default=False, help="Compute activations again in the backward pass: less memory, a third more time."
    )
    layers: tuple[str, ...] | None = option(None, help="Cached encoder layers to use; default: -1, the last one.")
    mixer: str = option(
        "last", help="How several encoder layers become one: last, mean or xattn.", choices=("last", "mean", "xattn")
    )
    parts: str = option(PARTS[0], help=PARTS_HELP, choices=PARTS)
    protocol: str = option(
        "streaming",
        help="streaming: answers from the current frame's output alone; clip: attends to all frames.",
        choices=("streaming", "clip"),
    )
    readout_dim: int | None = option(
        None, help="Width of the readout; default: that of --size, of paper 768 or 1024.", minimum=1
    )
    readout_heads: int | None = option(
        None, help="Attention heads of the readout; default: that of --size, of paper 4 to 16 by task.", minimum=1
    )
    readout_hidden: int | None = option(
        None, help="Width of the MLPs of boxes, points and pose; default: that of --size, of paper 512.", minimum=1
    )
    depth_size: int | None = option(
        None, help="Side of the depth maps, a multiple of 8; default: the encoder's image size.", minimum=8
    )
    clip_frames: int = option(
        CLIP_FRAMES, help="Frames per clip; shorter videos repeat their last frame, masked.", minimum=1
    )
    clip_stride: int = option(CLIP_STRIDE, help="Cached frames from one frame of a clip to the next.", minimum=1)
    clip_seconds: float | None = option(None, help="Seconds from one to the next, instead of a stride.", above=0)
    stride_factors: tuple[int, ...] = option(
        (1,), help="Training clips are drawn at one of these multiples of the stride, where the video is long enough.",
        minimum=1,
    )  # fmt: skip
    token_dropout: float = option(
        0.0, help="Share of the patch tokens left out of each training clip.", minimum=0, maximum=0.9
    )
    train_split: str = option(TRAIN_SPLIT, help="The split to train on.")
    eval_split: str | None = option(None, help="The split to evaluate on; default: val, else test.")
    eval_every: int = option(1, help="Epochs from one evaluation to the next; 0: at the end only.", minimum=0)
    segments: int = option(1, help="Clips of each evaluated video, spread over it.", minimum=1)
    views: tuple[int, ...] = option((0,), help="Cached views: training draws one a clip, evaluation takes each.")
    epochs: int = option(10, help="Passes over the training split; more with --resume goes on from there.", minimum=1)
    batch_size: int = option(16, help="Clips per step, over all processes and micro-batches.", minimum=1)
    accumulate: int = option(1, help="Micro-batches that a step is computed in, for less memory.", minimum=1)
    optimizer: str = option("adamw", help="Any optimizer of timm, by its name there.")
    lr: float = option(1e-3, help="Peak learning rate.", above=0)
    weight_decay: float = option(0.05, help="Weight decay; none on norms, biases, A_log and D.", minimum=0)
    warmup_epochs: float = option(1.0, help="Epochs of linear warm-up before the cosine.", minimum=0)
    clip_grad: float = option(1.0, help="Largest gradient norm; 0 turns clipping off.", minimum=0)
    label_smoothing: float = option(
        0.0, help="classify: share of the target that all classes have.", minimum=0, maximum=0.99
    )
    ema: float | None = option(
        None, help="Decay of a moving average of the weights, which is then evaluated and saved.", above=0,
        maximum=0.999999,
    )  # fmt: skip
    dtype: str = option("auto", help=DTYPE_HELP, choices=DTYPES)
    seed: int = option(0, help="Decides initial weights, order of clips and dropout.", minimum=0)
    device: str = option("auto", help=DEVICE_HELP)
    online: bool = option(
        default=False, help="Decode and encode in every epoch instead of reading tokens: slow, for comparison."
    )
    root: Path | None = option(None, help="--online: where the videos lie now; default: where they were at extraction.")
    weights: Path | None = option(
        None, help="--online: the encoder's weights file; default: the one used at extraction."
    )
    checkpoint_seconds: float = option(600, help="Seconds of training from one checkpoint to the next.", above=0)
    checkpoint_steps: int = option(0, help="Steps from one checkpoint to the next; 0: by time only.", minimum=0)
    keep_checkpoint: bool = option(
        default=True, added_later=True,
        help="Keep the last checkpoint, 3 to 4 times the weights, so that --resume with more --epochs can go on.",
    )  # fmt: skip
    tensorboard: bool = option(default=True, help="Write TensorBoard events beside metrics.jsonl.")
    out: Path = option(Path("runs"), help="The folder that runs are made in.")
    name: str | None = option(None, help="Name of the run; default: cache, task, core and seed.")
    resume: bool = option(
        default=False,
        help="Go on from the last checkpoint: an interrupted run, or a finished one with more --epochs.",
    )
    dry_run: bool = option(
        default=False, help="Only measure some steps, and tell what the run takes and what would make it smaller.",
        added_later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
        CORES.check(self.core)
        check_optimizer_name(self.optimizer)
        check_depth_size(self.depth_size)
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--batch-size {self.batch_size} cannot be computed in {self.accumulate} equal micro-batches; "
                "give a multiple of --accumulate"
            )

    @property
    def resumed_run(self) -> Path | None:
        """The folder of the run to go on with, where it is named; its name may follow from the cache otherwise."""
        return self.out / self.name if self.resume and self.name else None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """What `vfz evaluate` does: evaluate a trained run on a split of a cache."""

    run: Path = option(help="The run folder of vfz train-temporal.")
    cache: tuple[Path, ...] | None = option(
        None, help=f"{CACHES_HELP} Its recipe (all that decides a number) must be the run's."
    )
    split: str | None = option(None, help="The split to evaluate on; default: val, else test.")
    targets: tuple[Path, ...] | None = option(None, help=TARGETS_HELP)
    labels: str | None = option(None, help="A label set of the cache; default: the run's.")
    clip_frames: int | None = option(None, help="Frames per clip; default: the run's.", minimum=1)
    clip_stride: int | None = option(
        None, help="Cached frames from one frame of a clip to the next; default: the run's.", minimum=1
    )
    clip_seconds: float | None = option(None, help="Seconds from one to the next; default: the run's.", above=0)
    segments: int = option(1, help="Clips of each video, spread over it.", minimum=1)
    views: tuple[int, ...] = option((0,), help="Cached views, each of which is evaluated.")
    batch_size: int = option(16, help="Videos per batch.", minimum=1)
    dtype: str = option("auto", help=DTYPE_HELP, choices=DTYPES)
    device: str = option("auto", help=DEVICE_HELP)


def check_depth_size(size: int | None) -> None:
    """Refuse a side of depth maps that is not made of whole patches.

    Raises:
        UsageError: says the nearest that is.
    """
    if size is not None and size % 8:
        raise UsageError(f"--depth-size {size} is no multiple of 8; give {max(8, round(size / 8) * 8)}")


def option_values(options: Options, *, without: Collection[str]) -> dict[str, Any]:
    """The options as JSON values, but for those named in `without` and those `added_later` that have their default.

    So the record of a run or result from before an option was there equals that of one with its default.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    new = {field.name: field.default for field in options.option_fields() if field.info.added_later}
    return {
        name: plain(value)
        for name, value in dataclasses.asdict(options).items()
        if name not in without and not (name in new and value == new[name])
    }


def layers_of(options: TrainOptions, cached: Sequence[str]) -> tuple[str, ...]:
    """The cached layers to train on, shallowest first as mixers take them, in whatever order they were asked for.

    Args:
        options: as given.
        cached: names of the layers that the cache has.

    Raises:
        UsageError: several layers for a mixer of one.
    """
    asked = counted_layers(options.layers or LAST_LAYER, cached)
    layers = tuple(sorted(asked, key=lambda name: cached.index(name) if name in cached else -1))
    if options.mixer == "last" and len(layers) > 1:
        raise UsageError(
            f"--mixer last uses one layer, {len(layers)} were given ({', '.join(layers)}); give one of them, or another"
            " mixer"
        )
    return layers
