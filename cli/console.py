"""Everything shown to people: progress, tables, JSON. The only file that imports rich.

Progress goes to stderr: a live bar on a terminal, plain lines (one every few seconds) elsewhere. What cannot be counted
(an import, loading weights) has a spinner there, and a line here once it has taken a second. Results go to stdout:
a table, or with `--json` one JSON object and nothing else. Names and reasons are shown as they are: no markup is read
in them, and what is not printable is escaped.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from vfz.cli.options import printable

PLAIN_INTERVAL_SECONDS = 5.0
PATIENCE_SECONDS = 1.0
"""What takes no longer gets no line of its own."""
IMPORTING = "importing torch"
Figures = Mapping[str, float | str]


@contextmanager
def progress() -> Iterator[LiveProgress | PlainProgress]:
    """The progress that fits where stderr goes."""
    console = Console(stderr=True)
    shown = LiveProgress(console) if console.is_terminal else PlainProgress()
    try:
        yield shown
    finally:
        shown.finish()


def show(title: str, rows: Mapping[str, object]) -> None:
    """A two-column table on stdout."""
    table(title, ["", ""], [(name, value) for name, value in rows.items()], header=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, header: bool = True) -> None:
    """A table on stdout; where that is no terminal, plain aligned lines as wide as they need to be."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain_table(printable(title), [list(columns), *cells] if header else cells, numbers=header)
        return
    drawn = Table(
        title=Text(printable(title)), title_justify="left", show_header=header, box=box.HEAVY_HEAD, pad_edge=True
    )
    for position, name in enumerate(columns):
        drawn.add_column(name, justify="left" if position == 0 or not header else "right", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


def print_json(value: Any) -> None:
    """One JSON object on stdout; what is not printable in its strings is escaped as JSON does it."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") in {"utf-8", "utf8"}
    text = json.dumps(value, indent=2, ensure_ascii=not is_utf8, default=str)
    lines = (
        line if line.isprintable() else "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)
        for line in text.split("\n")
    )
    sys.stdout.write("\n".join(lines) + "\n")


def percent(share: float) -> str:
    """A share as people read it: 91.7%."""
    return f"{100 * share:.1f}%"


class LiveProgress:
    """A bar with figures and time left, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(), _text_column("description"), BarColumn(bar_width=28), MofNCompleteColumn(),
            _text_column("fields[unit]"), _text_column("fields[figures]"), TimeRemainingColumn(),
            console=console, transient=True,
        )  # fmt: skip
        self._spinner = Progress(
            SpinnerColumn(), _text_column("description"), TimeElapsedColumn(), console=console, transient=True
        )
        self._task: TaskID | None = None
        self._doing: TaskID | None = None

    def doing(self, what: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self.finish()
        self._spinner.start()
        self._doing = self._spinner.add_task(printable(what), total=None)

    def start(self, task: str, *, total: int, unit: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self.finish()
        self._bar.start()
        self._task = self._bar.add_task(printable(task), total=total, unit=unit, figures="")

    def advance(self, count: int = 1, *, figures: Figures | None = None) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        if self._task is None:
            return
        self._bar.advance(self._task, count)
        if figures:
            self._bar.update(self._task, figures=_figures_text(figures))

    def note(self, text: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self._console.print(Text(printable(text)))

    def finish(self) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if self._doing is not None:
            self._spinner.remove_task(self._doing)
            self._doing = None
        self._spinner.stop()
        self._bar.stop()


class PlainProgress:
    """Lines without control characters, for logs and pipes.

    Args:
        patience_seconds: how long something may be done before there is a line of it.
    """

    def __init__(self, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._task, self._unit, self._total, self._done = "", "", 0, 0
        self._shown_at, self._figures = 0.0, ""
        self._patience_seconds = patience_seconds
        self._stop_telling = threading.Event()

    def doing(self, what: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self.finish()
        self._stop_telling = threading.Event()
        threading.Thread(target=self._tell, args=(what, self._stop_telling), daemon=True).start()

    def _tell(self, what: str, is_over: threading.Event) -> None:
        """A line once it has taken a while, and after ever longer whiles."""
        started, wait = time.monotonic(), self._patience_seconds
        while not is_over.wait(wait):
            taken = time.monotonic() - started
            self.note(what if wait == self._patience_seconds else f"{what}: {taken:.0f} s so far")
            wait = max(2 * PATIENCE_SECONDS, taken)

    def start(self, task: str, *, total: int, unit: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self._stop_telling.set()
        self._task, self._unit, self._total, self._done = task, unit, total, 0
        self._started_at = self._shown_at = time.monotonic()
        self._figures = ""
        self.note(f"{task}: {total} {unit}")

    def advance(self, count: int = 1, *, figures: Figures | None = None) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self._done += count
        if figures:
            self._figures = f", {_figures_text(figures)}"
        now = time.monotonic()
        if now - self._shown_at >= PLAIN_INTERVAL_SECONDS and 0 < self._done < self._total:
            self._shown_at = now
            left = (now - self._started_at) / self._done * (self._total - self._done)
            self.note(f"{self._task}: {self._done}/{self._total} {self._unit}{self._figures}, {left:.0f} s left")

    def note(self, text: str) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()

    def finish(self) -> None:
        """See `vfz.pipeline.progress.Progress`."""
        self._stop_telling.set()
        if self._task and self._done:
            taken = time.monotonic() - self._started_at
            self.note(f"{self._task}: {self._done} {self._unit} in {taken:.1f} s{self._figures}")
        self._task = ""


def _text_column(attribute: str) -> TextColumn:
    return TextColumn(f"{{task.{attribute}}}", markup=False)


def _figures_text(figures: Figures) -> str:
    return printable(
        ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        )
    )


def _plain_table(title: str, lines: Sequence[Sequence[str]], *, numbers: bool) -> None:
    """Two spaces between columns; all but the first end at the same place where they are `numbers`."""
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    if title:
        sys.stdout.write(f"{title}\n")
    for line in lines:
        padding = [" " * (width - cell_len(cell)) for width, cell in zip(widths, line, strict=True)]
        shown = [
            pad + cell if numbers and place else cell + pad
            for place, (cell, pad) in enumerate(zip(line, padding, strict=True))
        ]
        sys.stdout.write("  ".join(shown).rstrip() + "\n")
