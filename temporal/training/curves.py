"""`curves.png`: a run at a glance. The loss of every step and its mean over an epoch, the metric, the learning rate.

All three have the same axis of steps. An epoch's mean stands in the middle of its steps, where it lies among their
losses; an evaluation stands after the step that it came after. Values that are not finite are gaps.

matplotlib takes half a second to import and the picture 0.2 s; both are paid once, at the end of a run. 300,000 steps
take 3 s.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.files import write_file_atomic
from vfz.temporal.training.logs import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_NAME = "curves.png"
_TITLE_CHARACTERS = 140
_MARKED_EPOCHS = 40
"""Up to so many are marked one by one."""

Points = Sequence[tuple[float, float | None]]


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
    write_file_atomic(path / FILE_NAME, _png(figure))


def epoch_means(epochs: Sequence[dict[str, Any]]) -> Points:
    """The mean loss of every epoch, at the middle of its steps; of lines of kind `epoch`, from the first one on."""
    first_steps = [1] + [line["step"] + 1 for line in epochs[:-1]]
    return [((first + line["step"]) / 2, line["train_loss"]) for first, line in zip(first_steps, epochs, strict=True)]


def _by_step(lines: Iterable[dict[str, Any]], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines]


def _line(axes: Axes, points: Points, *, marked: int = 1, **style: Any) -> None:
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
