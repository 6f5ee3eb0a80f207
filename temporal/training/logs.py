"""What a run says while it trains: `metrics.jsonl` for programs, TensorBoard events and `curves.png` for people.

A line has `kind`: `step` (loss, lr, grad_norm), `epoch` (train_loss, seconds) or `eval` (every metric and what it is a
share of); a value that is not finite is null. Lines and events can be cut back to where a checkpoint was written, so
that steps done again after a kill are there once.

The picture is drawn once, at the end: the loss of every step and its mean over an epoch, the metric, the learning rate,
over one axis of steps. An epoch's mean stands in the middle of its steps, an evaluation after the step it came after.
Values that are not finite are gaps.

Cost: TensorBoard takes 0.2 s to import, on the first line, and 0.1 ms a step. matplotlib takes half a second to import
and the picture 0.2 s, of 300,000 steps 3 s.
"""

from __future__ import annotations

import io
import json
import math
import os
import textwrap
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vfz.pipeline.errors import RunError, StorageError
from vfz.pipeline.files import fsync_file, storage_errors, write_file_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


EVENTS_FOLDER = "tensorboard"
CURVES_FILE = "curves.png"
_NOT_DRAWN = {"kind", "step", "epoch"}
_TITLE_CHARACTERS = 140
_MARKED_EPOCHS = 40
"""Up to so many are marked one by one."""

_Points = Sequence[tuple[float, float | None]]


class RunLog:
    """Both logs of one run folder, until the `with` block ends; in every process but the first it writes nothing.

    Args:
        path: the run folder.
        writes: whether this process writes.
        tensorboard: whether there are to be events.
    """

    def __init__(self, path: Path, *, writes: bool = True, tensorboard: bool = True) -> None:
        self._path, self._events_path = path / "metrics.jsonl", path / EVENTS_FOLDER
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
            line = {"kind": kind, "step": step} | {name: _json_value(value) for name, value in values.items()}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._write_events(line)

    def sync(self) -> int:
        """Flush both to the disk; returns the size of metrics.jsonl in bytes, to which `cut` can go back."""
        if not self._writes:
            return 0
        if self._events:
            with storage_errors(self._events_path):
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
        self._excepthook, threading.excepthook = threading.excepthook, self._pass_over_events
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if self._events:
                with storage_errors(self._events_path):
                    self._events.close()  # ends its thread
        except StorageError:
            if error is None:  # else that one says more
                raise
        finally:
            self._events = None
            threading.excepthook = self._excepthook

    def _pass_over_events(self, raised: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread shows nothing: what it raised is raised again by the next event, flush or close."""
        if not type(raised.thread).__module__.startswith("tensorboard."):
            self._excepthook(raised)

    def _write_events(self, line: dict[str, Any]) -> None:
        """An event for every number of a line."""
        if not self._tensorboard:
            return
        events = self._event_writer()
        with storage_errors(self._events_path):
            for name, value in line.items():
                if name not in _NOT_DRAWN and isinstance(value, int | float):
                    events.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def _event_writer(self) -> SummaryWriter:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            with storage_errors(self._events_path):
                # readers forget events of an earlier writer from `purge_step` on
                self._events = SummaryWriter(str(self._events_path), purge_step=self._first_step)
        return self._events


def read_metrics(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's metrics.jsonl, in the order they were written."""
    return [line for line in _lines(path / "metrics.jsonl") if line["kind"] == kind]


def draw_curves(path: Path, *, headline: str, higher_is_better: bool, title: str) -> None:
    """Draw the picture of a run from its metrics.jsonl.

    Args:
        path: the run folder of a run that was evaluated at its end.
        headline: the metric that is drawn.
        higher_is_better: of the headline; said beside its axis where it is not so.
        title: stands above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    figure.suptitle(textwrap.fill(title, _TITLE_CHARACTERS), fontsize=10, parse_math=False)
    loss, metric, lr = figure.subplots(1, 3)
    steps, epochs = read_metrics(path, "step"), read_metrics(path, "epoch")
    evals = read_metrics(path, "eval")
    _line(loss, _by_step(steps, "loss"), color="tab:blue", alpha=0.35, linewidth=0.8, label="of a step")
    _line(loss, epoch_means(epochs), marked=_MARKED_EPOCHS, color="tab:blue", label="mean of an epoch")
    loss.legend(fontsize=7)
    _line(metric, _by_step(evals, headline), marked=_MARKED_EPOCHS, color="tab:green", label=evals[-1]["split"])
    metric.legend(fontsize=7)
    _line(lr, _by_step(steps, "lr"), color="tab:orange")
    direction = "" if higher_is_better else " (lower is better)"
    for axes, label in ((loss, "loss"), (metric, headline + direction), (lr, "learning rate")):
        _finish(axes, label, last_step=evals[-1]["step"])
    write_file_atomic(path / CURVES_FILE, _png(figure))


def epoch_means(epochs: Sequence[dict[str, Any]]) -> _Points:
    """The mean loss of every epoch, at the middle of its steps; of lines of kind `epoch`, from the first one on."""
    first_steps = [1] + [line["step"] + 1 for line in epochs[:-1]]
    return [((first + line["step"]) / 2, line["train_loss"]) for first, line in zip(first_steps, epochs, strict=True)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _json_value(value: Any) -> Any:
    """JSON has no number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_step(lines: Iterable[dict[str, Any]], name: str) -> _Points:
    return [(line["step"], line[name]) for line in lines]


def _line(axes: Axes, points: _Points, *, marked: int = 1, **style: Any) -> None:
    """A line whose points are marked where there are up to `marked`: a single one could not be seen otherwise."""
    values = [math.nan if value is None else value for _, value in points]
    axes.plot([step for step, _ in points], values, marker="." if len(points) <= marked else "", **style)


def _finish(axes: Axes, label: str, *, last_step: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, 1.03 * last_step)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # it is drawn as a box
        figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
