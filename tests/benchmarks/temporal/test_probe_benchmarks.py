"""What probes cost and find, against baselines of the same run: `make bench`. No bound is asserted.

ViT-S/16 sizes: 201 tokens of 384 numbers a frame. The encoder in the loop has random weights: for time, not accuracy.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.measure import seconds_of
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.progress import SilentProgress
from vfz.temporal.data.features import ArrayFeatures, CacheFeatures
from vfz.temporal.data.online import LiveTokens
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.probes import fit_knn, fit_linear
from vfz.temporal.probes.attentive import AttentiveFitter, AttentiveStack
from vfz.temporal.probes.heads import Schedule, StackedOptimizer
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import compare_records, read_record
from vfz.temporal.probes.run import probe
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal

pytestmark = pytest.mark.bench

NUM_FRAMES, NUM_TOKENS, DIM = 16, 201, 384


def test_a_sweep_of_twenty_attentive_heads_against_one_explicit_head(record):
    """A training step of 16 clips. The baseline projects every token to a key and a value, as it is written.

    Both have optimizers of their own."""
    torch.manual_seed(0)
    tokens_BTND, labels_B = torch.randn(16, NUM_FRAMES, NUM_TOKENS, DIM), torch.arange(16) % 174
    fitter = AttentiveFitter(num_classes=174, schedule=schedule(), pool="all")
    sizes = {"dim": DIM, "num_classes": 174, "num_frames": NUM_FRAMES}
    stack = AttentiveStack(len(fitter.settings), **sizes)
    stacked = StackedOptimizer(stack.parameters(), fitter.settings, kind="adamw", num_steps=1000)
    explicit = AttentiveStack(1, **sizes).readout(0)
    explicit._attend_folded = explicit._attend
    single = torch.optim.AdamW(explicit.parameters(), lr=1e-3, fused=True)

    def sweep():
        stacked.zero_grad()
        sum(F.cross_entropy(logits_BK, labels_B) for logits_BK in stack(tokens_BTND)).backward()
        stacked.step()

    def one():
        single.zero_grad()
        F.cross_entropy(explicit(tokens_BTND), labels_B).backward()
        single.step()

    ours, theirs = seconds_of(sweep, one, rounds=3)
    record("attentive_sweep", value=ours, unit="s", baseline="one explicit head", baseline_value=theirs,
           goal="at most 2")  # fmt: skip


@pytest.mark.parametrize("epochs", [1, 20])
def test_a_sweep_of_thirteen_linear_rates_against_one(record, epochs):
    """512 clips of 16 frames are read and pooled once, then heads of 174 classes make one pass over them, or 20.

    What the rates share is the reading. Twenty passes over pooled vectors cost next to nothing for one head, and so
    thirteen heads are a larger part of the whole.
    """
    tokens_VCTND = torch.randn(64, 1, NUM_FRAMES, NUM_TOKENS, DIM).half()
    few = ArrayFeatures(tokens_VCTND, torch.arange(64) % 40, num_prefix=5)
    features = few.subset(torch.arange(512) % 64)

    def fit(**changes):
        return lambda: fit_linear(features, solver="sgd", num_classes=174, epochs=epochs, device="cpu", **changes)

    ours, theirs = seconds_of(fit(), fit(lrs=(1e-2,)), rounds=3)
    record(f"linear_sweep_{epochs}_passes", value=ours, unit="s", baseline="one rate", baseline_value=theirs,
           goal="at most 1.5" if epochs == 1 else "")  # fmt: skip


class LiveFeatures(CacheFeatures):
    """The same clips, decoded and encoded anew."""

    def __init__(self, cache, rows_VK, **settings):
        super().__init__(cache, rows_VK, **settings)
        self._tokens = LiveTokens(cache, layers=settings["layers"], parts="all", device=settings["device"])


def test_a_probe_from_the_cache_against_the_encoder_in_the_loop(record, tmp_path):
    """One epoch of each is measured, for the 20-head attentive probe; a whole probe has 20 such epochs."""
    report = extract(
        ExtractOptions(
            dataset="synthetic", root=tmp_path / "videos", encoder="vit_small_patch16_224", random_weights=True,
            layers=("11",), num_videos=24, num_frames=12, size=224, out=tmp_path,
        )
    )  # fmt: skip
    cache = FeatureCache(report.cache)
    rows_VK = [(row,) for row in cache.ok_videos("train")]
    settings = {
        "layers": ("11",), "parts": "all", "rule": ClipRule(num_frames=12), "num_segments": 1,
        "device": torch.device("cpu"),
    }  # fmt: skip

    def epoch(kind):
        features = kind(cache, rows_VK, **settings)
        fitter = AttentiveFitter(num_classes=6, schedule=schedule(), pool="all")
        started = time.perf_counter()
        fitter.fit_grid(features, features.labels_V, torch.arange(len(features)), None)
        return time.perf_counter() - started

    epoch(CacheFeatures)
    cached = min(epoch(CacheFeatures) for _ in range(3))
    record("probe_epoch_from_cache", value=1 / cached, unit="epochs/s", baseline="encoder in the loop",
           baseline_value=1 / epoch(LiveFeatures), goal="at least 20")  # fmt: skip


def overlapping_classes():
    """2000 training and 4000 other vectors [V,384] of 20 classes."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(20, DIM))

    def split(count):
        labels = generator.integers(20, size=count)
        return (generator.normal(size=(count, DIM)) + 0.16 * centres[labels]).astype(np.float32), labels

    return (*split(2000), *split(4000))


