"""Something-Something V2 as it is distributed: JSON annotations and numbered webm files."""

from __future__ import annotations

import json

import pytest
from contracts.dataset_contract import AnnotatedDatasetContract, ReadingContract
from helpers.video_files import touch, write_tree

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions

pytestmark = pytest.mark.quick

LEFT, RIGHT = "Pushing something from right to left", "Pushing something from left to right"
LABELS = {"Approaching something with your camera": "0", RIGHT: "2", LEFT: "1"}


def entry(video_id, template):
    return {"id": video_id, "label": "pushing cup", "template": template, "placeholders": ["cup"]}


TRAIN = [
    entry("78687", "Pushing [something] from left to right"),
    entry("100904", "Pushing [something] from right to left"),
]
VALIDATION = [entry("42", "Approaching [something] with your camera")]
TEST = [{"id": "7"}]
PREFIX = "something-something-v2-"


def official(prefix="", **changes):
    files = {"labels": LABELS, "train": TRAIN, "validation": VALIDATION, "test": TEST} | changes
    return {f"{prefix}{name}.json": json.dumps(content, indent=1) for name, content in files.items()}


class TestSsv2Contract(AnnotatedDatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        write_tree(tmp_path, official(PREFIX))
        touch(tmp_path, *(f"20bn-something-something-v2/{i}.webm" for i in (78687, 100904, 42)))
        return lambda: open_dataset("ssv2", root=tmp_path)


@pytest.mark.parametrize("prefix", [PREFIX, "", "labels/", f"annotations/{PREFIX}"])
@pytest.mark.parametrize("folder", ["", "videos/", "20bn-something-something-v2/"])
def test_every_common_layout_gives_the_same_labels(tmp_path, prefix, folder):
    touch(write_tree(tmp_path, official(prefix)), *(f"{folder}{i}.webm" for i in (78687, 100904, 42, 7)))
    dataset = open_dataset("ssv2", root=tmp_path)
    assert dataset.name == "ssv2"
    assert dataset.class_names == ("Approaching something with your camera", LEFT, RIGHT)
    assert dataset.default_fps == 6
    assert {(r.id, r.split, r.label) for r in dataset.videos()} == {
        ("78687", "train", 2),
        ("100904", "train", 1),
        ("42", "val", 0),
        ("7", "test", None),
    }
    assert all(r.source.path == tmp_path / folder / f"{r.id}.webm" for r in dataset.videos())


def test_mirroring_is_refused(tmp_path):
    touch(write_tree(tmp_path, official()), "42.webm")
    options = ExtractOptions(
        dataset="ssv2", root=tmp_path, encoder="vit_tiny_patch16_224", random_weights=True, views=2, flip=True
    )
    with pytest.raises(UsageError, match="--flip would change classes of ssv2"):
        extract(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": [*TRAIN, entry("1", "Eating [something]")]},
            r"train\.json, entry 3: the class 'Eating something' is not in .*labels\.json",
        ),
        ({"train": [{"id": "1"}]}, r"train\.json, entry 1: no template"),
        ({"train": [{"label": "x"}]}, r"train\.json, entry 1: not a dictionary with an id: \{'label'"),
        ({"train": ["1"]}, r"entry 1: not a dictionary"),
        ({"train": {"1": 2}}, r"train\.json, line 1: a dict where a list was expected"),
        ({"labels": [1]}, r"labels\.json, line 1: a list where a dict was expected"),
        ({"labels": LABELS | {RIGHT: "two"}}, r"labels\.json, entry 2: the label of 'Pushing .* 'two' is not a whole"),
        ({"labels": LABELS | {RIGHT: "7"}}, r"labels\.json: its 3 labels are not the numbers 0 to 2"),
        ({"validation": TRAIN}, r"validation\.json, entry 1: the video '78687' was named before, in .*train\.json"),
        ({"test": [{"id": "../7"}]}, r"test\.json, entry 1: '\.\./7' may lead out"),
        ({"test": [{"id": "\ud800"}]}, r"test\.json, entry 1: '\\ud800' cannot be the name of a file"),
    ],
)
def test_broken_annotations_are_told_by_file_and_entry(tmp_path, changes, message):
    touch(write_tree(tmp_path, official(**changes)), "42.webm", "78687.webm")
    with pytest.raises(DatasetError, match=message):
        open_dataset("ssv2", root=tmp_path)


def test_broken_json_is_told_by_file_and_line(tmp_path):
    touch(write_tree(tmp_path, official() | {"train.json": '[\n {"id": "1",}\n]'}), "42.webm")
    with pytest.raises(DatasetError, match=r"train\.json, line 2: not JSON"):
        open_dataset("ssv2", root=tmp_path)


def test_without_labels_or_without_any_split_it_says_what_was_tried(tmp_path):
    files = official()
    write_tree(tmp_path / "a", {name: text for name, text in files.items() if name != "labels.json"})
    with pytest.raises(DatasetError, match=r"has no labels\.json \(also tried: labels/, annotations/, something-"):
        open_dataset("ssv2", root=tmp_path / "a")
    write_tree(tmp_path / "b", {"labels.json": files["labels.json"]})
    with pytest.raises(DatasetError, match=r"has no train\.json, validation\.json or test\.json"):
        open_dataset("ssv2", root=tmp_path / "b")


class TestSsv2Reading(ReadingContract):
    kind = "ssv2"

    def write(self, root, rows, dress):
        classes = sorted({class_name for _, class_name, _ in rows})
        labels = {f" {dress.letters(name)}": str(number) for number, name in enumerate(classes)}
        dress.write(root / "labels.json", [json.dumps(labels, ensure_ascii=False)])
        for split, name in (("train", "train"), ("val", "validation")):
            entries = [
                {"id": f"{dress.letters(name)} ", "template": f"[{dress.letters(class_name)}]{dress.blanks()}"}
                for name, class_name, of_split in rows
                if of_split == split
            ]
            dress.write(root / f"{name}.json", [json.dumps(entries, indent=1)])
        for name, _, _ in rows:
            dress.touch(root, "videos", f"{name}.webm")
        return {name: (split, class_name) for name, class_name, split in rows}
