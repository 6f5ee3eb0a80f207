"""The options of `vfz cache ls`, `info`, `verify` and `repair`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, option
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import DEVICE_HELP

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
class VerifyOptions(Options):
    """What `vfz cache verify` compares."""

    cache: Path | None = option(None, help=CACHE_HELP)
    against: Path | None = option(None, help="Also compare recipe, contents and videos with this other cache.")
    encoder: bool = option(default=False, help="Also encode the golden frames again and compare the tokens.")
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
