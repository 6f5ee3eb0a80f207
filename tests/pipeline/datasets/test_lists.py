"""Lists of paths: `path label` lines as V-JEPA has them, and CSV files with named columns."""

from __future__ import annotations

import pytest
from contracts.dataset_contract import AnnotatedDatasetContract, ReadingContract
from helpers.video_files import touch, write_tree

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import Gaps
from vfz.pipeline.errors import DatasetError

pytestmark = pytest.mark.quick


class TestListContract(AnnotatedDatasetContract):
    @pytest.fixture(params=["", "train.csv"])
    def open_again(self, request, tmp_path):
        files = {"train.csv": "b/2.mp4 1\na 1.mp4 0\n", "val.csv": "c.mp4 2\n"}
        touch(write_tree(tmp_path, files), "b/2.mp4", "a 1.mp4", "c.mp4")
        return lambda: open_dataset("list", root=tmp_path / request.param)


class TestCsvContract(AnnotatedDatasetContract):
    @pytest.fixture(params=["", "train.csv"])
    def open_again(self, request, tmp_path):
        files = {"train.csv": "path,label\nb/2.mp4,jump\na.mp4,climb\nc.mp4,\n", "val.csv": "path\nd.mp4\n"}
        touch(write_tree(tmp_path, files), "b/2.mp4", "a.mp4", "c.mp4", "d.mp4")
        return lambda: open_dataset("csv", root=tmp_path / request.param)


def listed(dataset):
    return [(r.id, r.split, r.label, r.source.path) for r in dataset.videos()]


