"""Explicit registries: a name, what implements it, and one line that puts it there.

Every kind of part has one: datasets, decoders, stores, mixers, cores, readouts, tasks, probes. Nothing is found by
scanning folders or by subclass hooks: what can be built is what a registry's file lists. A duplicate is a programming
error and raises at import; an unknown name is the user's and names its neighbours.

Where names must be known without the libraries that their classes need (`vfz train-temporal --help` without torch), a
registry is told where a class stands, and imports it when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

from vfz.pipeline.errors import UnknownNameError

EntryT = TypeVar("EntryT")


class _Place(str):
    """Where an entry stands that has not been imported yet, as `module:name`."""

    __slots__ = ()


class Registry(Mapping[str, EntryT]):
    """Names of one kind of part, each standing for one entry; a mapping in the order of their lines.

    Looking up a name that is not there raises an `UnknownNameError`, which offers the nearest names.

    Attributes:
        kind: what the entries are, as messages call it: `core`, `readout`, `mixer`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, EntryT | _Place] = {}

    def register(self, name: str, entry: EntryT) -> None:
        """Adds `entry` under `name`.

        Raises:
            ValueError: when the name is taken.
        """
        self._add(name, entry)

    def register_place(self, name: str, place: str) -> None:
        """Adds the entry at `place` (`package.module:Class`) under `name`; it is imported when it is first asked for.

        Raises:
            ValueError: when the name is taken.
        """
        self._add(name, _Place(place))

    def _add(self, name: str, entry: EntryT | _Place) -> None:
        if name in self._entries:
            raise ValueError(
                f"{self.kind} {name!r} is already registered as {self._entries[name]!r}; choose another name"
            )
        self._entries[name] = entry

    def __getitem__(self, name: str) -> EntryT:
        self.check(name)
        entry = self._entries[name]
        if isinstance(entry, _Place):
            module, _, attribute = entry.partition(":")
            entry = cast("EntryT", getattr(importlib.import_module(module), attribute))
            self._entries[name] = entry
        return entry

    def check(self, name: str) -> None:
        """Sees that there is such a name; imports nothing.

        Raises:
            UnknownNameError: there is none.
        """
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
