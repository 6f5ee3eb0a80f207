"""Registries are explicit: names in the order of their lines, no name twice, unknown ones refused."""

from pathlib import Path

import pytest

from vfz.pipeline.errors import UnknownNameError
from vfz.pipeline.registry import Registry

pytestmark = pytest.mark.quick


def test_a_name_registered_twice_raises():
    registry = Registry("core")
    registry.register("m", int)
    with pytest.raises(ValueError, match="core 'm' is already registered"):
        registry.register("m", float)
    assert registry["m"] is int


def test_names_are_listed_in_order_and_unknown_ones_are_refused():
    registry = Registry("core")
    registry.register("b", int)
    registry.register("a", float)
    assert registry.names() == ("a", "b")
    with pytest.raises(UnknownNameError, match="unknown core"):
        registry["c"]


def test_an_entry_known_by_its_place_is_imported_when_it_is_asked_for():
    registry = Registry("core")
    registry.register_place("absent", "no.such.module:Core")
    registry.register_place("path", "pathlib:Path")
    assert registry["path"] is registry["path"] is Path
    assert registry.names() == ("absent", "path")
    with pytest.raises(ModuleNotFoundError):
        registry["absent"]
    with pytest.raises(ValueError, match=r"core 'absent' is already registered as 'no\.such\.module:Core'"):
        registry.register("absent", int)


def test_a_registry_gives_its_names_in_the_order_of_its_lines():
    registry = Registry("core")
    registry.register("b", int)
    registry.register_place("a", "pathlib:Path")
    assert tuple(registry) == ("b", "a")
    assert "a" in registry
