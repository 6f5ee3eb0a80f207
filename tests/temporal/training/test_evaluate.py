"""`vfz evaluate`: a run's figures again, on any split of any cache of its recipe, with what they are a share of."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import arguments_of, small_options

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs", epochs=1)


@pytest.mark.parametrize("changes", [{}, {"task": "boxes"}, {"ema": 0.9}, {"segments": 3, "clip_frames": 3}])
def test_a_run_is_evaluated_to_the_figures_it_ended_with(options, synthetic_cache, changes):
    report = train_temporal(dataclasses.replace(options, **changes))
    again = evaluate(
        EvaluateOptions(run=report.run, cache=synthetic_cache.path, segments=changes.get("segments", 1), batch_size=5)
    )
    assert again.evaluation.metrics == pytest.approx(report.evaluation.metrics)
    assert again.evaluation.num_videos == report.evaluation.num_videos == 12


def test_the_training_split_can_be_evaluated_and_json_says_it_all(options, synthetic_cache, capsys):
    train_temporal(options)
    arguments = ["evaluate", str(options.out / "run"), "--cache", str(synthetic_cache.path), "--split", "train"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["split"] == "train"
    assert printed["num_eval_videos"] == printed["num_clips"] == 36
    assert 0 <= printed["top1"] <= printed["top5"] <= 1
    assert printed["headline"] == "top1"
    assert main(arguments) == 0
    assert "36 clips of 36 videos of train" in capsys.readouterr().out


def test_a_video_has_as_many_clips_as_segments(options, synthetic_cache):
    train_temporal(dataclasses.replace(options, clip_frames=3))
    report = evaluate(EvaluateOptions(run=options.out / "run", cache=synthetic_cache.path, segments=4))
    assert report.evaluation.num_clips == 48
    assert report.evaluation.metrics["num_clips"] == report.evaluation.num_videos == 12


def test_videos_that_are_not_in_the_cache_are_counted(options, synthetic_cache, synthetic_options, tmp_path):
    train_temporal(options)
    extraction = dataclasses.replace(synthetic_options(), out=tmp_path / "caches")
    broken = next((extraction.root / "test").glob("*/*.mp4"))
    content = broken.read_bytes()
    broken.write_bytes(b"no video")
    try:
        other = extract(extraction).cache
    finally:
        broken.write_bytes(content)
    report = evaluate(EvaluateOptions(run=options.out / "run", cache=other))
    assert (report.evaluation.num_videos, report.evaluation.num_missing) == (11, 1)
    assert "11 videos of test; 1 more are not in the cache" in report.evaluation.lines()["measured on"]


def test_tokens_of_another_recipe_are_refused(options, vit_cache):
    train_temporal(options)
    with pytest.raises(CacheMismatchError, match="was trained on tokens of another recipe"):
        evaluate(EvaluateOptions(run=options.out / "run", cache=vit_cache.path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "val"}, "'val'"),
        ({"run": "nowhere"}, "nowhere is not a folder, and runs/ holds no run; make one with vfz train-temporal"),
        ({"views": (0, 7)}, "view 7"),
        ({"targets": ("t.npz",)}, "--targets"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_line(options, synthetic_cache, changes, words):
    train_temporal(options)
    with pytest.raises(UsageError, match=words):
        evaluate(EvaluateOptions(**{"run": options.out / "run", "cache": synthetic_cache.path} | changes))
    assert FeatureCache(synthetic_cache.path).fingerprint == synthetic_cache.fingerprint


def test_a_message_names_the_option_as_the_command_spells_it(options, synthetic_cache, tmp_path, capsys):
    train_temporal(options)
    part = convert(ConvertOptions(cache=synthetic_cache.path, splits=("train",), out=tmp_path / "part")).cache
    assert main(["evaluate", str(options.out / "run"), "--cache", str(part)]) == 2
    assert "its splits are train: name one with --split" in capsys.readouterr().err
    assert main(arguments_of(dataclasses.replace(options, cache=(part,), name="other"))) == 2
    assert "name one with --eval-split" in capsys.readouterr().err


def test_a_run_takes_its_own_cache_where_several_lie_there(
    options, synthetic_cache, vit_cache, tmp_path, monkeypatch, capsys
):
    """From the folder that `caches/` and `runs/` were moved to together; so does a probe of the run."""
    for cache in (synthetic_cache, vit_cache):
        shutil.copytree(cache.path, tmp_path / "caches" / cache.path.name)
    monkeypatch.chdir(tmp_path)
    train_temporal(dataclasses.replace(options, cache=(Path("caches", synthetic_cache.path.name),), out=Path("runs")))
    for folder in ("caches", "runs"):
        shutil.move(folder, tmp_path / "moved" / folder)
    monkeypatch.chdir(tmp_path / "moved")
    ran = subprocess.run([sys.executable, "-m", "vfz.cli", "evaluate", "run"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert main(["probe", "--temporal", "run", "--clip-frames", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["features"] == "runs/run"
    more = dataclasses.replace(options, cache=None, out=Path("runs"), epochs=2, resume=True)
    assert main(arguments_of(more)) == 0, "training goes on with it, too"
    shutil.rmtree(Path("caches", synthetic_cache.path.name))
    assert main(["evaluate", "run"]) == 1
    assert "was trained on tokens of another recipe than" in capsys.readouterr().err
