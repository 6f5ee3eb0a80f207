"""Which layers a timm model has, and how their tokens are read from one forward pass.

Any timm model with `forward_intermediates` serves, in one of two ways:

- **ViT** (the model tells prefix from patch tokens): layers are blocks, "0" to "depth-1", each passed through the
  model's own final norm, where it has one; prefix tokens (CLS, registers) and patch tokens (the grid, row by row) come
  apart. "final" is the last block.
- **CNN** (everything else, Swin and ConvNeXt included): layers are timm's feature stages, un-normed, whose cells row by
  row are the patch tokens; no prefix. "final" is `forward_features`: the last convolution or norm has been passed.

A ViT that has its final norm behind the pooling (`fc_norm`: BEiT, EVA-02) gets that norm on every token.

What a model lacks is found by asking it, when it is loaded: the README of this folder has what came of that for every
family of timm. An exception inside a model becomes one line that names encoder, layers and reason.

Shapes: B frames, N patch tokens, P prefix tokens, D channels, S the side of the square input, H x W cells of a stage.
"""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vfz.pipeline.encoder.checkpoint import first_line
from vfz.pipeline.errors import EncoderError, UsageError, VfzError
from vfz.pipeline.recipe import counted_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


LAYERS_VERSION = 1
"""Part of every recipe: raise it when the tokens of a layer come out otherwise."""

FINAL = "final"
OTHERS_WORK = "choose another encoder, such as vit_small_patch16_dinov3, convnext_tiny or resnet50"


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Tokens of one layer for one frame: `num_prefix` + `num_patches` vectors of `dim` channels."""

    num_prefix: int
    num_patches: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """Tokens of one layer: float32 `patch_BND`, and `prefix_BPD` where the layer has prefix tokens."""

    patch_BND: torch.Tensor
    prefix_BPD: torch.Tensor | None

    @property
    def shape(self) -> LayerShape:
        """Shape of one frame's tokens."""
        num_prefix = 0 if self.prefix_BPD is None else self.prefix_BPD.shape[1]
        return LayerShape(num_prefix=num_prefix, num_patches=self.patch_BND.shape[1], dim=self.patch_BND.shape[2])


