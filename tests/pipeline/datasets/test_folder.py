"""The folder dataset: anyone's videos under root/<split>/<class>/<video>."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import av
import pytest
from contracts.dataset_contract import DatasetContract, ReadingContract

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.datasets.base import VIDEO_SUFFIXES
from vfz.pipeline.datasets.folder import videos_at
from vfz.pipeline.decoding.containers import FORMATS
from vfz.pipeline.errors import DatasetError, UsageError

pytestmark = pytest.mark.quick


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


class TestFolderContract(DatasetContract):
    @pytest.fixture
    def open_again(self, tmp_path):
        root = tmp_path / "my videos"
        touch(*(root / s / c / f"{i}.mp4" for s in ("train", "test") for c in ("b", "a") for i in range(3)))
        return lambda: open_dataset("folder", root=root)


def ids(root: Path) -> list[str]:
    return [record.id for record in open_dataset("folder", root=root).videos()]


def test_an_id_is_the_path_without_suffix_and_labels_count_the_classes_of_all_splits(tmp_path):
    touch(tmp_path / "train" / "jump" / "1.mp4", tmp_path / "test" / "climb" / "2.webm")
    dataset = open_dataset("folder", root=tmp_path)
    assert dataset.class_names == ("climb", "jump")
    assert [(r.id, r.split, r.label) for r in dataset.videos()] == [
        ("test/climb/2", "test", 0),
        ("train/jump/1", "train", 1),
    ]


def test_every_video_suffix_counts_in_any_case_and_nothing_else_does(tmp_path):
    folder = tmp_path / "train" / "a"
    touch(*(folder / f"{suffix[1:]}{suffix}" for suffix in VIDEO_SUFFIXES))
    touch(folder / "upper.MP4", folder / "notes.txt", folder / "no_suffix", tmp_path / "README.md")
    assert ids(tmp_path) == sorted(f"train/a/{name}" for name in [*(s[1:] for s in VIDEO_SUFFIXES), "upper"])


def test_hidden_files_and_folders_are_skipped(tmp_path):
    touch(
        tmp_path / "train" / "a" / "1.mp4",
        tmp_path / "train" / "a" / "._1.mp4",
        tmp_path / "train" / ".trash" / "2.mp4",
        tmp_path / ".cache" / "a" / "3.mp4",
        tmp_path / "train" / "a" / ".thumbs" / "4.mp4",
    )
    assert ids(tmp_path) == ["train/a/1"]


@pytest.mark.parametrize("name", ["two words", "größe-日本", 'it\'s "quoted"', "-n", "a.b.c", "100%", "new\nline"])
def test_unusual_names_work(tmp_path, name):
    touch(tmp_path / "train" / name / f"{name}.mp4")
    dataset = open_dataset("folder", root=tmp_path)
    assert [record.id for record in dataset.videos()] == [f"train/{name}/{name}"]
    assert dataset.class_names == (name,)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system refuses such names")
    with pytest.raises(DatasetError, match="not valid UTF-8"):
        open_dataset("folder", root=tmp_path)


def test_two_files_with_one_id_are_an_error_that_names_both(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "train" / "a" / "1.avi")
    with pytest.raises(DatasetError, match=r"'train/a/1': 1\.avi and 1\.mp4"):
        open_dataset("folder", root=tmp_path)


@pytest.mark.parametrize("where", ["1.mp4", "train/1.mp4", "train/a/deeper/1.mp4", "train/a/b/c/d/1.mp4"])
def test_a_video_at_another_depth_is_an_error_that_says_the_layout(tmp_path, where):
    touch(tmp_path / where, tmp_path / "train" / "a" / "good.mp4")
    with pytest.raises(DatasetError, match=rf"{where} is not where .* <root>/<split>/<class>/<video>"):
        open_dataset("folder", root=tmp_path)


def test_a_missing_root_a_file_and_an_empty_folder_say_what_to_do(tmp_path):
    touch(tmp_path / "file", tmp_path / "empty" / "train" / "a" / "notes.txt")
    with pytest.raises(DatasetError, match=r"nowhere does not exist; give --root"):
        open_dataset("folder", root=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"file is a file; give --root"):
        open_dataset("folder", root=tmp_path / "file")
    with pytest.raises(DatasetError, match=r"no videos under .*empty; expected <root>/<split>/<class>/<video>"):
        open_dataset("folder", root=tmp_path / "empty")


def test_links_to_files_and_folders_are_followed_and_a_broken_one_is_listed(tmp_path):
    touch(tmp_path / "store" / "a" / "1.mp4", tmp_path / "elsewhere.mp4")
    root = tmp_path / "root"
    (root / "train" / "b").mkdir(parents=True)
    (root / "test").symlink_to(tmp_path / "store")
    (root / "train" / "b" / "2.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    (root / "train" / "b" / "3.mp4").symlink_to(tmp_path / "gone.mp4")
    assert ids(root) == ["test/a/1", "train/b/2", "train/b/3"]


def test_loops_of_links_end(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "train" / "a" / "extra" / "notes.txt")
    for loop in ("loop", "train/loop", "train/a/loop", "train/a/extra/loop"):
        (tmp_path / loop).symlink_to(tmp_path)
    (tmp_path / "train" / "self").symlink_to("self")
    assert ids(tmp_path) == ["train/a/1"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my videos (2024)", "my-videos-2024"), ("..hidden", "hidden"), ("日本", "folder"), ("plain_1.0", "plain_1.0")],
)
def test_the_dataset_is_named_after_its_root(tmp_path, folder, name):
    touch(tmp_path / folder / "train" / "a" / "1.mp4")
    assert open_dataset("folder", root=tmp_path / folder).name == name


def test_without_a_root_the_environment_says_where_else_it_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path / "train" / "a" / "1.mp4")
    monkeypatch.setenv("VFZ_DATA_FOLDER", str(tmp_path))
    assert open_dataset("folder").root == tmp_path
    monkeypatch.delenv("VFZ_DATA_FOLDER")
    with pytest.raises(UsageError, match=r"pass --root or set \$VFZ_DATA_FOLDER"):
        open_dataset("folder")


def test_numbers_of_the_synthetic_dataset_are_refused(tmp_path):
    touch(tmp_path / "train" / "a" / "1.mp4")
    with pytest.raises(UsageError, match="--num-videos belongs to dataset synthetic"):
        open_dataset("folder", root=tmp_path, num_videos=3)


class TestFolderReading(ReadingContract):
    kind = "folder"

    def write(self, root, rows, dress):
        for name, class_name, split in rows:
            dress.touch(root, split, class_name, f"{name}{dress.cased('.mp4')}")
        return {f"{split}/{class_name}/{name}": (split, class_name) for name, class_name, split in rows}


def test_what_is_left_out_is_counted_by_reason_and_shown_with_suffixes(tmp_path):
    hidden = ("train/a/._1.mp4", "train/a/.DS_Store", "train/a/Thumbs.db", "DESKTOP.INI", "__MACOSX/train/a/1.mp4")
    others = ("README.md", "train/a/1.wav", "train/a/2.JPG", "train/a/3.jpg", "train/a/text", "train/a/deep/4.txt")
    touch(*(tmp_path / name for name in ("train/a/1.mp4", *hidden, *others)))
    left_out = open_dataset("folder", root=tmp_path).left_out
    assert left_out.reasons == {"hidden": 5, "no video": 6}
    assert str(left_out) == "11 files left out: 6 no video (.jpg, .md, .txt, .wav, no suffix), 5 hidden"


NO_FILMS = """
302 3dostr 722 aa aa3 aac aax ac3 ac4 acm adf adp ads adx aea afc aix al ans apc ape apl aptx aptxhd aqt art asc ast
avif avr avs bcstm bfstm binka bit bitpacked bmv bonk brstm c2 cdata cdg cdxl cgi cif dat daud dfpwm diz dss dtk dts
dtshd eac3 ec3 epaf fap flac flm fsb fwse g722 g723_1 g728 g729 genh gsm hca heic heif iamf ice idf idx ifv ipu
ircam isma j2k jxl laf lc3 lvf m2a m4a m4b mac mca mcc mka mks mlp mods mp2 mp3 mpa mpc mpl2 mpo msbc msf mtaf musx
nfo nist nsp ogg oma omg osq paf pdv pjs psp pvf qcif qoa rco rcv rgb rka rsd rso rt sami sb sbc sbg scc sdns sdr2
sds sdx ser sf sga shn sln smi son sph ss2 stl str sub sup svag svs sw tak tco thd tta txt ty ty+ ub ul uw v v210
vag vb vpk vqe vqf vql vt vtt wa way webvtt wsd xl xmd xvag yuv yuv10
"""
"""Suffixes of ffmpeg's demuxers of sound, pictures and subtitles, and of raw frames, whose size nobody says."""


