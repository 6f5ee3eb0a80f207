"""Probes that `vfz probe` keeps: loaded again they answer as they did, and say what they cannot be asked."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import small_options
from safetensors.torch import load_file, save_file

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError, RunError, UsageError
from vfz.temporal.data.pooling import to_numpy
from vfz.temporal.probes import PROBES, load_probe
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe, probe_all
from vfz.temporal.training.train import train_temporal

CONFIGURATIONS = [
    ("linear", {"pool": "mean"}),
    ("linear", {"pool": "frame", "solver": "sgd"}),
    ("linear", {"pool": "last", "segments": 2, "clip_frames": 3}),
    ("knn", {"pool": "mean"}),
    ("knn", {"pool": "frame"}),
    ("attentive", {"pool": "all"}),
    ("attentive", {"pool": "mean"}),
    ("attentive", {"pool": "frame"}),
    ("attentive", {"pool": "all", "depth": 4}),
]


@pytest.fixture(scope="module")
def options(synthetic_cache, tmp_path_factory):
    return ProbeOptions(
        cache=synthetic_cache.path, clip_frames=6, out=tmp_path_factory.mktemp("runs"), epochs=1, neighbours=(5, 10),
        lrs=(1e-3,), weight_decays=(0.1,), device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(synthetic_cache, options):
    return Path(train_temporal(small_options(synthetic_cache, options.out, epochs=1)).run)


def test_every_probe_is_loaded_here():
    assert {name for name, _ in CONFIGURATIONS} == set(PROBES)


def check_stored_answers(saved, cache):
    """The probabilities on the evaluated split are those whose answers stand in probe.json."""
    (fit,) = saved.record["runs"]
    proba_VK = saved.predict_proba(cache, split=saved.record["report"]["eval_split"])
    assert proba_VK.argmax(axis=1).tolist() == fit["predicted"]
    np.testing.assert_allclose(proba_VK.max(axis=1), fit["confidence"], atol=1e-5)
    np.testing.assert_allclose(proba_VK.sum(axis=1), 1, atol=1e-5)
    assert saved.score(cache) == pytest.approx(fit["top1"])


@pytest.mark.parametrize(("name", "changes"), CONFIGURATIONS)
def test_a_loaded_probe_gives_the_stored_answers(options, synthetic_cache, name, changes):
    settings = {"lrs": None} if name == "linear" and "solver" not in changes else {}
    report = probe(dataclasses.replace(options, probe=name, **settings, **changes))
    saved = load_probe(report.result)
    assert saved.classes_.tolist() == list(synthetic_cache.class_names)
    check_stored_answers(saved, synthetic_cache)
    assert set(saved.predict(synthetic_cache)) <= set(synthetic_cache.class_names)


@pytest.mark.parametrize("labels", ["sides", "places"])
@pytest.mark.parametrize(("name", "changes"), [("linear", {}), ("knn", {}), ("attentive", {"depth": 4})])
def test_a_loaded_probe_of_a_label_set_gives_the_stored_answers(options, labelled_cache, labels, name, changes):
    settings = {"cache": labelled_cache.path, "labels": labels, "lrs": None if name == "linear" else (1e-3,)}
    saved = load_probe(probe_all(dataclasses.replace(options, probe=name, **settings, **changes))[0].result)
    cache = FeatureCache(labelled_cache.path, labels=labels)
    (fit,) = saved.record["runs"]
    assert saved.classes_.tolist() == list(cache.label_set.names)
    by_id = dict(zip((row.id for row in cache.ok_videos("test")), saved.predict(cache), strict=True))
    stored = dict(zip(saved.record["videos"]["ids"], np.array(fit["answers"]), strict=True))
    assert saved.score(cache) == pytest.approx(fit["metrics"][saved.record["report"]["headline"]], abs=1e-6)
    if saved.task == "multilabel":
        assert all((by_id[one] == (answers > 0.5)).all() for one, answers in stored.items())
        by_id = dict(zip(by_id, saved.predict_proba(cache), strict=True))
    else:
        with pytest.raises(UsageError, match="answers numbers and has no probabilities"):
            saved.predict_proba(cache)
    for one, answers in stored.items():
        np.testing.assert_allclose(by_id[one], answers, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="score needs what is known"):
        saved.score(FeatureCache(labelled_cache.path))
    with pytest.raises(UsageError, match="a column each for"):
        saved.score(cache, np.zeros(3))


@pytest.mark.parametrize("name", ["linear", "attentive", "knn"])
def test_a_loaded_probe_of_a_run_gives_the_stored_answers(options, synthetic_cache, run, name):
    saved = load_probe(probe(dataclasses.replace(options, probe=name, temporal=run)).result)
    check_stored_answers(saved, synthetic_cache)
    assert "run" in repr(saved)


def test_a_vit_with_two_layers_and_arrays_as_to_numpy_gives_them(options, vit_cache):
    changes = {"cache": vit_cache.path, "layers": ("5", "11")}
    saved = load_probe(probe(dataclasses.replace(options, **changes)).result)
    check_stored_answers(saved, vit_cache)
    x, y, _ = to_numpy(vit_cache, "test", layers=("5", "11"))
    np.testing.assert_allclose(saved.predict_proba(x), saved.predict_proba(vit_cache), atol=1e-5)
    tensor = saved.predict_proba(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    assert saved.score(x, y) == saved.score(x, saved.classes_[y]) == saved.score(vit_cache)


def test_of_several_seeds_the_first_is_kept_and_a_sweep_keeps_each(options, vit_cache):
    asked = dataclasses.replace(options, cache=vit_cache.path, sweep=True, seeds=2, solver="sgd", name="sweep")
    for report in probe_all(asked):
        saved = load_probe(report.result)
        assert saved.layers == report.layers
        first = saved.record["runs"][0]
        assert saved.predict_proba(vit_cache).argmax(axis=1).tolist() == first["predicted"]


def test_a_result_is_loaded_by_its_name(options, synthetic_cache, monkeypatch):
    probe(dataclasses.replace(options, name="named", lrs=None))
    monkeypatch.chdir(options.out.parent)
    shutil.copytree(options.out, "runs", dirs_exist_ok=True)
    assert load_probe("named").path == Path("runs/named")
    with pytest.raises(UsageError, match="unknown probe result 'nmed'; did you mean named"):
        load_probe("nmed")
    with pytest.raises(UsageError, match="None is no probe result"):
        load_probe(None)


@pytest.fixture
def result(options, tmp_path):
    """A copy of a result, to be spoilt."""
    report = probe(dataclasses.replace(options, name="whole", lrs=None))
    return Path(shutil.copytree(report.result, tmp_path / "copy"))


def without_head(folder):
    record = json.loads((folder / "probe.json").read_text())
    del record["head"]
    (folder / "probe.json").write_text(json.dumps(record))


def of_another_kind(folder):
    record = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(record | {"head": None}))


def with_other_weights(folder):
    tensors = load_file(folder / "head.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "head.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_head, "keeps no head.*--force"),
        (of_another_kind, "keeps no head: the heads of its kind are not kept"),
        (with_other_weights, "its digest is another.*--force"),
        (lambda folder: (folder / "head.safetensors").unlink(), r"head.safetensors does not load.*--force"),
    ],
)
def test_a_result_without_its_head_says_to_probe_again(result, spoil, words):
    spoil(result)
    with pytest.raises(RunError, match=words) as caught:
        load_probe(result)
    assert "\n" not in str(caught.value)


def test_what_a_probe_cannot_be_asked_is_told(options, result, synthetic_cache, vit_cache):
    saved = load_probe(result)
    for wrong, words in (
        (np.zeros((2, 5), np.float32), "5 channels for .*fitted on 112"),
        (np.zeros((2, 5), np.int64), "give floats"),
        (3, "not int"),
    ):
        with pytest.raises(UsageError, match=words):
            saved.predict_proba(wrong)
    with pytest.raises(CacheMismatchError, match=r"another recipe.*encoder\.name"):
        saved.predict_proba(vit_cache)
    attentive = load_probe(probe(dataclasses.replace(options, probe="attentive", weight_decays=(0.1,))).result)
    with pytest.raises(UsageError, match=r"clips of 2 frames for .*fitted on 6"):
        attentive.predict_proba(np.zeros((1, 2, 16, 112), np.float32))
    with pytest.raises(UsageError, match="give them as the second argument"):
        saved.score(np.zeros((2, 112), np.float32))


def test_a_run_that_is_gone_or_was_trained_since_is_told_and_one_beside_the_result_is_found(
    options, synthetic_cache, run, tmp_path
):
    report = probe(dataclasses.replace(options, temporal=run, lrs=None))
    result = Path(shutil.copytree(report.result, tmp_path / "moved/probe"))
    record = json.loads((result / "probe.json").read_text())
    record["features"]["run"] = "elsewhere/run"
    (result / "probe.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"of the run elsewhere/run, which is not there"):
        load_probe(result)
    beside = Path(shutil.copytree(run, tmp_path / "moved/run"))
    check_stored_answers(load_probe(result), FeatureCache(synthetic_cache.path))
    with_other_weights_of_run = load_file(beside / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in with_other_weights_of_run.items()}, beside / "model.safetensors")
    with pytest.raises(RunError, match=r"was trained since.*--force"):
        load_probe(result)
