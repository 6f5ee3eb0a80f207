"""Checkpoint files: which of the tensors in them are an encoder's, and under which names.

Nothing in a file is executed: safetensors holds no code, and pickles are read with `weights_only=True`.

A file may hold several dicts of tensors (`state_dict` and its moving average `state_dict_ema`), and a dict several
models (`teacher.` and `student.`) or more than the encoder (`backbone.` beside a detector's head). In each case:

- of dicts with the names that timm's loader knows, the first in its order is taken: the average where there is one;
- of any others, the one that fits the encoder;
- within it, the encoder is what lies below the prefix under which most of its tensors are found.

Where two fit alike, nothing is guessed: `--weights-key` says which. What was chosen, stripped and left out is told.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from vfz.pipeline.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet
    from pathlib import Path

AVERAGED_KEYS = ("state_dict_ema", "model_ema")
CHECKPOINT_KEYS = (*AVERAGED_KEYS, "state_dict", "model", "model_state_dict")
"""Names of dicts of weights, in the order they are preferred: timm's, then one more."""
COMMON_PREFIXES = ("module.", "model.", "backbone.")
"""Stripped where all names share one, of checkpoints in a form that only timm's conversions know."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, anywhere."""
HEAD_PREFIXES = ("head.", "classifier.", "fc.", "head_dist.")
MAX_DEPTH = 4
"""How deep a dict of tensors may lie in a file."""
FITS, RIVALS = 0.5, 0.9
"""A prefix is the encoder's where it has half of its tensors; another with nine in ten of as many is a rival."""
LONGEST_NAME = 100
"""Characters of a name that are shown."""
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
"""The usual ones; what is in a file decides, and any other is read too, but for those that are known not to be."""
OTHER_FORMATS = {".npz", ".npy", ".h5", ".hdf5", ".msgpack", ".onnx", ".gguf", ".tflite", ".pb"}
StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """The tensors of a file that are an encoder's.

    Attributes:
        state: by the names that the model has, as far as the file uses them.
        choice: name of the dict taken, and of the model in it where it was asked for; empty where the file is one dict.
        others: dicts of the file that would have fitted too, as `--weights-key` takes them.
        note: what was chosen, stripped and left out, in one sentence; None where there is nothing to tell.
    """

    state: StateDict
    choice: str
    others: tuple[str, ...]
    note: str | None


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a file that holds one dict of them, or the dict that is preferred; their names as in the file.

    Raises:
        UsageError: no file of weights. EncoderError: it cannot be read, or holds no tensors.
    """
    dicts = read_dicts(path)
    return dicts[min(dicts, key=_preference)]


def read_dicts(path: Path) -> dict[str, StateDict]:
    """Every dict of tensors in a checkpoint file, by its path in the file (`model.state_dict`); "" for a bare one.

    Raises:
        UsageError: not the name of a file of weights. EncoderError: it cannot be read, or holds no tensors.
    """
    content = _read(path)
    dicts = dict(_dicts_in(content, ""))
    if not dicts:
        found = ", ".join(_short(str(key)) for key in list(content)[:5]) if isinstance(content, Mapping) else ""
        what = f"holds {found}" if found else "is empty" if isinstance(content, Mapping) else "holds no dict"
        raise EncoderError(
            f"weights {path}: {what}; there are no tensors by name in it, neither bare nor under a name such as "
            f"{', '.join(CHECKPOINT_KEYS[2:])}; save the model's state dict"
        )
    return dicts


def encoder_weights(
    dicts: Mapping[str, StateDict],
    expected: AbstractSet[str],
    *,
    heads: AbstractSet[str],
    weights_key: str | None,
    label: str,
) -> EncoderWeights:
    """Of the tensors of a file, those of one encoder.

    Args:
        dicts: as `read_dicts` gives them.
        expected: names of the encoder's tensors.
        heads: names of tensors that its classifier has besides.
        weights_key: which dict, or which model in it; None for the rule above.
        label: of the file, for messages.

    Raises:
        UsageError: `weights_key` names nothing. EncoderError: several fit, and none was named.
    """
    as_saved, dicts = dicts, {name: _without_wrappers(state, expected) for name, state in dicts.items()}
    fitting = [name for name, state in dicts.items() if _best_prefixes(state, expected)]
    name, inner = _choose(dicts, fitting, weights_key, label)
    prefix = _prefix(dicts[name], expected, inner, where=f"{label} ({name})" if name else label)
    below = {key.removeprefix(prefix): tensor for key, tensor in dicts[name].items() if key.startswith(prefix)}
    state = without_head(below, expected, heads)
    others = tuple(sorted((other for other in fitting if other != name), key=_preference))
    stripped = _stripped(dicts[name], as_saved[name], prefix)
    left_out = [key for key in dicts[name] if not key.startswith(prefix)]
    return EncoderWeights(
        state=state,
        choice=".".join(filter(None, (name, inner))),
        others=others,
        note=_note(name, others, stripped, left_out, was_asked=weights_key is not None),
    )


def without_head(state: StateDict, expected: AbstractSet[str], heads: AbstractSet[str] = frozenset()) -> StateDict:
    """`state` without a prefix that all its keys share, and without the tensors of a classifier head."""
    while state and not expected & state.keys():
        body = [key for key in state if not key.startswith(HEAD_PREFIXES)]
        prefix = next((p for p in COMMON_PREFIXES if body and all(key.startswith(p) for key in body)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    # A few families keep tensors they need below `head.` (ConvNeXt's last norm): those are expected, and stay.
    return {
        key: tensor
        for key, tensor in state.items()
        if key in expected or not (key in heads or key.startswith(HEAD_PREFIXES))
    }


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


def _read(path: Path) -> Any:
    """What a file of weights holds; its first bytes, not its name, say of which kind it is."""
    start = _first_bytes(path)
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # timm's own `args`
            warnings.simplefilter("ignore")  # says of a TorchScript archive that it is one, as the error then does
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"weights {path}: holds more than tensors{_foreign_classes(path)}, or is no checkpoint, and vfz runs no "
            "code from files; save its state dict alone, best as .safetensors"
        ) from error
    # Damaged bytes make unpicklers raise whatever they like.
    except Exception as error:
        reason = "TorchScript" if "TorchScript" in str(error) else f"damaged or not complete: {first_line(error)}"
        raise EncoderError(
            f"weights {path}: cannot be read ({reason}); download it again, or save the model's state dict"
        ) from error


def _first_bytes(path: Path) -> bytes:
    """Of a file that may hold weights.

    Raises:
        UsageError: what is named is no such file. EncoderError: it is not there, or is plainly something else.
    """
    wanted = f"a {', '.join(FILE_ENDINGS[:-1])} or {FILE_ENDINGS[-1]} file"
    if re.match(r"[a-z][a-z0-9+.-]+:", str(path)) and not path.exists():
        address = re.sub(r":/(?!/)", "://", str(path), count=1)  # a path has lost the second one
        raise UsageError(f"weights {address} is an address, and vfz reads files; download it and give the file")
    if path.suffix in OTHER_FORMATS:
        raise UsageError(f"weights {path}: {path.suffix} is not read; give {wanted}")
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in FILE_ENDINGS)
        inside = f"one of those in it: {', '.join(files[:3])}" if files else wanted
        raise UsageError(f"weights {path} is a folder; give {inside}")
    if path.exists() and not path.is_file():
        raise UsageError(f"weights {path} is no file; give {wanted}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        where = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "there is no such file"
        raise EncoderError(f"weights {path}: {where}") from error
    except OSError as error:
        raise EncoderError(f"weights {path}: cannot be opened ({error.strerror})") from error
    kinds = {b"": "the file is empty; download or save it again", b"<": "a web page; download the file itself"}
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(f"weights {path}: a pointer of Git LFS, not the file itself; run git lfs pull")
    if (kind := kinds.get(start.lstrip()[:1])) is not None:
        raise EncoderError(f"weights {path}: {kind}")
    return start


def _foreign_classes(path: Path) -> str:
    """What a pickle holds besides tensors, in brackets; empty where that cannot be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # noqa: BLE001 - of a file that is none; the message does without
        return ""
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""


