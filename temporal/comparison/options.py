"""The options of `vfz probe compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, check_folder_name, option


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """What `vfz probe compare` does: put probes side by side and write tables and a page."""

    runs: tuple[Path, ...] = option(help="Folders that vfz probe has written.")
    baseline: str | None = option(
        None, help="Name of the probe that the others are tested against; default: the first."
    )
    out: Path = option(Path("runs"), help="The folder that the comparison is written in.")
    name: str = option("comparison", help="Name of the comparison; one that is there is replaced.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder_name(self.name)
