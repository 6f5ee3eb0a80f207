"""Fixtures that several folders of tests share: small caches of real videos, made once a session."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.format.labels import LabelSet, write_label_set

VIDEOS = Path(__file__).parent / "data" / "videos"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory):
    """Where the session's synthetic videos are rendered, once per set of parameters."""
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="session")
def synthetic_options(synthetic_root):
    """Extraction of 48 small synthetic clips with the real pretrained encoder."""

    def options(**changes):
        return ExtractOptions(
            **{
                "dataset": "synthetic",
                "root": synthetic_root / "48",
                "encoder": "demo",
                "layers": ("3",),
                "image_size": 64,
                "num_videos": 48,
                "num_frames": 6,
                "size": 64,
                "shard_videos": 16,
                "batch_size": 16,
            }
            | changes
        )

    return options


@pytest.fixture(scope="session")
def synthetic_cache(synthetic_options, tmp_path_factory):
    """A cache of 48 synthetic clips of 6 frames, efficientnet-lite0 stage 3 at 64 px: 16 tokens of 112 channels."""
    report = extract(synthetic_options(out=tmp_path_factory.mktemp("caches")))
    return FeatureCache(report.cache)


@pytest.fixture(scope="session")
def labelled_cache(synthetic_cache, tmp_path_factory):
    """`synthetic_cache` with the label sets `sides` (multilabel) and `places` (regression), which show in the pictures:
    along the three directions in which the videos' mean tokens differ most. Two videos are not known, and of a third
    one number is not.
    """
    folder = tmp_path_factory.mktemp("labelled") / "clips"
    shutil.copytree(synthetic_cache.path, folder)
    ids = [row.id for row in synthetic_cache.videos]
    tokens_VD = np.stack([synthetic_cache.read(id_, layers=("3",)).tokens("3").mean(axis=(0, 1)) for id_ in ids])
    along_V3 = np.linalg.svd(tokens_VD - tokens_VD.mean(axis=0), full_matrices=False)[0][:, :3] * len(ids) ** 0.5
    sides = {id_: frozenset(np.flatnonzero(along > 0.2).tolist()) for id_, along in zip(ids, along_V3, strict=True)}
    places = {id_: (300 + 20 * float(a), 0.1 * float(b)) for id_, (a, b, _) in zip(ids, along_V3, strict=True)}
    places[ids[0]] = (float("nan"), places[ids[0]][1])
    del sides[ids[1]], places[ids[1]], sides[ids[-1]], places[ids[-1]]
    write_label_set(folder, LabelSet(name="sides", kind="multilabel", names=("left", "high", "far"), labels=sides))
    write_label_set(folder, LabelSet(name="places", kind="regression", names=("metres", "degrees"), labels=places))
    return FeatureCache(folder)


@pytest.fixture(scope="session")
def vit_cache(synthetic_root, tmp_path_factory):
    """The same clips through a ViT with random weights, stored in fp32."""
    report = extract(
        ExtractOptions(
            dataset="synthetic",
            root=synthetic_root / "48",
            encoder="vit_tiny_patch16_224",
            random_weights=True,
            layers=("5", "11"),
            image_size=64,
            precision="fp32",
            num_videos=48,
            num_frames=6,
            size=64,
            batch_size=16,
            out=tmp_path_factory.mktemp("caches"),
        )
    )
    return FeatureCache(report.cache)


@pytest.fixture
def folder_dataset(tmp_path):
    """root/<split>/<class>/<video> of the two real sample videos, each in both splits."""
    root = tmp_path / "clips"
    for split in ("train", "test"):
        for name, label in (("bikes", "traffic"), ("bigbuckbunny", "cartoon")):
            target = root / split / label / f"{name}.mp4"
            target.parent.mkdir(parents=True)
            target.write_bytes((VIDEOS / f"{name}.mp4").read_bytes())
    return root
