"""Charts of a comparison as SVG text, to stand inside an HTML page; matplotlib draws them, imported when used."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vfz.temporal.comparison.compare import Comparison
from vfz.temporal.comparison.results import EPOCHS, Curve, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_INCHES = (7.0, 3.6)
_NAMED_CLASSES = 30
"""With more classes than this, a confusion matrix has no room for their names."""


def accuracy_chart(results: Sequence[Result]) -> str:
    """A bar for every result with its interval."""
    figure, axes = _figure(height=0.8 + 0.42 * len(results))
    places = np.arange(len(results))
    first, figures = results[0], [result.figure for result in results]
    scale = 100 if first.is_share else 1
    means = [scale * figure.mean for figure in figures]
    below = [scale * (figure.mean - figure.low) for figure in figures]
    above = [scale * (figure.high - figure.mean) for figure in figures]
    errors = np.nan_to_num(np.maximum(0, [below, above]))  # an interval that there is none of
    axes.barh(places, means, xerr=errors, color="#4477aa", ecolor="#222222", capsize=3)
    axes.set_yticks(places, [_drawable(result.name) for result in results])
    axes.invert_yaxis()
    if first.is_share:
        axes.set_xlim(0, 100)
    name = "top-1" if first.headline == "top1" else first.headline
    axes.set_xlabel(f"{_drawable(name)}{' in %' if first.is_share else ''}, with the 95% interval over videos")
    return _svg(figure)


def layer_chart(results: Sequence[Result]) -> str | None:
    """Accuracy by layer, a line for every encoder and kind of probe; None unless some line has two layers."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        if result.core is None and len(result.layers) == 1 and result.headline == "top1":
            lines.setdefault(f"{result.encoder}, {result.kind}, {result.precision}", []).append(result)
    lines = {name: line for name, line in lines.items() if len({result.layers for result in line}) > 1}
    if not lines:
        return None
    figure, axes = _figure()
    shown = sorted({result.layers[0] for line in lines.values() for result in line}, key=_layer_order)
    for name, line in lines.items():
        line = sorted(line, key=lambda result: _layer_order(result.layers[0]))
        places = [shown.index(result.layers[0]) for result in line]
        means = np.array([result.figure.mean for result in line])
        errors = [means - [result.figure.low for result in line], [result.figure.high for result in line] - means]
        axes.errorbar(
            places, 100 * means, yerr=100 * np.maximum(0, errors), marker="o", capsize=3, label=_drawable(name)
        )
    axes.set_xticks(range(len(shown)), shown)
    axes.set_xlabel("layer")
    axes.set_ylabel("top-1 in %")
    axes.legend(frameon=False)
    return _svg(figure)


def curve_chart(curves: Sequence[Curve]) -> str:
    """Curves with the same axes in one chart."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    for curve in curves:
        axes.plot(*np.array(curve.points).T, label=_drawable(curve.name), marker="." if len(curve.points) < 40 else "")
    x = np.array([point[0] for curve in curves for point in curve.points])
    if curves[0].x_name == EPOCHS:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif (x > 0).all() and x.max() >= 10 * x.min():  # settings are tried over orders of magnitude
        axes.set_xscale("log")
    axes.set_xlabel(_drawable(curves[0].x_name))
    axes.set_ylabel(_drawable(curves[0].y_name))
    if len(curves) <= 12:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def confusion_chart(result: Result) -> str:
    """The confusion matrix, each row as shares of its true class."""
    counts_KK = result.confusion_matrix
    shares_KK = counts_KK / np.maximum(1, counts_KK.sum(axis=1, keepdims=True))
    num_classes = len(counts_KK)
    side = min(8.0, max(3.6, 1.8 + 0.22 * num_classes))
    figure, axes = _figure(width=side + 0.6, height=side)
    image = axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.7)
    if num_classes <= _NAMED_CLASSES:
        names = [_drawable(name) for name in result.class_names]
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=7)
        axes.set_yticks(range(num_classes), names, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return _svg(figure)


def change_chart(comparison: Comparison, name: str, *, count: int = 20) -> str:
    """The classes that changed most against the baseline."""
    classes = [change for change in comparison.against[name].classes[:count] if change.change] or list(
        comparison.against[name].classes[:1]
    )
    figure, axes = _figure(height=0.9 + 0.24 * len(classes))
    changes = [100 * change.change for change in classes]
    colours = ["#228833" if change > 0 else "#cc3311" for change in changes]
    axes.barh(np.arange(len(classes)), changes, color=colours)
    axes.set_yticks(np.arange(len(classes)), [_drawable(f"{c.name} ({c.num_videos})") for c in classes], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_xlabel(f"points of accuracy against {_drawable(comparison.baseline)}")
    return _svg(figure)


def _figure(*, width: float = _INCHES[0], height: float = _INCHES[1]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # no pyplot: nothing is shown, and no state is kept

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as one <svg> element: text stays text, and nothing in it refers to another file."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vfz", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _drawable(name: str) -> str:
    """A name that matplotlib takes as it is: no mathematics between dollars, no character that cannot be drawn."""
    return "".join(char if char.isprintable() else "?" for char in name).replace("$", r"\$")


def _layer_order(layer: str) -> tuple[int, int, str]:
    return (0, int(layer), "") if layer.isdecimal() else (1, 0, layer)
