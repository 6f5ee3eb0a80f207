"""Explicit registries: a name, the class that implements it, and one line that puts it there.

Nothing is found by scanning folders or by subclass hooks: what can be built is what a registry's file lists. A
duplicate is a programming error and raises at import; an unknown name is the user's and names its neighbours.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from vfz.pipeline.errors import UnknownNameError

EntryT = TypeVar("EntryT")


class Registry(Generic[EntryT]):
    """Names of one kind of part, each standing for one entry (a class).

    Attributes:
        kind: what the entries are, as messages call it: `core`, `readout`, `mixer`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, EntryT] = {}

    def register(self, name: str, entry: EntryT) -> None:
        """Adds `entry` under `name`.

        Raises:
            ValueError: when the name is taken.
        """
        if name in self._entries:
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {self._entries[name]!r}; choose another name"
            )
        self._entries[name] = entry

    def get(self, name: str) -> EntryT:
        """The entry called `name`.

        Raises:
            UnknownNameError: when there is none; the message offers the nearest names.
        """
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))
