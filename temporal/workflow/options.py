"""The options of `vfz run`: names, defaults, help and checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.config import Options, option


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What `vfz run` does: the stages of a workflow that are not done yet."""

    workflow: Path = option(
        help="A TOML file with the tables [extract], [[convert]], [[train-temporal]], [[evaluate]], [[probe]], "
        "[compare] and [[predict]]."
    )
    only: tuple[str, ...] | None = option(
        None, help="Only the trainings of this name or core, and what is made of them; default: all stages."
    )
    dry_run: bool = option(
        default=False, help="Only check all stages, and show which are done, to go on with, and to do."
    )
    again: bool = option(default=False, help="Look for new videos although the cache is whole, and fit probes again.")
