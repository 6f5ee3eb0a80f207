"""Training runs: what they leave, what they refuse, and their models without the cache."""

import dataclasses
import re
import shutil

import pytest
import torch
from helpers.extraction import Notes
from helpers.training import lines_of, losses_of, small_options
from safetensors.torch import load_file

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import (
    CacheMismatchError,
    CheckpointError,
    DecodeError,
    RunError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from vfz.temporal.cores import CORES
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.run_record import read_run
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return small_options(synthetic_cache, tmp_path / "runs")


@pytest.mark.quick
def test_a_run_leaves_weights_a_record_metrics_and_a_picture(options, synthetic_cache):
    report = train_temporal(options)
    run = options.out / "run"
    assert {path.name for path in run.iterdir()} == {
        "run.json", "model.safetensors", "metrics.jsonl", "tensorboard", "curves.png", "evaluations",
        "checkpoint.pt",
    }  # fmt: skip
    record = read_run(run).values
    assert record["cache"]["fingerprint"] == synthetic_cache.fingerprint
    assert record["cache"]["ledger_digest"] == synthetic_cache.ledger_digest
    assert record["cache"]["weights_license"] == "apache-2.0"
    assert record["result"]["top1"] == report.top1
    assert report.evaluation.num_videos == 12
    assert [line["step"] for line in lines_of(run, "step")] == list(range(1, 3 * 5 + 1))


@pytest.mark.parametrize("core", CORES.names())
def test_every_core_trains(options, core):
    train_temporal(dataclasses.replace(options, core=core, epochs=6, lr=3e-3))
    losses = losses_of(options.out / "run")
    assert sum(losses[-5:]) < sum(losses[:5])


def test_bfloat16_changes_a_loss_in_its_third_digit(options):
    for dtype in ("float32", "bfloat16"):
        train_temporal(dataclasses.replace(options, name=dtype, dtype=dtype, epochs=1))
    exact, rounded = (losses_of(options.out / dtype) for dtype in ("float32", "bfloat16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)


def test_the_same_seed_gives_the_same_losses_and_another_does_not(options):
    def losses(name, seed):
        train_temporal(dataclasses.replace(options, name=name, seed=seed, epochs=1))
        return losses_of(options.out / name)

    assert losses("a", 0) == losses("b", 0) != losses("c", 1)


def test_a_run_that_exists_is_not_overwritten(options):
    train_temporal(options)
    with pytest.raises(RunError, match=r"exists; continue it with --resume, or choose another --name"):
        train_temporal(options)


def test_weights_that_do_not_load_are_one_clear_line(options):
    train_temporal(options)
    (options.out / "run" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="does not load"):
        load_model(options.out / "run")


def test_weights_of_another_core_are_refused_by_the_first_keys_that_differ(options):
    train_temporal(dataclasses.replace(options, epochs=1))
    train_temporal(dataclasses.replace(options, epochs=1, core="rvm_rnn", name="other"))
    shutil.copy(options.out / "other" / "model.safetensors", options.out / "run" / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit a gmmix core with a classify readout") as caught:
        load_model(options.out / "run")
    line = str(caught.value)
    assert "not in the model (core." in line
    assert "missing (core." in line
    assert len(line) < 600


def test_a_run_of_the_former_format_is_refused_in_one_line(options):
    train_temporal(dataclasses.replace(options, epochs=1))
    record = options.out / "run" / "run.json"
    record.write_text(record.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(RunError, match=r"is of format version 1, this vfz reads 2; train the run again"):
        load_model(options.out / "run")


def test_an_output_folder_that_cannot_be_made_is_one_clear_line(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file; choose a folder"):
        train_temporal(dataclasses.replace(options, out=tmp_path / "file"))


def test_online_training_finds_videos_under_a_root_that_was_moved(synthetic_options, options, tmp_path, monkeypatch):
    """Extracted with a relative root, trained from another folder with another root; one video is a symlink."""
    from vfz.pipeline.extraction.extract import extract
    from vfz.pipeline.extraction.options import ExtractOptions

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
    assert train_temporal(online).evaluation.num_clips == 4
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
        logits_BTK = model([tokens_BTND])
        assert logits_BTK.shape == (1, 6, 6)
        last_B1K = model([tokens_BTND], last_frame_only=True)
        torch.testing.assert_close(logits_BTK[:, -1:], last_B1K, rtol=0, atol=1e-5)
    assert run.values["class_names"] == list(synthetic_cache.class_names)


def test_a_stream_is_answered_frame_by_frame_as_the_clip_is(options):
    train_temporal(dataclasses.replace(options, epochs=1))
    model, _ = load_model(options.out / "run")
    tokens_BTND = torch.randn(2, 6, 16, 112)
    state, answers = None, []
    with torch.no_grad():
        for t in range(6):
            output_BND, state = model.step([tokens_BTND[:, t]], state)
            answers.append(model.readout(output_BND.unsqueeze(1))[:, 0])
        torch.testing.assert_close(torch.stack(answers, dim=1), model([tokens_BTND]), rtol=0, atol=1e-5)


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
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step .* any clip of train/"):
        train_temporal(dataclasses.replace(options, lr=1e30, clip_grad=0, warmup_epochs=0, epochs=5))


def test_a_loss_that_grows_beyond_measure_ends_the_run_with_the_reason(options):
    words = r"the loss has grown from [\d.]+ to [\d.e+]+ at step .* lower --lr, which is 100"
    with pytest.raises(RunError, match=words):
        train_temporal(dataclasses.replace(options, core="gru", lr=100.0, warmup_epochs=0, epochs=20))
    assert not read_run(options.out / "run").finished


def test_the_start_says_what_the_run_takes(options):
    notes = Notes()
    train_temporal(dataclasses.replace(options, epochs=1), progress=notes)
    assert any(re.fullmatch(r"\w+: [\d,]+ parameters; [\d.]+ [MG]B of memory so far", line) for line in notes.lines)
    assert any(
        re.match(r".* s a step, .* an epoch, .* left without evaluation; less with --", line) for line in notes.lines
    )


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_clip_whose_loss_is_not_finite_ends_the_run_by_its_name(options, monkeypatch, accumulate):
    read_clips = CachedTokens.read_clips

    def poisoned(self, requests, device):
        tokens = read_clips(self, requests, device)
        for place, request in enumerate(requests):
            if request.id == "train/000007":
                tokens.layers_BTND[0][place, 0, 0, 0] = torch.inf
        return tokens

    monkeypatch.setattr(CachedTokens, "read_clips", poisoned)
    with pytest.raises(RunError, match=r"the loss is nan at step .*, clip train/000007\); look at these videos"):
        train_temporal(dataclasses.replace(options, accumulate=accumulate))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"core": "gmmx"}, UnknownNameError, "did you mean gmmix"),
        ({"layers": ("4",)}, UsageError, "it has 3"),
        ({"parts": "prefix"}, UsageError, "no prefix tokens"),
        ({"train_split": "training"}, UsageError, "'training'"),
        ({"eval_split": "val"}, UsageError, "'val'"),
        ({"num_heads": 3}, UsageError, "3"),
        ({"mixer": "men"}, UsageError, "--mixer .men. is not allowed; choose from"),
        ({"dropout": 0.5, "core": "identity"}, UsageError, "core identity has no option dropout"),
        ({"readout_hidden": 8}, UsageError, "classify readout has no mlp_hidden"),
        ({"clip_stride": 2, "clip_seconds": 0.5}, UsageError, "give one of them"),
        ({"views": (1,)}, UsageError, "view 1 is not in"),
        ({"task": "boxes", "protocol": "clip"}, UsageError, "boxes has no clip protocol"),
        ({"targets": ("targets.npz",)}, UsageError, "--targets"),
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