def test_a_list_has_paths_relative_to_its_folder_or_absolute_and_numbers_for_classes(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "x.mp4"
    touch(elsewhere.parent, "x.mp4")
    touch(write_tree(tmp_path / "lists", {"ssv2 train.csv": f"a/1.mp4 2\r\n\r\n{elsewhere} 0\r\n"}), "a/1.mp4")
    dataset = open_dataset("list", root=tmp_path / "lists" / "ssv2 train.csv")
    assert (dataset.name, dataset.root, dataset.class_names) == (
        "lists-ssv2-train",
        tmp_path / "lists",
        ("0", "1", "2"),
    )
    assert listed(dataset) == [
        (str(elsewhere), "ssv2 train", 0, elsewhere),
        ("a/1.mp4", "ssv2 train", 2, tmp_path / "lists" / "a" / "1.mp4"),
    ]


def test_paths_with_spaces_and_quotes_may_be_bare_or_quoted_as_pandas_writes_them(tmp_path):
    lines = 'two words.mp4 0\n"quoted words.mp4" 1\n"say ""hi"".mp4" 1\nit\'s "new".mp4 1\nlines\u2028apart.mp4 0\n'
    names = ["two words.mp4", "quoted words.mp4", 'say "hi".mp4', 'it\'s "new".mp4', "lines\u2028apart.mp4"]
    touch(write_tree(tmp_path, {"train.csv": lines}), *names)
    records = open_dataset("list", root=tmp_path).videos()
    assert [r.id for r in records] == sorted(names)
    assert all(r.source.exists() for r in records)


def test_a_folder_of_lists_has_a_split_for_each_and_classes_from_all(tmp_path):
    files = {"train.csv": "a.mp4 0\n", "val.csv": "b.mp4 3\n", "test.txt": "c.mp4 1\n", "other.csv": "d.mp4 9\n"}
    touch(write_tree(tmp_path / "my set", files), "a.mp4")
    dataset = open_dataset("list", root=tmp_path / "my set")
    assert (dataset.name, dataset.class_names) == ("my-set", ("0", "1", "2", "3"))
    assert [(r.id, r.split) for r in dataset.videos()] == [("a.mp4", "train"), ("b.mp4", "val"), ("c.mp4", "test")]


def test_a_csv_names_label_split_and_id_where_it_has_the_columns(tmp_path):
    text = '\ufeffid,path,label,split,comment\n-1,"a, b.mp4",jump,train,x\ntwo,c.mp4,climb,holdout,\n3,d.mp4,,train,\n'
    touch(write_tree(tmp_path, {"videos.csv": text}), "c.mp4")
    dataset = open_dataset("csv", root=tmp_path / "videos.csv")
    assert dataset.class_names == ("climb", "jump")
    assert listed(dataset) == [
        ("-1", "train", 1, tmp_path / "a, b.mp4"),
        ("3", "train", None, tmp_path / "d.mp4"),
        ("two", "holdout", 0, tmp_path / "c.mp4"),
    ]


def test_numbers_in_a_csv_are_labels_as_they_stand(tmp_path):
    touch(write_tree(tmp_path, {"train.csv": "path,label\na.mp4,10\nb.mp4,2\n"}), "a.mp4")
    dataset = open_dataset("csv", root=tmp_path)
    assert [r.label for r in dataset.videos()] == [10, 2]
    assert len(dataset.class_names) == 11


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("list", "a.mp4 0\nb.mp4\n", r"train\.csv, line 2: the label 'b\.mp4' is not a whole number from 0"),
        ("list", "a.mp4 0\nb.mp4 -1\n", r"line 2: the label '-1' is not a whole number from 0"),
        ("list", "a.mp4 0\n\nb.mp4 1.5\n", r"line 3: the label '1\.5'"),
        ("list", "a.mp4 0\nb.mp4 99999999\n", r"line 2: the label 99999999 is too large"),
        ("list", "a.mp4 0\n7\n", r"line 2: '' cannot be the name of a file"),
        ("list", "a.mp4 0\n../b.mp4 1\n", r"line 2: '\.\./b\.mp4' may lead out of the root; write it without '\.\.'"),
        ("list", "a.mp4 0\nc/../../b.mp4 1\n", r"line 2: 'c/\.\./\.\./b\.mp4' may lead out"),
        ("list", "a.mp4 0\nb\0.mp4 1\n", r"line 2: 'b\\x00\.mp4' cannot be the name of a file"),
        ("list", "a.mp4 0\na.mp4 1\n", r"line 2: the video 'a\.mp4' was named before, in .*train\.csv, line 1; remove"),
        ("csv", "video,label\na.mp4,1\n", r"train\.csv, line 1: no column 'path' among 'video', 'label'"),
        ("csv", "path,path\na.mp4,1\n", r"line 1: a column is named twice"),
        ("csv", "path,label\na.mp4,1\nb.mp4,jump\n", r"line 3: the label 'jump' is not a whole number from 0"),
        ("csv", "path,label\na.mp4,jump\nb.mp4,-1\n", r"line 2: the label 'jump' is not a whole number from 0"),
        ("csv", "path,label\na.mp4,-1\n", r"line 2: the label '-1' is not a whole number from 0"),
        ("csv", "path,id\na.mp4,1\nb.mp4,1\n", r"line 3: the video '1' was named before, in .*train\.csv, line 2"),
        ("csv", "path,id\na.mp4,\n", r"line 2: '' cannot be an id"),
        ("csv", "path,split\na.mp4,\n", r"line 2: no split; name one, or leave the column out"),
        ("csv", "path\na.mp4\n../b.mp4\n", r"line 3: '\.\./b\.mp4' may lead out of the root"),
    ],
)
def test_broken_lists_are_told_by_file_and_line(tmp_path, kind, text, message):
    touch(write_tree(tmp_path, {"train.csv": text}), "a.mp4")
    with pytest.raises(DatasetError, match=message):
        open_dataset(kind, root=tmp_path)


