"""The options of `vfz cache convert`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option
from vfz.pipeline.recipe import COMPRESSIONS, PRECISIONS, STORE_NAMES


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """What `vfz cache convert` does: make a new cache from one that is there, without encoder or videos."""

    cache: Path | None = option(None, help="The cache to convert, only read; default: the only one in caches/.")
    out: Path = option(help="The folder that the new cache is made in.")
    store: str | None = option(None, help="How shards are stored; default: as in the old cache.", choices=STORE_NAMES)
    precision: str | None = option(
        None, help="Stored precision, the same or a lower one; default: as in the old cache.", choices=PRECISIONS
    )
    compression: str = option(
        "auto",
        help="Of zarr chunks; `auto` takes the best codec that saves 10% on a sample, if one does.",
        choices=("auto", *COMPRESSIONS),
    )
    name: str | None = option(None, help="Name of the new cache; default: the dataset's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
