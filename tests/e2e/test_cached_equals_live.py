"""The tokens of a cache are those of the encoder, and training cannot tell which it got."""

import json

import av
import numpy as np
import pytest
import timm
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.train import train_temporal

CPU = torch.device("cpu")


def live_tokens(cache, row, layer):
    live = LiveEncoder(cache, layers=tuple(cache.layers), device=CPU)
    tokens = live.encode(live.pixels(row, np.arange(row.num_frames)))[layer]
    parts = {"patch": tokens.patch_BND.numpy()}
    if tokens.prefix_BPD is not None:
        parts["prefix"] = tokens.prefix_BPD.numpy()
    return parts


def test_fp16_tokens_are_the_live_ones_to_half_precision(synthetic_cache):
    for row in synthetic_cache.ok_videos("test")[:3]:
        cached = synthetic_cache.read(row.id).tokens("3")
        live = live_tokens(synthetic_cache, row, "3")["patch"]
        assert cached.shape == live.shape == (6, 16, 112)
        assert (np.abs(cached - live) <= 1e-3 * np.abs(live) + 1e-6 * np.abs(live).max()).all()


@pytest.mark.parametrize("layer", ["5", "11"])
def test_fp32_tokens_of_a_vit_are_the_live_ones_bit_for_bit(vit_cache, layer):
    for row in vit_cache.ok_videos("test")[:3]:
        clip = vit_cache.read(row.id)
        for part, live in live_tokens(vit_cache, row, layer).items():
            assert np.array_equal(clip.payload(layer, part), live)


def test_the_tokens_are_timms_own_on_the_same_pixels(synthetic_options, tmp_path):
    """Against timm directly: decoding by PyAV, resizing, encoding and storing in between change nothing."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = synthetic_options(
        encoder="vit_tiny_patch16_224",
        weights=tmp_path / "weights.pth",
        layers=("2", "11"),
        precision="fp32",
        out=tmp_path,
    )
    cache = FeatureCache(extract(options).cache)
    row = cache.ok_videos("train")[0]
    with av.open(row.source_path) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    mean, std = (torch.tensor(model.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    images_BCHW = (torch.stack(frames).permute(0, 3, 1, 2) / 255 - mean) / std  # 64 px already: nothing to resize
    with torch.no_grad():
        expected_BND = model.forward_features(images_BCHW).numpy()
    clip = cache.read(row.id)
    np.testing.assert_allclose(clip.tokens("11", "all"), expected_BND, atol=2e-5)
    np.testing.assert_allclose(clip.pts_seconds, np.arange(6) / 6, atol=1e-6)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def test_training_from_the_cache_and_with_the_encoder_in_the_loop_have_the_same_losses(vit_cache, tmp_path):
    def train(name, *, online):
        report = train_temporal(
            TrainOptions(
                cache=vit_cache.path, core="gmmix", core_dim=32, num_layers=1, num_heads=2, readout_dim=32,
                readout_heads=2, clip_frames=6, epochs=2, batch_size=8, online=online, out=tmp_path, name=name,
                dtype="float32",
            )
        )  # fmt: skip
        return losses(tmp_path / name), report.top1

    cached, cached_top1 = train("cached", online=False)
    online, online_top1 = train("online", online=True)
    assert len(cached) == 2 * 5, "36 training clips in batches of 8, two epochs"
    np.testing.assert_allclose(cached, online, atol=1e-5, rtol=0)
    assert cached_top1 == online_top1


def test_a_whole_batch_and_a_last_partial_one_give_the_same_tokens(synthetic_options, tmp_path):
    """Shards of another size put other frames beside a frame; the stored numbers do not change."""

    def tokens(shard_videos):
        report = extract(
            synthetic_options(out=tmp_path / str(shard_videos), shard_videos=shard_videos, precision="fp32")
        )
        cache = FeatureCache(report.cache)
        return {row.id: cache.read(row.id).payload("3") for row in cache.ok_videos()}

    one, other = tokens(5), tokens(48)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[video], other[video]) for video in one)