def test_without_lists_or_without_their_videos_it_says_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"has no train\.csv, train\.txt, val\.csv, .*; give --root a file of lines"):
        open_dataset("list", root=tmp_path)
    with pytest.raises(DatasetError, match=r"has no train\.csv, val\.csv, test\.csv; give --root a CSV file"):
        open_dataset("csv", root=tmp_path)
    write_tree(tmp_path, {"train.csv": "a.mp4 0\n"})
    with pytest.raises(
        DatasetError, match=r"none of the 1 videos that are listed; the first is looked for at .*/a\.mp4"
    ):
        open_dataset("list", root=tmp_path)
    write_tree(tmp_path, {"train.csv": ""})
    with pytest.raises(DatasetError, match="none of the 0 videos that are listed; give"):
        open_dataset("list", root=tmp_path)


class TestCsvReading(ReadingContract):
    kind = "csv"

    def write(self, root, rows, dress):
        cells = [[f"clips/{name}.mp4", class_name, split] for name, class_name, split in rows]
        dress.write(root / "train.csv", [dress.header(["path", "label", "split"]), *map(dress.row, cells)])
        for name, _, _ in rows:
            dress.touch(root, "clips", f"{name}.mp4")
        return {f"clips/{name}.mp4": (split, class_name) for name, class_name, split in rows}


class TestListReading(ReadingContract):
    kind = "list"

    def write(self, root, rows, dress):
        """Classes are their numbers."""
        numbers = {name: class_name[1] for name, class_name, _ in rows}
        for split in self.splits:
            lines = [self._line(name, numbers[name], dress) for name, _, of_split in rows if of_split == split]
            dress.write(root / f"{split}.txt", lines)
        for name, _, _ in rows:
            dress.touch(root, f"{name}.mp4")
        return {f"{name}.mp4": (split, numbers[name]) for name, _, split in rows}

    def _line(self, name, number, dress):
        path = dress.letters(f"{name}.mp4")
        if path.startswith('"') or dress.random.random() < 0.3:
            path = '"' + path.replace('"', '""') + '"'
        return f"{dress.blanks()}{path}{dress.random.choice([' ', '  ', chr(9)])}{number}{dress.blanks()}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path;label\na.mp4;run, fast\nb.mp4;\n", {"a.mp4": "run, fast", "b.mp4": None}),
        ("path\tlabel\na.mp4\trun;fast\nb.mp4\t\n", {"a.mp4": "run;fast", "b.mp4": None}),
        ("PATH,Label\na.mp4,run\nb.mp4,  \n", {"a.mp4": "run", "b.mp4": None}),
        ("\n\npath,label,,\na.mp4,run,,\nb.mp4,,,\n,,,\n  \n\n", {"a.mp4": "run", "b.mp4": None}),
        ("path,label\ra.mp4,run\rb.mp4,\r", {"a.mp4": "run", "b.mp4": None}),
        ('path,label\na.mp4,"say ""hi"" , \tx"\nb.mp4,\n', {"a.mp4": 'say "hi" , \tx', "b.mp4": None}),
        ("path,label\na.mp4,\u00a0run\n\ufeffb.mp4,\n", {"a.mp4": "run", "b.mp4": None}),
    ],
)  # fmt: skip
def test_a_csv_is_read_as_programs_write_it(tmp_path, text, expected):
    touch(write_tree(tmp_path, {"videos.csv": text}), "a.mp4", "b.mp4")
    dataset = open_dataset("csv", root=tmp_path / "videos.csv")
    assert {r.id: None if r.label is None else dataset.class_names[r.label] for r in dataset.videos()} == expected
    assert all(record.source.exists() for record in dataset.videos())


