"""Which video of a cache someone means who names a file, a path or an id, now that files may lie elsewhere.

In this order: the only one whose file has the same digest; the one of that id; of those whose file has that name, the
one whose path has most in common from its end. A cache knows ids, where files were, and their digests. Two that are
meant equally well are an error and never a guess.

Cost: where one is not named by its id, the paths of all videos are taken apart: seconds for a quarter of a million.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from vfz.pipeline.datasets.base import VIDEO_SUFFIXES
from vfz.pipeline.datasets.text import composed
from vfz.pipeline.errors import DatasetError

if TYPE_CHECKING:
    from vfz.pipeline.format.ledger import LedgerRow

_SHOWN = 3


class VideoMatcher:
    """Finds the video of a cache that someone names.

    Args:
        rows: one of each video.
    """

    def __init__(self, rows: Sequence[LedgerRow]) -> None:
        self._ids = {composed(row.id): row.id for row in rows} | {row.id: row.id for row in rows}
        self._by_digest: dict[str, list[str]] = defaultdict(list)
        self._rows = rows
        for row in rows:
            if row.source_digest is not None:
                self._by_digest[row.source_digest].append(row.id)

    @cached_property
    def _by_stem(self) -> dict[str, dict[str, list[tuple[str, ...]]]]:
        """The parts of the id and of the path of each video, by the name of the file and by id."""
        found: dict[str, dict[str, list[tuple[str, ...]]]] = defaultdict(dict)
        for row in self._rows:
            for text in {row.id, row.source_path}:
                parts = _parts(text)
                found[parts[-1]].setdefault(row.id, []).append(parts)
        return found

    def find(self, video: str, *, digest: str | None, place: str) -> str | None:
        """The id of the video that is meant; None where there is none.

        Args:
            video: an id, a path or the name of a file, with or without the suffix of a video.
            digest: of its file, where there is one.
            place: where it is named, for messages.

        Raises:
            DatasetError: several may be meant.
        """
        same = self._by_digest.get(digest, []) if digest is not None else []
        if len(same) == 1:
            return same[0]
        if video in self._ids and (not same or self._ids[video] in same):
            return self._ids[video]
        parts = _parts(video)
        named = {key: value for key, value in self._by_stem.get(parts[-1], {}).items() if not same or key in same}
        if not named:
            return None
        common = {key: max(_num_common(parts, own) for own in value) for key, value in named.items()}
        best = [key for key, count in common.items() if count == max(common.values())]
        if len(best) > 1:
            some = ", ".join(map(repr, sorted(best)[:_SHOWN])) + (", …" if len(best) > _SHOWN else "")
            raise DatasetError(f"{place}: {video!r} may be {some}; name the video by its id in the cache")
        return best[0]


def _parts(text: str) -> tuple[str, ...]:
    """The folders of a path and the name of the file, without the suffix of a video."""
    stem, suffix = os.path.splitext(text)  # noqa: PTH122 - a quarter of a million times
    parts = composed(stem if suffix.lower() in VIDEO_SUFFIXES else text).split("/")
    return tuple(part for part in parts if part not in {"", "."}) or (text,)


def _num_common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts are the same, from the end."""
    same = [one == other for one, other in zip(reversed(a), reversed(b), strict=False)]
    return same.index(False) if False in same else len(same)