def test_every_suffix_of_ffmpegs_demuxers_is_a_video_or_known_to_be_none():
    formats = {}
    for name in av.formats_available:
        with contextlib.suppress(ValueError):
            own = av.ContainerFormat(name, "r")
            for suffix in own.extensions:
                formats.setdefault(f".{suffix}", set()).update(own.name.split(","))
    closed = {suffix for suffix in VIDEO_SUFFIXES & set(formats) if not formats[suffix] & set(FORMATS.split(","))}
    assert not closed, "these would be listed and never opened"
    assert set(formats) - VIDEO_SUFFIXES <= {f".{suffix}" for suffix in NO_FILMS.split()}
    wanted = ".3gp .ogv .m2ts .mts .vob .asf .divx .m2v .mxf .rm .rmvb .y4m .dv .h264 .f4v .qt .mk3d .ogm .mpe .3g2"
    assert set(wanted.split()) <= VIDEO_SUFFIXES
    assert not {".jpg", ".png", ".wav", ".mp3", ".txt", ".srt", ".json", ".npz"} & VIDEO_SUFFIXES


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_class_is_one_however_its_name_is_composed_and_paths_stay_as_they_are(tmp_path, form):
    name, other = (unicodedata.normalize(one, "Café") for one in (form, "NFD"))
    touch(tmp_path / "train" / name / "1.mp4", tmp_path / "val" / other / "1.mp4")
    dataset = open_dataset("folder", root=tmp_path)
    assert dataset.class_names == ("Caf\u00e9",)
    assert [r.id for r in dataset.videos()] == ["train/Caf\u00e9/1", "val/Caf\u00e9/1"]
    assert [r.source.path for r in dataset.videos()] == [
        tmp_path / "train" / name / "1.mp4", tmp_path / "val" / other / "1.mp4",
    ]  # fmt: skip


