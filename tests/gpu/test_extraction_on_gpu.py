"""Extraction on a GPU: the same tokens as live, as before, and as on the CPU, whatever its memory."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.extraction import Notes, all_tokens, shard_files
from helpers.video_files import VIDEOS

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pyav import PyAVDecoder
from vfz.pipeline.encoder.batching import frame_gatherer
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.encoder.transforms import Preprocess, ViewCropper
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.recipe import FrameSpec, ViewSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPEC = FrameSpec(fps=2, decoder=PyAVDecoder.name, decoder_version=PyAVDecoder.version)


@pytest.fixture
def options(folder_dataset, tmp_path):
    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="vit_tiny_patch16_224", random_weights=True, image_size=64,
        layers=("2", "11"), precision="fp32", fps=6, batch_size=16, device="cuda", out=tmp_path / "caches",
    )  # fmt: skip


def tokens_of(cache, layer="11"):
    return {row.id: cache.read(row.id).tokens(layer) for row in cache.ok_videos()}


@pytest.mark.parametrize("autocast", ["float32", "bfloat16", "float16"])
def test_cached_tokens_are_the_live_ones_bit_for_bit(options, autocast):
    cache = FeatureCache(extract(dataclasses.replace(options, autocast=autocast)).cache)
    live = LiveEncoder(cache, layers=("2", "11"), device=CUDA)
    for row in cache.ok_videos():
        tokens = live.encode(live.pixels(row, np.arange(row.num_frames)))
        for layer in ("2", "11"):
            assert np.array_equal(cache.read(row.id).payload(layer), tokens[layer].patch_BND.cpu().numpy())


@pytest.mark.parametrize("changes", [{"precision": "int8"}, {"precision": "int4"}, {"views": 2, "precision": "fp16"}])
def test_a_second_extraction_stores_the_same_bytes(options, tmp_path, changes):
    options = dataclasses.replace(options, **changes)
    again = dataclasses.replace(options, out=tmp_path / "again")
    assert shard_files(extract(options).cache) == shard_files(extract(again).cache)


def test_float32_is_as_exact_as_on_the_cpu():
    """No TF32, which would leave three digits."""
    frames = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    for name, layer in (("vit_tiny_patch16_224", "11"), ("resnet18", "3")):
        on_cpu, on_gpu = (
            load_encoder(name, random_weights=True, layers=(layer,), image_size=64, device=device).encode(frames)[layer]
            for device in (CPU, CUDA)
        )
        largest = on_cpu.patch_BND.abs().max()
        torch.testing.assert_close(on_gpu.patch_BND.cpu() / largest, on_cpu.patch_BND / largest, atol=1e-5, rtol=0)


def test_tokens_are_those_of_an_extraction_on_the_cpu(options, tmp_path):
    """Frames differ by a grey level at the most, in few pixels, since filters round otherwise on a GPU."""
    on_gpu = tokens_of(FeatureCache(extract(options).cache))
    on_cpu = tokens_of(FeatureCache(extract(dataclasses.replace(options, device="cpu", out=tmp_path / "cpu")).cache))
    assert on_gpu.keys() == on_cpu.keys()
    for video, expected in on_cpu.items():
        assert np.linalg.norm(on_gpu[video] - expected) < 0.02 * np.linalg.norm(expected)


def test_bfloat16_is_near_float32(options, tmp_path):
    exact = tokens_of(FeatureCache(extract(options).cache))
    rounded = tokens_of(
        FeatureCache(extract(dataclasses.replace(options, autocast="bfloat16", out=tmp_path / "bf16")).cache)
    )
    for video, expected in exact.items():
        error = np.linalg.norm(rounded[video] - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 0.03


def test_frames_of_many_sizes_and_views_become_the_cpus_squares_to_one_grey_level():
    preprocess = Preprocess(image_size=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    cropper = ViewCropper(ViewSpec(seed=1, horizontal_flip=True), "a video", 1)
    source = VideoSource(path=VIDEOS / "bikes.mp4")
    pictures = [frame.pixels_HWC for frame in PyAVDecoder().frames(source, SPEC)]
    assert len(pictures) > 8
    gatherers = [frame_gatherer(preprocess, device) for device in (CUDA, CPU)]
    for _ in range(2):  # the second time in buffers that were used
        for number, picture in enumerate(pictures):
            part = np.ascontiguousarray(picture[: -1 - number // 3])
            for gatherer in gatherers:
                gatherer.add(part, cropper if number % 4 == 3 else None)
        on_gpu, on_cpu = (gatherer.take().cpu().int() for gatherer in gatherers)
        assert on_gpu.shape == on_cpu.shape == (len(pictures), 3, 48, 48)
        assert (on_gpu - on_cpu).abs().max() <= 1


def test_a_batch_too_large_for_the_gpu_is_halved_until_it_fits(options, tmp_path):
    expected = all_tokens(extract(dataclasses.replace(options, out=tmp_path / "small")).cache)
    notes = Notes()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e9) / total)
    try:
        large = dataclasses.replace(options, batch_size=2**15, out=tmp_path / "large")
        found = all_tokens(extract(large, progress=notes).cache)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory with" in line and "saves the attempt" in line for line in notes.lines)
    assert found.keys() == expected.keys()
    for video, arrays in expected.items():
        for key, stored in arrays.items():
            one, other = (np.frombuffer(data, np.float32) for data in (found[video][key], stored))
            np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:TensorFloat32:UserWarning")  # compiling's
@pytest.mark.parametrize("changes", [{"channels_last": True}, {"compile": True}])
def test_faster_layouts_change_tokens_by_rounding_only(options, tmp_path, changes):
    plain = tokens_of(FeatureCache(extract(options).cache))
    other = tokens_of(FeatureCache(extract(dataclasses.replace(options, out=tmp_path / "other", **changes)).cache))
    for video, expected in plain.items():
        np.testing.assert_allclose(other[video], expected, atol=1e-4 * np.abs(expected).max())
