"""How long work tells what it is doing. The pipeline knows no terminal: the command line passes one that draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives what happens. All calls come from the thread that started the work."""

    def start(self, task: str, *, total: int, unit: str) -> None:
        """A task begins; the one before it has ended."""

    def advance(self, count: int = 1, *, figures: Mapping[str, float | str] | None = None) -> None:
        """`count` more units are done; `figures` are shown beside the bar (frames/s, loss)."""

    def note(self, text: str) -> None:
        """Something worth a line of its own, such as a failed video."""

    def finish(self) -> None:
        """The task has ended."""


class SilentProgress:
    """The default for Python callers: says nothing."""

    def start(self, task: str, *, total: int, unit: str) -> None:
        """See `Progress`."""

    def advance(self, count: int = 1, *, figures: Mapping[str, float | str] | None = None) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def finish(self) -> None:
        """See `Progress`."""
