"""What a run says while it trains: `metrics.jsonl` for programs, TensorBoard events for people.

A line has `kind`: `step` (loss, lr, grad_norm), `epoch` (train_loss, seconds) or `eval` (every metric and what it is a
share of); a value that is not finite is null. Both logs can go back to where a checkpoint was written, so that steps
done again after a kill are there once. TensorBoard takes 0.2 s to import, on the first line, and 0.1 ms a step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vfz.pipeline.errors import RunError
from vfz.pipeline.files import fsync_file, storage_errors

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS_FOLDER = "tensorboard"
_NOT_DRAWN = {"kind", "step", "epoch"}


class RunLog:
    """Both logs of one run folder, until the `with` block ends; in every process but the first it writes nothing.

    Args:
        path: the run folder.
        writes: whether this process writes.
        tensorboard: whether there are to be events.
    """

    def __init__(self, path: Path, *, writes: bool = True, tensorboard: bool = True) -> None:
        self._folder, self._path = path, path / "metrics.jsonl"
        self._writes, self._tensorboard = writes, tensorboard and writes
        self._events: SummaryWriter | None = None
        self._first_step = 0
        if writes:
            with storage_errors(self._path):
                self._path.touch()

    def write(self, kind: str, *, step: int, **values: Any) -> None:
        """One line, and an event for every number in it."""
        if not self._writes:
            return
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            line = {"kind": kind, "step": step} | {name: _plain(value) for name, value in values.items()}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._write_events(line)

    def sync(self) -> int:
        """Flush both to the disk; returns the size of metrics.jsonl in bytes, to which `cut` can go back."""
        if not self._writes:
            return 0
        if self._events:
            self._events.flush()
        with storage_errors(self._path):
            fsync_file(self._path)
        return self._path.stat().st_size

    def cut(self, num_bytes: int, *, step: int) -> None:
        """Drop everything after `num_bytes`, the events too: of steps that will be done again.

        An epoch and an evaluation have the number of the step before them. Readers forget events by that number alone,
        so those from `step` on are dropped, and the ones that metrics.jsonl keeps at that step are written again.

        Args:
            num_bytes: what `sync` returned for the checkpoint.
            step: steps behind the checkpoint.

        Raises:
            RunError: when there are fewer bytes.
        """
        if not self._writes:
            return
        if self._path.stat().st_size < num_bytes:
            raise RunError(f"{self._path} was shortened since the checkpoint; delete the run and train again")
        with storage_errors(self._path):
            os.truncate(self._path, num_bytes)
        self._first_step = step
        for line in _lines(self._path):
            if line["step"] == step:
                self._write_events(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._events:
            self._events.close()  # ends its thread
            self._events = None

    def _write_events(self, line: dict[str, Any]) -> None:
        """An event for every number of a line."""
        if not self._tensorboard:
            return
        events = self._event_writer()
        for name, value in line.items():
            if name not in _NOT_DRAWN and isinstance(value, int | float):
                events.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def _event_writer(self) -> SummaryWriter:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            with storage_errors(self._folder / EVENTS_FOLDER):
                # readers forget events of an earlier writer from `purge_step` on
                self._events = SummaryWriter(str(self._folder / EVENTS_FOLDER), purge_step=self._first_step)
        return self._events


def read_metrics(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl, in the order they were written."""
    return [line for line in _lines(path / "metrics.jsonl") if line["kind"] == kind]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _plain(value: Any) -> Any:
    """JSON has no number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
