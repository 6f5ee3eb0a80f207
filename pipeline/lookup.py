"""Folders that a user names: by their path, or by their bare name where folders of their kind lie.

A cache, a run and a probe's result are folders that hold a file of a known name, their *marker*. `runs/gru`, `gru`
where `runs/gru` is a run, and a whole path are all the same run. A path that is what it should be wins over a name.
Costs a look at one or two files; the names are listed only for a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.errors import UnknownNameError, UsageError


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """One kind of folder that can be named.

    Attributes:
        kind: as messages call it: `cache`, `run`.
        marker: the file that all of them hold.
        under: where they lie, unless the user says otherwise.
        made_by: the command that makes one.
    """

    kind: str
    marker: str
    under: Path
    made_by: str

    def look_up(self, given: Any, *, under: Path | None = None) -> Path:
        """The folder of that path or name; the path as given where there is neither.

        Args:
            given: a path or a bare name.
            under: where names lie; None: where they do by default.

        Raises:
            UsageError: for what is neither text nor a path.
        """
        if not isinstance(given, str | Path) or not str(given):
            type_name = f" ({type(given).__name__})" if given is not None and not isinstance(given, str) else ""
            raise UsageError(f"{given!r}{type_name} is no {self.kind}; give its name, or the path of its folder")
        path = Path(given)
        if self.holds(path) or path.name != str(path):
            return path
        named = (self.under if under is None else under) / path
        return named if self.holds(named) else path

    def find(self, given: Any, *, under: Path | None = None) -> Path:
        """The folder of that path or name.

        A folder that is there is returned although it is of no such kind: whoever reads it says what it lacks.

        Raises:
            UsageError: for what is neither text nor a path, or where none of that kind is there.
            UnknownNameError: when no folder is called so; with the nearest names.
        """
        folder = self.under if under is None else under
        path = self.look_up(given, under=folder)
        if _is(path, "is_dir"):
            return path
        if path.name != str(path) and (beside := self.names(path.parent)):
            allowed = [str(path.parent / name) for name in beside]
        else:
            allowed = self.names(folder)
        if not allowed:
            raise UsageError(
                f"{path} is not a folder, and {folder}/ holds no {self.kind}; make one with {self.made_by}, or give "
                "the path of one"
            )
        raise UnknownNameError(self.kind, str(path), allowed, hint=f"(a name under {folder}/, or a path)")

    def holds(self, path: Path) -> bool:
        """Whether a folder is one of this kind, by its marker."""
        return _is(path / self.marker, "is_file")

    def names(self, folder: Path) -> list[str]:
        """Those of this kind in a folder, sorted, without hidden ones: those are still being made."""
        try:
            found = [path.parent.name for path in folder.glob(f"*/{self.marker}")]
        except OSError:  # a folder that may not be listed has no names to offer
            return []
        return sorted(name for name in found if not name.startswith("."))


def _is(path: Path, what: str) -> bool:
    try:
        return bool(getattr(path, what)())
    except (OSError, ValueError):  # a name that is too long, or that no file can have, is none that is there
        return False