def _dicts_in(content: Any, where: str, above: tuple[int, ...] = ()) -> Iterable[tuple[str, StateDict]]:
    """Every dict of nothing but tensors, by its path; `above` are ids of the dicts that it lies in."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        yield where, dict(content)
    elif len(above) < MAX_DEPTH and id(content) not in above:
        for key, value in content.items():
            yield from _dicts_in(value, f"{where}.{key}" if where else key, (*above, id(content)))


def _preference(name: str) -> tuple[int, int]:
    """Small for a dict that is rather taken: by the first name of timm's in its path, then by its depth."""
    parts = name.split(".")
    ranks = [CHECKPOINT_KEYS.index(part) for part in parts if part in CHECKPOINT_KEYS]
    return min(ranks, default=len(CHECKPOINT_KEYS)), len(parts)


def _choose(
    dicts: Mapping[str, StateDict], fitting: list[str], weights_key: str | None, label: str
) -> tuple[str, str | None]:
    """The name of a dict, and the model in it that was asked for."""
    if weights_key is None:
        return _preferred(list(dicts), fitting, label), None
    named = [name for name in dicts if f".{name}.".endswith(f".{weights_key}.")]
    named = named or [name for name in dicts if f".{name}.".startswith(f".{weights_key}.")]
    if weights_key in named:
        return weights_key, None
    if named:
        return _preferred(named, [name for name in fitting if name in named], label), None
    # Not the name of a dict: of a model in one, perhaps with the dict's name before it.
    for name in sorted(dicts, key=_preference):
        inner = weights_key.removeprefix(f"{name}.")
        if any(f".{inner}." in f".{key}" for key in dicts[name]):
            return name, inner
    tops = {_short(key.partition(".")[0]) for state in dicts.values() for key in state if "." in key}
    known = [*(name for name in sorted(dicts, key=_preference) if name), *sorted(tops)]
    raise UsageError(
        f"--weights-key {weights_key!r} is not in {label}; it has {', '.join(known[:8])}{', …' if known[8:] else ''}"
    )


