"""What tokens an encoder gives, found out without weights: on torch's `meta` device, where tensors have no numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vfz.pipeline.encoder.layers import LayerShape, make_reader
from vfz.pipeline.encoder.model import model_preprocess, timm_name_of
from vfz.pipeline.encoder.names import check_encoder_name
from vfz.pipeline.encoder.weights import build_random, input_options
from vfz.pipeline.errors import EncoderError, UsageError


def describe_encoder(
    name: str, *, layers: Sequence[str] | None = None, image_size: int | None = None
) -> tuple[int, dict[str, LayerShape]]:
    """Image size and tokens of an encoder, layer by layer, without its weights: a second, and next to no memory.

    Raises:
        UnknownNameError, UsageError: as `load_encoder`. EncoderError: a model that gives no usable tokens.
    """
    timm_name = timm_name_of(name)
    check_encoder_name(timm_name)
    own_size, preprocess = model_preprocess(timm_name, image_size, 1.0, None)
    size = preprocess.image_size

    def shapes(device: str) -> dict[str, LayerShape]:
        with torch.device(device):
            options = {} if size == own_size else input_options(timm_name, size)
            model = build_random(timm_name, seed=0, model_options=options).model.eval()
            return make_reader(model, torch.zeros(1, 3, size, size), name=timm_name, layers=layers)[1]

    try:
        return size, shapes("meta")
    except (UsageError, EncoderError):  # there are models that need numbers; those that have none say so again
        return size, shapes("cpu")
