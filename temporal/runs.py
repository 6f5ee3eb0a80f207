"""A run folder: what a training run leaves behind, how it is found again, continued and loaded.

    <out>/<name>/run.json            config, cache fingerprint, ledger digest, recipe, licence, results
                 model.safetensors   the trained weights; with run.json enough to use the model, without the cache
                 metrics.jsonl       one JSON object a step, an epoch, an evaluation
                 checkpoint.pt       while training: everything needed to continue exactly; gone when done

metrics.jsonl grows line by line and is synced before every checkpoint; the other files are replaced whole (written
aside, synced, renamed), so that a kill leaves the last complete one.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vfz.pipeline.errors import CacheMismatchError, RunError, UsageError
from vfz.pipeline.files import fsync_file, storage_errors, write_file_atomic
from vfz.pipeline.spec import describe_difference
from vfz.temporal.model import ModelConfig, TemporalModel

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`run.json` of a finished or unfinished run."""

    path: Path
    values: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether training went to its end."""
        return bool(self.values["finished"])

    @property
    def model_config(self) -> ModelConfig:
        """The config the model is built from."""
        return ModelConfig.from_dict(self.values["model"])


def read_run(path: Path) -> RunInfo:
    """The record of a run.

    Raises:
        UsageError: when the folder holds no run.
    """
    try:
        values = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError(f"{path} is no run of vfz train-temporal: it has no readable run.json") from None
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path}/run.json is not of format version {FORMAT_VERSION}; it was made by another vfz")
    return RunInfo(path=path, values=values)


def write_run(path: Path, values: dict[str, Any]) -> None:
    """Replace `run.json`."""
    record = {"format_version": FORMAT_VERSION} | values
    write_file_atomic(path / "run.json", (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[TemporalModel, RunInfo]:
    """The trained model of a finished run, in evaluation mode. The cache is not needed.

    Raises:
        UsageError: no run there. RunError: not finished, or weights that do not fit its config.
    """
    run = read_run(path)
    if not run.finished:
        raise RunError(f"{path} has not been trained to its end; continue it with vfz train-temporal --resume")
    model = TemporalModel(run.model_config)
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{path}/model.safetensors does not load: {str(error).splitlines()[0]}") from None
    return model.to(device).eval(), run


def save_model(path: Path, model: TemporalModel) -> None:
    """Replace `model.safetensors`."""
    temporary = path / "model.safetensors.tmp"
    with storage_errors(temporary):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
        fsync_file(temporary)
        temporary.replace(path / "model.safetensors")


def check_same_tokens(run: RunInfo, *, fingerprint: str, recipe: dict[str, Any], cache: Path) -> None:
    """Refuse a cache whose tokens are not those the run was trained on.

    Raises:
        CacheMismatchError: with the field-by-field difference of the two recipes.
    """
    if run.values["cache"]["fingerprint"] != fingerprint:
        difference = "; ".join(describe_difference(recipe, run.values["cache"]["recipe"], names=("cache", "run")))
        raise CacheMismatchError(
            f"{run.path} was trained on tokens of another recipe than {cache}: {difference}; "
            "use its own cache, or train a run on this one"
        )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `checkpoint.pt`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_file_atomic(path / "checkpoint.pt", buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none yet.

    Raises:
        RunError: when it cannot be read.
    """
    file = path / "checkpoint.pt"
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise RunError(f"{file} is damaged; delete the run and train again") from None
    return state


class MetricsLog:
    """`metrics.jsonl`: appended line by line; can be cut back to where a checkpoint was written."""

    def __init__(self, path: Path) -> None:
        self._path = path / "metrics.jsonl"
        with storage_errors(self._path):
            self._path.touch()

    def write(self, **values: Any) -> None:
        """Append one line."""
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def sync(self) -> int:
        """Flush it to the disk; returns its size in bytes, to which `cut` can go back."""
        with storage_errors(self._path):
            fsync_file(self._path)
        return self._path.stat().st_size

    def cut(self, num_bytes: int) -> None:
        """Drop everything after `num_bytes`: lines of steps that will be done again.

        Raises:
            RunError: when there are fewer.
        """
        if self._path.stat().st_size < num_bytes:
            raise RunError(f"{self._path} was shortened since the checkpoint; delete the run and train again")
        with storage_errors(self._path):
            os.truncate(self._path, num_bytes)
