"""Why videos failed, as kinds: "moov atom not found" a thousand times is one line and not a thousand.

A reason names its video and says where it broke, so no two are the same text. Without the video's names and with every
number replaced, those of one kind are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfz.pipeline.format.ledger import LedgerRow

VIDEO, NUMBER = "VIDEO", "N"
"""What stands in a kind for the video's name and for a number."""
_NUMBER = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?(?!\w)")


@dataclass(frozen=True, kw_only=True)
class FailureKind:
    """Videos that are not in the cache for the same reason.

    Attributes:
        status: failed or missing.
        reason: theirs, without the names and numbers in which they differ.
        num_videos: how many there are.
        example_id, example_reason: one of them, and the reason in full.
    """

    status: str
    reason: str
    num_videos: int
    example_id: str
    example_reason: str


def group_failures(rows: Iterable[LedgerRow]) -> tuple[FailureKind, ...]:
    """The kinds of reasons that rows give, the most frequent first; the example is the first video of a kind.

    Args:
        rows: of any status; those without a reason are passed over.
    """
    kinds: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in rows:
        if row.reason:
            kinds.setdefault((row.status, kind_of(row)), []).append(row)
    found = [
        FailureKind(
            status=status,
            reason=reason,
            num_videos=len(of_kind),
            example_id=of_kind[0].id,
            example_reason=of_kind[0].reason,
        )
        for (status, reason), of_kind in kinds.items()
    ]
    return tuple(sorted(found, key=lambda kind: (-kind.num_videos, kind.status, kind.reason)))


def kind_of(row: LedgerRow) -> str:
    """The reason of a row without what is this video's alone."""
    path, separator, member = row.source_path.partition("::")
    names = {row.source_path, f"{Path(path).name}{separator}{member}", Path(row.source_path).name}
    any_name = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    reason = re.sub(rf"(?<!\w)(?:[^\s:]*/)?(?:{any_name})(?!\w)", lambda _: VIDEO, row.reason)
    return _NUMBER.sub(NUMBER, reason).removeprefix(f"{VIDEO}: ")
