"""Probes: how much can be read off frozen tokens, or off what a temporal module makes of them.

    estimators                fit_linear, fit_attentive, fit_knn: for notebooks
    run, dense                `vfz probe`: probes of classes; readouts of boxes, points, depth and pose
    linear, attentive, knn    the three kinds of probe, by name in fitters
    heads, selection          a grid of settings as heads of one pass; the choice among them on held-out videos
    sources, record, saved    features as the options say; probe.json; a result that is found again

All names below are imported on first use, so that this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfz.temporal.probes.estimators import FittedProbe, fit_attentive, fit_knn, fit_linear
    from vfz.temporal.probes.fitters import PROBES
    from vfz.temporal.statistics import bootstrap_interval, mcnemar, paired_bootstrap


__all__ = [
    "PROBES", "FittedProbe", "bootstrap_interval", "fit_attentive", "fit_knn", "fit_linear", "mcnemar",
    "paired_bootstrap",
]  # fmt: skip

_MODULE_OF = {
    "FittedProbe": "vfz.temporal.probes.estimators",
    "PROBES": "vfz.temporal.probes.fitters",
    "bootstrap_interval": "vfz.temporal.statistics",
    "fit_attentive": "vfz.temporal.probes.estimators",
    "fit_knn": "vfz.temporal.probes.estimators",
    "fit_linear": "vfz.temporal.probes.estimators",
    "mcnemar": "vfz.temporal.statistics",
    "paired_bootstrap": "vfz.temporal.statistics",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
