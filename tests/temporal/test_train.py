"""Training runs: continued exactly, refused clearly, loadable without the cache."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vfz.pipeline.cache import FeatureCache
from vfz.pipeline.errors import (
    CacheMismatchError,
    DecodeError,
    RunError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from vfz.temporal.options import TrainOptions
from vfz.temporal.runs import MetricsLog, load_model, read_run
from vfz.temporal.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return TrainOptions(
        cache=synthetic_cache.path, core="gmmix", core_dim=32, num_layers=1, num_heads=2, readout_dim=32,
        readout_heads=2, clip_frames=6, epochs=3, batch_size=8, out=tmp_path / "runs", name="run",
    )  # fmt: skip


def step_lines(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def test_a_run_leaves_weights_a_record_and_metrics(options, synthetic_cache):
    report = train_temporal(options)
    run = options.out / "run"
    assert {path.name for path in run.iterdir()} == {"run.json", "model.safetensors", "metrics.jsonl"}
    record = read_run(run).values
    assert record["cache"]["fingerprint"] == synthetic_cache.fingerprint
    assert record["cache"]["ledger_digest"] == synthetic_cache.ledger_digest
    assert record["result"]["top1"] == report.top1
    assert report.num_eval_clips == 12
    assert [line["step"] for line in step_lines(run)] == list(range(1, 3 * 5 + 1))


@pytest.mark.parametrize("core", ["identity", "gmmix", "rvm_rnn", "m", "mmix"])
def test_every_core_trains(options, core):
    train_temporal(dataclasses.replace(options, core=core, epochs=6, lr=3e-3))
    losses = [line["loss"] for line in step_lines(options.out / "run")]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_same_seed_gives_the_same_losses_and_another_does_not(options):
    def losses(name, seed):
        train_temporal(dataclasses.replace(options, name=name, seed=seed, epochs=1))
        return [line["loss"] for line in step_lines(options.out / name)]

    assert losses("a", 0) == losses("b", 0) != losses("c", 1)


def test_a_killed_run_resumes_to_the_same_losses_and_weights_bit_for_bit(options):
    whole = dataclasses.replace(options, name="whole", epochs=4)
    train_temporal(whole)
    arguments = ["train-temporal", "--cache", str(options.cache), "--core", "gmmix", "--core-dim", "32"]
    arguments += ["--num-layers", "1", "--num-heads", "2", "--readout-dim", "32", "--readout-heads", "2"]
    arguments += [
        "--clip-frames",
        "6",
        "--epochs",
        "4",
        "--batch-size",
        "8",
        "--out",
        str(options.out),
        "--name",
        "cut",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vfz.cli", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    cut, deadline = options.out / "cut", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (cut / "checkpoint.pt").exists():
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL, "the run was to be killed before its end"
    assert not read_run(cut).finished
    with pytest.raises(RunError, match="not been trained to its end"):
        load_model(cut)
    train_temporal(dataclasses.replace(whole, name="cut", resume=True))
    assert step_lines(cut) == step_lines(options.out / "whole")
    one, other = (load_file(options.out / name / "model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_that_exists_is_not_overwritten(options):
    train_temporal(options)
    with pytest.raises(RunError, match=r"exists; continue it with --resume, or choose another --name"):
        train_temporal(options)
    with pytest.raises(RunError, match="is finished; there is nothing to resume"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_a_run_is_not_resumed_with_other_options(options):
    train_temporal(options)
    record = options.out / "run" / "run.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(RunError, match=r"lr \(run 0.001, now 0.1\)"):
        train_temporal(dataclasses.replace(options, resume=True, lr=0.1))


def test_there_must_be_a_run_to_resume(options):
    with pytest.raises(UsageError, match="no run"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_a_damaged_checkpoint_or_model_is_one_clear_line(options):
    train_temporal(options)
    run = options.out / "run"
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="does not load"):
        load_model(run)
    (run / "run.json").write_text((run / "run.json").read_text().replace('"finished": true', '"finished": false'))
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(RunError, match="is damaged; delete the run"):
        train_temporal(dataclasses.replace(options, resume=True))


def test_a_run_is_not_resumed_with_metrics_that_lost_lines(options):
    train_temporal(options)
    run = options.out / "run"
    log = MetricsLog(run)
    size = log.sync()
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="was shortened"):
        log.cut(size)


def test_an_output_folder_that_cannot_be_made_is_one_clear_line(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file; choose a folder"):
        train_temporal(dataclasses.replace(options, out=tmp_path / "file"))


def test_online_training_finds_videos_under_a_root_that_was_moved(synthetic_options, options, tmp_path, monkeypatch):
    """Extracted with a relative root, trained from another folder with another root; one video is a symlink."""
    from vfz.pipeline.extract import extract
    from vfz.pipeline.options import ExtractOptions

    synthetic = synthetic_options()
    extract(dataclasses.replace(synthetic, out=tmp_path / "unused"))  # renders the videos where they are not there yet
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        (tmp_path / "first" / split).mkdir(parents=True)
        for name in ("left_up_grow", "up_left_grow"):
            shutil.copytree(synthetic.root / split / name, tmp_path / "first" / split / name)
    video = next((tmp_path / "first" / "train" / "left_up_grow").iterdir())
    video.rename(tmp_path / "target.mp4")
    video.symlink_to(tmp_path / "target.mp4")
    report = extract(
        ExtractOptions(
            dataset="folder", root="first", encoder="demo", layers=("3",), image_size=64, batch_size=16, out="caches"
        )
    )
    (tmp_path / "first").rename(tmp_path / "second")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    online = dataclasses.replace(
        options, cache=tmp_path / report.cache, online=True, epochs=1, root="../second", core="identity"
    )
    assert train_temporal(online).num_eval_clips == 4
    with pytest.raises(DecodeError, match="not there"):
        train_temporal(dataclasses.replace(online, root=None, name="other"))


def test_layers_go_to_the_mixer_shallowest_first_and_last_takes_one(vit_cache, options):
    with pytest.raises(UsageError, match="last uses one layer, 2 were given"):
        train_temporal(dataclasses.replace(options, cache=vit_cache.path, layers=("11", "5")))


def test_a_trained_model_is_used_without_the_cache(options, synthetic_cache, tmp_path):
    train_temporal(options)
    shutil.copytree(options.out / "run", tmp_path / "elsewhere")
    model, run = load_model(tmp_path / "elsewhere")
    clip = synthetic_cache.read(synthetic_cache.ok_videos("test")[0].id)
    tokens_BTND = torch.from_numpy(clip.tokens("3"))[None]
    with torch.no_grad():
        assert model([tokens_BTND]).shape == (1, 6, 6)
        assert model.class_logits([tokens_BTND]).shape == (1, 6)
        assert torch.allclose(model([tokens_BTND])[:, -1], model.class_logits([tokens_BTND]), atol=1e-6)
    assert run.values["class_names"] == list(synthetic_cache.class_names)


def test_the_clip_protocol_gives_one_answer(options):
    train_temporal(dataclasses.replace(options, protocol="clip", epochs=1))
    model, _ = load_model(options.out / "run")
    assert model([torch.zeros(2, 6, 16, 112)]).shape == (2, 6)


def test_a_projection_stands_in_front_only_where_widths_differ(options):
    train_temporal(dataclasses.replace(options, core="identity", epochs=1))
    assert "projection.weight" in load_file(options.out / "run" / "model.safetensors")
    train_temporal(dataclasses.replace(options, core="identity", core_dim=None, epochs=1, name="same"))
    assert "projection.weight" not in load_file(options.out / "same" / "model.safetensors")


def test_a_loss_that_is_not_finite_ends_the_run_with_the_clips(options):
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step .* clips train/"):
        train_temporal(dataclasses.replace(options, lr=1e30, clip_grad=0, warmup_epochs=0, epochs=5))


def test_weight_decay_spares_norms_biases_and_what_mamba_marks(options):
    from vfz.temporal.optim import build_optimizer

    train_temporal(dataclasses.replace(options, epochs=1))
    model, _ = load_model(options.out / "run")
    groups = build_optimizer(model, lr=1.0, weight_decay=0.5).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed
    assert not any(name.endswith(("bias", "A_log", ".D", "norm.weight")) for name in decayed)
    assert {name for name in names.values() if name.endswith("A_log")} == {"core.mamba_blocks.0.mamba.A_log"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"core": "gmmx"}, UnknownNameError, "did you mean gmmix"),
        ({"layers": ("4",)}, UsageError, "it has 3"),
        ({"parts": "prefix"}, UsageError, "no prefix tokens"),
        ({"train_split": "training"}, UsageError, "'training'"),
        ({"eval_split": "val"}, UsageError, "'val'"),
        ({"num_heads": 3}, UsageError, "3"),
        ({"mixer": "men"}, UnknownNameError, "mixer"),
    ],
)
def test_what_does_not_fit_the_cache_is_refused_before_anything_is_written(options, changes, error, words):
    with pytest.raises(error, match=words):
        train_temporal(dataclasses.replace(options, **changes))
    assert not options.out.exists()


def test_online_training_refuses_other_weights(vit_cache, options, tmp_path):
    import timm

    torch.manual_seed(9)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64).state_dict(), tmp_path / "w.pth")
    path = tmp_path / "cache"
    shutil.copytree(vit_cache.path, path)
    assert FeatureCache(path).provenance["encoder_request"]["random_weights"]
    with pytest.raises(CacheMismatchError, match="weights of vit_tiny_patch16_224"):
        train_temporal(dataclasses.replace(options, cache=path, online=True, weights=tmp_path / "w.pth"))
