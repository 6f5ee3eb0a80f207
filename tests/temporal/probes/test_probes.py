"""Every probe against its contract, in all its forms, and what is particular to one of them."""

from typing import ClassVar

import pytest
import torch
from contracts.probe_contract import ProbeContract, make_clips

from vfz.pipeline.errors import UsageError
from vfz.temporal.data.pooling import clip_vectors, frame_vectors
from vfz.temporal.probes import PROBES, fit_attentive, fit_knn, fit_linear
from vfz.temporal.probes.attentive import AttentiveStack
from vfz.temporal.probes.heads import HeadOptimizer, StackedOptimizer


class TestLinear(ProbeContract):
    name = "linear"
    settings: ClassVar = {"solver": "exact"}

    def fit(self, *data, **changes):
        return fit_linear(*data, **changes)


class TestLinearBySgd(TestLinear):
    settings: ClassVar = {"solver": "sgd"}


class TestLinearOfEachFrame(TestLinear):
    settings: ClassVar = {"pool": "frame"}


class TestAttentive(ProbeContract):
    name = "attentive"
    settings: ClassVar = {"epochs": 8}

    def fit(self, *data, **changes):
        return fit_attentive(*data, **changes)


class TestAttentiveOfTheLastFrame(TestAttentive):
    settings: ClassVar = {"epochs": 8, "pool": "last", "lrs": (1e-3, 3e-3), "weight_decays": (0.1,)}


class TestAttentiveOfEachFrame(TestAttentive):
    settings: ClassVar = {"epochs": 8, "pool": "frame", "lrs": (1e-3,), "weight_decays": (0.1,)}


class TestAttentiveOfDepthFour(TestAttentive):
    settings: ClassVar = {"epochs": 10, "depth": 4, "lrs": (3e-3,), "weight_decays": (0.01, 0.1)}


class TestKnn(ProbeContract):
    name = "knn"

    def fit(self, *data, **changes):
        return fit_knn(*data, **changes)


def test_every_registered_probe_is_tested():
    assert {cls.name for cls in ProbeContract.__subclasses__()} == set(PROBES.names())


