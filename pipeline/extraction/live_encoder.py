"""The encoder of a cache, built again and run live: what training `--online` and checks against a cache use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding import get_decoder
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.encoder.batching import frame_gatherer
from vfz.pipeline.encoder.layers import LayerTokens
from vfz.pipeline.encoder.model import FrozenEncoder, load_encoder
from vfz.pipeline.encoder.transforms import cropper_of
from vfz.pipeline.errors import CacheMismatchError, DecodeError, EncoderError, UsageError
from vfz.pipeline.files import name_of_text
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import EncoderSpec, recipe_from_dict


class LiveEncoder:
    """Decodes frames of a cache's videos and encodes them as extraction did.

    The tokens of a ViT are those of the extraction to the bit, on a device of the same kind; those of a CNN differ in
    their last bits where convolutions have another number of threads.

    Args:
        cache: whose recipe, videos and frame times are followed.
        layers: which of its layers to compute.
        device: where.
        root: where the videos lie now; None: where they were at extraction.
        weights: the encoder's weights file; None: the source used at extraction.

    Raises:
        CacheMismatchError: when the weights found are not those the cache was made with.
    """

    def __init__(
        self,
        cache: FeatureCache,
        *,
        layers: Sequence[str],
        device: torch.device,
        root: Path | None = None,
        weights: Path | None = None,
    ) -> None:
        self._recipe = recipe_from_dict(cache.recipe)
        self._old_root, self._root = Path(name_of_text(cache.provenance["root"])), root
        self.encoder = encoder_of(
            self._recipe.encoder,
            cache.provenance["encoder_request"],
            layers=layers,
            device=device,
            weights=weights,
            made=str(cache.path),
        )

    def source_of(self, row: LedgerRow) -> VideoSource:
        """Where a video lies now.

        Raises:
            UsageError: when it lay outside the root at extraction, so that another root does not tell where it is.
            DatasetError: when it is a member of a tar that is not there, or has no such member.
        """
        text = name_of_text(row.source_path)
        if self._root is None:
            return VideoSource.parse(text)
        if not Path(text).is_relative_to(self._old_root):
            raise UsageError(
                f"{text} did not lie under {self._old_root}; --root {self._root} does not tell where it is now"
            )
        return VideoSource.parse(f"{self._root}{text.removeprefix(str(self._old_root))}")

    def pixels(self, row: LedgerRow, frames: np.ndarray) -> torch.Tensor:
        """Decoded, resized and cropped frames [T,3,S,S] uint8 of a video, on the encoder's device.

        Args:
            row: the video.
            frames: numbers of its cached frames [T], at least one.

        Raises:
            DecodeError: when the video does not decode to the cached number of frames.
        """
        source, wanted = self.source_of(row), set(frames.tolist())
        gatherer = frame_gatherer(self.encoder.preprocess, self.encoder.device)
        places: dict[int, int] = {}
        num_frames = 0
        cropper = cropper_of(self._recipe.views, row.id, row.view)
        for number, frame in enumerate(get_decoder(self._recipe.frames.decoder).frames(source, self._recipe.frames)):
            num_frames = number + 1
            if number in wanted:
                places[number] = len(places)
                gatherer.add(frame.pixels_HWC, cropper)
        if num_frames != row.num_frames:
            raise DecodeError(
                f"{source} gives {num_frames} frames now, the cache has {row.num_frames}; is it the same file?"
            )
        return gatherer.take()[[places[number] for number in frames.tolist()]]

    def encode(self, frames_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """Tokens of frames [B,3,S,S], per layer, float32."""
        return self.encoder.encode(frames_BCHW)


def encoder_of(
    spec: EncoderSpec,
    request: Mapping[str, Any] | None,
    *,
    layers: Sequence[str],
    device: torch.device,
    weights: Path | None,
    made: str,
) -> FrozenEncoder:
    """The encoder of a recipe, with the weights that the recipe was recorded with.

    Args:
        spec: the encoder's part of the recipe.
        request: what was asked for when it was first built, as a cache's provenance has it; None where that is not
            known: then it is the model of that name with the weights of timm's hub.
        layers: which to compute.
        device: where.
        weights: its weights file; None: the source used then.
        made: what was made with it, for messages.

    Raises:
        CacheMismatchError: when the weights found are not those. EncoderError: when there are none.
    """
    asked = dict(request or {"name": spec.name, "weights": None, "batch_size": 32, "seed": 0})
    recorded = Path(asked["weights"]) if asked["weights"] else None
    if weights is None and recorded is not None and not recorded.exists():
        raise EncoderError(f"{made} was made with the weights {recorded}, which are not there; give --weights FILE")
    load = partial(
        load_encoder,
        asked["name"],
        layers=tuple(layers),
        image_size=spec.image_size,
        weights=weights or recorded,
        random_weights=spec.random_weights and weights is None,
        seed=asked["seed"],
        device=device,
        autocast=spec.autocast,
        batch_size=asked["batch_size"],
        crop_fraction=spec.crop_fraction,
        interpolation=spec.interpolation,
    )
    encoder = _with_weights(spec.weights_sha256, asked.get("weights_key"), load, other_file=bool(weights))
    if encoder.weights_sha256 != spec.weights_sha256:
        raise CacheMismatchError(
            f"the weights of {asked['name']} loaded now are not those that {made} was made with "
            f"({encoder.weights_sha256[:12]}…, then {spec.weights_sha256[:12]}…); give the right --weights"
        )
    return encoder


def _with_weights(
    sha256: str, weights_key: str | None, load: Callable[..., FrozenEncoder], *, other_file: bool
) -> FrozenEncoder:
    """The encoder with the weights of this digest, of the several that its file may hold; any other where none has it.

    Args:
        sha256: of the weights.
        weights_key: recorded with the cache; caches of before it was there were made with averages left aside.
        load: builds the encoder with a `weights_key`.
        other_file: the file is not the recorded one, and need not have that key.

    Raises:
        UsageError: the recorded file has no such key.
    """
    try:
        encoder = load(weights_key=weights_key)
    except UsageError:
        if weights_key is None or not other_file:
            raise
        encoder = load()
    for other in encoder.weights_others:
        if encoder.weights_sha256 == sha256:
            break
        encoder = load(weights_key=other)
    return encoder
