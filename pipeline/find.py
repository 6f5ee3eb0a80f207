"""Finding the cache that is meant when none is named."""

from __future__ import annotations

from pathlib import Path

from vfz.pipeline.errors import UsageError

DEFAULT_FOLDER = Path("caches")


def find_cache(path: Path | None, *, under: Path = DEFAULT_FOLDER) -> Path:
    """`path`, or the only cache in the folder `under`.

    Raises:
        UsageError: when there is none, or more than one.
    """
    if path is not None:
        return path
    found = sorted(header.parent for header in under.glob("*/vfz.json") if not header.parent.name.startswith("."))
    if not found:
        raise UsageError(f"no cache in {under}/; make one with vfz extract, or name one with --cache")
    if len(found) > 1:
        raise UsageError(f"{under}/ holds {len(found)} caches ({', '.join(map(str, found))}); choose one with --cache")
    return found[0]
