"""What a step and an epoch cost from a cache: against tokens in memory, and against the encoder in the loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.measure import seconds_of

from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.training.distributed import Ranks
from vfz.temporal.training.experiment import build_experiment
from vfz.temporal.training.optim import build_optimizer
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.step import ClipLoss
from vfz.temporal.training.train import train_temporal

pytestmark = pytest.mark.bench

CLIP_FRAMES, BATCH_SIZE = 16, 2
ONE = Ranks(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def vit_small_cache(tmp_path_factory):
    """ViT-S/16 (random weights) at 224 px: 201 tokens of 384 channels a frame, as DINOv3's with four registers."""
    folder = tmp_path_factory.mktemp("bench")
    report = extract(
        ExtractOptions(
            dataset="synthetic", root=folder / "videos", encoder="vit_small_patch16_dinov3", random_weights=True,
            image_size=224, num_videos=8, num_frames=18, size=224, batch_size=16, out=folder,
        )
    )  # fmt: skip
    return report.cache


@pytest.fixture
def options(vit_small_cache, tmp_path):
    return TrainOptions(
        cache=vit_small_cache, core="gmmix", clip_frames=CLIP_FRAMES, batch_size=BATCH_SIZE, epochs=1, eval_every=0,
        out=tmp_path,
    )  # fmt: skip


def test_a_training_step_from_the_cache_against_tokens_in_memory(record, options):
    experiment = build_experiment(options, ONE)
    train = trainer_of(experiment)
    in_memory = [batch for parts in experiment.steps(0) for batch in parts]
    cached, held = seconds_of(
        lambda: train(batch for parts in experiment.steps(0) for batch in parts), lambda: train(in_memory), rounds=2
    )
    record(
        "step_from_cache_vit_small",
        value=cached / len(in_memory),
        unit="s/step",
        baseline="tokens in memory",
        baseline_value=held / len(in_memory),
        goal="at most 1.10",
    )


def test_the_speed_up_by_the_cache_against_the_ideal_one(record, options):
    """Ideally an epoch with the encoder in the loop costs encoding and steps, and one from a cache the steps only."""
    experiment = build_experiment(options, ONE)
    cache, batches = experiment.caches[0], [batch for parts in experiment.steps(0) for batch in parts]
    live = LiveEncoder(cache, layers=experiment.model.config.encoder_layers, device=ONE.device)
    pixels = live.pixels(cache.ok_videos()[0], np.arange(CLIP_FRAMES)).repeat(BATCH_SIZE, 1, 1, 1)
    train = trainer_of(experiment)
    encode, step = seconds_of(lambda: live.encode(pixels), lambda: train(batches[:1]), rounds=2)

    def epoch_seconds(name, **changes):
        return min(train_temporal(replace(options, name=name, **changes)).epoch_seconds)

    speed_up = epoch_seconds("online", online=True) / epoch_seconds("cached")
    record(
        "speed_up_vit_small",
        value=speed_up,
        unit="times",
        baseline="ideal, (encode + step) / step",
        baseline_value=(encode + step) / step,
        goal="at least 0.9",
    )


def test_an_epoch_from_the_cache_against_the_encoder_in_the_loop(record, tmp_path):
    """The demo's sizes: a small encoder, a smaller core."""
    report = extract(
        ExtractOptions(
            dataset="synthetic", root=tmp_path / "videos", encoder="demo", layers=("3",), image_size=96,
            num_videos=96, out=tmp_path,
        )
    )  # fmt: skip

    def epoch(*, online):
        trained = train_temporal(
            TrainOptions(
                cache=report.cache, core="gmmix", core_dim=64, num_layers=2, num_heads=4, readout_dim=64,
                readout_heads=4, clip_frames=12, batch_size=8, epochs=3, eval_every=0, online=online, out=tmp_path,
                name=f"online-{online}",
            )
        )  # fmt: skip
        return sorted(trained.epoch_seconds)[1]

    cached, online = (1 / epoch(online=False), 1 / epoch(online=True))
    record("cached_epoch", value=cached, unit="epochs/s", baseline="encoder in the loop", baseline_value=online)


def trainer_of(experiment):
    """A function that takes one optimizer step a batch."""
    loss = ClipLoss(experiment.model, experiment.task, autocast=None)
    optimizer = build_optimizer(loss, lr=1e-4, weight_decay=0.05)

    def train(batches):
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss(batch).backward()
            optimizer.step()

    return train
