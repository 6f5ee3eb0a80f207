"""What a verification finds: problems, one line each, how bad each is and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vfz.pipeline.format.commits import CommitKey
from vfz.pipeline.format.drops import DROPS
from vfz.pipeline.format.header import CONTENTS, HEADER
from vfz.pipeline.format.plan import PLAN

Severity = Literal["damage", "note"]
"""`damage`: something that was written is gone or changed. `note`: left over or out of date; reading is as it was."""

_VIDEOS_SHOWN = 8
"""In a line; a problem has all of them."""
Remedy = Literal["restore", "extract", "remove", "rebuild", "none"]
"""What mends it: `restore` a file from a copy; drop the commit and `extract` it again; `remove` the file; `rebuild` the
catalogue; or `none`, nothing needs to be done. The first is for people, `vfz cache repair` does the next three."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        file: where, relative to the cache.
        text: what is wrong, and for `restore` what to do.
        severity, remedy: see above.
        shard, number: the commit it belongs to; None where it belongs to none.
        videos: ids of those it touches, in the order they are stored; empty where that is not known.
        array: which array it was found in (`layer_5/patch`); None where that is not known.
    """

    file: str
    text: str
    severity: Severity = "damage"
    remedy: Remedy = "restore"
    shard: str | None = None
    number: int | None = None
    videos: tuple[str, ...] = ()
    array: str | None = None

    @property
    def commit(self) -> CommitKey | None:
        """The commit it belongs to."""
        return None if self.shard is None or self.number is None else (self.shard, self.number)

    @property
    def says_what_the_cache_is(self) -> bool:
        """Whether it is in `vfz.json`, contents, plans, drops or indexes, without which nothing else can be judged."""
        return (
            self.file == HEADER
            or self.file.startswith((f"{CONTENTS}/", f"{DROPS}/", f"{PLAN}/"))
            or self.shard is not None
        )

    def __str__(self) -> str:
        named = ", ".join(self.videos[:_VIDEOS_SHOWN]) + (
            f" and {len(self.videos) - _VIDEOS_SHOWN} more" if len(self.videos) > _VIDEOS_SHOWN else ""
        )
        videos = f"video{'s' if len(self.videos) > 1 else ''} {named}" if named else None
        shard, array = self.shard and f"shard {self.shard}", self.array and f"array {self.array}"
        where = [text for text in (shard, videos, array) if text is not None]
        return f"{self.severity}: {self.file} ({', '.join(where)}): {self.text}".replace(" ()", "")


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_cache` saw.

    Attributes:
        cache: the folder.
        fingerprint: of its recipe; None where `vfz.json` cannot be read.
        num_files, num_bytes: read in full and compared with a digest.
        num_chunks: compared with their crc32c.
        num_commits: whose data was read.
        num_videos, num_frames: whose tokens and times were looked at (a video counts once per view).
        num_pending: videos that are planned and not extracted yet; no problem.
        seconds: taken.
        problems: all that were found, damage first.
    """

    cache: str
    fingerprint: str | None
    num_files: int
    num_bytes: int
    num_chunks: int
    num_commits: int
    num_videos: int
    num_frames: int
    num_pending: int
    seconds: float
    problems: tuple[Problem, ...]

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that make the cache not intact."""
        return tuple(problem for problem in self.problems if problem.severity == "damage")

    @property
    def notes(self) -> tuple[Problem, ...]:
        """The others."""
        return tuple(problem for problem in self.problems if problem.severity == "note")

    @property
    def beyond_repair(self) -> tuple[Problem, ...]:
        """The damage that needs a copy of the cache."""
        return tuple(problem for problem in self.damage if problem.remedy in {"restore", "none"})

    @property
    def can_be_judged(self) -> bool:
        """Whether all is there that says what the cache is: without it nothing else is repaired either."""
        return not any(problem.says_what_the_cache_is for problem in self.beyond_repair)

    @property
    def advice(self) -> str:
        """What to do about the damage."""
        files = list(dict.fromkeys(problem.file for problem in self.beyond_repair))
        if not files:
            return "vfz cache repair mends it"
        named = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        restore = f"restore {named} from a copy of the cache"
        if len(self.beyond_repair) == len(self.damage):
            return f"{restore}: vfz cache repair cannot mend that"
        if not self.can_be_judged:
            return f"{restore}; after that vfz cache repair mends the rest"
        return f"vfz cache repair mends some; {restore} for the others"

    @property
    def intact(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.damage


def sorted_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Damage first, then by file; equal ones once."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda problem: (problem.severity != "damage", problem.file)))
