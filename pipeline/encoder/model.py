"""A frozen timm encoder: uint8 frames in, float32 tokens out.

`load_encoder` turns a name into a `FrozenEncoder`; `vfz.pipeline.encoder.layers` says what a layer is, and
`vfz.pipeline.encoder.weights` where weights come from.

Shapes: B frames, N patch tokens, P prefix tokens, D channels, S the side of the square input in pixels.
Cost: one forward pass up to the last layer asked for. Loading runs the model on one frame to learn its shapes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from timm.models import PretrainedCfg

from vfz.pipeline.devices import choose_device
from vfz.pipeline.encoder.layers import LayerTokens, failures_named, make_reader
from vfz.pipeline.encoder.names import DEMO_ALIAS, check_encoder_name
from vfz.pipeline.encoder.transforms import Preprocess
from vfz.pipeline.encoder.weights import (
    DEMO_TIMM_NAME,
    LoadedModel,
    build_demo,
    build_from_file,
    build_from_hub,
    build_random,
    input_options,
    state_digest,
)
from vfz.pipeline.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfz.pipeline.encoder.transforms import Interpolation

AUTOCAST_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_encoder(
    name: str,
    *,
    layers: Sequence[str] | None = None,
    image_size: int | None = None,
    weights: Path | None = None,
    weights_key: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    autocast: str = "float32",
    batch_size: int = 32,
    channels_last: bool = False,
    compile_model: bool = False,
    crop_fraction: float = 1.0,
    interpolation: str | None = None,
) -> FrozenEncoder:
    """Build and load a frozen encoder.

    Weights come from `weights`, else from `seed` with `random_weights`, else from the demo package for `demo`, else
    from timm's hub. Input size, filter, mean and std are the model's own as timm's data config says. The crop fraction
    is not: the whole short side is kept (as in the paper), where timm's classification recipes cut the border off.

    Args:
        name: a timm model name, with or without a pretrained tag, or `demo`.
        layers: see `vfz.pipeline.encoder.layers`; None means the last block of a ViT, the last stage of a CNN.
        image_size: side of the input in pixels, if not the model's own; position embeddings are resampled.
        weights: a .safetensors file, or one that torch.save wrote.
        weights_key: which dict of tensors in it, or which of its models; see `vfz.pipeline.encoder.checkpoint`.
        random_weights: seeded noise, for tests.
        seed: of the random weights.
        device: a torch device.
        autocast: `float32` (none), `bfloat16` or `float16`.
        batch_size: frames per forward pass.
        channels_last: keep channels last in memory; changes tokens by rounding only.
        compile_model: `torch.compile` it; likewise.
        crop_fraction: part of the short side that is kept.
        interpolation: `bilinear` or `bicubic`, if not the model's own.

    Raises:
        UnknownNameError: timm has no such model, or no such pretrained tag of it.
        UsageError: a layer, image size or option that this model does not have.
        EncoderError: the weights cannot be had, or are not this model's.
    """
    if autocast not in AUTOCAST_DTYPES:
        raise UsageError(f"autocast {autocast!r} is not offered; give one of {', '.join(AUTOCAST_DTYPES)}")
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not a number of frames; give 1 or more")
    timm_name = timm_name_of(name)
    check_encoder_name(timm_name)
    own_size, preprocess = model_preprocess(timm_name, image_size, crop_fraction, interpolation)
    # Left out at the model's own size, so that this is the very model timm builds.
    options = {} if preprocess.image_size == own_size else input_options(timm_name, preprocess.image_size)
    loaded = _load_weights(
        name, weights=weights, weights_key=weights_key, random_weights=random_weights, seed=seed, options=options
    )
    return FrozenEncoder(
        loaded,
        name=timm_name,
        layers=layers,
        preprocess=preprocess,
        device=device,
        autocast=autocast,
        batch_size=batch_size,
        channels_last=channels_last,
        compile_model=compile_model,
    )


class FrozenEncoder:
    """A timm model in eval mode without gradients; made by `load_encoder`. On a GPU it turns TF32 off in the process.

    Attributes:
        name: timm model name.
        layers: the layers that `encode` gives, in the order asked for.
        more_layers: which to ask for where one is not enough, in words: the paper's four of a ViT, all stages of a CNN.
        shapes: the shape of each of them.
        preprocess: the input the model is given; frames must be `preprocess.image_size` square.
        weights_sha256, weights_source, random_weights, license: identity and origin of the weights.
        weights_note: which tensors of a file were taken and which not; None where there is no question.
        weights_others: what else the file holds that fits, as `weights_key` takes it.
        device, autocast_dtype: where and in what it computes; float32 means no autocast.
        batch_size: frames per forward pass, always exactly this many; halved when they are too many for the device.
        is_compiled: the model is compiled by `torch.compile`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        name: str,
        layers: Sequence[str] | None,
        preprocess: Preprocess,
        device: str | torch.device,
        autocast: str,
        batch_size: int,
        channels_last: bool = False,
        compile_model: bool = False,
    ) -> None:
        self.name = name
        self.preprocess = preprocess
        self.weights_sha256 = state_digest(loaded.model)
        self.weights_source, self.weights_note, self.weights_others = loaded.source, loaded.note, loaded.others
        self.random_weights = loaded.random_weights
        self.license = loaded.license
        self.device = torch.device(device)
        if self.device.type == "cuda":
            _allow_no_tf32()
        self.autocast_dtype = AUTOCAST_DTYPES[autocast]
        self.batch_size = batch_size
        self.is_compiled = compile_model
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._model = loaded.model.eval().requires_grad_(requires_grad=False)
        untyped: Any = self._model
        try:
            untyped.to(self.device).to(memory_format=self._memory_format)
            self._read_layers(layers)
        except torch.OutOfMemoryError as error:
            raise self._too_large() from error
        if compile_model:  # the method that is called, not `forward`; and not for the one frame that was just tried out
            untyped.forward_intermediates = torch.compile(untyped.forward_intermediates)

    def with_layers(self, layers: Sequence[str]) -> FrozenEncoder:
        """The same encoder with the same weights, giving these layers.

        Raises:
            UsageError: for a layer it does not have.
        """
        if tuple(layers) == self.layers:
            return self
        other = copy.copy(self)
        other._read_layers(layers)  # noqa: SLF001 - of its own class
        return other

    def _read_layers(self, layers: Sequence[str] | None) -> None:
        size = self.preprocess.image_size
        probe_BCHW = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        images_BCHW = self.preprocess.normalise(probe_BCHW.to(self.device))
        self._reader, self.shapes = make_reader(self._model, images_BCHW, name=self.name, layers=layers)
        self.layers, self.more_layers = self._reader.layers, self._reader.more_layers
        for layer, tokens in self._forward(probe_BCHW.to(self.device)).items():
            if not all(part.isfinite().all() for part in (tokens.patch_BND, tokens.prefix_BPD) if part is not None):
                raise EncoderError(f"layer {layer} of {self.name} gives numbers that are NaN or infinite{self._why()}")

    def _why(self) -> str:
        """Where they come from, as far as that is known, and what to do."""
        broken = [name for name, weight in self._model.named_parameters() if not weight.isfinite().all()]
        if broken:
            return f": its weights are, in {len(broken)} tensors ({broken[0]}, …); give others"
        if self.autocast_dtype != torch.float32:
            half = self.autocast_dtype == torch.float16
            return f" in {'float16' if half else 'bfloat16'}; give --autocast {'bfloat16 or ' if half else ''}float32"
        return " for a black frame; leave this layer out, or look at the weights"

    def encode(self, frames_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """Tokens of every layer in `layers`.

        The model always runs on exactly `batch_size` frames: more are split, and a last batch that is too short is
        filled by repeating its last frame. Matrix kernels choose their blocking by the size of the batch, so without
        this a frame's tokens would differ in their last bits with the number of frames that happen to be beside it,
        and the same video would give other bytes in another shard.

        Where the device has too little memory, `batch_size` is halved, for good.

        Args:
            frames_BCHW: uint8 [B, 3, S, S] on any device, as `Preprocess.resize_crop` makes them; B may be 0.

        Returns:
            per layer float32 tokens on `device`, constants for autograd.

        Raises:
            UsageError: frames of another dtype or shape.
            EncoderError: too little memory for a single frame.
        """
        size = self.preprocess.image_size
        if frames_BCHW.dtype != torch.uint8 or tuple(frames_BCHW.shape[1:]) != (3, size, size):
            raise UsageError(
                f"frames are {frames_BCHW.dtype} {list(frames_BCHW.shape)}, {self.name} takes torch.uint8 "
                f"[B, 3, {size}, {size}]; crop them with its `preprocess.resize_crop`"
            )
        while True:
            try:
                starts = range(0, len(frames_BCHW), self.batch_size)
                batches = [self._encode_batch(frames_BCHW[start : start + self.batch_size]) for start in starts]
                return {layer: self._join(layer, [batch[layer] for batch in batches]) for layer in self.layers}
            except torch.OutOfMemoryError as error:
                self._halve_batch(error)

    def _halve_batch(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size == 1:
            raise self._too_large() from error
        self.batch_size //= 2
        torch.cuda.empty_cache()

    def _too_large(self) -> EncoderError:
        return EncoderError(
            f"{self.device} has too little memory for {self.name} on a single frame; free some, or take another "
            "--device or a smaller --image-size"
        )

    def _encode_batch(self, frames_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """Tokens of at most `batch_size` frames, padded to it and cut back."""
        count = len(frames_BCHW)
        frames_BCHW = frames_BCHW.to(self.device, non_blocking=True)
        if count < self.batch_size:
            padding_BCHW = frames_BCHW[-1:].expand(self.batch_size - count, -1, -1, -1)
            frames_BCHW = torch.cat([frames_BCHW, padding_BCHW])
        tokens = self._forward(frames_BCHW)
        return {
            layer: LayerTokens(
                patch_BND=found.patch_BND[:count],
                prefix_BPD=None if found.prefix_BPD is None else found.prefix_BPD[:count],
            )
            for layer, found in tokens.items()
        }

    def _join(self, layer: str, batches: list[LayerTokens]) -> LayerTokens:
        """The batches of one layer as one, each tensor contiguous; an empty one where there are none."""
        if len(batches) == 1:
            patch_BND, prefix_BPD = batches[0].patch_BND, batches[0].prefix_BPD
            return LayerTokens(
                patch_BND=patch_BND.contiguous(), prefix_BPD=None if prefix_BPD is None else prefix_BPD.contiguous()
            )
        shape = self.shapes[layer]
        empty_0ND = torch.empty(0, shape.num_patches, shape.dim, device=self.device)
        empty_0PD = torch.empty(0, shape.num_prefix, shape.dim, device=self.device)
        prefixes = [batch.prefix_BPD for batch in batches if batch.prefix_BPD is not None]
        return LayerTokens(
            patch_BND=torch.cat([empty_0ND, *(batch.patch_BND for batch in batches)]),
            prefix_BPD=torch.cat([empty_0PD, *prefixes]) if shape.num_prefix else None,
        )

    # no_grad and not inference_mode: the tokens may be inputs of a module that is trained.
    @torch.no_grad()
    def _forward(self, frames_BCHW: torch.Tensor) -> dict[str, LayerTokens]:
        """One forward pass over exactly these frames, on the device."""
        images_BCHW = self.preprocess.normalise(frames_BCHW).contiguous(memory_format=self._memory_format)
        # Entered for float32 too: it shuts out an autocast around the caller, whose tokens would be others.
        with (
            torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype != torch.float32),
            failures_named(
                f"{self.name} fails to give layers {', '.join(self.layers)} on {self.device}",
                advice="vfz -vv tells where; try another --device or --autocast, or choose another encoder",
            ),
        ):
            return self._reader.read(images_BCHW)


@dataclass(frozen=True, kw_only=True)
class EncoderRequest:
    """The arguments of `load_encoder` as a record that may be pickled, so that any process can build the same encoder.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; chosen by the process that does the work.
    """

    name: str
    layers: tuple[str, ...] | None = None
    image_size: int | None = None
    weights: Path | None = None
    weights_key: str | None = None
    random_weights: bool = False
    seed: int = 0
    device: str = "auto"
    autocast: str = "float32"
    batch_size: int = 32
    channels_last: bool = False
    compile: bool = False

    def load(self) -> FrozenEncoder:
        """Builds the encoder; see `load_encoder` for what is raised."""
        return load_encoder(
            self.name,
            layers=self.layers,
            image_size=self.image_size,
            weights=self.weights,
            weights_key=self.weights_key,
            random_weights=self.random_weights,
            seed=self.seed,
            device=choose_device(self.device),
            autocast=self.autocast,
            batch_size=self.batch_size,
            channels_last=self.channels_last,
            compile_model=self.compile,
        )


def _load_weights(
    name: str,
    *,
    weights: Path | None,
    weights_key: str | None,
    random_weights: bool,
    seed: int,
    options: dict[str, Any],
) -> LoadedModel:
    """The model with its weights, from the first source that applies; see `load_encoder`."""
    if weights is not None and random_weights:
        raise UsageError("--weights and --random-weights contradict each other; give one of them")
    if weights is None and weights_key is not None:
        raise UsageError(f"--weights-key {weights_key} says which tensors of a file; give --weights FILE too")
    timm_name = timm_name_of(name)
    if weights is not None:
        return build_from_file(timm_name, weights, model_options=options, weights_key=weights_key)
    if random_weights:
        return build_random(timm_name, seed=seed, model_options=options)
    if name == DEMO_ALIAS:
        return build_demo(model_options=options)
    return build_from_hub(timm_name, model_options=options)


def timm_name_of(name: str) -> str:
    """What timm calls an encoder; `demo` is a name of ours."""
    return DEMO_TIMM_NAME if name == DEMO_ALIAS else name


def model_preprocess(
    timm_name: str, image_size: int | None, crop_fraction: float, interpolation: str | None
) -> tuple[int | None, Preprocess]:
    """The model's own image size (None where that is no square), and its preprocessing with what is overridden."""
    config = timm.get_pretrained_cfg(timm_name) or PretrainedCfg()
    _, height, width = config.input_size
    own_size = height if height == width else None
    size = image_size if image_size is not None else own_size
    if size is None:
        raise UsageError(f"{timm_name} takes {height} x {width} pixels and vfz squares; give --image-size")
    preprocess = Preprocess(
        image_size=size,
        crop_fraction=crop_fraction,
        # Preprocess refuses a filter that is not one of its own.
        interpolation=cast("Interpolation", interpolation or config.interpolation),
        mean=cast("tuple[float, float, float]", tuple(config.mean)),
        std=cast("tuple[float, float, float]", tuple(config.std)),
    )
    return own_size, preprocess


def _allow_no_tf32() -> None:
    """Float32 is float32 in this process from now on.

    TF32, which keeps three digits, is allowed by torch to convolutions on a GPU unasked, and by callers to matrix
    products. The switches are the process's, not a thread's: set and reset around every pass, they would change under
    a training that runs beside it.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
