"""Which encoders and optimizers timm knows, read off its sources: a slip of the pen need not wait for its import.

A name is refused here only where no source of timm has it. What passes may be refused when timm itself is asked, as it
is where the process has imported it: then somebody may have registered names of their own.

Cost: 0.05 s for all models, once a process. No torch.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vfz.pipeline.errors import UnknownNameError

DEMO_ALIAS = "demo"

_MODEL = re.compile(r"^@register_model\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_QUOTED = re.compile(r"(['\"]?)([\w.-]+)['\"]")
_OPTIMIZER = re.compile(r"\b(?:OptimInfo\(|register_alias\()\s*(?:name=)?['\"](\w+)['\"]")


def check_encoder_name(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if name == DEMO_ALIAS:
        return
    if "timm" in sys.modules:
        from vfz.pipeline.encoder.weights import ask_timm

        ask_timm(name)
        return
    architecture, _, tag = name.partition(".")
    known = model_names()
    if not known:
        return
    quoted, ends = _quoted()
    if architecture not in known and architecture not in quoted:
        raise unknown_encoder(name, known)
    # Some names are put together; what ends a text of the sources may be the tag of one.
    if tag and tag not in ends and (tagged := sorted(text for text in quoted if text.startswith(f"{architecture}."))):
        raise unknown_weights(name, [architecture, *tagged])


def unknown_encoder(name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a model that is none of `known`."""
    return UnknownNameError("encoder", name, [*known, DEMO_ALIAS], hint="(any timm model name)")


def unknown_weights(name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a model that is known, without the weights that `name` asks for; `known` are the model's names."""
    return UnknownNameError("encoder", name, known, hint="(what follows the dot names pretrained weights)")


def check_optimizer_name(name: str) -> None:
    """Refuse an optimizer that timm does not know; where timm is imported, whoever builds it asks timm.

    Raises:
        UnknownNameError: with the nearest names.
    """
    known = optimizer_names()
    if "timm" not in sys.modules and known and name.lower() not in known:
        raise UnknownNameError("optimizer", name, known)


@functools.cache
def model_names() -> frozenset[str]:
    """Models that timm's sources register; empty where they cannot be read."""
    return frozenset(_MODEL.findall(_text("models")))


@functools.cache
def optimizer_names() -> frozenset[str]:
    """Optimizers that timm's sources register; empty where they cannot be read."""
    return frozenset(_OPTIMIZER.findall(_text("optim")))


@functools.cache
def _text(package: str) -> str:
    """The sources of a package of timm, one after the other; empty where there are none, as in an archive."""
    spec = importlib.util.find_spec("timm")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in sorted(Path(folder, package).glob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


@functools.cache
def _quoted() -> tuple[frozenset[str], frozenset[str]]:
    """What may be names in timm's sources: quoted texts; and how they, or longer texts, end."""
    found = _QUOTED.findall(_text("models"))
    ends = {text[match.end() :] for _, text in found for match in re.finditer(r"^|[.-]", text)}
    return frozenset(text for quote, text in found if quote), frozenset(ends)