@pytest.mark.parametrize(
    ("column", "meant"),
    [("class", "label"), ("labels", "label"), ("Class Name", "label"), ("lable", "label"), ("category", "label"),
     ("label_id", "label"), ("subset", "split"), ("spilt", "split"), ("Splits", "split")],
)  # fmt: skip
def test_a_column_that_is_nearly_called_as_one_that_is_not_there_is_refused_with_the_name_meant(
    tmp_path, column, meant
):
    touch(write_tree(tmp_path, {"train.csv": f"path,{column}\na.mp4,x\n"}), "a.mp4")
    with pytest.raises(DatasetError, match=rf"line 1: no column '{meant}' .*; is '{column}' meant\? Call it '{meant}'"):
        open_dataset("csv", root=tmp_path)
    both = f"path,label,split,{column}\na.mp4,run,val,x\n"
    touch(write_tree(tmp_path, {"train.csv": both}), "a.mp4")
    (record,) = open_dataset("csv", root=tmp_path).videos()
    assert (record.split, record.label) == ("val", 0)


@pytest.mark.parametrize("column", ["filename", "File Path", "video", "paths"])
def test_a_column_that_stands_for_the_path_is_named(tmp_path, column):
    touch(write_tree(tmp_path, {"train.csv": f"{column},label\na.mp4,x\n"}), "a.mp4")
    with pytest.raises(DatasetError, match=rf"is '{column}' meant\? Call it 'path'"):
        open_dataset("csv", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,x\n".encode("utf-16"), r"train\.csv, line 1: UTF-16 text; save the file as UTF-8"),
        ("path,label\na.mp4,x\n".encode("utf-16-le"), r"train\.csv, line 1: UTF-16 text"),
        (b"path,Label,label\na.mp4,x,y\n", "a column is named twice: path, Label, label"),
        (b"path\nsub\\a.mp4\n", r"line 2: 'sub\\\\a\.mp4' is not there and has backslashes; write paths with '/'"),
        (b"path\n~/a.mp4\n", r"line 2: '~/a\.mp4' begins with ~, which only a shell replaces"),
        (b"path\ns3://bucket/a.mp4\n", r"line 2: 's3://bucket/a\.mp4' is an address"),
        (b"path,label\na.mp4,x,y\n", "line 2: 3 fields, the header has 2; quote those with commas"),
        (b"path;label\na.mp4;x;y\n", "line 2: 3 fields, the header has 2; quote those with semicolons"),
    ],
)
def test_what_no_path_and_no_table_can_be_is_told_by_file_and_line(tmp_path, text, message):
    touch(tmp_path, "a.mp4")
    (tmp_path / "train.csv").write_bytes(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset("csv", root=tmp_path)


def test_a_list_in_pieces_is_one_split_unless_it_is_there_whole(tmp_path):
    pieces = {"train-00000-of-00002.csv": "path\na.mp4\n", "train-00001-of-00002.csv": "path\nb.mp4\n"}
    touch(write_tree(tmp_path, pieces | {"other.csv": "path\nz.mp4\n"}), "a.mp4", "b.mp4", "c.mp4")
    dataset = open_dataset("csv", root=tmp_path)
    assert [(r.id, r.split) for r in dataset.videos()] == [("a.mp4", "train"), ("b.mp4", "train")]
    assert dataset.left_out.reasons == {"of another name than a split": 1}
    write_tree(tmp_path, {"train.csv": "path\nc.mp4\n"})
    dataset = open_dataset("csv", root=tmp_path)
    assert [(r.id, r.split) for r in dataset.videos()] == [("c.mp4", "train")]
    assert dataset.left_out.reasons == {"of another name than a split": 3}


def test_gaps_are_said_by_class_and_count(tmp_path):
    touch(write_tree(tmp_path, {"train.csv": "path,label\na.mp4,1\nb.mp4,4\nc.mp4,\n"}), "a.mp4")
    dataset = open_dataset("csv", root=tmp_path)
    gaps = Gaps.of(dataset, dataset.videos(), dataset.videos())
    assert (gaps.num_unlabelled, gaps.empty_classes, gaps.left_out) == (1, ("0", "2", "3"), {})
    unlabelled, empty = gaps.lines
    assert unlabelled.endswith(": 1 video without a label, of 3")
    assert empty.endswith(": 3 of 5 classes have no video: 0, 2, 3; chance is of the other 2")
