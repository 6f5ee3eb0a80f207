"""A comparison as one HTML file: tables, charts and a little script, all inside, nothing from the network."""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vfz.temporal.comparison.charts import accuracy_chart, change_chart, confusion_chart, curve_chart, layer_chart
from vfz.temporal.comparison.compare import Comparison, Curve, ProbeResult
from vfz.temporal.comparison.tables import AGAINST_COLUMNS, COLUMNS, NUM_TEXT_COLUMNS, against_rows, result_rows


def render_page(comparison: Comparison, *, title: str = "vfz probe compare") -> str:
    """The page as text. Names of others are escaped by the template."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("vfz.temporal.comparison").joinpath("report.html").read_text("utf-8"))
    results = comparison.results
    layers = layer_chart(results)
    return template.render(
        title=title,
        comparison=comparison,
        columns=COLUMNS,
        num_text=NUM_TEXT_COLUMNS,
        rows=result_rows(comparison),
        accuracy=_chart(accuracy_chart(results)),
        layers=_chart(layers) if layers else None,
        against_columns=AGAINST_COLUMNS,
        against_rows=against_rows(comparison),
        changes=[(name, _chart(change_chart(comparison, name))) for name in comparison.against],
        confusions=[(result, _chart(confusion_chart(result))) for result in results],
        curves=[(name, _chart(curve_chart(curves))) for name, curves in _curves(results)],
    )


def _curves(results: tuple[ProbeResult, ...]) -> list[tuple[str, list[Curve]]]:
    """Curves of each probe that share their axes, under the probe's name."""
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for result in results:
        for curve in result.curves:
            if curve.points:
                grouped[f"{result.name}: {curve.y_name} by {curve.x_name}"].append(curve)
    return list(grouped.items())


def _chart(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - drawn by matplotlib, which escapes the names in it
