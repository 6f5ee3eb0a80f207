"""Probes: how much of the classes can be read off tokens, or off what a temporal module makes of them.

`PROBES` says how each is fitted; `run` is what `vfz probe` calls.
"""

from __future__ import annotations

from vfz.temporal.probes.attentive import fit_attentive
from vfz.temporal.probes.base import FitProbe
from vfz.temporal.probes.linear import fit_linear

PROBES: dict[str, FitProbe] = {
    "linear": fit_linear,
    "attentive": fit_attentive,
}