def test_solved_probes_agree_with_scikit_learn(record):
    x, y, x_other, y_other = overlapping_classes()

    def weights(distances):
        return np.exp((1 - distances**2 / 2) / 0.07)

    pairs = {
        "logistic": (
            lambda: fit_linear(x, y, inverse_penalties=[0.01], device="cpu"),
            lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, tol=1e-8)).fit(x, y),
        ),
        "knn": (
            lambda: fit_knn(x, y, neighbours=[20], device="cpu"),
            lambda: make_pipeline(Normalizer(), KNeighborsClassifier(20, weights=weights)).fit(x, y),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        predicted, expected = ours().predict(x_other), theirs().predict(x_other)
        record(f"{name}_same_predictions", value=float((predicted == expected).mean()), unit="share",
               baseline="all", baseline_value=1.0, goal="at least 0.995")  # fmt: skip
        record(f"{name}_accuracy", value=100 * float((predicted == y_other).mean()), unit="%",
               baseline="scikit-learn", baseline_value=100 * float((expected == y_other).mean()),
               goal="within 0.2 points")  # fmt: skip


def test_forty_five_penalties_against_scikit_learn_one_by_one(record):
    """400 vectors of 64 numbers in 20 classes; twice 45 problems for us, who choose on a tenth and fit again."""
    x, y, _, _ = overlapping_classes()
    x, y = x[:400, :64], y[:400]

    def theirs():
        for penalty in np.logspace(-6, 5, 45):
            LogisticRegression(C=penalty, max_iter=1000, tol=1e-8).fit(x.astype(np.float64), y)

    def ours():
        fit_linear(x, y, solver="exact", device="cpu")

    ours_seconds, theirs_seconds = seconds_of(ours, theirs, rounds=1)
    record("logistic_penalties", value=ours_seconds, unit="s", baseline="scikit-learn", baseline_value=theirs_seconds)


def test_only_what_knows_the_order_tells_the_synthetic_classes(record, tmp_path):
    """The demo's videos and encoder: pooled tokens are blind to order; a trained core's last frame is not."""
    cache = extract(
        ExtractOptions(
            dataset="synthetic", root=tmp_path / "videos", encoder="demo", layers=("3",), image_size=96,
            num_videos=480, out=tmp_path,
        )
    ).cache  # fmt: skip
    run = train_temporal(
        TrainOptions(
            cache=cache, core="gmmix", core_dim=64, num_layers=2, num_heads=4, readout_dim=64, readout_heads=4,
            clip_frames=12, batch_size=8, epochs=12, lr=3e-3, out=tmp_path, name="gmmix",
        )
    ).run  # fmt: skip
    blind, knowing = (
        probe(ProbeOptions(cache=Path(cache), temporal=temporal, clip_frames=12, out=tmp_path))
        for temporal in (None, Path(run))
    )
    error = (blind.chance * (1 - blind.chance) / blind.num_eval_clips) ** 0.5
    record("order_blind_probe", value=100 * blind.top1, unit="%", baseline="chance",
           baseline_value=100 * blind.chance, goal=f"within {100 * 3 * error:.1f} points")  # fmt: skip
    record("core_probe", value=100 * knowing.top1, unit="%", baseline="chance",
           baseline_value=100 * blind.chance, goal="at least 90%")  # fmt: skip
    test = compare_records(*(read_record(Path(one.result)) for one in (knowing, blind)))
    record("core_minus_blind", value=100 * test.bootstrap.difference, unit="points", baseline="p of McNemar's test",
           baseline_value=test.mcnemar.p_value, goal="above 0, p near 0")  # fmt: skip


def schedule():
    return Schedule(epochs=1, batch_size=16, seed=0, progress=SilentProgress())
