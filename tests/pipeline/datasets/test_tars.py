"""WebDataset tars of videos, read in place."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import warnings

import av
import pytest
import webdataset
from contracts.dataset_contract import DatasetContract, ReadingContract
from helpers.video_files import VIDEOS, touch

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError

pytestmark = pytest.mark.quick


def write_tar(path, members, *, mode="w"):
    """A tar of texts or bytes by member name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            raw = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


class TestTarsContract(DatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        write_tar(tmp_path / "train" / "0.tar", [("b.mp4", "x"), ("b.cls", "1"), ("a.mp4", "x"), ("a.cls", "0")])
        write_tar(tmp_path / "val" / "0.tar", [("c.mp4", "x")])
        return lambda: open_dataset("tars", root=tmp_path)


def listed(root):
    return [(r.id, r.split, r.label, str(r.source)) for r in open_dataset("tars", root=root).videos()]


def test_videos_are_read_where_they_lie_and_decode(tmp_path):
    bikes, rabbit = ((VIDEOS / name).read_bytes() for name in ("bikes.mp4", "bigbuckbunny.mp4"))
    write_tar(tmp_path / "train-0.tar", [("bikes.mp4", bikes), ("bikes.cls", "0"), ("clips/rabbit.mp4", rabbit)])
    sources = {r.id: r.source for r in open_dataset("tars", root=tmp_path).videos()}
    for key, content in (("bikes", bikes), ("clips/rabbit", rabbit)):
        with sources[key].open() as file:
            assert file.read() == content
        with sources[key].open() as file, av.open(file) as container:
            assert next(container.decode(video=0)).width > 0
        assert VideoSource.parse(str(sources[key])) == sources[key]


def test_splits_are_folders_or_what_stands_before_the_number_of_a_tar(tmp_path):
    for place in ("train-00000.tar", "train-00001.tar", "val_3.tar", "00007.tar", "test/00000.tar", "test/train-1.tar"):
        write_tar(tmp_path / place, [(f"{place.replace('.', '/')}.mp4", "x")])
    touch(tmp_path, "notes.txt", ".hidden.tar", ".trash/a.tar")
    assert {row[0].removesuffix("/tar"): row[1] for row in listed(tmp_path)} == {
        "train-00000": "train",
        "train-00001": "train",
        "val_3": "val",
        "00007": "all",
        "test/00000": "test",
        "test/train-1": "test",
    }


def test_a_label_is_the_number_in_cls_or_else_what_json_says(tmp_path):
    members = [
        ("0.cls", "3\n"), ("0.mp4", "x"), ("0.json", '{"label": 5}'),
        ("1.webm", "x"), ("1.json", '{"label": 1, "caption": "a dog"}'),
        ("./2.MKV", "x"), ("2.json", "{}"), ("2.txt", "no class: a caption"),
        ("3.mp4", "x"), ("unrelated.cls", "77"),
    ]  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    dataset = open_dataset("tars", root=tmp_path)
    assert [(r.id, r.label) for r in dataset.videos()] == [("0", 3), ("1", 1), ("2", None), ("3", None)]
    assert dataset.class_names == ("0", "1", "2", "3")


def test_keys_and_labels_are_those_that_webdataset_itself_finds_but_for_hidden_members(tmp_path):
    names = [
        "a.mp4",
        "d.e/b.WebM",
        ".mp4",
        "._a.mp4",
        "c/._a.mp4",
        "d.e/.mp4",
        "no suffix",
        "x\ny/c.mp4",
        "f.MP4",
        "g.txt",
    ]
    members = [(name, "x") for name in names]
    members[1:1] = [("a.cls", "1"), ("a.front.txt", "x")]
    members[-1:-1] = [("f.CLS", "2"), ("f.json", '{"label": 5}')]
    write_tar(tmp_path / "0.tar", members)
    with warnings.catch_warnings(action="ignore"):  # webdataset leaves its file to the garbage collector
        samples = list(webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False))
        gc.collect()
    found = {
        sample["__key__"]: sample.get("cls")
        for sample in samples
        if any(kind.endswith(("mp4", "webm")) for kind in sample)
    }
    assert found.pop("c/") is None  # of c/._a.mp4, in which macOS keeps what it knows about a.mp4
    assert {row[0]: row[2] for row in listed(tmp_path)} == {key: label and int(label) for key, label in found.items()}
    assert found == {"a": b"1", "d.e/b": None, "x\ny/c": None, "f": b"2"}


