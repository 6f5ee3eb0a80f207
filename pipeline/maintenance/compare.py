"""`vfz cache verify --against`: may two caches be used for one another, and what differs?

Tokens of the same recipe are interchangeable whatever the store and the folder. So the recipes decide, field by field,
and after them the videos that both hold: their source files must be the same, and so must their frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache_header import read_header
from vfz.pipeline.format.header import Contents, read_contents
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import describe_difference

NAMES = ("A", "B")


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """Two caches beside each other: A and B.

    Attributes:
        a, b: their folders.
        same_fingerprint: whether they have one recipe.
        recipe_differences: a line per field, e.g. `encoder.image_size: A 224, B 256`.
        contents_differences: the same of dataset, classes, store and columns; no obstacle.
        same_ledger: whether both hold the same videos with the same frames in the same shards.
        num_common: videos (once per view) that both have tokens of.
        only_in_a, only_in_b: how many only one has tokens of; no obstacle.
        video_differences: a line per common video whose source file or number of frames differs.
    """

    a: str
    b: str
    same_fingerprint: bool
    recipe_differences: tuple[str, ...]
    contents_differences: tuple[str, ...]
    same_ledger: bool
    num_common: int
    only_in_a: int
    only_in_b: int
    video_differences: tuple[str, ...]

    @property
    def interchangeable(self) -> bool:
        """Whether the tokens of one stand for those of the other."""
        return self.same_fingerprint and not self.video_differences


def compare_caches(a: str | Path, b: str | Path) -> CompareReport:
    """What differs between two caches; reads no tokens.

    Raises:
        CacheFormatError: when one of them is no cache, or damaged so that it cannot be opened.
    """
    headers = [read_header(Path(path)) for path in (a, b)]
    caches = [FeatureCache(path, allow_incomplete=True) for path in (a, b)]
    contents = [read_contents(Path(path), header) for path, header in zip((a, b), headers, strict=True)]
    rows_a, rows_b = ({row.key: row for row in cache.videos if row.status == "ok"} for cache in caches)
    common = rows_a.keys() & rows_b.keys()
    return CompareReport(
        a=str(a),
        b=str(b),
        same_fingerprint=headers[0].fingerprint == headers[1].fingerprint,
        recipe_differences=tuple(describe_difference(headers[0].recipe, headers[1].recipe, names=NAMES)),
        contents_differences=tuple(_contents_differences(*contents)),
        same_ledger=caches[0].ledger_digest == caches[1].ledger_digest,
        num_common=len(common),
        only_in_a=len(rows_a) - len(common),
        only_in_b=len(rows_b) - len(common),
        video_differences=tuple(
            line for key in rows_a if key in common for line in _video_differences(rows_a[key], rows_b[key])
        ),
    )


def _contents_differences(a: Contents, b: Contents) -> list[str]:
    one, other = ({**contents.to_dict(), "golden": None} for contents in (a, b))
    return describe_difference(one, other, names=NAMES)


def _video_differences(a: LedgerRow, b: LedgerRow) -> list[str]:
    name = f"video {a.id!r}" + (f" (view {a.view})" if a.view else "")
    lines = []
    if a.source_digest != b.source_digest:
        lines.append(f"{name}: made from another file: A {str(a.source_digest)[:12]}…, B {str(b.source_digest)[:12]}…")
    if a.num_frames != b.num_frames:
        lines.append(f"{name}: frames: A {a.num_frames}, B {b.num_frames}")
    return lines
