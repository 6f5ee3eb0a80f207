"""`vfz cache ls | info | verify | repair` as a user types them: exit codes, lines, JSON."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.built_cache import Originals, build, data_path, flip, grow
from helpers.tiny_cache import add_layer, fill_cache, new_cache, prepare_shard

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.format.catalog import write_catalog
from vfz.pipeline.format.commits import commit_shard, committed_paths, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.maintenance.info import describe_cache, list_caches


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return Originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture
def cache(originals, tmp_path):
    (tmp_path / "caches").mkdir()
    return originals.copy(tmp_path / "caches" / "built", "zarr", "int8")


@pytest.fixture
def vfz(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- verify ---


def test_an_intact_cache_exits_with_0(vfz, cache):
    code, out, err = vfz("cache", "verify")
    assert code == 0
    assert "intact" in out
    assert "error" not in err


def test_a_damaged_cache_exits_with_1_and_one_line_per_problem(vfz, cache):
    flip(cache / "shards/00001.0.index.json", 99)
    flip(cache / "golden/frames.npz", 99)
    code, out, err = vfz("cache", "verify", cache)
    assert code == 1
    assert any("damage: shards/00001.0.index.json (shard 00001)" in line for line in out.splitlines())
    assert any("damage: golden/frames.npz" in line for line in out.splitlines())
    assert err.splitlines()[-1].startswith("vfz: error: ")
    assert "vfz cache repair" in err


def test_notes_alone_exit_with_0(vfz, cache):
    (cache / "notes.txt").touch()
    code, out, _ = vfz("cache", "verify", cache)
    assert code == 0
    assert "note: notes.txt" in out


@pytest.mark.parametrize("damaged", [False, True])
def test_json_is_one_object_and_nothing_else(vfz, cache, damaged):
    if damaged:
        flip(data_path(cache, "00000") / "layer_5/patch/c/0/0/0", 9)
    code, out, _ = vfz("cache", "verify", cache, "--json")
    found = json.loads(out)
    assert code == int(damaged)
    assert found["intact"] is not damaged
    assert found["num_commits"] == 8
    assert {problem["array"] for problem in found["problems"]} == ({"layer_5/patch"} if damaged else set())


def test_against_another_recipe_exits_with_1_and_the_difference(vfz, cache, originals, tmp_path):
    other = originals.copy(tmp_path / "other", "zarr", "fp16")
    code, out, err = vfz("cache", "verify", cache, "--against", other)
    assert code == 1
    assert "storage.precision: A int8, B fp16" in out
    assert "not interchangeable" in err
    same = shutil.copytree(cache, tmp_path / "same")
    assert vfz("cache", "verify", cache, "--against", same)[0] == 0


def test_the_encoder_is_verified_on_demand(vfz, vit_cache):
    code, out, _ = vfz("cache", "verify", vit_cache.path, "--encoder", "--device", "cpu", "--json")
    assert code == 0
    found = json.loads(out)["encoder"]
    assert found["passed"]
    assert len(found["columns"]) == 4
    code, out, _ = vfz("cache", "verify", vit_cache.path, "--encoder", "--device", "cpu")
    assert code == 0
    assert "layer_11/prefix" in out
    assert "16 of 16 golden frames" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify"], ["no cache in caches/", "vfz extract", "as CACHE"]),
        (["verify", "nowhere"], ["nowhere is not a folder"]),
        (["verify", "nowhere", "--weights", "w"], ["--encoder"]),
        (["repair", "nowhere"], ["nowhere is not a folder"]),
        (["info", "nowhere"], ["nowhere is not a folder"]),
        (["ls", "nowhere"], ["no folder nowhere"]),
        (["convert", "nowhere", "--out", "x"], ["nowhere is not a folder"]),
        (["verfy"], ["'verfy'", "did you mean verify", "vfz cache --help"]),
    ],
)
def test_a_wrong_request_gets_one_clear_line(vfz, arguments, words):
    code, out, err = vfz("cache", *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_cache_to_compare_with_that_is_not_there_is_a_usage_error_before_anything_is_read(vfz, cache):
    code, out, err = vfz("cache", "verify", cache, "--against", "nowhere")
    assert (code, out) == (2, "")
    assert "unknown cache 'nowhere'" in err


def test_a_root_of_the_videos_that_is_not_there_is_a_usage_error(vfz, cache):
    code, _, err = vfz("cache", "verify", cache, "--encoder", "--root", "nowhere")
    assert code == 2
    assert err.splitlines()[-1].startswith("vfz: error: --root nowhere is not a folder; ")


@pytest.mark.parametrize(
    ("damaged", "advice"),
    [
        (["shards/00001.0.index.json"], "vfz cache repair mends it"),
        (["vfz.json"], "restore vfz.json from a copy of the cache: vfz cache repair cannot mend that"),
        (
            ["golden/frames.npz", "shards/00001.0.index.json"],
            "vfz cache repair mends some; restore golden/frames.npz from a copy of the cache for the others",
        ),
        (
            ["plan/0.json", "shards/00001.0.index.json"],
            "restore plan/0.json from a copy of the cache; after that vfz cache repair mends the rest",
        ),
    ],
)
def test_verify_suggests_what_helps(vfz, cache, damaged, advice):
    for name in damaged:
        flip(cache / name, 99)
    code, _, err = vfz("cache", "verify", cache)
    assert code == 1
    assert err.rstrip().endswith(advice)
    vfz("cache", "repair", cache)
    assert (cache / damaged[-1]).exists() is advice.startswith("restore")


# --- repair ---


def test_repair_says_what_it_does_and_a_dry_run_does_not_do_it(vfz, cache):
    flip(cache / "shards/00001.0.index.json", 99)
    code, out, _ = vfz("cache", "repair", "--dry-run")
    assert code == 0
    assert "would drop" in out
    assert vfz("cache", "verify")[0] == 1
    code, out, _ = vfz("cache", "repair")
    assert code == 0
    assert "would" not in out
    assert "run the same vfz extract again" in out
    assert vfz("cache", "verify")[0] == 0
    assert "nothing to repair" in vfz("cache", "repair")[1]


def test_what_cannot_be_repaired_exits_with_1(vfz, cache):
    (cache / "golden/frames.npz").unlink()
    code, out, err = vfz("cache", "repair", "--json")
    assert code == 1
    assert json.loads(out)["not_repaired"][0]["file"] == "golden/frames.npz"
    assert "cannot be repaired" in err


# --- info ---


def test_the_python_that_info_prints_runs(vfz, cache):
    _, out, _ = vfz("cache", "info", cache)
    lines = out.split("open it in Python\n")[1]
    namespace = {}
    exec(lines, namespace)  # noqa: S102 - what a user does with it
    assert namespace["tokens"].shape[1:] == (2, 8)
    namespace["cache"].close()


def test_info_of_an_incomplete_cache_opens_it_too(tmp_path):
    path = build(tmp_path / "cache", leave_out=("00001",))
    info = describe_cache(path)
    assert "allow_incomplete=True" in info.python
    namespace = {}
    exec(info.python, namespace)  # noqa: S102
    namespace["cache"].close()
    assert info.counts["train"]["pending"] == 2


def test_the_python_of_a_cache_that_lacks_a_layer_in_some_videos_runs_too(tmp_path):
    path = build(tmp_path / "cache")
    grow(path)
    for shard in ("00000", "00001", "00002"):
        (path / f"shards/{shard}.1.index.json").unlink()
    namespace = {}
    exec(describe_cache(path).python, namespace)  # noqa: S102
    assert namespace["tokens"].shape[1:] == (2, 8)
    namespace["cache"].close()


def test_info_adds_up(cache):
    info = describe_cache(cache)
    assert {split: sum(counts.values()) for split, counts in info.counts.items()} == {"train": 8, "val": 4}
    assert sum(counts.get("ok", 0) for counts in info.counts.values()) == 8
    assert info.failures == {"no picture in it": 2, "no file FILE": 2}
    assert info.views == (0, 1)
    assert info.random_weights
    stored = [read_shard_index(path).data for path in committed_paths(cache).values()]
    assert info.disk_bytes["data"] == sum(data.num_bytes for data in stored)
    first = info.columns[0]
    assert (first.layer, first.part, first.num_tokens, first.dim) == ("2", "patch", 4, 160)
    assert first.bytes_per_token == (first.payload_bytes + first.scale_bytes) / (4 * info.num_frames)
    assert 0 < first.precision_error < 0.02


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_info_counts_every_file_of_the_cache_by_kind(vfz, originals, tmp_path, store):
    path = originals.copy(tmp_path / "copy", store, "int8")
    (path / "extract.jsonl").write_text("{}\n")
    (path / "shards" / "00000-00000000000000aa.tar").write_bytes(b"left by a kill")
    write_catalog(CacheFolder(path))
    found = json.loads(vfz("cache", "info", path, "--json")[1])
    sizes = {file: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    assert found["num_bytes"] == sum(sizes.values()) == sum(found["disk_bytes"].values())
    indexes = sum(size for file, size in sizes.items() if file.name.endswith(".index.json"))
    assert found["disk_bytes"]["indexes"] == indexes
    for kind, folder in (("plans", "plan"), ("golden frames", "golden"), ("calibrations", "calibration")):
        assert found["disk_bytes"][kind] == sum(size for file, size in sizes.items() if file.parent.name == folder)
    assert (found["disk_bytes"]["data of no commit"], found["disk_bytes"]["others"]) == (14, 3)
    assert "indexes" in vfz("cache", "info", path)[1]


def test_info_and_repr_tell_class_names_and_counts_by_split(vfz, tmp_path):
    path = tmp_path / "many"
    new_cache(path, num_videos=9)
    fill_cache(path, bad=("v3",))
    found = json.loads(vfz("cache", "info", path, "--json")[1])
    assert found["classes"] == {"train": {"left": 3, "right": 2}, "val": {"left": 2, "right": 1}}
    assert describe_cache(path).classes == FeatureCache(path).class_counts == found["classes"]
    lines = [line.split() for line in vfz("cache", "info", path)[1].splitlines()]
    assert ["class", "train", "val"] in lines
    assert ["left", "3", "2"] in lines
    assert "2 classes ('left': 5, 'right': 3)" in repr(FeatureCache(path))


def test_sizes_by_column_of_a_tar_are_those_of_its_numbers(originals, tmp_path):
    info = describe_cache(originals.copy(tmp_path / "tar", "webdataset", "int8"))
    column = info.columns[0]
    assert column.payload_bytes == info.num_frames * 4 * 160
    assert column.scale_bytes == info.num_frames * 4 * 2 * 2
    assert column.bytes_per_token == 164


def test_info_shows_identity_sizes_and_random_weights(vfz, cache):
    _, out, err = vfz("cache", "info", cache)
    for word in ("RANDOM WEIGHTS", "built_patch16_8.for_tests", "int8, zarr", "layer 5", "B/token", "no picture in it"):
        assert word in out
    assert err == ""
    assert json.loads(vfz("cache", "info", cache, "--json")[1])["precision"] == "int8"


def test_info_tells_which_ok_videos_lack_a_layer_and_why(vfz, tmp_path):
    path = tmp_path / "caches" / "tiny"
    path.parent.mkdir()
    new_cache(path)
    fill_cache(path, bad=("v3",))
    add_layer(path, "23")
    (plan,) = new_cache(path)
    commit_shard(path, prepare_shard(path, plan, "00000", number=1, layers=("23",), bad=("v1",)))
    info = describe_cache(path)
    assert info.num_lacking == 4
    assert info.lacking == {"layer_23: not extracted yet": 3, "layer_23: failed: no picture in it": 1}
    assert info.failures == {"no picture in it": 1}
    _, out, _ = vfz("cache", "info")
    assert "without a layer: 4 of the videos that are ok" in out
    (line,) = [line for line in out.splitlines() if "layer_23: failed: no picture in it" in line]
    assert line.split()[-1] == "1"
    assert json.loads(vfz("cache", "info", "--json")[1])["lacking"] == info.lacking
    assert "5 ok (4 of them without a layer), 1 failed" in vfz("cache", "ls")[1]
    assert json.loads(vfz("cache", "ls", "--json")[1])["caches"][0]["num_lacking"] == 4


def test_only_the_most_frequent_reasons_are_listed(tmp_path):
    path = tmp_path / "tiny"
    new_cache(path, num_videos=2, shard_size_videos=2)
    fill_cache(path)
    for layer in range(20, 27):
        add_layer(path, str(layer))
    info = describe_cache(path)
    assert info.num_lacking == 2
    assert list(info.lacking.values()) == [2] * 5


def test_a_cache_that_lacks_nothing_says_nothing_of_it(vfz, cache):
    assert "without a layer" not in vfz("cache", "info", cache)[1]
    assert "without a layer" not in vfz("cache", "ls")[1]


# --- ls ---


def test_ls_lists_every_cache_and_the_error_of_a_broken_one(vfz, cache, originals):
    broken = originals.copy(cache.parent / "broken", "webdataset", "fp32")
    flip(broken / "vfz.json", 99)
    build(cache.parent / "partial", leave_out=("00000",), views=(0,))
    (cache.parent / ".hidden").mkdir()
    code, out, _ = vfz("cache", "ls")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert lines.keys() == {"broken", "built", "partial"}
    assert "cannot be opened" in lines["broken"]
    assert "8 ok, 2 failed, 2 missing, 0 pending" in lines["built"]
    assert "3 pending" in lines["partial"]
    assert [summary.name for summary in list_caches(cache.parent)] == ["broken", "built", "partial"]
    assert len(json.loads(vfz("cache", "ls", cache.parent, "--json")[1])["caches"]) == 3


def test_ls_of_a_cache_lists_that_cache(vfz, cache, monkeypatch):
    code, out, _ = vfz("cache", "ls", cache)
    assert code == 0
    title, header, line = out.splitlines()
    assert title.split() == ["1", "cache", "in", str(cache)]
    assert header.split() == ["cache", "dataset", "encoder", "layers", "precision", "store", "videos", "size"]
    assert line.split()[0] == "built"
    monkeypatch.chdir(cache)
    (found,) = json.loads(vfz("cache", "ls", ".", "--json")[1])["caches"]
    assert found["name"] == "built"


def test_ls_counts_one_cache_as_one(vfz, cache):
    assert vfz("cache", "ls")[1].splitlines()[0].strip() == "1 cache in caches"
    shutil.copytree(cache, cache.parent / "copy")
    assert vfz("cache", "ls")[1].splitlines()[0].strip() == "2 caches in caches"


def test_ls_of_an_empty_folder_says_so(vfz, tmp_path):
    (tmp_path / "caches").mkdir()
    code, out, _ = vfz("cache", "ls")
    assert code == 0
    assert "no cache in caches/" in out


def test_options_come_from_a_table_of_a_config_file(vfz, cache, tmp_path):
    (tmp_path / "c.toml").write_text(f'[cache.repair]\ncache = "{cache}"\ndry-run = true\n[extract]\nfps = 3\n')
    flip(cache / "shards/00001.0.index.json", 99)
    _, out, _ = vfz("cache", "repair", "--config", tmp_path / "c.toml")
    assert "would drop" in out
