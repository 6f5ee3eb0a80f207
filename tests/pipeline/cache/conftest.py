"""A small cache for the tests of reading that have none of their own, and a copy of it to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.tiny_cache import fill_cache, new_cache


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """Six videos in three shards; v3 failed. Made once: a shard is some forty flushes to the disk."""
    cache = tmp_path_factory.mktemp("template") / "cache"
    new_cache(cache)
    fill_cache(cache, bad=("v3",))
    return cache


@pytest.fixture
def folder(tmp_path, template) -> Path:
    """A copy of the template that a test may damage."""
    return shutil.copytree(template, tmp_path / "caches" / "tiny-test-0123")
