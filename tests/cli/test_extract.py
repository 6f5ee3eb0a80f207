"""`vfz extract` as a user types it: exit codes, the table of failures, JSON, and where the videos are looked for."""

import json
import shutil

import pytest
from helpers.video_files import VIDEOS

from vfz.cli.main import main

ENCODER = (
    "--encoder", "test_vit", "--random-weights", "--layers", "2", "--image-size", "32", "--fps", "1", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Two real videos and three that are none."""
    folder = tmp_path / "clips/train/a"
    folder.mkdir(parents=True)
    for name in ("bikes", "bigbuckbunny"):
        shutil.copy(VIDEOS / f"{name}.mp4", folder)
    for number in range(3):
        (folder / f"text{number}.mp4").write_text("not a video")
    return tmp_path / "clips"


@pytest.fixture
def vfz(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_it_ends_with_failures_by_reason_and_what_each_stage_did(vfz, root):
    code, shown, told = vfz("extract", "--dataset", "folder", "--root", root, *ENCODER)
    assert code == 0, told
    lines = shown.splitlines()
    assert lines[0] == "videos that are not in the cache"
    assert lines[1].split() == ["reason", "videos", "such", "as"]
    reason, count, example = lines[2].rsplit(maxsplit=2)
    assert reason.startswith("failed: cannot be read as a video")
    assert (count, example) == ("3", "train/a/text0")
    assert "2 ok, 3 failed, 0 missing" in shown
    for stage in ("decode", "prepare", "encode", "write"):
        assert any(line.startswith(stage) and "%" in line for line in lines)
    assert "(the bottleneck)" in shown


def test_too_many_failures_are_exit_code_3_with_the_same_report(vfz, root):
    strict = ("extract", "--dataset", "folder", "--root", root, *ENCODER, "--max-failures", "2", "--shard-videos", "1")
    code, shown, told = vfz(*strict)
    assert code == 3
    assert told.splitlines()[-1].startswith("vfz: error: 3 videos failed, 2 are allowed; first: 'train/a/text0'")
    assert "failed: cannot be read as a video" in shown
    assert "2 ok, 3 failed" in shown
    code, shown, _ = vfz(*strict, "--json")
    report = json.loads(shown)
    assert code == 3
    assert (report["num_ok"], report["num_failed"], report["num_tried"]) == (2, 3, 0)
    assert [kind["num_videos"] for kind in report["failure_kinds"]] == [3]


def test_the_root_is_taken_from_the_flag_else_from_the_config_file_else_from_the_environment(
    vfz, root, tmp_path, monkeypatch
):
    monkeypatch.setenv("VFZ_DATA_FOLDER", str(tmp_path / "of the environment"))
    code, _, told = vfz("extract", "--dataset", "folder", *ENCODER)
    assert code == 2
    assert "of the environment" in told
    (tmp_path / "vfz.toml").write_text(f'[extract]\ndataset = "folder"\nroot = "{tmp_path / "of the file"}"\n')
    assert "of the file" in vfz("extract", "--config", "vfz.toml", *ENCODER)[2]
    code, _, told = vfz("extract", "--config", "vfz.toml", "--root", root, *ENCODER)
    assert code == 0, told


def test_what_is_left_out_and_what_lacks_a_label_is_said_first_and_in_json(vfz, root, tmp_path):
    clips = root / "train/a"
    (clips / "notes.txt").touch()
    (clips / "._bikes.mp4").touch()
    code, shown, told = vfz("extract", "--dataset", "folder", "--root", root, *ENCODER, "--json")
    assert code == 0, told
    assert "clips: 2 files left out: 1 hidden, 1 no video (.txt)" in told.splitlines()
    assert json.loads(shown)["left_out"] == {"hidden": 1, "no video": 1}
    rows = [f"{clips}/bikes.mp4,2,train", f"{clips}/bigbuckbunny.mp4,,train", f"{clips}/text0.mp4,,val"]
    (tmp_path / "videos.csv").write_text("\n".join(["path, label, split", *rows]))
    for more in ([], ["--dry-run"]):
        code, shown, told = vfz("extract", "--dataset", "csv", "--root", "videos.csv", *ENCODER, "--json", *more)
        assert code == 0, told
        unlabelled, empty = (line for line in told.splitlines() if "-videos: " in line)
        assert unlabelled.endswith("-videos: 2 videos without a label, of 3")
        assert empty.endswith("-videos: 2 of 3 classes have no video: 0, 1; chance is of the other 1")
        report = json.loads(shown)
        assert (report["num_unlabelled"], report["empty_classes"], report["left_out"]) == (2, ["0", "1"], {})


def test_videos_without_a_label_are_not_called_missing_and_chance_is_of_classes_that_videos_have(vfz, tmp_path):
    for name in "abcdefghi":
        shutil.copy(VIDEOS / "bikes.mp4", tmp_path / f"{name}.mp4")
    labels = {"a": 1, "b": 3, "c": 1, "d": "", "e": 3, "f": "", "g": "", "h": 1, "i": 3}
    rows = [f"{name}.mp4,{label},{'train' if name in 'abdhi' else 'val'}" for name, label in labels.items()]
    (tmp_path / "videos.csv").write_text("\n".join(["path,label,split", *rows, "gone.mp4,1,val"]))
    code, _, told = vfz("extract", "--dataset", "csv", "--root", "videos.csv", *ENCODER)
    assert code == 0, told
    code, shown, told = vfz(
        "train-temporal", "--core", "identity", "--epochs", "1", "--clip-frames", "2", "--batch-size", "2"
    )
    assert code == 0, told
    assert "2 videos of val; 1 more are not in the cache; 2 more have no label" in shown
    assert "1 training video without a label: left out" in told
    code, shown, told = vfz("probe", "--probe", "knn", "--neighbours", "1", "--json")
    assert code == 0, told
    assert json.loads(shown)["chance"] == 0.5
    assert (json.loads(shown)["num_eval_clips"], json.loads(shown)["num_eval_missing"]) == (2, 1)
    assert "1 video of train without a label: left out" in told
    assert "2 videos of val without a label: left out" in told


def test_a_cache_whose_ids_were_not_composed_goes_on_as_it_is(vfz, root, monkeypatch):
    """As caches of before have them, of videos whose names come from macOS."""
    (root / "train/a").rename(root / "train/Cafe\u0301")
    for text in (root / "train").glob("*/text*"):
        text.unlink()
    with monkeypatch.context() as before:
        before.setattr("vfz.pipeline.datasets.text.composed", lambda text: text)
        assert vfz("extract", "--dataset", "folder", "--root", root, *ENCODER)[0] == 0
    code, shown, told = vfz("extract", "--dataset", "folder", "--root", root, *ENCODER, "--json")
    report = json.loads(shown)
    assert (code, report["num_ok"], report["num_tried"], told) == (0, 2, 0, "")
