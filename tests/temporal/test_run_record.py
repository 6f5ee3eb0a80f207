"""Which cache is a run's own: where it was, where it was moved to, or whose recipe is the run's."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny_cache import new_cache

from vfz.pipeline.errors import UsageError
from vfz.pipeline.format.folder import CacheFolder
from vfz.temporal.run_record import cache_of_run, caches_of_run, read_run

pytestmark = pytest.mark.quick


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder to work in, with `caches/one`, `caches/other` of another recipe, and a run on the first."""
    monkeypatch.chdir(tmp_path)
    new_cache(Path("caches/one"))
    new_cache(Path("caches/other"), precision="int8")
    make_run("runs/mine", "caches/one")
    return tmp_path


def make_run(folder, *caches):
    fingerprint = CacheFolder(Path(caches[0])).header.fingerprint
    Path(folder).mkdir(parents=True)
    record = {"format_version": 2, "finished": True, "cache": {"paths": caches, "fingerprint": fingerprint}}
    Path(folder, "run.json").write_text(json.dumps(record))


def own(run="runs/mine", named=None):
    return caches_of_run(read_run(Path(run)), named)


def test_a_run_takes_its_own_cache_though_several_lie_there(project):
    assert own() == (Path("caches/one"),)


def test_a_cache_that_is_named_wins(project):
    assert own(named=[Path("caches/other")]) == (Path("caches/other"),)


def test_a_run_on_several_caches_takes_all_of_them_and_one_must_be_chosen_where_only_one_is_taken(project):
    shutil.copytree("caches/one", "caches/more")
    make_run("runs/two", "caches/one", "caches/more")
    assert own("runs/two") == (Path("caches/one"), Path("caches/more"))
    with pytest.raises(UsageError, match=r"was trained on 2 caches .* choose one with --cache"):
        cache_of_run(read_run(Path("runs/two")))


def test_the_whole_folder_may_be_moved_and_asked_from_elsewhere(project, tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    for name in ("caches", "runs"):
        shutil.move(name, tmp_path / "away" / name)
    assert own("away/runs/mine") == (tmp_path / "away/caches/one",)
    monkeypatch.chdir("/")
    assert own(tmp_path / "away/runs/mine") == (tmp_path / "away/caches/one",)


def test_a_cache_recorded_by_its_whole_path_is_found_under_caches_once_it_lies_there(project, tmp_path):
    shutil.copytree("caches/one", "elsewhere/here")
    make_run("runs/far", str(tmp_path / "elsewhere/here"))
    assert own("runs/far") == (tmp_path / "elsewhere/here",)
    shutil.move("elsewhere/here", "caches/here")
    assert own("runs/far") == (Path("caches/here"),)


def test_a_cache_that_was_given_another_name_is_known_by_its_recipe(project):
    Path("caches/one").rename("caches/renamed")
    assert own() == (Path("caches/renamed"),)


def test_another_cache_of_the_old_name_is_not_taken_for_the_runs_own(project):
    Path("caches/one").rename("caches/renamed")
    new_cache(Path("caches/one"), precision="int4")
    assert own() == (Path("caches/renamed"),)


def test_of_two_that_fit_none_is_guessed(project):
    Path("caches/one").rename("caches/a")
    shutil.copytree("caches/a", "caches/b")
    with pytest.raises(UsageError, match=r"2 caches in caches/ have its recipe \w{12} \(caches/a, caches/b\): choose"):
        own()


def test_the_only_cache_is_taken_though_it_does_not_fit_so_that_the_difference_is_told(project):
    shutil.rmtree("caches/one")
    assert own() == (Path("caches/other"),)


def test_where_none_fits_what_is_needed_and_what_is_there_are_named(project):
    shutil.rmtree("caches/one")
    new_cache(Path("caches/third"), precision="int4")
    with pytest.raises(UsageError, match=r"needs a cache of recipe \w{12}.*\(caches/other, caches/third\): name one"):
        own()
    shutil.rmtree("caches")
    with pytest.raises(UsageError, match="no cache is in caches/"):
        own()


def test_a_damaged_cache_is_none_that_fits(project):
    Path("caches/one/vfz.json").write_text("{}")
    shutil.copytree("caches/other", "caches/third")
    with pytest.raises(UsageError, match="needs a cache of recipe"):
        own()
