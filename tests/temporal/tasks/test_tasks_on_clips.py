"""Tasks on what they are for: clips of a real cache with their targets, a core and a readout."""

import math

import pytest
import torch

from vfz.temporal.cores import build_core
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import clip_videos
from vfz.temporal.readouts import build_readout
from vfz.temporal.tasks import TASKS, build_task

NUM_FRAMES = 8  # the videos have 6: two are padding
ATTENTION = {"readout_dim": 32, "num_heads": 4, "num_frames": NUM_FRAMES}
DECODER = {"readout_dim": 32, "num_heads": 4, "mlp_hidden": 32}
READOUT_SIZES = {
    "boxes": DECODER,
    "points": {**DECODER, "num_frames": NUM_FRAMES},
    "depth": {**ATTENTION, "output_size": 8},
    "pose": {"readout_dim": 32, "mlp_hidden": 32},
}


@pytest.fixture(params=[(name, protocol) for name in TASKS.names() for protocol in TASKS.get(name).protocols], ids=str)
def named(request):
    return request.param


@pytest.fixture
def clips(named, synthetic_cache):
    """Batches of 16 clips of the training split, of 8 frames where the videos have 6."""
    task, _ = named
    targets = None
    if TASKS.get(task).needs_targets:
        targets = FrameTargets(synthetic_cache, task=task, output_size=8 if task == "depth" else None)
    loader = ClipLoader(
        CachedTokens(synthetic_cache, layers=("3",), parts="all"),
        clip_videos(synthetic_cache, "train"),
        rule=ClipRule(num_frames=NUM_FRAMES),
        batch_size=16,
        device=torch.device("cpu"),
        targets=targets,
    )
    return list(loader.in_order())


@pytest.fixture
def task(named, synthetic_cache):
    name, protocol = named
    kwargs = {"num_classes": len(synthetic_cache.class_names)} if name == "classify" else {}
    return build_task(name, protocol=protocol, **kwargs)


def test_a_core_and_a_readout_are_trained_and_measured(named, task, clips, synthetic_cache):
    name, protocol = named
    torch.manual_seed(0)
    dim = clips[0].layers_BTND[0].shape[-1]
    core = build_core("gru", dim=dim, num_layers=1)
    classes = {"num_classes": len(synthetic_cache.class_names), **ATTENTION}
    readout = build_readout(name, dim=dim, protocol=protocol, **READOUT_SIZES.get(name, classes))

    def answer(batch):
        features, _ = core(batch.layers_BTND[0])
        return readout(features, **task.readout_inputs(batch))

    parameters = [*core.parameters(), *readout.parameters(), *task.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    losses = []
    for _ in range(4):
        for batch in clips:
            optimizer.zero_grad()
            loss = task.loss(answer(batch), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-len(clips) :]) < sum(losses[: len(clips)])
    metrics = task.new_metrics()
    for batch in clips:
        metrics.update(answer(batch), batch)
    assert all(math.isfinite(value) for value in metrics.compute().values())


def test_what_is_counted_are_the_real_frames_of_all_clips(named, task, clips):
    name, _ = named
    num_clips = sum(len(batch.video_ids) for batch in clips)
    predict, metrics = task.constant_predictor(clips), task.new_metrics()
    for batch in clips:
        metrics.update(predict(batch), batch)
    result = metrics.compute()
    if name in {"classify", "boxes", "points"}:
        assert result["num_clips"] == num_clips
    else:
        assert result["num_frames"] == num_clips * {"depth": 6, "pose": 5}[name]
