"""The options of `vfz cache export`: names, defaults, help and checks. Before them, the defaults of clips.

`TrainOptions`, `ClipDataset`, the `fit_` functions and exports take their defaults from here, so that a notebook reads
what a command reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, option
from vfz.pipeline.errors import UsageError

TRAIN_SPLIT = "train"
LAST_LAYER = ("-1",)
"""The layers where none are named."""
TOKEN_PARTS = ("all", "patch", "prefix")
"""The first is the default."""
CLIP_FRAMES = 16
CLIP_STRIDE = 1
FORMATS = ("parquet", "npz")
EXPORT_POOLS = ("mean", "cls", "frame", "last")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """What `vfz cache export` writes: pooled features of a cache as a table for pandas, DuckDB, R or NumPy."""

    cache: Path | None = option(None, help="The cache, only read; default: the only one in caches/.")
    out: Path = option(help="The file that is written, whole or not at all.")
    format: str | None = option(None, help="Of the file; default: as its name ends.", choices=FORMATS)
    pool: str = option(
        "mean",
        help="A row: the `mean` of all frames of a video, or of their CLS tokens alone (`cls`), each `frame`, or the "
        "`last` one.",
        choices=EXPORT_POOLS,
    )
    layers: tuple[str, ...] | None = option(
        None, help="Layers, side by side in a row, comma separated; default: -1, the last one."
    )
    parts: str = option(TOKEN_PARTS[0], help="Which tokens: `all`, `patch` or `prefix` (CLS).", choices=TOKEN_PARTS)
    splits: tuple[str, ...] | None = option(None, help="Only videos of these splits, comma separated; default: all.")
    views: tuple[int, ...] = option((0,), help="Crops of each video, a row each.", minimum=0)
    labels: str | None = option(None, help="A label set of the cache; default: the labels of the extraction.")
    force: bool = option(default=False, help="Replace a file that is there.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file_format is None:
            raise UsageError(f"--out {self.out} ends neither in .parquet nor in .npz; give --format too")
        if self.pool == "cls" and self.parts == "patch":
            raise UsageError("--pool cls looks at prefix tokens; leave --parts patch out")
        if not self.views:
            raise UsageError("--views names none; 0 is the centre crop")

    @property
    def file_format(self) -> str | None:
        """`parquet` or `npz`, as asked for or as the file is called."""
        of_name = self.out.suffix.lower().removeprefix(".")
        return self.format or (of_name if of_name in FORMATS else None)
