"""Other labels for the same videos, as a user meets them: refused by name, added by the command named, trained on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.video_files import write_video

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.temporal import to_numpy

EXTRACT = "extract --dataset folder --root clips --encoder demo --random-weights --image-size 32 --fps 2 --name mine"
TRAIN = "--core gru --num-layers 1 --core-dim 16 --epochs 1 --clip-frames 2 --batch-size 4 --device cpu"
PROBE = "--probe linear --clip-frames 2 --device cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """clips/<split>/<class>/<video>, twelve of them, and their cache."""
    folder = tmp_path_factory.mktemp("labels")
    for number in range(12):
        split, name = "train" if number < 8 else "val", ("walk", "run")[number % 2]
        path = folder / "clips" / split / name / f"{number:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, range(80 * number, 1000 + 80 * number, 80), width=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(EXTRACT.split()) == 0
    return folder


@pytest.fixture
def vfz(folder, tmp_path, capsys, monkeypatch):
    """Runs a line of a user in a copy of the folder; gives its exit code, stdout and stderr."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(line):
        capsys.readouterr()
        code = main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _write(text, name="speeds.csv"):
    Path(name).write_text(text)


def _speeds(split=False, names=("slow", "fast")):
    rows = [f"{number:02d}.mp4,{names[number % 4 > 1]},{'val' if number % 3 == 0 else 'train'}" for number in range(12)]
    lines = ["video,label,split", *rows]
    return "".join(f"{line if split else line.rpartition(',')[0]}\n" for line in lines)


def test_labels_that_do_not_agree_are_added_by_the_command_that_is_named(vfz, tmp_path):
    """The case of the issue, in processes of their own."""

    def run(*words):
        command = [sys.executable, "-m", "vfz.cli", *words]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, timeout=300)
        return ran.returncode, ran.stdout, ran.stderr

    for split in ("train", "val"):
        Path(f"clips/{split}/walk").rename(f"clips/{split}/crawl")
    code, _, err = run(*EXTRACT.split())
    assert code == 1
    line = err.splitlines()[-1]
    assert "labels would not agree" in line
    command = shlex.split(line.partition("`")[2].partition("`")[0])
    assert command[:3] == ["vfz", "cache", "label"]
    code, out, _ = run(*command[1:])
    assert code == 0
    assert "12 of 12 lines are of a video, 12 of 12 videos of the cache have a label" in out
    assert "crawl, run" in out
    cache = FeatureCache(_only(), labels="clips")
    assert cache.class_names == ("crawl", "run")
    assert [row.label for row in cache.ok_videos("val")] == [1, 1, 0, 0]


def test_a_class_that_is_new_is_taken_up_after_its_labels_were_added(vfz):
    Path("clips/train/jump").mkdir()
    write_video("clips/train/jump/12.mp4", range(0, 1500, 80), width=64)
    code, _, err = vfz(EXTRACT)
    assert code == 1
    line = err.splitlines()[-1]
    assert "and then new videos are taken up" in line
    command = line.partition("`vfz ")[2].partition("`")[0]
    assert vfz(command)[0] == 0
    code, out, err = vfz(f"{EXTRACT} --json")
    assert code == 0, err
    assert (json.loads(out)["num_ok"], json.loads(out)["num_tried"]) == (13, 1)
    assert "new videos (1) get theirs by `vfz cache label" in err
    assert vfz(command)[0] == 0
    cache = FeatureCache(_only(), labels="clips")
    assert cache.class_names == ("jump", "run", "walk")
    assert {row.label for row in cache.videos} == {0, 1, 2}
    assert FeatureCache(_only()).videos[-1].label is None, "the classes of the extraction stay"
    code, out, err = vfz(f"{EXTRACT} --json")
    assert json.loads(out)["num_tried"] == 0


def _only():
    (path,) = Path("caches").iterdir()
    return path


