"""The folders, the list of packages in pyproject.toml, the symlinks for analysers and the folders of tests agree."""

import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("pipeline", "temporal", "cli")
MOST_FILES, MOST_LINES = 14, 420


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


def test_everything_in_a_package_that_is_needed_at_run_time_is_packaged():
    """A file that is not listed is there in an editable install and missing from the wheel."""
    listed = {
        ROOT.joinpath(*package.split(".")[1:], name)
        for package, names in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    present = {
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".md", ".png"}
    }
    assert listed == present


def test_no_folder_has_more_files_than_one_takes_in_and_no_file_is_longer_than_one_reads():
    folders = [path for top in (*FOLDERS, "tests") for path in [ROOT / top, *(ROOT / top).rglob("*/")] if path.is_dir()]
    files = {folder: list(folder.glob("*.py")) for folder in folders}
    assert {str(folder): len(found) for folder, found in files.items() if len(found) > MOST_FILES} == {}
    product = [
        path for folder, found in files.items() if folder.relative_to(ROOT).parts[0] != "tests" for path in found
    ]
    lengths = {str(path): len(path.read_text().splitlines()) for path in product}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}