def _preferred(names: list[str], fitting: list[str], label: str) -> str:
    """One of the names of dicts, by timm's order, else the one that fits."""
    best = min(map(_preference, names))
    first = [name for name in names if _preference(name) == best]
    if len(first) == 1 and (best[0] < len(CHECKPOINT_KEYS) or len(names) == 1):
        return first[0]
    alike = [name for name in (first if best[0] < len(CHECKPOINT_KEYS) else names) if name in fitting]
    if len(alike) == 1:
        return alike[0]
    held, why = (alike, "which fit alike") if alike else (first, "and none has the names of this encoder")
    raise EncoderError(f"{label} holds {_listed(held)}, {why}; say which with --weights-key {held[0]}")


def _prefixes(state: StateDict, expected: AbstractSet[str]) -> Counter[str]:
    """How many of the encoder's tensors lie below each prefix."""
    found: Counter[str] = Counter()
    for key in state:
        starts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:start] for start in starts if key[start:] in expected)
    return found


def _best_prefixes(state: StateDict, expected: AbstractSet[str]) -> list[str]:
    """Prefixes below which an encoder lies, the one with most of its tensors first; none where it is not there."""
    found = _prefixes(state, expected).most_common()
    most = found[0][1] if found else 0
    if most < FITS * len(expected):
        return []
    return [prefix for prefix, count in found if count >= RIVALS * most]


def _prefix(state: StateDict, expected: AbstractSet[str], inner: str | None, *, where: str) -> str:
    """The prefix of the encoder; of the model `inner` where that is named."""
    if inner is not None:
        whose = re.compile(rf"(?:.*\.)?{re.escape(inner)}\.")
        state = {key: tensor for key, tensor in state.items() if whose.match(key)}
    prefixes = _best_prefixes(state, expected)
    if len(prefixes) > 1:
        names = [prefix.rstrip(".") or "names without a prefix" for prefix in sorted(prefixes)]
        raise EncoderError(
            f"{where} holds {_listed(names)}, which fit alike; say which with --weights-key "
            f"{next(prefix for prefix in sorted(prefixes) if prefix).rstrip('.')}"
        )
    if prefixes or inner is None:
        return prefixes[0] if prefixes else ""
    return min((match.group() for key in state if (match := whose.match(key))), key=len)  # only timm knows the rest


def _without_wrappers(state: StateDict, expected: AbstractSet[str]) -> StateDict:
    """`state` without what wrappers put into names, where more of the encoder is found then and no two names clash."""
    renamed = {WRAPPERS.sub("", key): tensor for key, tensor in state.items()}
    if len(renamed) < len(state) or renamed.keys() == state.keys():
        return state
    with_them, without = (max(_prefixes(names, expected).values(), default=0) for names in (state, renamed))
    return renamed if without > with_them else state


def _stripped(names: Iterable[str], wrapped: Iterable[str], prefix: str) -> str:
    """What was taken off names: the prefix, and what wrappers had put into those of the file."""
    inside = sorted({match for key in set(wrapped) - set(names) for match in WRAPPERS.findall(key)})
    return " and ".join(map(repr, [prefix, *inside] if prefix else inside))


def _note(name: str, others: tuple[str, ...], stripped: str, left_out: list[str], *, was_asked: bool) -> str | None:
    clauses = []
    if others:
        why = "as asked" if was_asked else "as timm does" if _preference(name)[0] < len(CHECKPOINT_KEYS) else "it fits"
        averaged = ", a moving average" if any(part in AVERAGED_KEYS for part in name.split(".")) else ""
        other = f"--weights-key {others[0]} takes {'the other' if len(others) == 1 else 'that'}"
        clauses.append(f"took {name}{averaged} ({why}), not {_listed(others)}; {other}")
    elif was_asked or (name and _preference(name)[0] == len(CHECKPOINT_KEYS)):
        clauses.append(f"took {name}" if name else "took what was asked for")
    if stripped:
        clauses.append(f"stripped {stripped} from names")
    if left_out:
        clauses.append(f"left out {_count_and_name(left_out)}")
    return "; ".join(clauses) or None


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(_short, names))


def _short(name: str) -> str:
    """A name from a file, of which nobody knows how long it is."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _count_and_name(keys: Iterable[str]) -> str:
    names = [_short(key) for key in keys]
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
