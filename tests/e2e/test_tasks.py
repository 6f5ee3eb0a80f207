"""All five tasks from videos to figures on the synthetic clips, and targets that do not fit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.training import arguments_of, losses_of, small_options

from vfz.cli.main import main
from vfz.pipeline.datasets.targets import Targets
from vfz.pipeline.errors import DatasetError, UsageError
from vfz.temporal.training.train import train_temporal

OF_TASK = {
    "classify": {},
    "boxes": {"readout_hidden": 16},
    "points": {"readout_hidden": 16},
    "depth": {"depth_size": 16},
    "pose": {"readout_hidden": 16, "readout_heads": None},
}
METRICS = {
    "classify": {"top1", "top5"},
    "boxes": {"miou"},
    "points": {"average_jaccard", "average_pts_within", "occlusion_accuracy", "jaccard_1", "pts_within_16"},
    "depth": {"abs_rel", "delta1"},
    "pose": {"rpe_tr_mm", "rpe_rot_deg"},
}


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs", epochs=6, lr=3e-3)


@pytest.mark.parametrize(
    ("task", "protocol"),
    [(task, "streaming") for task in OF_TASK] + [(task, "clip") for task in ("classify", "points", "depth")],
)
def test_a_task_trains_and_is_evaluated(options, capsys, task, protocol):
    options = dataclasses.replace(options, task=task, protocol=protocol, **OF_TASK[task])
    assert main([*arguments_of(options), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert METRICS[task] <= printed.keys()
    assert printed["headline"] in METRICS[task]
    assert all(np.isfinite(printed[name]) for name in METRICS[task])
    assert printed["num_eval_videos"] == 12
    losses = losses_of(options.out / "run")
    assert sum(losses[-5:]) < sum(losses[:5])


def test_two_caches_of_one_recipe_train_together(options, synthetic_options, tmp_path, capsys):
    """Other videos of the same kind, encoded alike; the flag is given twice."""
    from vfz.pipeline.extraction.extract import extract

    more = dataclasses.replace(
        synthetic_options(), seed=1, root=tmp_path / "more", out=tmp_path / "caches", num_videos=24
    )
    arguments = arguments_of(dataclasses.replace(options, task="boxes", epochs=1, **OF_TASK["boxes"]))
    assert main([*arguments, "--cache", extract(more).cache, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_eval_videos"] == 12 + 6
    assert len(losses_of(options.out / "run")) == -(-(36 + 18) // 8)


def test_videos_shorter_than_a_clip_are_padded_and_it_is_said(options, capsys):
    assert main(arguments_of(dataclasses.replace(options, clip_frames=9, epochs=1))) == 0
    assert "36 of 36 training videos are shorter than a clip" in capsys.readouterr().err


@pytest.fixture
def targets(synthetic_cache, synthetic_root):
    return Targets.load(synthetic_root / "48" / "targets.npz")


def test_a_task_without_targets_is_refused(options, targets, tmp_path):
    none = tmp_path / "targets.npz"
    dataclasses.replace(targets, points_xy=targets.points_xy[:, :0], points_visible=targets.points_visible[:, :0]).save(
        none
    )
    with pytest.raises(UsageError, match="no points"):
        train_temporal(dataclasses.replace(options, task="points", targets=none))
    with pytest.raises(DatasetError, match=r"no targets file .*nothing.npz"):
        train_temporal(dataclasses.replace(options, task="points", targets=tmp_path / "nothing.npz"))
    assert not options.out.exists()


def test_targets_of_another_length_are_refused(options, targets, tmp_path):
    """The first video of a training set ends earlier than its targets say."""
    longer = tmp_path / "targets.npz"
    dataclasses.replace(targets, times_seconds=targets.times_seconds * 2).save(longer)
    with pytest.raises(DatasetError, match="are they of the same video"):
        train_temporal(dataclasses.replace(options, task="boxes", targets=longer))
    assert not options.out.exists()


def test_targets_that_are_not_finite_are_refused(options, synthetic_root, tmp_path):
    broken = tmp_path / "targets.npz"
    shutil.copy(synthetic_root / "48" / "targets.npz", broken)
    with np.load(broken) as file:
        arrays = dict(file)
    arrays["points_xy"][3, 0, 0] = np.nan
    np.savez_compressed(broken, **arrays)
    with pytest.raises(DatasetError, match="points_xy holds numbers that are not finite"):
        train_temporal(dataclasses.replace(options, task="points", targets=broken))
    assert not options.out.exists()