def make_ordered_clips(num_videos, *, seed=0):
    """The class is whether a mark is met in the first or in the second half of four frames; frames are the same."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_videos, 4, 3, 16, generator=generator)
    labels_V = torch.arange(num_videos) % 2
    marks = torch.eye(2).repeat_interleave(2, dim=1)[labels_V]  # [V, 4]
    x[..., 0] += 4 * marks[:, :, None] - 4 * (1 - marks[:, :, None])
    return x, labels_V


def attentive_of_three(*data, **changes):
    return fit_attentive(*data, epochs=25, batch_size=16, lrs=[1e-3, 3e-3, 5e-3], weight_decays=[0.1], **changes)


@pytest.mark.parametrize(
    ("fit", "sees"),
    [
        (fit_linear, False),
        (fit_knn, False),
        (lambda *data, **plan: fit_linear(*data, pool="last", **plan), True),
        (attentive_of_three, True),
        (lambda *data, **plan: attentive_of_three(*data, pool="mean", **plan), False),
        (
            lambda *data, **plan: fit_attentive(
                *data, epochs=20, batch_size=16, depth=4, lrs=[3e-3], weight_decays=[0.1], **plan
            ),
            True,
        ),
    ],
)
def test_only_probes_that_see_when_find_what_is_in_the_order_of_frames(fit, sees):
    score = fit(*make_ordered_clips(200), device="cpu").score(*make_ordered_clips(200, seed=1))
    assert score > 0.9 if sees else abs(score - 0.5) < 4 * 0.5 / 200**0.5


def test_the_vector_of_a_frame_is_cls_of_every_layer_beside_the_mean_of_the_last_ones_patches():
    first_BTND, last_BTND = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 2)
    vectors_BTE = frame_vectors([first_BTND, last_BTND], (1, 2))
    assert torch.equal(vectors_BTE[..., :6], first_BTND[:, :, 0])
    assert torch.equal(vectors_BTE[..., 6:8], last_BTND[:, :, 0])
    torch.testing.assert_close(vectors_BTE[..., 8:], last_BTND[:, :, 2:].mean(dim=2))


def test_without_cls_it_is_the_means_of_all_layers_and_without_patches_cls_alone():
    first_BTND, last_BTND = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 2)
    means = torch.cat([first_BTND.mean(dim=2), last_BTND.mean(dim=2)], dim=2)
    torch.testing.assert_close(frame_vectors([first_BTND, last_BTND], (0, 0)), means)
    assert torch.equal(frame_vectors([last_BTND], (5,)), last_BTND[:, :, 0])


def test_the_mean_over_frames_is_blind_to_their_order_and_the_last_is_the_last():
    x_BTND = torch.randn(4, 6, 5, 3)
    shuffled_BTND = x_BTND[:, torch.randperm(6)]
    for prefix in (0, 1):
        one, other = (clip_vectors([x], (prefix,), "mean") for x in (x_BTND, shuffled_BTND))
        torch.testing.assert_close(one, other)
    assert torch.equal(clip_vectors([x_BTND], (0,), "last")[:, 0], x_BTND[:, -1].mean(dim=1))
    assert clip_vectors([x_BTND], (0,), "frame").shape == (4, 6, 3)


def test_stacked_heads_compute_what_the_readout_with_their_weights_computes():
    torch.manual_seed(0)
    stack = AttentiveStack(3, dim=128, num_classes=5, num_frames=4)
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens_BTND = 2 * torch.randn(6, 4, 9, 128) + 1
    with torch.no_grad():
        logits_GBK = stack(tokens_BTND)
        explicit_GBK = torch.stack([stack.readout(head)(tokens_BTND) for head in range(3)])
    assert (logits_GBK - explicit_GBK).abs().max() <= 1e-5


def test_gradients_of_stacked_heads_are_those_of_the_readouts():
    torch.manual_seed(0)
    stack = AttentiveStack(2, dim=64, num_classes=3, num_frames=2)
    tokens_BTND, labels_B = torch.randn(8, 2, 5, 64), torch.arange(8) % 3
    sum(torch.nn.functional.cross_entropy(logits, labels_B) for logits in stack(tokens_BTND)).backward()
    readout = stack.readout(1)
    torch.nn.functional.cross_entropy(readout(tokens_BTND), labels_B).backward()
    for name, parameter in readout.named_parameters():
        if name != "key_proj.bias":  # moves no softmax
            torch.testing.assert_close(stack.weights[name.replace(".", "_")].grad[1], parameter.grad)


@pytest.mark.parametrize(("kind", "torch_kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_each_stacked_head_moves_as_if_it_were_trained_alone(kind, torch_kind):
    settings = [{"lr": 0.1, "weight_decay": 0.5}, {"lr": 0.01, "weight_decay": 0.0}]
    whole = torch.nn.Parameter(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    alone = [torch.nn.Parameter(whole.detach()[head].clone()) for head in range(2)]
    stacked = StackedOptimizer([whole], settings, kind=kind, num_steps=5)
    single = [
        HeadOptimizer([[one]], [setting], kind=kind, num_steps=5) for one, setting in zip(alone, settings, strict=True)
    ]
    for _ in range(5):
        for optimizer, loss in (
            (stacked, whole.cos().sum()),
            *zip(single, (one.cos().sum() for one in alone), strict=True),
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(whole.detach(), torch.stack([one.detach() for one in alone]))
    assert not torch.equal(whole.detach()[0], whole.detach()[1])


def test_a_head_that_diverges_is_not_chosen_and_spoils_no_other():
    x, labels_V = make_clips(120, signal=2.0)
    probe = fit_linear(1e3 * x, labels_V, solver="sgd", lrs=(1e38, 1e-2), device="cpu")
    assert probe.chosen["lr"] == 1e-2
    assert probe.heads[0]["held_out_top1"] == 0
    assert probe.score(1e3 * x, labels_V) > 0.9


def test_more_neighbours_than_training_videos_are_refused():
    with pytest.raises(UsageError, match="k 50 is more than the 27 training clips"):
        fit_knn(*make_clips(30), neighbours=(5, 50))
    assert [head["k"] for head in fit_knn(*make_clips(30)).heads] == [10, 20]
    with pytest.raises(UsageError, match="k 10 is more than the 9 training clips"):
        fit_knn(*make_clips(12))


@pytest.mark.parametrize(("settings", "words"), [({"pool": "all"}, "mean"), ({"solver": "lbfgs"}, "auto, exact, sgd")])
def test_settings_that_are_not_there_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        fit_linear(*make_clips(30), **settings)


def test_features_of_another_shape_are_refused():
    with pytest.raises(UsageError, match=r"\(30, 2, 40\)"):
        fit_linear(torch.randn(30, 2, 40), [0, 1] * 15)
    with pytest.raises(UsageError, match="int64"):
        fit_linear(torch.ones(30, 4, dtype=torch.int64), [0, 1] * 15)
    with pytest.raises(UsageError, match="needs the labels"):
        fit_linear(torch.randn(30, 4))


def test_a_cache_may_be_named_by_path_or_name_and_a_layer_by_its_number(synthetic_cache, tmp_path, monkeypatch):
    open_one = fit_knn(synthetic_cache, layers=("3",), neighbours=5, clip_frames=2)
    expected = open_one.predict_proba(synthetic_cache)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "mine").symlink_to(synthetic_cache.path)
    for cache, layers in ((synthetic_cache.path, 3), (str(synthetic_cache.path), -1), ("mine", None)):
        probe = fit_knn(cache, layers=layers, neighbours=[5], clip_frames=2)
        assert (probe.predict_proba(cache) == expected).all()
        assert probe.score(cache) == open_one.score(synthetic_cache)


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (None, {}, "features are None; give a cache"),
        ([[1.0], [2.0, 3.0]], {}, r"features are \[\[1.0\], \[2.0, 3.0\]\]; give a cache"),
        (["a", "b"], {}, "give a cache"),
        ("nowhere-at-all", {}, "nowhere-at-all"),
        (1.5, {}, r"features are \(1,\) of torch.float64"),
        ("cache", {"layers": 4.5}, "layers is 4.5; a name, a number"),
        ("cache", {"layers": 9}, "layer '9' is not in .*; it has 3"),
        ("cache", {"parts": 3}, "parts is 3; allowed: all, patch, prefix"),
        ("cache", {"pool": ["mean"]}, r"pool is \['mean'\]; allowed: mean"),
        ("cache", {"clip_frames": "many"}, "clip_frames is 'many'; a whole number from 1 on"),
        ("cache", {"segments": 0}, "segments is 0; a whole number from 1 on"),
        ("cache", {"folds": 1.5}, "folds is 1.5; a whole number from 2 on"),
        ("cache", {"held_out": "some"}, "held_out is 'some'; a share"),
        ("cache", {"split": 3}, "split is 3 and device 'auto'; their names"),
        ("cache", {"neighbours": "five"}, "neighbours is 'five'; a number above 0"),
        ("cache", {"neighbours": [0]}, r"neighbours is \[0\]; a number above 0"),
    ],
)
def test_what_cannot_be_meant_is_one_line(synthetic_cache, data, settings, words):
    with pytest.raises(UsageError, match=words) as caught:
        fit_knn(*((synthetic_cache,) if data == "cache" else (data, [0, 1])), **settings)
    assert "\n" not in str(caught.value)
