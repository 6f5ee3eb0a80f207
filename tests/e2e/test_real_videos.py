"""Real mp4 files and a real pretrained encoder through the three commands, as a user types them."""

import json
import re
import shutil
import subprocess
import sys

import pytest

ENCODER = ("--encoder", "demo", "--layers", "3", "--batch-size", "16")
SHORT = ("--end-seconds", "2")


def vfz(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "vfz.cli", *arguments], capture_output=True, text=True, cwd=cwd)


def vfz_json(*arguments, cwd):
    ran = vfz(*arguments, "--json", cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_bikes_and_bunny_go_through_extract_train_and_probe(folder_dataset, tmp_path):
    """Four videos teach nothing; this shows that every stage takes what the one before it made."""
    first = vfz_json("extract", "--dataset", "folder", "--root", str(folder_dataset), *ENCODER, cwd=tmp_path)
    assert (first["num_ok"], first["num_failed"]) == (4, 0)
    # bikes.mp4 lasts 10 s, bigbuckbunny.mp4 5.3 s; six frames a second, in both splits
    assert first["num_frames"] == first["new_frames"] == 2 * (60 + 32)

    shutil.copytree(folder_dataset / "train", folder_dataset / "val")
    again = vfz_json("extract", "--dataset", "folder", "--root", str(folder_dataset), *ENCODER, cwd=tmp_path)
    assert again["cache"] == first["cache"]
    assert (again["num_ok"], again["new_videos"]) == (6, 2), "only the new videos are extracted"

    trained = vfz_json(
        *("train-temporal", "--core", "rvm_rnn", "--core-dim", "32", "--num-layers", "1", "--num-heads", "2"),
        *("--readout-dim", "32", "--readout-heads", "2", "--clip-frames", "4", "--epochs", "2", "--batch-size", "2"),
        *("--eval-split", "test", "--name", "run"),
        cwd=tmp_path,
    )
    assert trained["num_eval_clips"] == 2
    assert 0 <= trained["top1"] <= 1


def test_probes_run_on_tokens_and_on_a_temporal_module(folder_dataset, tmp_path):
    for number in range(2, 4):  # a held-out clip per class needs two of each
        for label, name in (("traffic", "bikes"), ("cartoon", "bigbuckbunny")):
            source = folder_dataset / "train" / label / f"{name}.mp4"
            shutil.copy(source, source.with_name(f"{name}{number}.mp4"))
    vfz_json("extract", "--dataset", "folder", "--root", str(folder_dataset), *ENCODER, *SHORT, cwd=tmp_path)
    linear = vfz_json("probe", "--probe", "linear", "--clip-frames", "4", cwd=tmp_path)
    assert linear["top1"] == 1.0, "a cartoon and a street are told apart by a pretrained encoder"
    assert linear["num_eval_clips"] == 2
    vfz_json(
        *("train-temporal", "--core", "gmmix", "--core-dim", "32", "--num-layers", "1", "--num-heads", "2"),
        *("--readout-dim", "32", "--readout-heads", "2", "--clip-frames", "4", "--epochs", "1", "--name", "run"),
        cwd=tmp_path,
    )
    attentive = vfz_json("probe", "--probe", "attentive", "--temporal", "runs/run", "--epochs", "2", cwd=tmp_path)
    assert attentive["features"] == "runs/run"
    assert attentive["num_eval_clips"] == 2


def test_broken_videos_are_named_and_the_good_ones_kept(folder_dataset, tmp_path):
    bikes = (folder_dataset / "train/traffic/bikes.mp4").read_bytes()
    (folder_dataset / "train/traffic/text.mp4").write_text("not a video")
    (folder_dataset / "train/traffic/cut.mp4").write_bytes(bikes[: len(bikes) // 2])
    ran = vfz("extract", "--dataset", "folder", "--root", str(folder_dataset), *ENCODER, *SHORT, cwd=tmp_path)
    assert ran.returncode == 0
    assert "4 ok, 2 failed, 0 missing" in ran.stdout
    kind = (
        r"failed: cannot be read as a video \(Invalid data found when processing input\) +2 +train/traffic/(cut|text)"
    )
    assert re.search(kind, ran.stdout)
    for name in ("text", "cut"):
        assert f"failed: 'train/traffic/{name}': {name}.mp4: cannot be read as a video" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr, "plain lines where the output is no terminal"

    strict = vfz(
        *("extract", "--dataset", "folder", "--root", str(folder_dataset), *ENCODER, *SHORT, "--name", "strict"),
        *("--max-failures", "1"),
        cwd=tmp_path,
    )
    assert strict.returncode == 3
    assert "2 videos failed, 1 are allowed" in strict.stderr


@pytest.mark.parametrize("nothing_good", ["text.mp4"])
def test_a_dataset_without_one_good_video_ends_with_code_3(tmp_path, nothing_good):
    (tmp_path / "clips/train/a").mkdir(parents=True)
    (tmp_path / "clips/train/a" / nothing_good).write_text("not a video")
    ran = vfz("extract", "--dataset", "folder", "--root", "clips", *ENCODER, cwd=tmp_path)
    assert ran.returncode == 3
    assert "none of 1 videos drawn at random can be decoded; first: text.mp4" in ran.stderr
    assert list((tmp_path / "caches").iterdir()) == []
