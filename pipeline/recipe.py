"""What decides a stored number: the recipe of a cache, and its fingerprint.

A `Recipe` holds everything that changes a token and nothing else. Paths, machines, devices, batch sizes, the kind of
store and the size of shards are not in it; nor are the cache's contents (layers, splits, videos), which can grow.
Two caches with the same fingerprint hold interchangeable tokens; a cache of another fingerprint is refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vfz.pipeline.errors import CacheFormatError, UsageError
from vfz.pipeline.files import canonical_json, sha256_hex

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""From the most exact to the smallest."""
QUANTISED = ("int8", "int4")
"""Those that need a calibration."""
GROUP_CHANNELS = 128
"""Channels that share one scale of a quantised token; the last group of a token may be smaller."""
CALIBRATION_SEED, CALIBRATION_FRAMES, CALIBRATION_FRAMES_PER_VIDEO = 0, 48, 3
"""Which frames of a dataset, and how many, a calibration is made from."""
PARTS = ("patch", "prefix")
"""Kinds of tokens that a layer may have, in the order their columns are stored."""
COMPRESSIONS = ("none", "zstd", "blosc-zstd")
FRAME_RULES = ("fps", "uniform", "centred")
"""Ways to choose frames, spelt out in `FrameSpec`."""
CENTRED_FRAMES = 16
"""How many the rule `centred` takes unless told otherwise, as in the paper."""
STORE_NAMES = ("zarr", "webdataset")
"""The keys of `vfz.pipeline.stores.STORES`, here for the command line, which must not import zarr to show its help."""
_LEFT_OUT = {"left_out": True}
"""Marks a field that is not written while it has its default, so that it can be added without changing fingerprints."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a stored number."""

    encoder: EncoderSpec
    frames: FrameSpec
    views: ViewSpec
    storage: StorageSpec

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return typing.cast("dict[str, Any]", _as_json(self))

    @property
    def fingerprint(self) -> str:
        """sha256 (64 hex digits) of the canonical JSON of the recipe."""
        return sha256_hex(canonical_json(self.to_dict()))


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The frozen encoder and the pixels it is given.

    Attributes:
        name: timm model name.
        weights_sha256: digest of the tensors actually loaded, whatever file they came from.
        random_weights: the weights are seeded noise: fit for testing, useless for accuracy.
        image_size: side of the square input in pixels.
        crop_fraction: part of the short side that the centre crop keeps; 1.0 keeps all of it.
        interpolation: `bilinear` or `bicubic`, antialiased.
        mean, std: per channel, of pixels in [0, 1].
        preprocess_version: version of vfz's own resize, crop and normalise.
        layers_version: version of how tokens are read off a layer (norm, order of prefix tokens, grid to rows).
        final_norm: ViT layers have passed the encoder's final norm; CNN stages have not.
        autocast: dtype the encoder computes in; `float32` means no autocast.
    """

    name: str
    weights_sha256: str
    random_weights: bool
    image_size: int
    crop_fraction: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess_version: int
    layers_version: int
    final_norm: bool
    autocast: str


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """Which frames of a video are taken, within a window of it.

    The rules, of which `vfz.pipeline.decoding.sampling` tells what becomes of short videos and of times:

    - `fps`: the frames on display at `start + k / fps` seconds, however many there are; each once.
    - `uniform`: `num_frames` frames, on display in the middle of so many equal parts of the window.
    - `centred`: the paper's. `num_frames` frames, `max(1, round(native fps / fps))` apart, centred in the window.

    Attributes:
        fps: samples per second; None for `uniform`, which needs none.
        start_seconds, end_seconds: the window of the video; `end_seconds` None means to its end.
        decoder, decoder_version: what decoded them.
        rule: one of `FRAME_RULES`.
        num_frames: how many; None for `fps`.
    """

    fps: float | None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    decoder: str
    decoder_version: int
    # Younger than the first caches, whose fingerprints stay what they were: see `_LEFT_OUT`.
    rule: str = field(default="fps", metadata=_LEFT_OUT)
    num_frames: int | None = field(default=None, metadata=_LEFT_OUT)

    def __post_init__(self) -> None:
        if self.rule not in FRAME_RULES:
            raise UsageError(f"frame rule {self.rule!r} is not one of {', '.join(FRAME_RULES)}")
        if (self.fps is None) != (self.rule == "uniform"):
            raise UsageError(
                f"frame rule {self.rule} with fps {self.fps}; fps and centred need one, uniform takes none"
            )
        if (self.num_frames is None) != (self.rule == "fps"):
            raise UsageError(
                f"frame rule {self.rule} with {self.num_frames} frames; uniform and centred need some, fps takes none"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"fps {self.fps} is not a rate; give frames per second above 0")
        if self.num_frames is not None and self.num_frames < 1:
            raise UsageError(f"{self.num_frames} frames are none; give 1 or more")
        if not 0 <= self.start_seconds < math.inf:
            raise UsageError(f"start {self.start_seconds} s is not in the video; give 0 or more")
        if self.end_seconds is not None and not self.end_seconds > self.start_seconds:
            raise UsageError(f"end {self.end_seconds} s is not after start {self.start_seconds} s")


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How views are cropped: view 0 is the centre crop, every later one a random resized crop of its own.

    A view's crop follows from `seed`, the video's id and the view's number, and is the same for all frames of a video.

    Attributes:
        seed: of the crops of views 1, 2, ...
        crop_scale: least and largest part of the frame's area that a random crop covers.
        crop_ratio: least and largest width / height of a random crop.
        horizontal_flip: half of the random crops are mirrored.
    """

    seed: int = 0
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: bool = False


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """How tokens are rounded before they are stored.

    Attributes:
        precision: fp32, fp16, int8 or int4.
        precision_version: of the code that rounds.
        calibration_seed, calibration_frames: which frames the channels' offsets and spreads are taken from, for int8
            and int4; None for floating point.
        converted_from: the precision these tokens had before in another cache; None where the encoder gave them.
    """

    precision: str
    precision_version: int = 1
    calibration_seed: int | None = None
    calibration_frames: int | None = None
    converted_from: str | None = None

    def __post_init__(self) -> None:
        for precision in (self.precision, self.converted_from):
            if precision is not None and precision not in PRECISIONS:
                raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        if (self.precision in QUANTISED) != (self.calibration_frames is not None):
            raise UsageError(
                f"{self.precision} with {self.calibration_frames} calibration frames; int8 and int4 need some"
            )


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        CacheFormatError: when a field is missing or unknown.
    """
    return typing.cast("Recipe", _from_json(Recipe, values, "recipe"))


def describe_difference(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    names: tuple[str, str] = ("cache", "requested"),
    prefix: str = "",
) -> list[str]:
    """Field-by-field difference of two recipes as dicts, e.g. `encoder.image_size: cache 224, requested 256`."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += describe_difference(one, other, names=names, prefix=f"{prefix}{key}.")
        elif one != other:
            lines.append(f"{prefix}{key}: {names[0]} {_short(one)}, {names[1]} {_short(other)}")
    return lines


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        items = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {
            field.name: _as_json(item)
            for field, item in items
            if item != field.default or "left_out" not in field.metadata
        }
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
    return value


def _from_json(kind: Any, values: Any, where: str) -> Any:
    fields = dataclasses.fields(kind)
    known = {field.name for field in fields}
    optional = {field.name for field in fields if "left_out" in field.metadata}
    if not isinstance(values, dict) or values.keys() | optional != known:
        odd = sorted((values.keys() | optional) ^ known) if isinstance(values, dict) else [str(values)]
        raise CacheFormatError(
            f"{where} does not have the fields this version of vfz knows; differing: {', '.join(odd)}"
        )
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _from_json(hint, value, f"{where}.{name}")
        elif typing.get_origin(hint) is tuple:
            value = tuple(value)
        elif value is not None and float in (hint, *typing.get_args(hint)):
            value = float(value)
        arguments[name] = value
    return kind(**arguments)


def counted_layers(layers: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Layers by their names; `-1` is the last of those known, `-2` the one before it.

    Args:
        layers: as asked for; what is neither a name nor such a number stays as it is.
        known: names, the shallowest first.
    """
    return tuple(
        known[int(layer)] if re.fullmatch(r"-[1-9]\d*", layer) and -int(layer) <= len(known) else layer
        for layer in layers
    )