def test_training_evaluation_and_probes_take_a_set_by_name(vfz):
    _write(_speeds(split=True))
    assert vfz("cache label --from speeds.csv")[0] == 0
    code, out, err = vfz(f"train-temporal --labels speeds --name a --json {TRAIN}")
    assert code == 0, err
    record = json.loads(Path("runs/a/run.json").read_text())
    labels = FeatureCache(_only(), labels="speeds").label_set
    assert (record["labels"]["name"], record["labels"]["digest"]) == ("speeds", labels.digest)
    assert record["class_names"] == ["fast", "slow"]
    code, out, err = vfz("evaluate runs/a --json --device cpu")
    assert code == 0, err
    assert json.loads(out)["split"] == "val"
    code, out, err = vfz(f"probe --labels speeds --json {PROBE}")
    assert code == 0, err
    (path,) = Path().rglob("probe.json")
    probe = json.loads(path.read_text())
    assert probe["cache"]["label_set"] == {
        "name": "speeds", "number": 1, "kind": "classes", "digest": labels.digest
    }  # fmt: skip
    assert probe["class_names"] == ["fast", "slow"]


def test_what_was_made_with_other_labels_is_neither_resumed_nor_found_again(vfz):
    _write(_speeds())
    vfz("cache label --from speeds.csv")
    assert vfz(f"train-temporal --labels speeds --name a {TRAIN}")[0] == 0
    assert vfz(f"probe --labels speeds {PROBE}")[0] == 0
    assert "has this result already" in vfz(f"probe --labels speeds {PROBE}")[2]
    _write(_speeds(names=("fast", "slow")))
    vfz("cache label --from speeds.csv")
    assert "has this result already" not in vfz(f"probe --labels speeds {PROBE}")[2]
    code, _, err = vfz(f"train-temporal --labels speeds --name a --resume {TRAIN.replace('epochs 1', 'epochs 2')}")
    assert code == 1
    assert "the labels" in err.splitlines()[-1]
    code, _, err = vfz("evaluate runs/a --device cpu")
    assert code == 0
    assert "label set 'speeds' is another one now than the run" in err
    code, _, err = vfz(f"train-temporal --name a --resume {TRAIN.replace('epochs 1', 'epochs 2')}")
    assert code == 1, "without the set they are others, too"


def test_a_probe_of_a_run_takes_other_splits_of_the_same_videos(vfz):
    vfz("cache label --split-fractions 0.5,0.5 --name half")
    vfz("cache label --split-fractions 0.6,0.4 --split-seed 1 --name other")
    assert vfz(f"train-temporal --labels half --name a {TRAIN}")[0] == 0
    for labels in ("--labels half", "--labels other", ""):
        code, _, err = vfz(f"probe {labels} --temporal runs/a --probe linear --device cpu")
        assert code == 0, err
    assert len(list(Path().rglob("derived.json"))) == 6, "of each split of each set"


def test_files_that_changed_places_are_known_by_what_is_in_them(vfz):
    for number in range(12):
        source = Path("clips") / ("train" if number < 8 else "val") / ("walk", "run")[number % 2] / f"{number:02d}.mp4"
        target = Path("sorted") / ("left", "right")[number < 3] / f"{(number + 1) % 12:02d}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    assert vfz("cache label --from sorted")[0] == 0
    right = {row.id[-2:] for row in FeatureCache(_only(), labels="sorted").videos if row.label == 1}
    assert right == {"00", "01", "02"}, "names say 01, 02 and 03"


def test_videos_in_no_split_and_without_a_label_are_counted_before_training(vfz):
    rows = _speeds(split=True).splitlines()
    _write("\n".join([*rows[:9], "08.mp4,,train", ""]))
    code, out, _ = vfz("cache label --from speeds.csv")
    assert code == 0
    assert "without a label" in out
    assert "3 videos in none" in out
    _, _, err = vfz(f"train-temporal --labels speeds {TRAIN}")
    assert "3 videos of the cache in no split of the label set: left out" in err
    assert "1 training video without a label: left out" in err


