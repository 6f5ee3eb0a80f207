"""Checkpoint files: the tensors in them, under the names a model without a classifier head expects.

Nothing in a file is executed: safetensors holds no code, and pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from vfz.pipeline.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CHECKPOINT_KEYS = ("state_dict", "model", "model_state_dict")
COMMON_PREFIXES = ("module.", "model.", "backbone.")
HEAD_PREFIXES = ("head.", "classifier.", "fc.", "head_dist.")
StateDict = dict[str, torch.Tensor]


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a checkpoint file by name, un-nested; nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        elif path.suffix in (".pth", ".pt", ".bin"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise UsageError(f"weights {path}: give a .safetensors file, or a .pth, .pt or .bin file")
    except FileNotFoundError as error:
        raise EncoderError(f"weights {path}: there is no such file") from error
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"weights {path}: holds more than tensors, or is no checkpoint, and vfz runs no code from files; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise EncoderError(f"weights {path}: cannot be read ({first_line(error)})") from error
    for key in CHECKPOINT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        raise EncoderError(
            f"weights {path}: holds no tensors by name, neither bare nor under one of {', '.join(CHECKPOINT_KEYS)}"
        )
    return content


def without_head(state: StateDict, expected: set[str]) -> StateDict:
    """`state` without a prefix that all its keys share, and without the tensors of a classifier head."""
    while state and not expected & state.keys():
        body = [key for key in state if not key.startswith(HEAD_PREFIXES)]
        prefix = next((p for p in COMMON_PREFIXES if body and all(key.startswith(p) for key in body)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    # A few families keep tensors they need below `head.` (ConvNeXt's last norm): those are expected, and stay.
    return {key: tensor for key, tensor in state.items() if key in expected or not key.startswith(HEAD_PREFIXES)}


def describe_mismatch(error: Exception) -> str:
    """Torch's long error about keys as one clause: how many tensors differ, and the first ones of each kind."""
    text = str(error)
    clauses = []
    for kind in ("Missing", "Unexpected"):
        found = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. *(?:\n|$)", text)
        if found:
            keys = re.findall(r'"([^"]+)"', found.group(1))
            clauses.append(f"{kind.lower()} {_count_and_name(keys)}")
    if sizes := re.findall(r"size mismatch for (\S+): ", text):
        clauses.append(f"of another shape {_count_and_name(sizes)}")
    return ", ".join(clauses) or f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _count_and_name(keys: Iterable[str]) -> str:
    names = list(keys)
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
