"""What a cache's folder is called, and which is meant when none is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfz.pipeline.errors import UsageError

DEFAULT_FOLDER = Path("caches")


def find_cache(path: Path | None, *, under: Path = DEFAULT_FOLDER, how: str = "with --cache") -> Path:
    """`path`, or the only cache in the folder `under`; `how` says in an error how to name one.

    Raises:
        UsageError: when `path` is no folder, or where none is named, when there is none or more than one.
    """
    if path is not None:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder; name that of a cache, as vfz cache ls {under} lists them")
        return path
    found = sorted(header.parent for header in under.glob("*/vfz.json") if not header.parent.name.startswith("."))
    if not found:
        raise UsageError(f"no cache in {under}/; make one with vfz extract, or name one {how}")
    if len(found) > 1:
        raise UsageError(f"{under}/ holds {len(found)} caches ({', '.join(map(str, found))}); choose one {how}")
    return found[0]


def cache_name(name: str, encoder_name: str, fingerprint: str) -> str:
    """What a cache's folder is called: `<name>-<encoder>-<first 12 hexadecimal digits of the fingerprint>`."""
    return f"{name}-{encoder_name.partition('.')[0]}-{fingerprint[:12]}"


def find_caches(paths: Sequence[Path] | None) -> tuple[Path, ...]:
    """`paths`, or the only cache in the default folder.

    Raises:
        UsageError: as `find_cache`.
    """
    return tuple(find_cache(path) for path in paths or (None,))