def test_class_names_in_json_are_sorted_over_all_tars(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", [("a.mp4", "x"), ("a.json", '{"label": "jump"}')])
    write_tar(tmp_path / "val" / "0.tar", [("b.mp4", "x"), ("b.json", '{"label": "climb"}')])
    dataset = open_dataset("tars", root=tmp_path)
    assert dataset.class_names == ("climb", "jump")
    assert [r.label for r in dataset.videos()] == [1, 0]


def test_a_key_ends_at_the_first_dot_of_the_name_and_keeps_its_folder(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.b/c d.front.mp4", "x"), ("a.b/c d.cls", "0"), ("../-ü.mp4", "x")])
    assert [row[:3] for row in listed(tmp_path)] == [("../-ü", "all", None), ("a.b/c d", "all", 0)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.mp4", "x"), ("b.mp4", "x"), ("a.webm", "x")],
            r"0\.tar, member 3: the video 'a' was named before, in .*1",
        ),
        ([("a.left.mp4", "x"), ("a.right.mp4", "x")], r"0\.tar, member 2: the video 'a' was named before"),
        ([("a.mp4", "x"), ("a.cls", "one")], r"0\.tar, member 2: the label 'one' is not a whole number from 0"),
        ([("a.mp4", "x"), ("a.cls", b"\xff")], r"member 2: the label .* is not a whole number"),
        ([("a.mp4", "x"), ("a.json", "{")], r"member 2: 'a\.json' is not JSON"),
        ([("a.mp4", "x"), ("a.json", '{"label": [1]}')], r"member 2: the label \[1\] in 'a\.json' is neither a number"),
        ([("a.mp4", "x"), ("a.json", "[" * 100_000)], r"member 2: 'a\.json' is not JSON"),
        ([("a.mp4", "x"), ("a.cls", "0"), ("a.CLS", "1")], r"0\.tar cannot be read.*: a\.CLS: duplicate file name;"),
        ([("a.mp4", "x"), ("b.mp4", "x"), ("a.cls", "0")], r"member 3: the label of 'a' is apart from its video"),
        ([("a.json", "{}"), ("b.mp4", "x"), ("a.mp4", "x")], r"member 1: the label of 'a' is apart from its video"),
        ([("/" * 10**6 + "a", "x")], r"member 1: 1 bytes by a name of 1000001 letters"),
        ([("a.txt", "x")], r"has 1 tars without any video; give --root a folder with <split>/\*\.tar"),
    ],
)
def test_broken_tars_are_told_by_file_and_member(tmp_path, members, message):
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(DatasetError, match=message):
        open_dataset("tars", root=tmp_path)


def test_a_key_in_two_tars_is_an_error_that_names_both(tmp_path):
    for place in ("train/0.tar", "val/0.tar"):
        write_tar(tmp_path / place, [("a.mp4", "x")])
    with pytest.raises(DatasetError, match=r"val/0\.tar, member 1: the video 'a' was named before, in .*train/0\.tar"):
        open_dataset("tars", root=tmp_path)


def test_links_compressed_tars_and_files_that_are_no_tars_are_refused(tmp_path):
    write_tar(tmp_path / "packed" / "0.tar", [("a.mp4", "x")], mode="w:gz")
    touch(tmp_path / "text", "0.tar")
    for name in ("a.mp4", "a.cls"):
        write_tar(tmp_path / name / "0.tar", [("a.mp4", "x")] if name == "a.cls" else [])
        with tarfile.open(tmp_path / name / "0.tar", "a") as archive:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    for folder in ("packed", "text"):
        with pytest.raises(
            DatasetError, match=r"0\.tar cannot be read as a plain tar: .*; make it again, uncompressed"
        ):
            open_dataset("tars", root=tmp_path / folder)
    for name in ("a.mp4", "a.cls"):
        with pytest.raises(DatasetError, match=rf"member \d: '{name}' is a link or has holes"):
            open_dataset("tars", root=tmp_path / name)