def test_files_whose_names_are_the_same_text_have_ids_as_they_are_written(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    touch(*(tmp_path / "train" / "a" / f"{name}.mp4" for name in names))
    assert {r.id: r.source.path.stem for r in open_dataset("folder", root=tmp_path).videos()} == {
        f"train/a/{name}": name for name in names
    }
    touch(tmp_path / "train" / "a" / f"{names[0]}.webm")
    with pytest.raises(DatasetError, match=r"two videos have the id 'train/a/é': é\.(mp4 and é\.webm|webm and é\.mp4)"):
        open_dataset("folder", root=tmp_path)


def test_an_address_is_no_root(tmp_path, monkeypatch):
    for root in ("s3://bucket/x", Path("gs://bucket/x"), "https://host/x", "hf://datasets/x", "simplecache::s3://b/x"):
        with pytest.raises(UsageError, match="is an address; give a folder of this machine"):
            open_dataset("folder", root=root)
    monkeypatch.setenv("VFZ_DATA_FOLDER", "s3://bucket/x")
    with pytest.raises(UsageError, match="is an address"):
        open_dataset("folder")


LISTING = """
import json, sys
from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.decoding.containers import FORMATS
dataset = open_dataset(sys.argv[1], root=sys.argv[2])
print(json.dumps([dataset.class_names, [(r.id, r.split, r.label, r.source.exists()) for r in dataset.videos()]]))
"""


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_names_are_utf8_whatever_the_locale(tmp_path, kind):
    touch(tmp_path / "train" / "Café" / "日本.mp4")
    (tmp_path / "train.csv").write_text("path,label\ntrain/Café/日本.mp4,Café\n", encoding="utf-8")
    found = []
    for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        ran = subprocess.run(
            [sys.executable, "-c", LISTING, kind, str(tmp_path)],
            env=os.environ | locale,
            capture_output=True,
            check=True,
        )
        found.append(json.loads(ran.stdout))
    name = {"folder": "train/Café/日本", "csv": "train/Café/日本.mp4"}[kind]
    assert found == [[["Café"], [[name, "train", 0, True]]]] * 2


def test_videos_that_are_named_and_all_those_in_folders_are_found(tmp_path):
    touch(*(tmp_path / name for name in ("x/b.mp4", "x/deep/a.WEBM", "x/notes.txt", "x/.hidden/c.mp4", "odd", "y.mp4")))
    (tmp_path / "x/deep/loop").symlink_to(tmp_path / "x")
    (tmp_path / "x/other").symlink_to(tmp_path / "elsewhere")
    touch(tmp_path / "elsewhere/d.mp4")
    found = videos_at([tmp_path / "odd", tmp_path / "x"])
    names = ["odd", "x/b.mp4", "x/deep/a.WEBM", "x/other/d.mp4"]
    assert found == [tmp_path / name for name in names]
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    assert videos_at([tmp_path / "gone.mp4"]) == [tmp_path / "gone.mp4"]
    for wrong, words in ((tmp_path / "z.mp4", "no file or folder .*z.mp4"), (tmp_path / "x/.hidden/c", "no file")):
        with pytest.raises(UsageError, match=words):
            videos_at([wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no video in .*empty"):
        videos_at([tmp_path / "empty"])
