"""Metadata with a right digest and a wrong content: an error of the cache in one line, or nothing wrong to be seen."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tiny_cache import calibration_of, columns_of, fill_cache, new_cache
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheError, CacheFormatError
from vfz.pipeline.files import checked_json_bytes, sha256_file
from vfz.pipeline.format.calibration import file_name_of, write_calibration
from vfz.pipeline.format.catalog import build_catalog, is_current, write_catalog
from vfz.pipeline.format.commits import is_data_name, read_shard_index
from vfz.pipeline.format.folder import CacheFolder
from vfz.pipeline.format.header import read_header
from vfz.pipeline.maintenance.repair import repair_cache
from vfz.pipeline.maintenance.verify import verify_cache

INDEX, PLAN = "shards/00000.0.index.json", "plan/0.json"


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def template(request, tmp_path_factory) -> Path:
    """Four videos in two shards, the second one pending; with contents of its own and a catalog."""
    cache = tmp_path_factory.mktemp("template") / "cache"
    new_cache(cache, 4, precision="int8", store=request.param, folds=True)
    fill_cache(cache, bad=("v1",))
    (cache / "shards/00001.0.index.json").unlink()
    (cache / "contents").mkdir()
    header = content_of(cache / "vfz.json")
    (cache / "contents/1.json").write_bytes(checked_json_bytes(header["contents"]))
    write_catalog(CacheFolder(cache))
    return cache


@pytest.fixture
def cache(template, tmp_path) -> Path:
    return shutil.copytree(template, tmp_path / "cache")


def content_of(path: Path) -> dict:
    content = json.loads(path.read_bytes())
    return {key: value for key, value in content.items() if key not in {"digest", "format_version"}}


def change(path: Path, place: str, value: object) -> None:
    """Sets one value, by the keys that lead to it, and seals the file again."""
    content = content_of(path)
    *parents, last = place.split(">")
    target = content
    for key in parents:
        target = target[int(key) if isinstance(target, list) else key]
    target[int(last) if isinstance(target, list) else last] = value
    path.write_bytes(checked_json_bytes(content))


def use(path: Path) -> None:
    """Opens a cache and reads all of it."""
    cache = FeatureCache(path, allow_incomplete=True)
    assert len(list(cache.videos)) == len(cache.table())
    assert cache.ledger_digest
    for row in cache.ok_videos():
        clip = cache.read(row.id, view=row.view)
        for layer in cache.layers:
            clip.tokens(layer)


def assert_one_clear_line(path: Path, match: str = "") -> None:
    with pytest.raises(CacheFormatError, match=match) as caught:
        use(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    (path / "index.json").unlink(missing_ok=True)
    with pytest.raises(CacheFormatError, match=match):
        use(path)
    assert not verify_cache(path).intact


# --- each place by name ---


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("data>files", {}, r"names no file|not one tar"),
        ("data>files>odd", {"num_bytes": "1", "sha256": ""}, "a file of '1' bytes"),
        ("data>files>odd", {"num_bytes": -1, "sha256": ""}, "a file of -1 bytes"),
        ("data>files>odd", {"num_bytes": 1, "sha256": None}, "a file of 1 bytes"),
        ("data>files>odd", 3, "damaged"),
        ("data>files>../x", {"num_bytes": 1, "sha256": ""}, "outside of it"),
        ("data>columns>0>dim", 2**40, "dim|numbers a frame"),
        ("data>columns>0>dim", -8, "-8 channels"),
        ("data>columns>0>dim", 8.0, "8.0 channels"),
        ("data>columns>0>num_tokens", True, "True tokens"),
        ("data>columns>0>layer", 2, "no name of a layer"),
        ("data>name", "..", "plain name"),
        ("data>name", "00000.0.index.json", "<shard>-<token>"),
        ("data>name", "00001-0123456789abcdef", "<shard>-<token>"),
        ("data>name", "00000-0123456789abcdef.lock", "<shard>-<token>"),
        ("data>name", ["00000-0123456789abcdef"], "plain name"),
        ("data>store", "tape", "store 'tape'"),
        ("data>chunks>pts_seconds>crc32c", [1, 2, 3], "chunks"),
        ("data>chunks>pts_seconds>crc32c", [2**40], "damaged"),
        ("data>chunks>pts_seconds>frames_per_chunk", 2**40, "chunks"),
        ("rows>0>view", 2**40, "above"),
        ("rows>0>folds>fold1", ["test"], "splits of its folds"),
        ("rows>0>source_digest", "\ud800", "no Unicode text"),
        ("rows", 5, "damaged"),
        ("column_keys", [["layer_2/patch"]], "column keys are texts"),
    ],
)
def test_a_wrong_index_is_refused_in_one_line(cache, place, value, message):
    change(cache / INDEX, place, value)
    assert_one_clear_line(cache, message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("layers>2>patch>dim", 2**40, "numbers a frame"),
        ("layers>2>patch>dim", -1, "-1 channels"),
        ("layers>2>patch>num_tokens", "4", "'4' tokens"),
        ("layers>2", [], "damaged"),
        ("store", "tape", "none of"),
        ("class_names", "left", "list"),
        ("golden>../x.npz", "0" * 64, "outside golden"),
    ],
)
@pytest.mark.parametrize("file", ["vfz.json", "contents/1.json"])
def test_wrong_contents_are_refused_in_one_line(cache, file, place, value, message):
    change(cache / file, place if file != "vfz.json" else f"contents>{place}", value)
    assert_one_clear_line(cache, message)


@pytest.mark.parametrize(("name", "value"), [("view", 2**40), ("view", -1), ("label", 2**80), ("folds", {"f": 1})])
def test_a_wrong_plan_of_a_pending_video_is_refused_in_one_line(cache, name, value):
    change(cache / PLAN, f"shards>00001>0>{name}", value)
    (cache / "index.json").unlink()
    with pytest.raises(CacheFormatError, match=r"plan/0\.json is damaged"):
        use(cache)


@pytest.mark.parametrize("offset", [[], [0.5] * 7, ["x"] * 8, [1e300] * 8, [[]] * 8])
def test_a_wrong_calibration_is_refused_in_one_line(cache, offset):
    file = cache / "calibration/layer_2.patch.json"
    change(file, "offset", offset)
    change(cache / "contents/1.json", "layers>2>patch>calibration_sha256", sha256_file(file))
    with pytest.raises(CacheFormatError, match=r"layer_2\.patch\.json is damaged"):
        use(cache)


@pytest.mark.parametrize("depth", [200, 900, 940, 960, 985, 992, 3000])
@pytest.mark.parametrize("file", ["vfz.json", "contents/1.json", PLAN, INDEX, "calibration/layer_2.patch.json"])
def test_json_nested_deep_is_refused_in_one_line(cache, file, depth):
    text = (cache / file).read_bytes().replace(b'{\n"', b'{\n"a":' + b"[" * depth + b"]" * depth + b',\n"', 1)
    (cache / file).write_bytes(text)
    (cache / "index.json").unlink()
    with pytest.raises(CacheFormatError):
        use(cache)
    assert not verify_cache(cache).intact


@pytest.mark.parametrize("depth", [200, 850, *range(900, 945, 3)])
def test_a_sealed_recipe_nested_deep_is_read_or_refused(cache, depth):
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    change(cache / "vfz.json", "recipe>encoder>name", nested)
    with pytest.raises(CacheFormatError):  # at the least its fingerprint is another one
        read_header(cache)


# --- names of data ---


def test_data_is_called_as_a_writer_of_its_shard_calls_it():
    assert is_data_name("00012-0123456789abcdef", "00012")
    assert is_data_name("00012-0123456789abcdef.tar")
    for name in ("00013-0123456789abcdef", "00012-0123456789abcde", "00012-0123456789abcdef.zip", "00012", "..", ""):
        assert not is_data_name(name, "00012")


def test_the_data_of_another_shard_is_never_removed(cache):
    """An index that names it is damaged: it is dropped, and nothing else is."""
    fill_cache(cache)
    repair_cache(cache)  # of what was there before
    other = read_shard_index(cache / "shards/00001.0.index.json").data.name
    change(cache / INDEX, "data>name", other)
    write = {path.name for path in (cache / "shards").iterdir() if path.name.startswith("00001")}
    repair_cache(cache)
    assert {path.name for path in (cache / "shards").iterdir()} == write
    assert verify_cache(cache).intact


# --- calibrations that lie there ---


def test_a_calibration_of_other_channels_that_lies_there_is_refused(tmp_path):
    (tmp_path / "calibration").mkdir()
    (column, *_), (wider, *_) = columns_of(), columns_of(dim=16)
    assert write_calibration(tmp_path, column, calibration_of(column)).calibration == calibration_of(column)
    with pytest.raises(CacheFormatError, match="with 8 channels, expected layer_2/patch with 16"):
        write_calibration(tmp_path, wider, calibration_of(wider))


def test_a_calibration_of_another_column_that_lies_there_is_refused(tmp_path):
    (tmp_path / "calibration").mkdir()
    first, second, *_ = columns_of()
    file = tmp_path / "calibration" / file_name_of(first.key)
    file.write_bytes(calibration_of(second).to_bytes())
    with pytest.raises(CacheFormatError, match="calibration of layer_2/prefix"):
        write_calibration(tmp_path, first, calibration_of(first))


# --- the catalogue is put together anew ---


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("indexes", []),
        ("indexes", {"00000.0.index.json": 3}),
        ("indexes>00000.0.index.json", ["0" * 64, "1", 2]),
        ("indexes>00000.0.index.json", [1, 2]),
        ("shard_bytes", None),
        ("shard_bytes>00000", "many"),
        ("table", "x"),
        ("table", {"sha256": "0" * 64}),
        ("num_plans", "1"),
        ("fingerprint", []),
    ],
)
def test_a_side_file_of_another_form_is_passed_over(cache, place, value):
    change(cache / "index.json", place, value)
    assert not is_current(CacheFolder(cache))
    use(cache)
    assert verify_cache(cache).problems
    repair_cache(cache)
    assert is_current(CacheFolder(cache))


def _lacking_of(values):
    return pa.array(values, pa.list_(pa.string()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.drop_columns(["view"]),
        lambda table: table.append_column("more", table["view"]),
        lambda table: table.append_column("id", table["id"]),
        lambda table: table.set_column(1, "view", table["view"].cast(pa.float64())),
        lambda table: table.set_column(1, "view", pa.nulls(len(table), pa.int32())),
        lambda table: table.set_column(4, "status", pa.array(["fine"] * len(table))),
        lambda table: table.set_column(13, "fold_fold1", table["view"]),
        lambda table: table.set_column(14, "lacking", _lacking_of([[None]] * len(table))),
        lambda table: table.set_column(14, "lacking", _lacking_of([["layer_2/patch"]] * len(table))),
        lambda _: pa.table({"x": [1]}),
    ],
)
def test_a_table_of_another_form_is_passed_over(cache, spoil):
    expected = build_catalog(CacheFolder(cache)).table
    pq.write_table(spoil(expected), cache / "index.parquet")
    about = {"sha256": sha256_file(cache / "index.parquet"), "num_bytes": (cache / "index.parquet").stat().st_size}
    change(cache / "index.json", "table", about)
    assert not is_current(CacheFolder(cache))
    assert FeatureCache(cache, allow_incomplete=True).table().equals(expected)
    use(cache)


# --- and any other ---

_NESTED: list = []
for _ in range(300):
    _NESTED = [_NESTED]
VALUES = st.sampled_from(
    [None, True, 0, -1, 1, 5, 2**31, 2**40, 2**63, 2**200, 0.5, -1e300, 1e300, "", "x", "0", "..", "../x", "a\0b",
     "\ud800", "layer_2/patch", "00001", "0" * 64, [], [None], [0], [[]], {}, {"x": 1}, {"\ud800": "y"}, _NESTED]
)  # fmt: skip


def _mutated(value: object, data: st.DataObject, depth: int = 0) -> object:
    """The value with one thing in it changed, left out or added."""
    if isinstance(value, dict | list) and value and (not depth or data.draw(st.integers(0, 5))):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        what = data.draw(st.integers(0, 9))
        if what == 0 and depth:
            del value[key]
        elif what == 1 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        elif what == 1 and depth:
            value[data.draw(st.sampled_from(["x", "..", "0", "\ud800", "patch"]))] = copy.deepcopy(value[key])
        else:
            value[key] = _mutated(value[key], data, depth + 1)
        return value
    return data.draw(VALUES)


@pytest.mark.parametrize(
    "file", ["vfz.json", "contents/1.json", PLAN, INDEX, "calibration/layer_2.patch.json", "index.json"]
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_changed_the_cache_works_or_says_that_it_does_not(template, tmp_path, file, data):
    cache = tmp_path / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(template, cache)
    content = _mutated(content_of(cache / file), data)
    try:
        (cache / file).write_bytes(checked_json_bytes(content))
    except (ValueError, TypeError):
        return  # no JSON
    if file.startswith("calibration") and data.draw(st.booleans()):
        change(cache / "contents/1.json", "layers>2>patch>calibration_sha256", sha256_file(cache / file))
    if file != "index.json":
        (cache / "index.json").unlink()
    for action in (use, verify_cache):
        try:
            action(cache)
        except CacheError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert file != "index.json" or "was replaced" in str(error)  # noqa: PT017
