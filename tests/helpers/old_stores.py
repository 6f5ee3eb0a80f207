"""The stores and runs that vfz of commit 7fe0c97 wrote, in `tests/data`: which there are, how they were asked for, and
how they are read to be compared with what was read then. `tests/data/old_stores/make.py` wrote them with this.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.recipe import PRECISIONS
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.runs import load_model

DATA = Path(__file__).parents[1] / "data"
STORES, RUNS = DATA / "old_stores", DATA / "old_runs"
KINDS = ("zarr", "webdataset")
"""The kinds of store that there were then."""

VIDEOS = {
    "train/film/bunny.mp4": "bigbuckbunny.mp4",
    "train/film/numbers.webm": "hidden_frames.webm",
    "train/street/bikes.mp4": "bikes.mp4",
    "train/street/numbers.webm": "hidden_frames.webm",
    "val/film/numbers.webm": "hidden_frames.webm",
    "val/street/bikes.mp4": "bikes.mp4",
}
"""What each file of the dataset is a copy of."""
BROKEN, GONE = "val/film/broken.mp4", "val/street/gone.webm"
"""A file that is no video, and one that is listed (a link leads to it) and not there."""
LATER = {"train/street/later.webm": "hidden_frames.webm", GONE: "hidden_frames.webm"}
"""What comes to the dataset afterwards."""
SHOWN = ("train/film/bunny", "train/street/later")
"""Videos whose tokens are kept of conversions and of caches that were extended."""

_SHARED = {"dataset": "folder", "image_size": 32, "end_seconds": 2.0, "shard_videos": 4, "device": "cpu"}
_ENCODERS = {
    "vit": {"encoder": "test_vit", "random_weights": True, "frames": "uniform", "clip_frames": 3, "layers": ("5",)},
    "cnn": {"encoder": "demo", "fps": 1.0, "layers": ("3",)},
}
_PECULIAR = {"cnn-int4": {"views": 2, "flip": True, "shard_videos": 8}}
_GROWN = {"cnn-int8": ("3", "4")}
_COMPRESSION = {"vit-fp32": "blosc-zstd", "cnn-fp16": "none"}
NEW_LAYER = "2"
"""Of either encoder, in no old cache."""


@dataclass(frozen=True)
class OldCache:
    """One of the old caches."""

    encoder: str
    store: str
    precision: str

    def __str__(self):
        return f"{self.encoder}-{self.store}-{self.precision}"

    @property
    def key(self):
        """What is expected of it is alike for both stores."""
        return f"{self.encoder}-{self.precision}"

    @property
    def first_layers(self):
        """Of the extraction that made it."""
        return _ENCODERS[self.encoder]["layers"]

    @property
    def layers(self):
        """Of the last extraction that wrote to it."""
        return _GROWN.get(self.key, self.first_layers)

    @property
    def compression(self):
        """As it was asked for, of its columns and those that are added later; None for tars, which have none."""
        return _COMPRESSION.get(self.key, "zstd") if self.store == "zarr" else None

    def options(self, root, out, *, layers=None):
        """The line that was typed, with another root and out, and more layers where that is asked for."""
        return ExtractOptions(
            **_SHARED
            | _ENCODERS[self.encoder]
            | _PECULIAR.get(self.key, {})
            | {"precision": self.precision, "store": self.store, "compression": self.compression}
            | {"layers": layers or self.layers, "root": Path(root), "out": Path(out)}
        )

    @property
    def folder(self):
        """Where it lies."""
        return STORES / f"{self.store}-{self.precision}" / expected()[self.key]["folder"]

    def copy_to(self, out):
        """A copy of it in the folder `out`, under its own name."""
        return Path(shutil.copytree(self.folder, Path(out) / self.folder.name))


OLD_CACHES = tuple(
    OldCache(encoder, store, precision) for encoder in _ENCODERS for store in KINDS for precision in PRECISIONS
)

_SMALL = {
    "core_dim": 16, "num_layers": 1, "num_heads": 2, "readout_dim": 16, "readout_heads": 2, "batch_size": 2,
    "epochs": 20, "eval_every": 5, "checkpoint_steps": 1, "eval_split": "val", "lr": 0.01, "device": "cpu",
}  # fmt: skip
_RUNS = {
    "gmmix": {"core": "gmmix", "clip_frames": 3, "ema": 0.9, "dropout": 0.1},
    "rvm_rnn": {"core": "rvm_rnn", "clip_frames": 2, "parts": "patch", "layers": ("3",), "tensorboard": False},
}
RUN_CACHES = {"gmmix": OldCache("vit", "zarr", "fp32"), "rvm_rnn": OldCache("cnn", "webdataset", "int8")}
"""What each run was trained on; beside it lies `<name>-stopped`, the same run stopped on its way."""
EVALUATED = {"val": (), "train": ("--segments", "2")}
"""Splits that each run was evaluated on, and with what."""


def train_options(name, cache, out, **changes):
    """The line that a run was trained with."""
    core = name.removesuffix("-stopped")
    return TrainOptions(**_SMALL | _RUNS[core] | {"cache": (Path(cache),), "out": Path(out), "name": name} | changes)


def probe_options(cache, out, **changes):
    """The line of both probes, of tokens and (with `temporal`) of a run, on the cache of the run `gmmix`."""
    return ProbeOptions(cache=Path(cache), out=Path(out), clip_frames=3, device="cpu", **changes)


def lay_out(root):
    """The dataset of the old caches, made of the committed videos; returns its root."""
    for name, source in VIDEOS.items():
        _copy(root, name, source)
    (root / BROKEN).write_text("not a video")
    (root / GONE).symlink_to("nowhere.webm")
    return root


def add_later(root):
    """Adds what came later."""
    for name, source in LATER.items():
        (root / name).unlink(missing_ok=True)
        _copy(root, name, source)


def read(path):
    """What a cache says of itself; and its tokens by `<video>/<view>/<layer>/<part>`, times by `.../pts_seconds`."""
    cache = FeatureCache(path, checksums="always")
    names = ("id", "view", "split", "label", "status", "reason", "num_frames", "shard", "source_digest")
    says = {
        "folder": Path(path).name,
        "fingerprint": cache.fingerprint,
        "ledger_digest": cache.ledger_digest,
        "class_names": list(cache.class_names),
        "layers": {
            layer: {part: list(shape) for part, shape in parts.items()} for layer, parts in cache.layers.items()
        },
        "rows": [[getattr(row, name) for name in names] for row in cache.videos],
    }
    arrays = {}
    for row in cache.videos:
        if row.status == "ok":
            clip = cache.read(row.id, view=row.view)
            arrays[f"{row.id}/{row.view}/pts_seconds"] = clip.pts_seconds
            for layer, part in clip.columns:
                arrays[f"{row.id}/{row.view}/{layer}/{part}"] = clip.tokens(layer, part)
    return says, arrays


def answers(run, cache):
    """What the model of a run answers to all frames of every video, by `<video>`."""
    model, _ = load_model(Path(run))
    opened = FeatureCache(cache)
    found = {}
    for row in opened.ok_videos():
        clip = opened.read(row.id)
        tokens = [torch.from_numpy(clip.tokens(layer, model.config.parts)) for layer in model.config.encoder_layers]
        with torch.no_grad():
            found[row.id] = model([layer.unsqueeze(0) for layer in tokens])[0].numpy()
    return found


def only_shown(arrays):
    """Those of the videos in `SHOWN`."""
    return {name: array for name, array in arrays.items() if name.startswith(SHOWN)}


def expected(folder=STORES):
    """What is expected of the caches by `OldCache.key`, or of the runs by name."""
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def expected_arrays(start, folder=STORES):
    """Arrays by what follows `<start>/` in their names. `start` is `<key>/then` for what was read of an old cache,
    `<key>/converted` and `<key>/extended` for what was read of one made from it, or a run for what its model answered.
    """
    with np.load(folder / "expected.npz", allow_pickle=False) as content:
        names = [name for name in content.files if name.startswith(f"{start}/")]
        return {name.removeprefix(f"{start}/"): content[name] for name in names}


def _copy(root, name, source):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / "videos" / source, root / name)