class LayerReader(ABC):
    """Reads the tokens of chosen layers; made by `make_reader`.

    Attributes:
        layers: names of the layers, in the order asked for; the last one where none are.
        indices: timm's index of each.
        more_layers: which to ask for where one is not enough, in words.
    """

    more_layers: str

    def __init__(self, model: nn.Module, *, name: str, layers: Sequence[str] | None, num_layers: int) -> None:
        # timm's models carry no types: Any.
        self._model: Any = model
        known = list(map(str, range(num_layers)))
        chosen = tuple(known[-1:]) if layers is None else counted_layers(layers, known)
        self.layers = _check_layers(chosen, num_layers=num_layers, name=name)
        self.indices = [num_layers - 1 if layer == FINAL else int(layer) for layer in self.layers]

    @abstractmethod
    def read(self, images_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """float32 tokens per layer of normalised float32 images [B, 3, S, S]."""


class VitReader(LayerReader):
    """Blocks of a ViT with its final norm."""

    def __init__(self, model: nn.Module, *, name: str, layers: Sequence[str] | None, num_layers: int) -> None:
        super().__init__(model, name=name, layers=layers, num_layers=num_layers)
        # depth * {1/4, 1/2, 3/4, 1} - 1, the four of the RVM paper; fewer where the model has fewer blocks
        quarters = (max(num_layers * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4))
        self.more_layers = f"{','.join(dict.fromkeys(map(str, quarters)))} (as the paper: each quarter's last)"
        norm, behind_pooling = (getattr(model, norm, None) for norm in ("norm", "fc_norm"))
        if isinstance(norm, nn.Identity) and isinstance(behind_pooling, nn.LayerNorm):
            self._model.norm = behind_pooling

    def read(self, images_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """See `LayerReader.read`."""
        indices = sorted(set(self.indices))
        has_prefix = self._model.num_prefix_tokens > 0
        blocks = self._model.forward_intermediates(
            images_BCHW,
            indices=indices,
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=has_prefix,  # some families fail when asked for prefix tokens they do not have
        )
        by_index = {}
        for index, block in zip(indices, blocks, strict=True):
            patch_BND, prefix_BPD = (block[0].float(), block[1].float()) if has_prefix else (block.float(), None)
            by_index[index] = LayerTokens(patch_BND=patch_BND, prefix_BPD=prefix_BPD)
        return {layer: by_index[index] for layer, index in zip(self.layers, self.indices, strict=True)}


class CnnReader(LayerReader):
    """Feature stages as maps of cells."""

    def __init__(self, model: nn.Module, *, name: str, layers: Sequence[str] | None, num_layers: int) -> None:
        super().__init__(model, name=name, layers=layers, num_layers=num_layers)
        self.more_layers = f"{','.join(map(str, range(num_layers)))} (its stages)"

    def read(self, images_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """See `LayerReader.read`."""
        indices = sorted(set(self.indices))
        with_final = FINAL in self.layers
        found = self._model.forward_intermediates(
            images_BCHW, indices=indices, stop_early=not with_final, intermediates_only=not with_final
        )
        final_BCHW, stages = found if with_final else (None, found)
        maps = {str(index): stage_BCHW for index, stage_BCHW in zip(indices, stages, strict=True)}
        if final_BCHW is not None:
            # Swin and its kin end in NHWC, and say so.
            is_nhwc = getattr(self._model, "output_fmt", "NCHW") == "NHWC"
            maps[FINAL] = final_BCHW.permute(0, 3, 1, 2) if is_nhwc else final_BCHW
        return {
            layer: LayerTokens(patch_BND=maps[layer].flatten(2).transpose(1, 2).float(), prefix_BPD=None)
            for layer in self.layers
        }

    def check_final(self, images_BCHW: torch.Tensor, *, name: str, num_layers: int) -> None:
        """Refuse `final` where a family's features are no map, or its two ways of giving them disagree.

        Raises:
            UsageError: this model has no layer `final`.
        """
        features = self._model.forward_features(images_BCHW)
        final, _ = self._model.forward_intermediates(images_BCHW, indices=self.indices)
        stages = f"give its stages, 0 to {num_layers - 1}, not {FINAL!r}, as layers"
        if not isinstance(features, torch.Tensor) or features.ndim != 4:
            raise UsageError(f"the final features of {name} are {_described(features)} and no map of cells; {stages}")
        same = isinstance(final, torch.Tensor) and features.shape == final.shape
        # without numbers (`describe_encoder`) shapes must do
        if not same or not (features.is_meta or torch.allclose(features, final, atol=1e-5, equal_nan=True)):
            raise UsageError(
                f"{name} gives two kinds of final features, by forward_features and by forward_intermediates; {stages}"
            )


@torch.no_grad()
def make_reader(
    model: nn.Module, images_BCHW: torch.Tensor, *, name: str, layers: Sequence[str] | None
) -> tuple[LayerReader, dict[str, LayerShape]]:
    """The reader for a model and these layers, tried out on a few images.

    Args:
        model: in eval mode, on its device.
        images_BCHW: normalised images [B, 3, S, S] of the size it will be given.
        name: of the model, for messages.
        layers: names; None for the last one.

    Returns:
        the reader, and the shape of every layer it reads.

    Raises:
        UsageError: the model gives no intermediate features, cannot take this image size, or lacks a layer.
        EncoderError: the model fails on images of its own size.
    """
    untyped: Any = model
    if not hasattr(model, "forward_intermediates"):
        raise UsageError(f"{name} gives no intermediate features (timm's forward_intermediates); {OTHERS_WORK}")
    size = images_BCHW.shape[-1]
    _, *own_sides = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, None)
    if size in own_sides:
        tried = failures_named(f"{name} fails on images of its own size, {size} px", advice=OTHERS_WORK)
    else:
        tried = failures_named(
            f"{name} cannot take images of {size} px",
            advice="give another --image-size, or leave it out for the model's own",
            kind=UsageError,
        )
    with tried:
        stages = untyped.forward_intermediates(images_BCHW, indices=None, intermediates_only=True)
    is_vit = "return_prefix_tokens" in inspect.signature(untyped.forward_intermediates).parameters
    for number, stage in enumerate(stages if isinstance(stages, list | tuple) else [stages]):
        if not isinstance(stage, torch.Tensor) or stage.ndim != 4:
            raise UsageError(f"layer {number} of {name} is {_described(stage)} and no map of cells; {OTHERS_WORK}")
    kind = VitReader if is_vit else CnnReader
    what = "its last layer" if layers is None else f"layers {', '.join(layers)}"
    with failures_named(f"{name} fails to give {what}", advice=OTHERS_WORK):
        reader = kind(model, name=name, layers=layers, num_layers=len(stages))
        if isinstance(reader, CnnReader) and FINAL in reader.layers:
            reader.check_final(images_BCHW, name=name, num_layers=len(stages))
        return reader, {layer: tokens.shape for layer, tokens in reader.read(images_BCHW).items()}


@contextlib.contextmanager
def failures_named(what: str, *, advice: str, kind: type[VfzError] = EncoderError) -> Iterator[None]:
    """Whatever goes wrong inside a model as one line, but for too little memory on a GPU, which is mended elsewhere.

    Args:
        what: the beginning of the line.
        advice: its end.
        kind: of the error.
    """
    try:
        yield
    except (VfzError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason, fault = first_line(error), type(error).__name__
        raise kind(f"{what} ({reason if reason == fault else f'{fault}: {reason}'}); {advice}") from error


def _described(features: object) -> str:
    """What a model gave, in a few words."""
    if isinstance(features, torch.Tensor):
        return f"a tensor of {features.ndim} dimensions"
    if isinstance(features, dict):
        return f"a dict ({', '.join(map(str, features))})"
    if isinstance(features, list | tuple):
        return f"a {type(features).__name__} of {len(features)}"
    return f"a {type(features).__name__}"


def _check_layers(layers: tuple[str, ...], *, num_layers: int, name: str) -> tuple[str, ...]:
    """The layers, if the model has them all and each is named once."""
    allowed = {*(str(index) for index in range(num_layers)), FINAL}
    for layer in layers:
        if layer not in allowed:
            raise UsageError(f"{name} has no layer {layer!r}; it has 0 to {num_layers - 1}, and {FINAL!r}")
    if not layers or len(set(layers)) != len(layers):
        raise UsageError(f"layers {', '.join(layers) or '(none)'}: give at least one, and each once")
    return layers
