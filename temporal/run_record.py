"""`run.json`: what a training run says of itself, and which cache is its own. Imports no torch.

A run remembers its caches by path and by the fingerprint of their recipe. Paths change: folders are moved, and what was
relative is asked for from elsewhere. So a run's own cache is looked for where it was, beside the run, and under
`caches/`, and is taken only if it has that fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.errors import CacheFormatError, CacheMismatchError, RunError, UsageError
from vfz.pipeline.files import write_file_atomic
from vfz.pipeline.format.folder import DEFAULT_FOLDER, CacheFolder, caches_in, find_cache, find_caches
from vfz.pipeline.recipe import describe_difference
from vfz.temporal.lookup import find_run

if TYPE_CHECKING:
    from vfz.temporal.model import ModelConfig

FORMAT_VERSION = 2
RECORD_FILE = "run.json"
_SHOWN_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`run.json` of a finished or unfinished run."""

    path: Path
    values: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether training went to its end."""
        return bool(self.values["finished"])

    @property
    def model_config(self) -> ModelConfig:
        """The config the model is built from."""
        from vfz.temporal.model import ModelConfig  # and with it torch

        return ModelConfig.from_dict(self.values["model"])


def read_run(path: Path) -> RunInfo:
    """The record of a run.

    Raises:
        UsageError: when the folder holds no run. RunError: when it is of another version.
    """
    try:
        values = json.loads((path / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError(f"{path} is no run of vfz train-temporal: it has no readable {RECORD_FILE}") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(
            f"{path}/{RECORD_FILE} is of format version {version}, this vfz reads {FORMAT_VERSION}; train the run "
            "again, or use the vfz that made it"
        )
    return RunInfo(path=path, values=values)


def write_run(path: Path, values: dict[str, Any]) -> None:
    """Replace `run.json`."""
    record = {"format_version": FORMAT_VERSION} | values
    write_file_atomic(path / RECORD_FILE, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def check_same_tokens(run: RunInfo, *, fingerprint: str, recipe: dict[str, Any], cache: Path) -> None:
    """Refuse a cache whose tokens are not those the run was trained on.

    Raises:
        CacheMismatchError: with the field-by-field difference of the two recipes.
    """
    if run.values["cache"]["fingerprint"] != fingerprint:
        difference = "; ".join(describe_difference(recipe, run.values["cache"]["recipe"], names=("cache", "run")))
        raise CacheMismatchError(
            f"{run.path} was trained on tokens of another recipe than {cache}: {difference}; "
            "use its own cache, or train a run on this one"
        )


def caches_of_run(
    run: RunInfo, named: Sequence[Path] | None = None, *, under: Path = DEFAULT_FOLDER
) -> tuple[Path, ...]:
    """The caches that `--cache` names; without it those that the run was trained on.

    Where one of those is gone, it is the only one under `under` that has the run's fingerprint, else the only one there
    is: `check_same_tokens` says how its recipe differs.

    Args:
        run: which.
        named: what was given.
        under: where caches lie.

    Raises:
        UsageError: when none fits, or several do; names the fingerprint that is needed and the caches that are there.
    """
    if named:
        return find_caches(named)
    own = [_own_cache(run, Path(path), under) for path in run.values["cache"]["paths"]]
    found = tuple(path for path in own if path is not None)
    return found if found and len(found) == len(own) else (_instead(run, under),)


def cache_of_run(run: RunInfo, named: Path | None = None, *, under: Path = DEFAULT_FOLDER) -> Path:
    """As `caches_of_run`, for what takes a single cache.

    Raises:
        UsageError: also when the run was trained on several.
    """
    if named is not None:
        return find_cache(named)
    paths = caches_of_run(run, under=under)
    if len(paths) > 1:
        raise UsageError(
            f"{run.path} was trained on {len(paths)} caches ({', '.join(map(str, paths))}); choose one with --cache"
        )
    return paths[0]


def cache_for(named: Path | None, run: Path | None) -> Path:
    """The cache of a command that may be given a run: the named one, else the run's own, else the only one there is.

    Raises:
        UsageError: when there is none, more than one, or no such run.
    """
    return find_cache(named) if run is None else cache_of_run(read_run(find_run(run)), named)


def caches_for(named: Sequence[Path] | None, run: Path | None) -> tuple[Path, ...]:
    """As `cache_for`, for a command that takes several caches; `run` is a folder.

    Raises:
        UsageError: as there.
    """
    return find_caches(named) if run is None else caches_of_run(read_run(run), named)


def _own_cache(run: RunInfo, recorded: Path, under: Path) -> Path | None:
    """Where a cache that the run was trained on lies now; None where it is not found."""
    for path in _places(run, recorded, under):
        if _fingerprint_of(path) == run.values["cache"]["fingerprint"]:
            return path
    return None


def _places(run: RunInfo, recorded: Path, under: Path) -> Iterator[Path]:
    """Where it was; as far from the run as it was; where caches lie, here and beside the folder of runs."""
    yield recorded
    parents = run.path.resolve().parents
    if not recorded.is_absolute():
        yield from (parent / recorded for parent in parents)
    yield under / recorded.name
    yield from (parent / DEFAULT_FOLDER / recorded.name for parent in parents)


def _instead(run: RunInfo, under: Path) -> Path:
    fingerprint = run.values["cache"]["fingerprint"]
    there = caches_in(under)
    fitting = [path for path in there if _fingerprint_of(path) == fingerprint]
    if len(fitting) == 1:
        return fitting[0]
    if len(there) == 1:
        return there[0]
    trained = f"{run.path} was trained on {', '.join(run.values['cache']['paths'])}"
    needed = f"recipe {fingerprint[:_SHOWN_DIGITS]}"
    if fitting:
        raise UsageError(
            f"{trained}, which is not there; {len(fitting)} caches in {under}/ have its {needed} "
            f"({', '.join(map(str, fitting))}): choose one with --cache"
        )
    held = f"{under}/ holds none of it ({', '.join(map(str, there))})" if there else f"no cache is in {under}/"
    raise UsageError(f"{trained}, which is not there; it needs a cache of {needed}, and {held}: name one with --cache")


def _fingerprint_of(path: Path) -> str | None:
    try:
        return CacheFolder(path).header.fingerprint
    except (CacheFormatError, OSError):
        return None  # no cache, or a damaged one, is not the run's
