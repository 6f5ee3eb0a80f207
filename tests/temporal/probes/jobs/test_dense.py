"""`vfz probe --task depth` and its like: a task's readout on frozen features."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import DatasetError, RunError, UsageError
from vfz.temporal.comparison.results import load_results
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import read_record
from vfz.temporal.probes.run import probe, probe_all
from vfz.temporal.readouts import READOUTS
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal

DENSE = sorted(set(TASKS.names()) - set(TASK_OF_LABELS.values()))


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return ProbeOptions(
        cache=synthetic_cache.path, task="depth", clip_frames=6, out=tmp_path / "runs", epochs=2, batch_size=8,
        readout_dim=32, readout_heads=4, lrs=(1e-3, 3e-3), device="cpu",
    )  # fmt: skip


@pytest.fixture
def run(synthetic_cache, tmp_path):
    return train_temporal(
        TrainOptions(
            cache=synthetic_cache.path, core="rvm_rnn", core_dim=32, num_layers=1, num_heads=2, readout_dim=32,
            readout_heads=2, clip_frames=6, epochs=1, out=tmp_path / "runs", name="run",
        )
    ).run  # fmt: skip


@pytest.mark.parametrize("task", DENSE)
def test_a_tasks_readout_is_trained_on_tokens_and_reported_with_its_denominator(options, task):
    takes_heads = "num_heads" in inspect.signature(READOUTS[task]).parameters
    heads = options.readout_heads if takes_heads else None
    (report,) = probe_all(dataclasses.replace(options, task=task, readout_heads=heads))
    assert (report.num_eval_clips, report.num_eval_missing, report.num_eval_planned) == (12, 0, 12)
    assert report.headline == TASKS[task].headline
    assert np.isfinite(report.value)
    assert report.value == report.metrics[report.headline]
    record = read_record(Path(report.result))
    (of_seed,) = record["runs"]
    assert [head["lr"] for head in of_seed["heads"]] == [1e-3, 3e-3]
    sign = 1 if TASKS[task].higher_is_better else -1
    held = [head[f"held_out_{report.headline}"] for head in of_seed["heads"]]
    assert report.chosen[f"held_out_{report.headline}"] == sign * max(sign * figure for figure in held)
    assert sign * report.best_head_on_validation >= sign * report.value
    assert len(of_seed["headline_of_videos"]) == len(record["videos"]["ids"]) == 12


def test_more_training_makes_it_better_than_hardly_any(options):
    short, long = (probe_all(dataclasses.replace(options, epochs=epochs, lrs=(3e-3,)))[0].value for epochs in (1, 12))
    assert long < short  # AbsRel


def test_the_features_stay_as_they_are_and_are_streamed_once(options, run, monkeypatch):
    weights = (Path(run) / "model.safetensors").read_bytes()
    seen = []
    plain = FeatureCache.read_batch

    def counted(self, clips, *arguments, **keywords):
        seen.extend(clips)
        return plain(self, clips, *arguments, **keywords)

    monkeypatch.setattr(FeatureCache, "read_batch", counted)
    first = probe_all(dataclasses.replace(options, temporal=run))[0]
    assert first.features == run
    assert len(seen) == 48
    probe_all(dataclasses.replace(options, temporal=run, task="boxes"))
    assert len(seen) == 48
    assert (Path(run) / "model.safetensors").read_bytes() == weights


def test_asked_again_the_stored_result_is_returned(options):
    (first,) = probe_all(options)
    assert probe_all(options) == (dataclasses.replace(first, reused=True),)
    assert not probe_all(dataclasses.replace(options, force=True))[0].reused
    with pytest.raises(RunError, match="another --name"):
        probe_all(dataclasses.replace(options, name=Path(first.result).name, epochs=3))


def test_seeds_are_reported_as_mean_and_deviation(options):
    (report,) = probe_all(dataclasses.replace(options, task="boxes", seeds=2, epochs=1))
    values = [of_seed["metrics"]["miou"] for of_seed in read_record(Path(report.result))["runs"]]
    assert report.value == pytest.approx(np.mean(values))
    assert report.deviation == pytest.approx(np.std(values, ddof=1))


def test_the_same_seed_gives_the_same_figures(options):
    one, two = (probe_all(dataclasses.replace(options, out=options.out / name))[0] for name in ("a", "b"))
    assert one.metrics == two.metrics


def test_the_reported_split_chooses_nothing(options):
    one, other = (probe_all(dataclasses.replace(options, eval_split=split))[0] for split in ("test", "train"))
    assert one.chosen == other.chosen


def test_other_targets_are_another_result(options, synthetic_cache, tmp_path):
    path = Path(synthetic_cache.provenance["root"]) / "targets.npz"
    arrays = dict(np.load(path))
    arrays["depth_metres"] = arrays["depth_metres"] * 2
    np.savez(tmp_path / "other.npz", **arrays)
    one, other = (
        probe_all(dataclasses.replace(options, targets=targets))[0] for targets in (None, tmp_path / "other.npz")
    )
    assert one.result != other.result
    assert one.metrics != other.metrics
    with pytest.raises(DatasetError):
        probe_all(dataclasses.replace(options, targets=tmp_path / "none.npz"))


def test_a_rate_that_diverges_is_not_chosen(options):
    (report,) = probe_all(dataclasses.replace(options, task="boxes", lrs=(1e30, 1e-3)))
    assert report.chosen["lr"] == 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shots": ("5",)}, "--shots"),
        ({"segments": 2}, "--segments 2 is for --task classify"),
        ({"folds": 3}, "--folds"),
        ({"pool": "mean"}, "--pool"),
        ({"depth_size": 12}, "12"),
        ({"task": "boxes", "protocol": "clip"}, "clip protocol"),
        ({"train_split": "nope"}, "nope"),
    ],
)
def test_what_a_dense_task_has_not_is_refused(options, changes, words):
    with pytest.raises(UsageError, match=words):
        probe_all(dataclasses.replace(options, **changes))


def test_several_layers_need_a_run_that_mixes_them(options, vit_cache):
    with pytest.raises(UsageError, match="reads one layer, 2 were given"):
        probe_all(dataclasses.replace(options, cache=vit_cache.path, layers=("5", "11")))


def test_probe_is_of_classes_and_any_task_is_compared_by_its_videos(options):
    with pytest.raises(UsageError, match="probe_all"):
        probe(options)
    (report,) = probe_all(options)
    (result,) = load_results(Path(report.result))
    assert (result.task, result.headline, result.figure.mean) == ("depth", report.headline, report.value)
    assert result.num_videos == report.num_eval_clips == len(result.outcomes)


def test_a_sweep_probes_each_layer(options, vit_cache):
    reports = probe_all(
        dataclasses.replace(options, cache=vit_cache.path, task="pose", readout_heads=None, epochs=1, sweep=True)
    )
    assert [report.layers for report in reports] == [("5",), ("11",)]
    assert torch.isfinite(torch.tensor([report.value for report in reports])).all()
