"""Registries are explicit; `vfz.temporal` exports its builders without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import vfz.temporal
from vfz.pipeline.errors import UnknownNameError
from vfz.pipeline.registry import Registry


def test_a_name_registered_twice_raises():
    registry = Registry("core")
    registry.register("m", int)
    with pytest.raises(ValueError, match="core 'm' is already registered"):
        registry.register("m", float)
    assert registry.get("m") is int


def test_names_are_listed_in_order_and_unknown_ones_are_refused():
    registry = Registry("core")
    registry.register("b", int)
    registry.register("a", float)
    assert registry.names() == ("a", "b")
    with pytest.raises(UnknownNameError, match="unknown core"):
        registry.get("c")


def test_an_entry_known_by_its_place_is_imported_when_it_is_asked_for():
    registry = Registry("core")
    registry.register_place("absent", "no.such.module:Core")
    registry.register_place("path", "pathlib:Path")
    assert registry.get("path") is registry.get("path") is Path
    assert registry.names() == ("absent", "path")
    with pytest.raises(ModuleNotFoundError):
        registry.get("absent")
    with pytest.raises(ValueError, match=r"core 'absent' is already registered as 'no\.such\.module:Core'"):
        registry.register("absent", int)


def test_a_registry_gives_its_names_in_the_order_of_its_lines():
    registry = Registry("core")
    registry.register("b", int)
    registry.register_place("a", "pathlib:Path")
    assert tuple(registry) == ("b", "a")
    assert "a" in registry


def test_importing_the_package_does_not_import_torch():
    code = "import sys, vfz.temporal; assert 'build_core' in dir(vfz.temporal); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", vfz.temporal.__all__)
def test_every_exported_name_is_there(name):
    assert callable(getattr(vfz.temporal, name))


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'build_nothing'"):
        _ = vfz.temporal.build_nothing
