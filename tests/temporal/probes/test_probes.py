"""The probes against their contract, against closed forms, and on caches."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from contracts.probe_contract import ProbeContract

from vfz.pipeline.errors import CacheMismatchError, UsageError
from vfz.temporal.options import ProbeOptions, TrainOptions
from vfz.temporal.probes import PROBES
from vfz.temporal.probes.linear import clip_vector, fit_logistic
from vfz.temporal.probes.run import probe
from vfz.temporal.probes.selection import hold_out
from vfz.temporal.train import train_temporal


class TestLinear(ProbeContract):
    name = "linear"


class TestAttentive(ProbeContract):
    name = "attentive"


def test_every_registered_probe_is_tested():
    assert {cls.name for cls in ProbeContract.__subclasses__()} == set(PROBES)


def test_the_fit_is_where_the_gradient_vanishes():
    """Logistic regression has one optimum: there, the gradient of the whole objective is zero."""
    torch.manual_seed(0)
    x_VD, labels_V = torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 3
    weight_KD, bias_K = fit_logistic(x_VD, labels_V, num_classes=3, inverse_penalty=0.7)
    weight_KD.requires_grad_()
    bias_K.requires_grad_()
    loss = torch.nn.functional.cross_entropy(x_VD @ weight_KD.T + bias_K, labels_V, reduction="sum")
    (loss + weight_KD.square().sum() / (2 * 0.7)).backward()
    assert weight_KD.grad.abs().max() < 1e-4
    assert bias_K.grad.abs().max() < 1e-4


def test_a_clips_vector_is_cls_beside_the_mean_of_the_patches():
    features_BTND = torch.arange(2 * 3 * 4 * 2, dtype=torch.float32).view(2, 3, 4, 2)
    vector = clip_vector(features_BTND, num_prefix=1, pool="mean")
    assert torch.equal(vector[:, :2], features_BTND[:, :, 0].mean(dim=1))
    assert torch.equal(vector[:, 2:], features_BTND[:, :, 1:].mean(dim=(1, 2)))
    assert torch.equal(clip_vector(features_BTND, num_prefix=0, pool="last"), features_BTND[:, -1].mean(dim=1))


def test_the_mean_over_frames_is_blind_to_their_order():
    features_BTND = torch.randn(4, 6, 5, 3)
    shuffled_BTND = features_BTND[:, torch.randperm(6)]
    for num_prefix in (0, 1):
        one, other = (clip_vector(x, num_prefix=num_prefix, pool="mean") for x in (features_BTND, shuffled_BTND))
        torch.testing.assert_close(one, other)


def test_the_held_out_part_has_a_tenth_of_every_class():
    labels_V = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3])
    held_V = hold_out(labels_V, seed=0)
    assert [int(held_V[labels_V == label].sum()) for label in range(4)] == [5, 2, 1, 0]
    assert torch.equal(held_V, hold_out(labels_V, seed=0))
    assert not torch.equal(held_V, hold_out(labels_V, seed=1))


def test_classes_of_one_clip_each_are_refused():
    with pytest.raises(UsageError, match="needs two"):
        hold_out(torch.arange(5), seed=0)


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return ProbeOptions(cache=synthetic_cache.path, clip_frames=6, out=tmp_path / "runs", epochs=2)


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_probe_of_a_cache_is_reported_with_its_denominator_and_kept(options, synthetic_cache, name):
    report = probe(dataclasses.replace(options, probe=name))
    assert (report.num_eval_clips, report.num_eval_missing, report.eval_split) == (12, 0, "test")
    assert report.chance == pytest.approx(1 / 6)
    record = json.loads((Path(report.result) / "probe.json").read_text())
    assert record["report"]["top1"] == report.top1
    assert record["cache"] == {
        "fingerprint": synthetic_cache.fingerprint, "ledger_digest": synthetic_cache.ledger_digest,
    }  # fmt: skip


def test_other_settings_never_replace_a_result(options):
    first = probe(options)
    assert probe(options).result == first.result
    assert probe(dataclasses.replace(options, pool="last")).result != first.result


def train(cache, out, **changes):
    settings = {
        "core": "rvm_rnn", "core_dim": 32, "num_layers": 1, "num_heads": 2, "readout_dim": 32, "readout_heads": 2,
        "clip_frames": 6, "epochs": 1,
    }  # fmt: skip
    return train_temporal(TrainOptions(cache=cache.path, out=out, name="run", **(settings | changes))).run


def test_a_probe_of_a_temporal_module_takes_its_clips_and_layers_from_the_run(options, synthetic_cache):
    run = train(synthetic_cache, options.out, clip_frames=4)
    report = probe(dataclasses.replace(options, temporal=run, clip_frames=None))
    assert report.features == run
    assert report.pool == "last"
    assert report.num_parameters == 6 * (32 + 1)
    for changes in ({"layer": "3"}, {"parts": "patch"}):
        with pytest.raises(UsageError, match="contradict"):
            probe(dataclasses.replace(options, temporal=run, **changes))


def test_a_run_trained_on_another_encoder_is_refused_field_by_field(options, synthetic_cache, vit_cache):
    run = train(synthetic_cache, options.out)
    with pytest.raises(
        CacheMismatchError, match=r"encoder\.name: cache vit_tiny_patch16_224, run tf_efficientnet_lite0"
    ):
        probe(dataclasses.replace(options, cache=vit_cache.path, temporal=run))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layer": "9"}, "it has 3"), ({"eval_split": "nope"}, "nope"), ({"temporal": "nowhere"}, "no run")],
)
def test_what_does_not_fit_the_cache_is_refused(options, changes, words):
    with pytest.raises(UsageError, match=words):
        probe(dataclasses.replace(options, **changes))
    assert not options.out.exists()
