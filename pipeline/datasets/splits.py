"""Splits for videos that have none: dealt by what is in their files, the same on every machine and when more come.

A number between 0 and 1 is drawn for each file by its digest and a seed; the fractions cut that range into splits. So a
video stays where it was whatever is added beside it, wherever it lies and whatever it is called, and copies of one file
are in one split. Clips of one source stay together where `group_by` says how their names tell it; then the number is
drawn for the source.

Numbers drawn so may leave a split of a small class empty. Then the file of that class whose number is nearest goes
there, as long as another split of the class keeps one. Only such a file can change its split when its class grows. In a
cache, videos keep the splits they were planned with, and so do copies of their files and clips of their groups.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, NamedTuple

from vfz.pipeline.datasets.base import VideoRecord
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.pipeline.progress import counted

SPLITS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
_NUM_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How videos are dealt to splits.

    Attributes:
        fractions: of `train`, `val` and `test`, or of the first ones of these; together 1.
        group_by: a regular expression; videos in whose names (without folders) it finds the same text stay together.
        num_folds: how many folds are made besides, `fold1`, `fold2`, …: each has another part as `test`, the rest as
            `train`; 0 for none.
        seed: of the numbers drawn.

    Raises:
        UsageError: the fractions are not 1 together, or the expression is none.
    """

    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    group_by: str | None = None
    num_folds: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = abs(sum(self.fractions) - 1) < 1e-6
        if not whole or not 0 < len(self.fractions) <= len(SPLITS) or min(self.fractions) < 0 or not self.fractions[0]:
            given = ",".join(f"{fraction:g}" for fraction in self.fractions)
            raise UsageError(
                f"--split-fractions {given}: give the shares of {', '.join(SPLITS)}, which are 1 together, such as "
                "0.8,0.1,0.1 or 0.9,0.1"
            )
        if self.num_folds == 1:
            raise UsageError("--split-folds 1: one fold has nothing to train on; give at least 2")
        if self.group_by == "":
            raise UsageError("--group-by '' finds nothing; give a regular expression, or leave it out")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise UsageError(f"--group-by {self.group_by!r} is no regular expression: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """For a cache's provenance."""
        return {
            "fractions": list(self.fractions),
            "group_by": self.group_by,
            "num_folds": self.num_folds,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """As options."""
        parts = [f"--split-fractions {','.join(f'{fraction:g}' for fraction in self.fractions)}"]
        parts += [f"--group-by {self.group_by!r}"] if self.group_by else []
        parts += [f"--split-folds {self.num_folds}"] if self.num_folds else []
        parts += [f"--split-seed {self.seed}"] if self.seed else []
        return " ".join(parts)


class KnownVideo(NamedTuple):
    """What a cache knows of a video that was dealt before."""

    id: str
    digest: str | None
    split: str
    folds: Mapping[str, str]


def deal(
    records: Sequence[VideoRecord],
    rule: SplitRule,
    *,
    class_names: Sequence[str],
    known: Iterable[KnownVideo] = (),
    digests: Mapping[str, str] | None = None,
) -> list[VideoRecord]:
    """The same videos, each with a split and with folds.

    Args:
        records: the videos; a file that is not there is dealt by its id.
        rule: how.
        class_names: in the order of labels; empty where there are none.
        known: videos that were dealt before; they, copies of their files and clips of their groups stay where they are.
        digests: of files by id, which are not read then.

    Raises:
        DatasetError: `group_by` finds nothing in a name.
    """
    groups, known = rule.group_by is not None, list(known)
    if groups:
        units = [_group_of(record.id, rule.group_by or "") for record in records]
    else:
        units = _digests(records, {row.id: row.digest for row in known if row.digest} | dict(digests or {}))
    drawn = {unit: _number(unit, rule.seed) for unit in units}
    splits = [name for name, fraction in zip(SPLITS, rule.fractions, strict=False) if fraction]
    ends = _ends([fraction for fraction in rule.fractions if fraction])
    split_of = {unit: _place(number, ends) for unit, number in drawn.items()}
    before: dict[str, tuple[str, Mapping[str, str]]] = {}
    by_id: dict[str, tuple[str, Mapping[str, str]]] = {}
    for row in known:
        by_id[row.id] = row.split, row.folds
        before[_group_of(row.id, rule.group_by or "") if groups else row.digest or row.id] = by_id[row.id]
    classes: dict[str, set[int | None]] = defaultdict(set)
    for unit, record in zip(units, records, strict=True):
        classes[unit].add(record.label)
        if unit in before and before[unit][0] in splits:
            split_of[unit] = splits.index(before[unit][0])
    for label in range(len(class_names)) if class_names else [None]:
        of_class = [unit for unit, labels in classes.items() if labels == {label}]
        _fill(of_class, drawn, split_of, ends, fixed=before.keys())
    found = []
    for unit, record in zip(units, records, strict=True):
        fresh = splits[split_of[unit]], _folds(drawn[unit], rule.num_folds)
        split, folds = by_id.get(record.id) or before.get(unit) or fresh
        found.append(replace(record, split=split, folds=folds))
    return found


def describe(records: Sequence[VideoRecord], rule: SplitRule, *, class_names: Sequence[str]) -> list[str]:
    """In a few lines: how many videos are in which split, and what has none."""
    count = Counter(record.split for record in records)
    used = [split for split, fraction in zip(SPLITS, rule.fractions, strict=False) if fraction]
    by = "what is in the files"
    if rule.group_by is not None:
        by = counted(len({_group_of(record.id, rule.group_by) for record in records}), "group")
    lines = [f"no splits are given: {', '.join(f'{count[split]} {split}' for split in used)}, dealt by {by}, {rule}"]
    for split in used:
        there = {record.label for record in records if record.split == split}
        lacking = [name for label, name in enumerate(class_names) if label not in there]
        if not count[split]:
            lines.append(f"{split} has no video: there are too few files, copies of one file, or too few groups")
        elif lacking:
            others = f" and {len(lacking) - 1} other classes" if len(lacking) > 1 else ""
            lines.append(f"no video of {lacking[0]}{others} is in {split}")
    tested = {fold for record in records for fold, split in record.folds.items() if split == "test"}
    empty = [f"fold{number + 1}" for number in range(rule.num_folds) if f"fold{number + 1}" not in tested]
    if empty:
        lines.append(f"{', '.join(empty[:8])}: no video to test on; give fewer --split-folds")
    return lines


def _group_of(video_id: str, group_by: str) -> str:
    name = PurePath(video_id).name
    found = re.search(group_by, name)
    text = "" if found is None else "/".join(found.groups(default="")) or found[0]
    if not text.strip("/"):
        raise DatasetError(f"--group-by {group_by!r} finds nothing in the name of {video_id!r}; every name must match")
    return text


def _digests(records: Sequence[VideoRecord], known: Mapping[str, str]) -> list[str]:
    """Of each file; those that a cache knows by id are not read again, and looked at where work is resumed."""

    def digest(record: VideoRecord) -> str:
        try:
            return known.get(record.id) or record.source.digest()
        except OSError:
            return record.id

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(digest, records))


def _number(unit: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{unit}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _ends(fractions: Sequence[float]) -> list[float]:
    ends = [sum(fractions[: place + 1]) for place in range(len(fractions))]
    return [*ends[:-1], 1.0]


def _place(number: float, ends: Sequence[float]) -> int:
    return next(place for place, end in enumerate(ends) if number < end)


def _fill(
    units: Sequence[str],
    drawn: Mapping[str, float],
    split_of: dict[str, int],
    ends: Sequence[float],
    *,
    fixed: Container[str],
) -> None:
    """Gives each split of a class a file where there are enough: the nearest of a split that has another."""
    for place in range(len(ends)):
        count = Counter(split_of[unit] for unit in units)
        spare = [unit for unit in units if count[split_of[unit]] > 1 and unit not in fixed]
        if not count[place] and spare:
            begin, end = (ends[place - 1] if place else 0.0), ends[place]
            nearest = min(spare, key=lambda unit: (max(begin - drawn[unit], drawn[unit] - end), unit))
            split_of[nearest] = place


def _folds(number: float, num_folds: int) -> dict[str, str]:
    own = int(number * num_folds)
    return {f"fold{fold + 1}": "test" if fold == own else "train" for fold in range(num_folds)}
