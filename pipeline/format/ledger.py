"""What happened to every video: one row per (video, view), written with the shard that holds its frames.

A row never changes. A video that is tried again gets a new row in a later plan, and the latest plan wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from vfz.pipeline.errors import CacheFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping


Status = Literal["ok", "failed", "missing", "pending"]
STATUSES: tuple[Status, ...] = get_args(Status)
VideoKey = tuple[str, int]
"""What a row is found by: the id of a video, and a view of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One video in one view.

    Attributes:
        id: the video, unique in its dataset.
        view: which crop; 0 is the centre.
        split: of the dataset, e.g. `train`.
        label: index into the cache's class names; None where there is none.
        status: ok | failed (could not be decoded or encoded in full) | missing (no such file) | pending (no shard yet).
        reason: why it is not ok, one line; empty for ok and pending.
        attempts: how often it was tried.
        num_frames: frames stored; 0 unless ok.
        frame_start: where they begin in the shard; 0 unless ok.
        shard: the shard it is planned for, e.g. `00012`.
        source_digest: `VideoSource.digest` of its bytes; None where the file could not be read.
        source_path: its file, or `<tar>::<member>`, absolute. Provenance only: reading a cache never opens it.
        duration_seconds: from the first stored frame to the last, or as the extraction defines it; 0 unless ok.
        folds: its split in each official fold of the dataset, by name; empty where there is one division only.
    """

    id: str
    view: int
    split: str
    label: int | None
    status: Status
    reason: str
    attempts: int
    num_frames: int
    frame_start: int
    shard: str
    source_digest: str | None
    source_path: str
    duration_seconds: float
    folds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"video {self.id!r}: status {self.status!r} is none of {', '.join(STATUSES)}")
        if min(self.view, self.attempts, self.num_frames, self.frame_start) < 0 or not self.duration_seconds >= 0:
            raise ValueError(f"video {self.id!r}: view, attempts, frames and seconds are never negative: {self}")
        if (self.status == "ok") != (self.num_frames > 0):
            raise ValueError(f"video {self.id!r}: status {self.status} with {self.num_frames} frames; only ok has some")
        if (self.status in {"failed", "missing"}) != bool(self.reason):
            raise ValueError(f"video {self.id!r}: status {self.status} with reason {self.reason!r}")

    @property
    def key(self) -> VideoKey:
        """What a row is found by: (video, view)."""
        return self.id, self.view

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the names of the attributes."""
        return {name: getattr(self, name) for name in _FIELD_TYPES} | {"folds": dict(self.folds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LedgerRow:
        """The inverse of `to_dict`.

        Raises:
            CacheFormatError: for a name too many or too few, a value of another type, or a row that contradicts itself.
        """
        if values.keys() != _FIELD_TYPES.keys():
            raise CacheFormatError(f"a ledger row has the fields {sorted(values)}, expected {sorted(_FIELD_TYPES)}")
        for name, types in _FIELD_TYPES.items():
            if type(values[name]) not in types:
                raise CacheFormatError(f"ledger row of video {values['id']!r}: {name} is {values[name]!r}")
        try:
            return cls(**values)
        except ValueError as error:
            raise CacheFormatError(f"damaged ledger row: {error}") from error


# `type(...) in`, not isinstance: True is no number here.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "view": (int,),
    "split": (str,),
    "label": (int, type(None)),
    "status": (str,),
    "reason": (str,),
    "attempts": (int,),
    "num_frames": (int,),
    "frame_start": (int,),
    "shard": (str,),
    "source_digest": (str, type(None)),
    "source_path": (str,),
    "duration_seconds": (float, int),
    "folds": (dict,),
}
