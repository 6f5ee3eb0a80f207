"""Runs and probes that vfz of commit 7fe0c97 wrote are evaluated, continued and found again as that vfz did it.

They lie in `tests/data/old_runs`, made from two caches in `tests/data/old_stores` by the `make.py` there, with what was
said of them then. Each test works on copies.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.old_stores import (
    EVALUATED,
    RUN_CACHES,
    RUNS,
    answers,
    expected,
    expected_arrays,
    probe_options,
    train_options,
)
from helpers.training import lines_of
from safetensors.numpy import load_file

from vfz.cli.main import main
from vfz.temporal.probes.run import probe
from vfz.temporal.probes.saved import HEAD_FILE
from vfz.temporal.training.train import train_temporal

every_run = pytest.mark.parametrize("name", RUN_CACHES)


@pytest.fixture
def runs(tmp_path):
    """A copy of all of them."""
    return shutil.copytree(RUNS, tmp_path / "runs")


@pytest.fixture
def cache_of(tmp_path):
    """A copy of the cache that a run was trained on."""
    return lambda name: RUN_CACHES[name].copy_to(tmp_path / "caches")


@pytest.fixture
def vfz_json(capsys):
    """What a command prints with --json."""

    def run(*arguments):
        code = main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


def check_close(now, then, *, tolerance=1e-6, leave_out=(), where="result"):
    """The same but for rounding, through lists and dicts; keys in `leave_out` may be anything."""
    if isinstance(then, dict):
        assert now.keys() == then.keys(), where
        for key in then.keys() - set(leave_out):
            check_close(now[key], then[key], tolerance=tolerance, leave_out=leave_out, where=f"{where}.{key}")
    elif isinstance(then, list | tuple):
        assert len(now) == len(then), where
        for number, (one, other) in enumerate(zip(now, then, strict=True)):
            check_close(one, other, tolerance=tolerance, leave_out=leave_out, where=f"{where}[{number}]")
    elif isinstance(then, float):
        assert now == pytest.approx(then, rel=tolerance, abs=tolerance), where
    else:
        assert now == then, where


def decisive(key, weights):
    """Without the bias of an attention's keys: softmax does not see it; its gradient is rounding, scaled up by Adam."""
    if key.endswith("key_proj.bias"):
        return weights[:0]
    return np.delete(weights.reshape(3, -1), 1, axis=0) if key.endswith("attn.in_proj_bias") else weights


@every_run
@pytest.mark.parametrize("split", EVALUATED)
def test_evaluating_it_gives_the_figures_of_then(name, split, runs, cache_of, vfz_json):
    line = ("evaluate", runs / name, "--cache", cache_of(name), "--split", split, "--device", "cpu")
    found = vfz_json(*line, *EVALUATED[split])
    then = expected(RUNS)[name][split]
    check_close({key: found[key] for key in then}, then, leave_out=("run",))  # more is said today


@every_run
def test_its_model_answers_every_video_as_it_did_then(name, runs, cache_of):
    found, then = answers(runs / name, cache_of(name)), expected_arrays(name, RUNS)
    assert found.keys() == then.keys()
    for video, answer in found.items():
        np.testing.assert_allclose(answer, then[video], rtol=1e-5, atol=1e-5, err_msg=video)


@every_run
def test_a_run_that_was_stopped_then_goes_on_to_where_the_whole_one_came(name, runs, cache_of):
    """Bit for bit on the machine that trained them; on another, rounding adds up over the steps."""
    stopped, whole = runs / f"{name}-stopped", RUNS / name
    steps_before = lines_of(stopped, "step")
    assert 0 < len(steps_before) < len(lines_of(whole, "step"))
    assert (stopped / "checkpoint.pt").exists()
    report = train_temporal(train_options(stopped.name, cache_of(name), runs, resume=True))
    steps = lines_of(stopped, "step")
    assert steps[: len(steps_before)] == steps_before
    check_close(steps, lines_of(whole, "step"), tolerance=1e-3)
    check_close(lines_of(stopped, "eval"), lines_of(whole, "eval"))
    now, then = load_file(stopped / "model.safetensors"), load_file(whole / "model.safetensors")
    assert now.keys() == then.keys()
    for key, weights in now.items():
        np.testing.assert_allclose(decisive(key, weights), decisive(key, then[key]), rtol=1e-3, atol=1e-4, err_msg=key)
    figures = report.evaluation.measured()
    check_close(figures, {key: expected(RUNS)[name]["val"][key] for key in figures})
    assert (stopped / "checkpoint.pt").exists(), "more epochs may follow"


