"""The options of the commands of `vfz cache`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import DEVICE_HELP
from vfz.pipeline.recipe import COMPRESSIONS, PARTS, PRECISIONS, STORE_NAMES

CACHE_HELP = "The cache; default: the only one in caches/."


@dataclass(frozen=True, kw_only=True)
class LsOptions(Options):
    """What `vfz cache ls` lists."""

    folder: Path = option(Path("caches"), help="The folder that holds the caches, or a cache.")


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """Which cache `vfz cache info` describes."""

    cache: Path | None = option(None, help=CACHE_HELP)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Options):
    """What `vfz cache label` adds: other labels or splits of the videos of a cache."""

    cache: Path | None = option(None, help=CACHE_HELP)
    from_: Path | None = option(
        None,
        help="A CSV, TSV or JSON file (id, path, video or filename; label, labels or --columns; split), or a folder "
        "<class>/<video> or <split>/<class>/<video>; default: the labels the cache has, with other splits.",
    )
    name: str | None = option(None, help="Name of the label set; default: that of the file or folder.")
    kind: str | None = option(
        None,
        help="`classes`: one a video; `multilabel`: any number; `regression`: numbers. Default: as the columns are "
        "called.",
        choices=("classes", "multilabel", "regression"),
    )
    columns: tuple[str, ...] | None = option(None, help="Columns with numbers to predict, comma separated.")
    separator: str | None = option(None, help="What stands between several labels; default: `;` or `|`.")
    dataset: str | None = option(
        None, help="--from is the root of a dataset of this kind, as --dataset of `vfz extract`."
    )
    split_fractions: tuple[float, ...] | None = option(
        None, help="Deal the videos to train, val and test by these shares, by what is in the files.", minimum=0
    )
    group_by: str | None = option(
        None, help="A regular expression; videos in whose names it finds the same text are dealt together."
    )
    split_folds: int | None = option(None, help="So many folds besides, for cross-validation.", minimum=2)
    split_seed: int | None = option(None, help="Another way to deal the videos (0).", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
        deals = (self.split_fractions, self.group_by, self.split_folds, self.split_seed)
        if self.from_ is None and all(value is None for value in deals):
            raise UsageError("--from FILE or folder says what the labels are; or give --split-fractions for new splits")
        if self.from_ is None and (self.dataset or self.columns or self.kind):
            raise UsageError("--dataset, --columns and --kind say what --from is; give it, too")
        if len(set(self.columns or ())) < len(self.columns or ()):
            raise UsageError(f"--columns {','.join(self.columns or ())} names one twice; name each once")
        if self.kind == "regression" and not self.columns:
            raise UsageError("--kind regression needs --columns: the names of the columns with numbers")
        if self.separator is not None and not self.separator.strip():
            raise UsageError(f"--separator {self.separator!r} is not seen; give a mark such as ';'")


@dataclass(frozen=True, kw_only=True)
class DropOptions(Options):
    """Which videos `vfz cache drop` takes out of a cache."""

    cache: Path | None = option(None, help=CACHE_HELP)
    video: tuple[str, ...] | None = option(
        None, help="Their ids, or the ends of their paths, comma separated; an id with a comma goes into a file."
    )
    videos: Path | None = option(None, help="A text file with one of them a line.")
    why: str | None = option(None, help="The reason, kept with the record.")
    undo: bool = option(default=False, help="Bring dropped videos back, as they were.")
    dry_run: bool = option(default=False, help="Say which videos are meant, and write nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.video and self.videos is None:
            raise UsageError("--video ID or --videos FILE says which videos; give one of them")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """What `vfz cache verify` compares."""

    cache: Path | None = option(None, help=CACHE_HELP)
    against: Path | None = option(
        None, help="Also compare recipe (all that decides a number), contents and videos with this other cache."
    )
    encoder: bool = option(
        default=False, help="Also encode the golden frames again, 16 that are kept as pixels, and compare the tokens."
    )
    weights: Path | None = option(None, help="--encoder: its weights file; default: the source used at extraction.")
    root: Path | None = option(None, help="--encoder: where the videos lie now; default: where they were.")
    device: str = option("auto", help=f"--encoder: {DEVICE_HELP}")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.encoder and (self.weights is not None or self.root is not None):
            raise UsageError("--weights and --root are for --encoder; give it too, or leave them out")


@dataclass(frozen=True, kw_only=True)
class RepairOptions(Options):
    """What `vfz cache repair` mends."""

    cache: Path | None = option(None, help=CACHE_HELP)
    dry_run: bool = option(default=False, help="Say what would be done, and touch nothing.")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """What `vfz cache convert` does: make a new cache from one that is there, without encoder or videos."""

    cache: Path | None = option(None, help="The cache to convert, only read; default: the only one in caches/.")
    out: Path = option(help="The folder that the new cache is made in.")
    store: str | None = option(None, help="How shards are stored; default: as in the old cache.", choices=STORE_NAMES)
    precision: str | None = option(
        None, help="Stored precision, the same or a lower one; default: as in the old cache.", choices=PRECISIONS
    )
    layers: tuple[str, ...] | None = option(
        None, help="Only these layers, comma separated; -1 is the last; default: all."
    )
    parts: tuple[str, ...] | None = option(
        None, help="Only these parts of each layer, comma separated; default: all.", choices=PARTS
    )
    splits: tuple[str, ...] | None = option(None, help="Only videos of these splits, comma separated; default: all.")
    videos: tuple[str, ...] | None = option(
        None, help="Only these videos: ids, comma separated, or a file with one on each line; default: all."
    )
    compression: str = option(
        "auto",
        help="Of zarr chunks; `auto` takes the best codec that saves 10% on a sample, if one does.",
        choices=("auto", *COMPRESSIONS),
    )
    name: str | None = option(None, help="Name of the new cache; default: that of the old one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
