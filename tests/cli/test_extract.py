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
    assert code == 1
    assert "of the environment" in told
    (tmp_path / "vfz.toml").write_text(f'[extract]\ndataset = "folder"\nroot = "{tmp_path / "of the file"}"\n')
    assert "of the file" in vfz("extract", "--config", "vfz.toml", *ENCODER)[2]
    code, _, told = vfz("extract", "--config", "vfz.toml", "--root", root, *ENCODER)
    assert code == 0, told