def as_then(report):
    """The fields that a probe's report had then; intervals were the bootstrap's."""
    values = dataclasses.asdict(report) | {"layers": list(report.layers)}
    return {key: value for key, value in values.items() if key not in {"majority", "interval"}}


@pytest.mark.parametrize("of", ["tokens", "gmmix"])
def test_a_probe_is_found_again_under_the_name_it_was_given(of, runs, cache_of):
    """The name has the digest of everything in it that decides the result."""
    then = expected(RUNS)["probes"][of]
    temporal = {} if of == "tokens" else {"temporal": runs / of}
    before = sorted(runs.rglob("*"))
    report = probe(probe_options(cache_of("gmmix"), runs, **temporal))
    assert report.reused
    assert report.result == str(runs / then["result"].rpartition("/")[2])
    check_close(as_then(report), then, leave_out=("result", "features", "reused"))
    assert sorted(runs.rglob("*")) == before, "nothing was written"


@pytest.mark.parametrize("of", ["tokens", "gmmix"])
def test_probing_once_more_gives_the_same_and_takes_the_outputs_that_were_kept(of, runs, cache_of):
    then = expected(RUNS)["probes"][of]
    temporal = {} if of == "tokens" else {"temporal": runs / of}
    before = sorted(runs.rglob("*"))
    report = probe(probe_options(cache_of("gmmix"), runs, force=True, **temporal))
    assert not report.reused
    assert report.interval == "Wilson"
    check_close(as_then(report), then, tolerance=1e-4, leave_out=("result", "features", "seconds", "low", "high"))
    derived = json.loads((runs / report.result / "probe.json").read_text())["features"]["derived"]
    assert [one["made"] for one in derived] == ([] if of == "tokens" else [False, False])
    head = runs / report.result / HEAD_FILE  # results did not keep it at first
    assert sorted(runs.rglob("*")) == sorted([*before, head]), "the result was replaced, and nothing else written"


def test_what_is_kept_of_a_runs_outputs_comes_out_again(runs, cache_of):
    kept = {path.name: np.load(path / "tokens.npy") for path in (RUNS / "derived").iterdir()}
    shutil.rmtree(runs / "derived")
    probe(probe_options(cache_of("gmmix"), runs, force=True, temporal=runs / "gmmix"))
    made = {path.name: np.load(path / "tokens.npy") for path in (runs / "derived").iterdir()}
    assert made.keys() == kept.keys(), "the names have digests of all that decides them"
    for name, tokens in made.items():
        np.testing.assert_allclose(tokens, kept[name], rtol=1e-5, atol=1e-5)


def test_comparing_both_probes_says_what_it_said_then(runs, tmp_path, vfz_json):
    then = expected(RUNS)["probes"]
    folders = [runs / then[of]["result"].rpartition("/")[2] for of in ("tokens", "gmmix")]
    found = vfz_json("probe", "compare", *folders, "--out", tmp_path / "compared")
    for probe_now, probe_then in zip(found["probes"], then["compared"]["probes"], strict=True):
        check_close({key: probe_now[key] for key in probe_then}, probe_then, leave_out=("path",))  # more is said today
    check_close(found["against"], then["compared"]["against"])
    assert (tmp_path / "compared" / "comparison" / "comparison.html").exists()
