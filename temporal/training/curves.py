"""`curves.png`: a run at a glance. The loss of every step and its mean over an epoch, the metric, the learning rate.

matplotlib takes half a second to import and the picture 0.2 s; both are paid once, at the end of a run.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfz.pipeline.files import write_file_atomic
from vfz.temporal.training.run_log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME = "curves.png"
_SPLIT_COLOURS = ("tab:green", "tab:red")


def draw_curves(path: Path, *, headline: str, title: str) -> None:
    """Draw the picture of a run from its metrics.jsonl.

    Args:
        path: the run folder.
        headline: the metric that is drawn.
        title: stands above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, epochs, evals = (read_metrics(path, kind) for kind in ("step", "epoch", "eval"))
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    loss, metric, lr = figure.subplots(1, 3)
    _line(loss, steps, "loss", "loss", color="tab:blue", alpha=0.35, linewidth=0.8, label="of a step")
    _line(loss, epochs, "train_loss", "loss", color="tab:blue", marker=".", label="mean of an epoch")
    if steps:
        loss.legend(fontsize=7)
    for colour, split in zip(_SPLIT_COLOURS, dict.fromkeys(line["split"] for line in evals), strict=False):
        of_split = [line for line in evals if line["split"] == split]
        _line(metric, of_split, headline, headline, color=colour, marker=".", label=split)
    if evals:
        metric.legend(fontsize=7)
    _line(lr, steps, "lr", "learning rate", color="tab:orange")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_file_atomic(path / FILE_NAME, buffer.getvalue())


def _line(axes: Axes, lines: list[dict[str, Any]], name: str, y_label: str, **style: Any) -> None:
    axes.plot([line["step"] for line in lines], [line[name] for line in lines], **style)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    axes.tick_params(labelsize=7)
