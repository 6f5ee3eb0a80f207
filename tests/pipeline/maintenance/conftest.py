"""Caches of every kind, made when first asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.built_cache import build, grow


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A cache in every store and precision, of two commits a shard, made when first asked for."""
    made = {}

    def source(store: str, precision: str) -> Path:
        if (store, precision) not in made:
            folder = tmp_path_factory.mktemp("source") / f"{store}-{precision}"
            made[store, precision] = build(folder, store=store, precision=precision)
            grow(folder)
        return made[store, precision]

    return source
