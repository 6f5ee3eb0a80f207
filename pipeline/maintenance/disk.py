"""What a cache takes on the disk: the sizes of all its files, by what they are for.

Nothing is opened. Data that no commit names (a run is writing it, or was killed) counts, since it takes its space all
the same; `vfz cache verify` tells what it is.

Cost: one look at each file, some 20 for a shard.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from vfz.pipeline.format.calibration import CALIBRATION
from vfz.pipeline.format.catalog import CATALOG_FILES
from vfz.pipeline.format.commits import SHARDS
from vfz.pipeline.format.header import CONTENTS, GOLDEN, HEADER
from vfz.pipeline.format.labels import LABELS
from vfz.pipeline.format.plan import PLAN

INDEX_SUFFIX = ".index.json"
_OF_FOLDER = {
    PLAN: "plans",
    GOLDEN: "golden frames",
    CALIBRATION: "calibrations",
    CONTENTS: "contents",
    LABELS: "label sets",
}
_OF_FILE = {HEADER: "contents", **dict.fromkeys(CATALOG_FILES, "catalogue")}
KINDS = ("data", "indexes", *dict.fromkeys((*_OF_FOLDER.values(), *_OF_FILE.values())), "data of no commit", "others")
"""In the order they are told."""


def disk_bytes(folder: Path, committed: Collection[str]) -> dict[str, int]:
    """Bytes of all files of a cache by kind, in the order of `KINDS`; those there are none of are left out.

    A link counts as itself, and a file that is removed meanwhile not at all.

    Args:
        folder: the cache.
        committed: names of the data that commits name, in `shards/`.
    """
    found: Counter[str] = Counter()
    for parent, _, names in os.walk(folder):
        inside = Path(parent).relative_to(folder).parts
        for name in names:
            try:
                num_bytes = os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - for many files
            except FileNotFoundError:
                continue
            found[_kind_of((*inside, name), committed)] += num_bytes
    return {kind: found[kind] for kind in KINDS if kind in found}


def _kind_of(parts: tuple[str, ...], committed: Collection[str]) -> str:
    if len(parts) == 1:
        return _OF_FILE.get(parts[0], "others")
    if parts[0] != SHARDS:
        return _OF_FOLDER.get(parts[0], "others")
    if parts[1] in committed:
        return "data"
    return "indexes" if parts[1].endswith(INDEX_SUFFIX) else "data of no commit"
