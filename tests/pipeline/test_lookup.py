"""Caches, runs and results are named by path or by bare name; a wrong name gets its neighbours."""

from pathlib import Path

import pytest

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.lookup import FolderKind

pytestmark = pytest.mark.quick


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs `gru` and `gru-2` in runs/, `gmmix` in elsewhere/, a folder `gru` that is no run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/gru", "runs/gru-2", "elsewhere/gmmix", "runs/.half"):
        Path(folder).mkdir(parents=True)
        Path(folder, "run.json").write_text("{}")
    for folder in ("runs/empty", "gru", "nothing"):
        Path(folder).mkdir()
    return FolderKind(kind="run", marker="run.json", under=Path("runs"), made_by="vfz train-temporal")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("gru", "runs/gru"),
        (Path("gru-2"), "runs/gru-2"),
        ("runs/gru", "runs/gru"),
        ("runs/gru/", "runs/gru"),
        ("elsewhere/gmmix", "elsewhere/gmmix"),
        ("runs/empty", "runs/empty"),  # there, and what it lacks is said by whoever reads it
        ("nothing", "nothing"),
    ],
)
def test_a_path_and_a_bare_name_are_the_same_folder(runs, given, found):
    assert runs.find(given) == Path(found)
    assert runs.find(Path(given).absolute() if "/" in str(given) else given).name == Path(found).name


def test_a_path_that_is_a_run_wins_over_a_name(runs):
    Path("gru/run.json").write_text("{}")
    assert runs.find("gru") == Path("gru")


def test_names_lie_where_they_are_said_to(runs):
    assert runs.find("gmmix", under=Path("elsewhere")) == Path("elsewhere/gmmix")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("grru", "unknown run 'grru'; did you mean gru"),
        ("runs/grru", "'runs/grru'; did you mean runs/gru"),
        ("elsewhere/gmix", "did you mean elsewhere/gmmix"),
        ("nowhere/gru-2", "did you mean gru-2"),
        ("zzz", "known: gru, gru-2"),
        ("x" * 5000, "known: gru, gru-2"),
        ("a\0b", "unknown run"),
        ("", "is no run; give its name, or the path"),
        (None, "None is no run"),
        (3, r"3 \(int\) is no run"),
        (b"gru", r"\(bytes\) is no run"),
        (["gru"], r"\(list\) is no run"),
    ],
)
def test_what_is_not_there_gets_one_line_with_the_nearest_names(runs, given, words):
    with pytest.raises(UsageError, match=words) as caught:
        runs.find(given)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) is ("unknown" in str(caught.value))


def test_where_there_is_none_of_the_kind_the_command_that_makes_one_is_named(tmp_path):
    kind = FolderKind(kind="cache", marker="vfz.json", under=tmp_path / "caches", made_by="vfz extract")
    with pytest.raises(UsageError, match=r"caches/ holds no cache; make one with vfz extract"):
        kind.find("k400")
