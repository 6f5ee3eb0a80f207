"""Label sets: written once, numbered, read back equal, and what a cache opened with one says."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import fill_cache, new_cache
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError, UnknownNameError, UsageError
from vfz.pipeline.files import read_checked_json
from vfz.pipeline.format.labels import LabelSet, label_set_names, read_label_file, read_label_set, write_label_set

pytestmark = pytest.mark.quick

IDS = st.text(st.characters(exclude_categories=()), max_size=6)  # surrogates too: names of files may be no UTF-8
SPLITS = st.dictionaries(IDS, st.text(min_size=1, max_size=3))
CLASSES = LabelSet(name="sides", kind="classes", names=("a", "b", "c"), labels={"v0": 2, "v1": 0, "v9": 1})


@st.composite
def _label_sets(draw):
    kind = draw(st.sampled_from(["classes", "multilabel", "regression"]))
    names = tuple(draw(st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True)))
    number = st.integers(0, len(names) - 1)
    label = {
        "classes": number,
        "multilabel": st.frozensets(number),
        "regression": st.tuples(*[st.floats(allow_infinity=False, allow_nan=False) | st.just(math.nan)] * len(names)),
    }[kind]
    return LabelSet(
        name="mine",
        kind=kind,
        names=names,
        labels=draw(st.dictionaries(IDS, label)),
        splits=draw(st.none() | SPLITS),
        folds=draw(st.dictionaries(st.text(max_size=3), SPLITS, max_size=2)),
        source=draw(st.text(max_size=5)),
    )


@given(_label_sets())
def test_any_set_reads_back_equal(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("cache")
    written = write_label_set(folder, labels)
    found = read_label_set(folder, "mine")
    assert found.to_dict() == labels.to_dict()
    assert found.digest == labels.digest == written.digest
    assert (found.number, found.kind, found.names, found.splits) == (1, labels.kind, labels.names, labels.splits)
    assert repr(found.labels) == repr({key: labels.labels[key] for key in sorted(labels.labels)})


def test_a_set_that_is_replaced_gets_the_next_number_and_its_first_file_stays(tmp_path):
    write_label_set(tmp_path, CLASSES)
    before = (tmp_path / "labels/sides/1.json").read_bytes()
    second = write_label_set(tmp_path, replace(CLASSES, labels={"v0": 1}))
    assert second.number == 2
    assert read_label_set(tmp_path, "sides").labels == {"v0": 1}
    assert write_label_set(tmp_path, replace(second, source="elsewhere")).number == 2, "it says the same"
    assert (tmp_path / "labels/sides/1.json").read_bytes() == before
    assert label_set_names(tmp_path) == ("sides",)


def test_several_writers_get_a_number_each(tmp_path):
    sets = [replace(CLASSES, labels={"v0": 0, f"v{number}": 1}) for number in range(1, 17)]
    with ThreadPoolExecutor(8) as pool:
        numbers = [found.number for found in pool.map(lambda labels: write_label_set(tmp_path, labels), sets)]
    assert sorted(numbers) == list(range(1, 17))
    for number, labels in zip(numbers, sets, strict=True):
        assert read_label_file(tmp_path / f"labels/sides/{number}.json").labels == labels.labels


def test_no_byte_of_a_file_can_change(tmp_path):
    write_label_set(tmp_path, replace(CLASSES, splits={"v0": "train"}))
    path = tmp_path / "labels/sides/1.json"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CacheFormatError, match=r"1\.json"):
            read_label_set(tmp_path, "sides")


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": {"v0": 3}},
        {"labels": {"v0": True}},
        {"labels": {"v0": 0.5}},
        {"names": ("a", "a", "b")},
        {"splits": {"v0": ""}},
        {"kind": "regression", "labels": {"v0": (1.0,)}},
        {"kind": "regression", "labels": {"v0": (1.0, math.inf, 0.0)}},
        {"kind": "multilabel", "labels": {"v0": frozenset({3})}},
        {"kind": "ranking"},
    ],
)
def test_what_is_no_label_is_refused(changed):
    with pytest.raises(ValueError, match=r"v0|twice|split|kind"):
        replace(CLASSES, **changed)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden"])
def test_a_name_is_one_folder(name, tmp_path):
    with pytest.raises(UsageError, match="cannot name a folder"):
        replace(CLASSES, name=name)
    with pytest.raises(UsageError, match="has no label set"):
        read_label_set(tmp_path, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cache of six videos, v0 to v5, with four label sets."""
    folder = tmp_path_factory.mktemp("caches") / "tiny"
    new_cache(folder, folds=True)
    fill_cache(folder)
    write_label_set(folder, CLASSES)
    write_label_set(folder, replace(CLASSES, name="split", splits={"v0": "a", "v1": "b", "v3": "b", "w": "c"}))
    tags = {"v0": frozenset({0, 2}), "v1": frozenset()}
    write_label_set(folder, replace(CLASSES, name="tags", kind="multilabel", labels=tags))
    numbers = {"v0": (1.0, math.nan), "v3": (2.0, 3.0)}
    folds = {"mine": {"v0": "test", "v1": "train"}}
    values = {"kind": "regression", "names": ("x", "y"), "labels": numbers, "folds": folds}
    write_label_set(folder, replace(CLASSES, name="values", **values))
    return folder