def header(name, size, *, pax=None):
    """A member's header, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.size = size
    before = tarfile.TarInfo.create_pax_global_header(pax).replace(b"0g", b"0x") if pax else b""
    return before + info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "raw",
    [
        header("a.txt", 0) + header("b.txt", 0) + header("c.txt", -1024),  # back to the second, and again
        header("a.mp4", 2**60),
        header("a.mp4", 512, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + b"y\n".ljust(512, b"\0"),
    ],
    ids=["in a circle", "beyond any disk", "holes that are no numbers"],
)
def test_headers_that_lead_nowhere_are_refused(tmp_path, raw):
    (tmp_path / "0.tar").write_bytes(raw + bytes(1024))
    with pytest.raises(DatasetError):
        open_dataset("tars", root=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:3000],  # inside the second video
        lambda raw: raw[:1524],  # in the second header
        lambda raw: raw[:1024] + b"\xff" * 512 + raw[1536:],  # a header overwritten
    ],
    ids=["cut in a video", "cut in a header", "overwritten header"],
)
def test_a_damaged_tar_is_refused_rather_than_read_up_to_the_damage(tmp_path, damage):
    write_tar(tmp_path / "0.tar", [("a.mp4", "x"), ("b.mp4", "x" * 2000), ("c.mp4", "x")])
    assert len(listed(tmp_path)) == 3
    raw = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(damage(raw))
    with pytest.raises(DatasetError, match=r"0\.tar (is damaged: there is no header at byte 1024|cannot be read as)"):
        open_dataset("tars", root=tmp_path)


def test_a_tar_without_its_closing_zeros_is_whole(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.mp4", "x")])
    raw = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(raw[:1024])
    assert [row[0] for row in listed(tmp_path)] == ["a"]


def test_a_folder_without_tars_says_what_belongs_there(tmp_path):
    touch(tmp_path, "train/a.mp4")
    with pytest.raises(DatasetError, match=r"has no tars; give --root a folder with <split>/\*\.tar"):
        open_dataset("tars", root=tmp_path)


class TestTarsReading(ReadingContract):
    kind = "tars"

    def write(self, root, rows, dress):
        for split in self.splits:
            members = []
            for name, class_name, of_split in rows:
                if of_split == split:
                    key, label = dress.letters(name), json.dumps({"label": f" {dress.letters(class_name)}"})
                    members += [(f"{key}{dress.cased('.mp4')}", "x"), (f"{key}{dress.cased('.json')}", label)]
                    members += [(f"__MACOSX/{key}.mp4", "x"), (f"./._{key}.mp4", "x")]
            write_tar(root / f"{split}-00000-of-00001.tar", members)
        return {name: (split, class_name) for name, class_name, split in rows}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-00012", "train"), ("train_0001", "train"), ("val_003", "val"), ("train-00000-of-00010", "train"),
     ("train_00000_of_00010", "train"), ("train-00000-of-00010-e3b0c44298fc1c14", "train"), ("train.7", "train"),
     ("train-{000000..000146}", "train"), ("my-train-000000", "my-train"), ("000001", "all"), ("test", "test")],
)  # fmt: skip
def test_pieces_of_a_split_are_one_split(tmp_path, name, split):
    write_tar(tmp_path / f"{name}.tar", [("a.mp4", "x")])
    assert [row[1] for row in listed(tmp_path)] == [split]


def test_suffixes_are_known_in_capitals_and_labels_by_the_dots_of_their_video(tmp_path):
    members = [
        ("a.MP4", "x"), ("a.CLS", "1"), ("b.mp4", "x"), ("b.JSON", '{"label": 2}'), ("v1.2.mp4", "x"),
        ("v1.2.cls", "3"), ("w.left.mp4", "x"), ("w.CLS", "0"), ("x.mp4", "x"), ("x.label.cls", "\ufeff 1\r\n"),
    ]  # fmt: skip
    write_tar(tmp_path / "t.tar", members)
    assert {row[0]: row[2] for row in listed(tmp_path)} == {"a": 1, "b": 2, "v1": 3, "w": 0, "x": 1}
    write_tar(tmp_path / "t.tar", [("x.mp4", "x"), ("x.a.cls", "0"), ("x.b.cls", "1")])
    with pytest.raises(DatasetError, match=r"member 3: 'x\.a\.cls' and 'x\.b\.cls' could both be the label"):
        listed(tmp_path)


def test_what_is_left_out_of_tars_and_beside_them_is_counted(tmp_path):
    junk = [("__MACOSX/a.mp4", "x"), ("./._a.mp4", "x"), (".DS_Store", ""), ("a.txt", "x"), ("b.jpg", "x"), ("c", "x")]
    write_tar(tmp_path / "train" / "0.tar", [("a.mp4", "x"), ("a.cls", "0"), *junk])
    touch(tmp_path, "train/1.tar.gz", "train/._0.tar", "train/deep/2.tar")
    left_out = open_dataset("tars", root=tmp_path).left_out
    assert left_out.reasons == {"hidden": 4, "no video": 3, "no plain tar": 1, "in folders too deep": 1}
    touch(tmp_path, "val/0.TAR")
    with pytest.raises(DatasetError, match=r"0\.TAR: the suffix is to be \.tar in small letters"):
        open_dataset("tars", root=tmp_path)
