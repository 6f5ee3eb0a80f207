"""The folders, the list of packages in pyproject.toml, the symlinks for analysers and the folders of tests agree."""

import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("pipeline", "temporal", "cli")


def test_every_folder_with_an_init_is_a_listed_package():
    found = {
        ".".join(["vfz", *init.parent.relative_to(ROOT).parts])
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_package_is_typed_and_linked_for_analysers(folder):
    assert (ROOT / folder / "py.typed").is_file()
    assert (ROOT / ".links" / "vfz" / folder).resolve() == ROOT / folder
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"][f"vfz.{folder}"]


def test_there_is_no_top_level_package_to_shadow_the_namespace():
    assert not (ROOT / "vfz").exists()
    assert not (ROOT / ".links" / "vfz" / "__init__.py").exists()


def test_every_package_has_a_folder_of_tests_with_some_that_are_quick():
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        room = ROOT.joinpath("tests", *package.split(".")[1:3])  # packages inside a package are tested with it
        quick = [path for path in room.glob("test_*.py") if "pytest.mark.quick" in path.read_text()]
        assert quick, f"no quick test of {package}"