def test_an_unknown_set_is_told_in_a_line(vfz):
    _write(_speeds())
    vfz("cache label --from speeds.csv")
    for line in (f"train-temporal --labels sped {TRAIN}", f"probe --labels sped {PROBE}"):
        code, _, err = vfz(line)
        assert code == 2
        assert "unknown label set 'sped'; did you mean speeds" in err.splitlines()[-1]


def test_info_lists_the_sets_and_json_has_them(vfz):
    _write(_speeds(split=True))
    vfz("cache label --from speeds.csv --name tempo")
    digest = FeatureCache(_only(), labels="tempo").label_set.digest
    _, out, _ = vfz("cache info")
    (line,) = [line for line in out.splitlines() if line.startswith("tempo")]
    assert line.split() == ["tempo", "classes,", "2", "12", "8", "train,", "4", "val", digest[:12]]
    _, out, _ = vfz("cache info --json")
    assert json.loads(out)["label_sets"][0]["digest"] == digest


def test_arrays_for_notebooks_have_the_labels_of_a_set(vfz):
    _write(_speeds(split=True))
    _write("id,labels\n" + "".join(f"{number:02d},a;b\n" for number in range(11)), "tags.csv")
    vfz("cache label --from speeds.csv")
    vfz("cache label --from tags.csv")
    X, y, ids = to_numpy(_only(), "val", labels="speeds")
    assert len(X) == len(y) == len(ids) == 4
    assert set(y.tolist()) == {0, 1}
    _, y, ids = to_numpy(_only(), "val", labels="tags")
    assert y.dtype == np.float32
    assert np.isnan(y[[video.endswith("11") for video in ids]]).all()
    assert np.nansum(y) == 2 * 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cache label", "--from FILE or folder says what the labels are"),
        ("cache label --from nowhere.csv", "--from nowhere.csv does not exist"),
        ("cache label --from speeds.csv --kind ranking", "choose from classes, multilabel, regression"),
        ("cache label --from speeds.csv --name a/b", "cannot name a folder"),
        ("cache label --from speeds.csv --columns none", "no column 'none'"),
        ("cache label --from clips --columns x", "--columns and --kind are for a CSV or JSON file"),
        ("cache label --from clips --dataset k4", "unknown dataset 'k4'; did you mean k400"),
        ("cache label --from clips --split-fractions 0.5,0.5", "has splits already"),
        ("cache drop", "--video ID or --videos FILE says which"),
        ("cache drop --video train/walk/0", "unknown video 'train/walk/0'; did you mean train/walk/0"),
    ],
)
def test_a_wrong_request_is_one_line(vfz, line, message):
    _write(_speeds())
    code, _, err = vfz(line)
    assert code in {1, 2}
    assert message in err.splitlines()[-1]
    assert FeatureCache(_only()).label_sets == ()


def test_a_video_is_dropped_and_brought_back_on_the_command_line(vfz):
    code, out, _ = vfz("cache drop --video walk/00 --why 'out of focus'")
    assert code == 0
    assert "1 video (train/walk/00)" in out
    _, out, _ = vfz("cache info")
    assert "out of focus" in out
    code, out, _ = vfz(f"{EXTRACT} --retry-failed")
    assert code == 0
    assert "11 ok, 0 failed, 1 missing" in out
    code, out, _ = vfz("cache drop --video walk/00 --undo --json")
    assert json.loads(out)["num_ok"] == 12


def test_a_changed_file_is_encoded_again_with_replace(vfz):
    write_video("clips/train/walk/00.mp4", range(0, 2500, 80), width=64)
    code, _, err = vfz(EXTRACT)
    assert code == 1
    assert "--replace encodes it again" in err.splitlines()[-1]
    code, out, _ = vfz(f"{EXTRACT} --replace")
    assert code == 0
    assert "12 ok" in out
    assert vfz("cache verify")[0] == 0