def test_a_cache_is_opened_with_a_set_and_without(folder):
    plain, named = FeatureCache(folder), FeatureCache(folder, labels="sides")
    assert plain.label_set is None
    assert plain.class_names == ("left", "right")
    assert plain.label_sets == ("sides", "split", "tags", "values")
    assert named.label_set.digest == CLASSES.digest
    assert named.class_names == ("a", "b", "c")
    assert {row.id: row.label for row in named.videos} == {"v0": 2, "v1": 0} | dict.fromkeys(["v2", "v3", "v4", "v5"])
    assert [row.split for row in named.videos] == [row.split for row in plain.videos], "the set says nothing of splits"
    assert named.ledger_digest == plain.ledger_digest, "labels are no tokens"
    assert "labels 'sides' (classes)" in repr(named)
    assert "labels" not in repr(plain)
    again = pickle.loads(pickle.dumps(named))  # noqa: S301
    assert again.table().equals(named.table())
    np.testing.assert_array_equal(named.read("v0").tokens(layer="2"), plain.read("v0").tokens(layer="2"))


def test_splits_of_a_set_are_the_only_ones(folder):
    cache = FeatureCache(folder, labels="split")
    assert cache.splits == ("a", "b")
    assert {split: [row.id for row in cache.ok_videos(split)] for split in cache.splits} == {
        "a": ["v0"],
        "b": ["v1", "v3"],
    }
    assert len(cache) == len(FeatureCache(folder)), "a video that is in no split can still be read"
    with pytest.raises(UnknownNameError, match="train"):
        cache.ok_videos("train")


def test_targets_of_several_labels_and_of_numbers(folder):
    tags, values = FeatureCache(folder, labels="tags"), FeatureCache(folder, labels="values")
    nan = np.nan
    np.testing.assert_array_equal(tags.targets_of(["v1", "v0", "v5"]), [[0, 0, 0], [1, 0, 1], [nan, nan, nan]])
    np.testing.assert_array_equal(values.targets_of(["v3", "v0"]), np.float32([[2, 3], [1, nan]]))
    assert tags.targets_of([]).shape == (0, 3)
    assert tags.targets_of([]).dtype == np.float32
    assert tags.class_names == ("a", "b", "c")
    assert values.class_names == ()
    assert {row.label for row in tags.videos} == {None}
    assert [row.id for row in values.ok_videos("test", fold="mine")] == ["v0"]
    assert values.videos[2].folds == {}, "the set's folds are the only ones"
    for opened in (FeatureCache(folder), FeatureCache(folder, labels="sides")):
        with pytest.raises(UsageError, match=r"label set"):
            opened.targets_of(["v0"])


def test_an_unknown_set_is_answered_with_those_there_are(folder, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown label set 'side'; did you mean sides"):
        FeatureCache(folder, labels="side")
    with pytest.raises(UsageError, match="labels is 5"):
        FeatureCache(folder, labels=5)
    new_cache(tmp_path / "other")
    with pytest.raises(UsageError, match="vfz cache label"):
        FeatureCache(tmp_path / "other", labels="side", allow_incomplete=True)


def test_the_file_is_plain_json(tmp_path):
    write_label_set(tmp_path, replace(CLASSES, source="sides.csv"))
    keys = frozenset({"kind", "names", "source", "videos", "labels", "splits", "folds"})
    assert read_checked_json(tmp_path / "labels/sides/1.json", keys) == {
        "kind": "classes",
        "names": ["a", "b", "c"],
        "source": "sides.csv",
        "videos": ["v0", "v1", "v9"],
        "labels": [2, 0, 1],
        "splits": None,
        "folds": {},
    }
