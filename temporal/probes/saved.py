"""Probes that were kept: the chosen head of `vfz probe` beside its `probe.json`, and what answers with it later.

    probe = load_probe("runs/k400-linear-probe-1f0c2a7e")
    probe.predict_proba(FeatureCache("caches/k400-…")), probe.predict(x), probe.classes_

The head is `head.safetensors`, whose digest, kind and sizes stand in `probe.json`. It is what the held-out videos
chose, of several seeds the first's; asked about the reported split it gives the stored answers. A linear head is K x E
numbers; an attentive one is a readout; kNN keeps all its training vectors (a gigabyte for Kinetics-400 at 1,024
channels).

A probe of a temporal run holds the run's digest, not its weights: the run is loaded from where it was, or from beside
the result. Readouts of other tasks (`vfz probe --task boxes`) are not kept.

Shapes: V videos, B clips of a batch, T frames, N tokens, D channels, E width of a clip's vector, K classes, M vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import CacheMismatchError, RunError, UsageError
from vfz.pipeline.files import make_folder, sha256_hex, write_file_atomic
from vfz.pipeline.recipe import describe_difference
from vfz.temporal.data.derived import RunOutputs, run_outputs
from vfz.temporal.data.features import ArrayFeatures, CacheFeatures, Features, as_labels, rows_in_views
from vfz.temporal.data.pooling import clip_tokens, clip_vectors
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.videos import check_layers, choose_eval_split
from vfz.temporal.lookup import RUNS, find_probe
from vfz.temporal.model import TemporalModel
from vfz.temporal.probes.attentive import AttentiveBlocks, AttentiveGrid, AttentiveStack, DeepGrid
from vfz.temporal.probes.fitters import PROBES
from vfz.temporal.probes.heads import CLASSES, MULTILABEL, REGRESSION, HeadGrid, probabilities
from vfz.temporal.probes.knn import KnnGrid
from vfz.temporal.probes.linear import LinearGrid
from vfz.temporal.probes.record import read_record
from vfz.temporal.probes.sources import digest_of_run, kept_dtype
from vfz.temporal.tasks import TASK_OF_LABELS, TASKS
from vfz.temporal.training.runs import load_model

HEAD_FILE = "head.safetensors"
_AGAIN = "probe again with --force"
Data = FeatureCache | Features | Tensor | NDArray[Any]


def save_head(folder: Path, grid: HeadGrid) -> dict[str, Any] | None:
    """Writes the one head of a grid into a result's folder; what `probe.json` says of it, None for other kinds.

    Raises:
        StorageError: when it cannot be written.
    """
    taken = _parts_of(grid)
    if taken is None:
        return None
    kind, tensors, sizes = taken
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    make_folder(folder)
    write_file_atomic(folder / HEAD_FILE, data)
    entry = {"kind": kind, "label_kind": grid.label_kind, "file": HEAD_FILE, "sha256": sha256_hex(data)}
    return entry | sizes


def load_head(folder: Path, record: Mapping[str, Any], device: torch.device) -> HeadGrid:
    """The head that a result keeps.

    Raises:
        RunError: when there is none, or it is damaged.
    """
    entry, path = record.get("head"), folder / HEAD_FILE
    if not entry:
        why = "the heads of its kind are not kept" if "head" in record else f"as results did at first; {_AGAIN}"
        raise RunError(f"{folder} keeps no head: {why}")
    try:
        tensors = _tensors(path.read_bytes(), entry["sha256"], device)
        return _built(entry, tensors, record["features"]["pool"], device)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} does not load ({why}); {_AGAIN}") from None


def load_probe(path: str | Path, device: torch.device | str = "cpu") -> SavedProbe:
    """The probe of a result of `vfz probe`.

    Args:
        path: the result's folder, or its bare name under `runs/`.
        device: where it is to compute; `auto` takes a GPU where there is one.

    Raises:
        UsageError: no result there, or one whose readout is not kept (boxes, points, depth, pose). RunError: it keeps
        no head, or is damaged, or the temporal run it was fitted on is gone or another one.
    """
    folder = find_probe(path)
    record = read_record(folder)
    task = record["report"].get("task", "classify")
    if task not in TASK_OF_LABELS.values():
        raise UsageError(f"{folder} is a probe of task {task}, whose readout is not kept; train it with train-temporal")
    return SavedProbe(folder, record, device=choose_device(str(device)))


class SavedProbe:
    """A fitted probe, read from a result, with scikit-learn's names.

    Attributes:
        path: of the result.
        record: its `probe.json`.
        task: `classify`; of a label set also `multilabel` or `regression`.
        classes_: [K] names of the classes, labels or targets, in the order of `predict_proba`'s columns.
        probe: linear, attentive or knn.
        pool, layers, parts: which tokens it sees.
        rule, segments, views: which clips of a video; their answers are averaged.
        chosen: its settings and how right they were on held-out videos.
        model: the temporal module that tokens go through first; None for a probe of tokens.
        device: where it computes.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], *, device: torch.device) -> None:
        features, clips = record["features"], record["features"]["clips"]
        self.path, self.record, self.device = folder, record, device
        self.task = record["report"].get("task", "classify")
        self.classes_ = np.array(record["class_names"], dtype=str)
        self.probe, self.pool = record["report"]["probe"], features["pool"]
        self.layers, self.parts = tuple(features["layers"]), features["parts"]
        self.rule = ClipRule.of_run(clips)
        self.segments, self.views = int(clips["segments"]), int(clips["views"])
        self.chosen = dict(record["runs"][0]["chosen"])
        self._grid = load_head(folder, record, device)
        self.model = None if features["run"] is None else self._load_run(Path(features["run"]))

    def __repr__(self) -> str:
        """In a line: which probe, of what, of how many classes."""
        seen = "tokens" if self.model is None else Path(self.record["features"]["run"]).name
        return (
            f"<SavedProbe {str(self.path)!r}: {self.probe} ({self.pool}) of {seen}, layers {list(self.layers)}, "
            f"{len(self.classes_)} classes>"
        )

    def predict_proba(self, features: Data, *, split: str | None = None) -> Any:
        """Probabilities [V,K] of classes, or of each label: a tensor for a tensor, else an array.

        Args:
            features: a cache of the recipe it was fitted on; or what the head itself sees, which of a temporal run is
                its outputs: `Features`, or floats [V,E], [V,T,N,D] or [V,C,T,N,D] (C clips, whose answers are
                averaged).
            split: of a cache; default: `val`, else `test`.

        Raises:
            UsageError: features of another width, length or kind; a probe of numbers, which has no probabilities.
            CacheMismatchError: a cache of another recipe. RunError: features that are not finite.
        """
        if self.task == TASK_OF_LABELS[REGRESSION]:
            raise UsageError(f"{self.path} answers numbers and has no probabilities; ask it with predict")
        return self._asked(features, split)

    @torch.no_grad()
    def answers(self, layers_BTND: list[Tensor]) -> Tensor:
        """Probabilities or numbers [B,K] of clips, given the tokens of each layer as the cache has them."""
        num_prefix = tuple(self._num_prefix(layer) for layer in self.layers)
        if self.model is not None:
            layers_BTND, num_prefix = run_outputs(self.model, layers_BTND, num_prefix, **self._kept())
        return self._grid.proba(layers_BTND, num_prefix)[0]

    def predict(self, features: Data, *, split: str | None = None) -> NDArray[Any]:
        """The answer for each video; arguments and errors as `predict_proba`.

        Returns:
            classify: the name of the likeliest class [V]. multilabel: whether it has each label [V,K], where that is
            likelier than not. regression: the number of each target [V,K].
        """
        answers_VK = np.asarray(self._asked(features, split))
        if self.task == TASK_OF_LABELS[REGRESSION]:
            return answers_VK
        predicted: NDArray[Any] = answers_VK > 0.5
        return predicted if self.task == TASK_OF_LABELS[MULTILABEL] else self.classes_[answers_VK.argmax(axis=1)]

    def score(self, features: Data, labels: Any = None, *, split: str | None = None) -> float:
        """Share of labelled videos whose class is right; of several labels mAP, of numbers R2.

        Args:
            features: as of `predict_proba`.
            labels: [V] names of classes, or their numbers, or [V,K] of a label set, NaN where one is not known; may be
                left out where the features know them, such as a cache that was opened with its label set.
            split: of a cache.
        """
        read = self.features(features, split=split)
        if self.task != TASK_OF_LABELS[CLASSES]:
            return self._score_values(features, read, labels)
        known = read.labels_V if labels is None else labels
        if known is None:
            raise UsageError("score needs the labels of these features; give them as the second argument")
        given = as_labels(known, len(read))
        predicted = np.asarray(self._asked(read, None)).argmax(1)
        if given.dtype.kind in "US":
            return float((self.classes_[predicted] == given).mean())
        has_label = given >= 0
        return float((predicted == given)[has_label].mean()) if has_label.any() else float("nan")

    def _score_values(self, data: Data, read: Features, values: Any) -> float:
        task: Any = TASKS[self.task]
        if values is None and isinstance(data, FeatureCache) and data.label_set is not None:
            values = data.label_set.targets_of(read.ids)
        if values is None:
            raise UsageError(
                "score needs what is known of these videos; give it as the second argument, [videos, labels]"
            )
        truth_VK = np.asarray(values, dtype=np.float64)
        if truth_VK.shape != (shape := (len(read), len(self.classes_))):
            raise UsageError(
                f"what is known has shape {truth_VK.shape}; give {shape}, a column each for {self.classes_}"
            )
        return float(task.figures_of(np.asarray(self._asked(read, None), dtype=np.float64), truth_VK)[task.headline])

    def _asked(self, features: Data, split: str | None) -> Any:
        """The answers [V,K]: a tensor for a tensor, else an array."""
        read = self.features(features, split=split)
        self._check(read)
        every = torch.arange(len(read))
        parts = [answers[0].cpu() for _, answers in probabilities(self._grid, read, every, batch_size=32)]
        answers_VK = torch.cat(parts) if parts else torch.zeros(0, len(self.classes_))
        return answers_VK if isinstance(features, Tensor) else answers_VK.numpy()

    def features(self, data: Data, *, split: str | None = None) -> Features:
        """What the head is asked about, as `predict_proba` takes it; a cache's tokens go through the run first."""
        if isinstance(data, Features):
            return data
        if isinstance(data, FeatureCache):
            return self.through_run(self._cached(data, split))
        if not isinstance(data, Tensor | np.ndarray):
            raise UsageError(f"a probe takes a FeatureCache, Features, an array or a tensor, not {type(data).__name__}")
        tokens = data if isinstance(data, Tensor) else torch.from_numpy(np.ascontiguousarray(data))
        if not tokens.is_floating_point() or tokens.ndim not in (2, 4, 5) or not tokens.numel():
            raise UsageError(
                f"features are {tuple(tokens.shape)} of {tokens.dtype}; give floats [videos, channels], "
                "[videos, frames, tokens, channels] or [videos, clips, frames, tokens, channels]"
            )
        shape = tokens.shape[:1] + (1,) * (5 - tokens.ndim) + tokens.shape[1:]
        num_prefix = 0 if tokens.ndim == 2 else self._num_prefix(self.layers[-1])
        return ArrayFeatures(tokens.reshape(shape), None, num_prefix=num_prefix, device=self.device)

    def through_run(self, tokens: Features) -> Features:
        """The outputs of the temporal run for clips of tokens, as the probe was fitted on them; else the tokens."""
        if self.model is None:
            return tokens
        return RunOutputs(tokens, self.model, **self._kept())

    def _kept(self) -> dict[str, Any]:
        """What the probe was fitted on of a run's outputs."""
        frames_only = PROBES[self.probe].sees_vectors
        return {"frames_only": frames_only, "dtype": kept_dtype(self.record["cache"]["precision"])}

    def _cached(self, cache: FeatureCache, split: str | None) -> Features:
        if cache.fingerprint != self.record["digests"]["cache"]:
            theirs = self.record["cache"].get("recipe", {})
            difference = "; ".join(describe_difference(cache.recipe, theirs, names=("cache", "probe")))
            raise CacheMismatchError(
                f"{self.path} was fitted on tokens of another recipe than {cache.path}: {difference}; use its own "
                "cache, or fit a probe on this one"
            )
        check_layers(cache, self.layers, self.parts)
        chosen = choose_eval_split(cache, split, layers=self.layers, parts=self.parts)
        return CacheFeatures(
            cache,
            rows_in_views(cache, chosen, views=self.views, layers=self.layers, parts=self.parts, labelled=False),
            layers=self.layers,
            parts=self.parts,
            rule=self.rule,
            num_segments=self.segments,
            device=self.device,
        )

    def _num_prefix(self, layer: str) -> int:
        """Prefix tokens among the N of a layer."""
        shapes = self.record["features"]["token_shapes"][layer]
        return 0 if self.parts == "patch" else int(shapes.get("prefix", (0, 0))[0])

    def _load_run(self, recorded: Path) -> TemporalModel:
        places = [recorded, self.path.resolve().parent / recorded.name]
        found = next((place for place in places if RUNS.holds(place)), None)
        if found is None:
            raise RunError(
                f"{self.path} is a probe of the run {recorded}, which is not there; put it back, there or beside "
                f"{self.path}"
            )
        model, run = load_model(found, self.device)
        if digest_of_run(run) != self.record["digests"]["run"]:
            raise RunError(f"{found} is not the run that {self.path} was fitted on, but was trained since; {_AGAIN}")
        return model

    def _check(self, read: Features) -> None:
        """Refuses features that the head cannot be asked about, before any product fails."""
        entry, one = self.record["head"], torch.zeros(1, dtype=torch.int64)
        layers_BTND = read.read(one, one) if len(read) else []
        if not layers_BTND:
            return
        if PROBES[self.probe].sees_vectors:
            seen, frames = clip_vectors(layers_BTND, read.num_prefix, self.pool).shape[2], None
        else:
            tokens_BTND = clip_tokens(layers_BTND, self.pool)
            seen, frames = tokens_BTND.shape[3], tokens_BTND.shape[1]
        if seen != entry["dim"]:
            raise UsageError(f"features of {seen} channels for {self.path}, which was fitted on {entry['dim']}")
        if self.pool == "all" and frames != entry["num_frames"]:
            raise UsageError(f"clips of {frames} frames for {self.path}, which was fitted on {entry['num_frames']}")


def _parts_of(grid: HeadGrid) -> tuple[str, dict[str, Tensor], dict[str, Any]] | None:
    """Kind, tensors and sizes of a grid of one head."""
    if isinstance(grid, LinearGrid):
        tensors = {"weight": grid.weight_HKE[0], "bias": grid.bias_HK[0]}
        return "linear", tensors, {"dim": grid.weight_HKE.shape[2]}
    if isinstance(grid, AttentiveGrid):
        return "attentive", grid.stack.state_dict(), _sizes(grid.stack)
    if isinstance(grid, DeepGrid):
        return "attentive-deep", grid.heads[0].state_dict(), _sizes(grid.heads[0])
    if isinstance(grid, KnnGrid):
        sizes = {"dim": grid.bank_ME.shape[1], "num_classes": grid.num_classes, "temperature": grid.temperature}
        return "knn", {"bank": grid.bank_ME, "labels": grid.labels_M}, {**sizes, "neighbours": grid.neighbours[0]}
    return None


def _tensors(data: bytes, sha256: str, device: torch.device) -> dict[str, Tensor]:
    if sha256_hex(data) != sha256:
        raise ValueError("its digest is another")
    return {name: tensor.to(device) for name, tensor in load(data).items()}


def _sizes(module: nn.Module) -> dict[str, int]:
    return {name: int(getattr(module, name)) for name in ("dim", "num_classes", "num_frames")}


def _built(entry: Mapping[str, Any], tensors: dict[str, Tensor], pool: str, device: torch.device) -> HeadGrid:
    """The inverse of `_parts_of`."""
    asked: dict[str, Any] = {"pool": pool, "label_kind": entry.get("label_kind", CLASSES)}
    one: Sequence[Mapping[str, Any]] = ({},)
    if entry["kind"] == "linear":
        return LinearGrid(tensors["weight"][None], tensors["bias"][None], settings=one, **asked)
    if entry["kind"] == "knn":
        return KnnGrid(
            tensors["bank"],
            tensors["labels"],
            num_classes=entry["num_classes"],
            neighbours=(entry["neighbours"],),
            temperature=entry["temperature"],
            **asked,
        )
    sizes = {name: entry[name] for name in ("dim", "num_classes", "num_frames")}
    if entry["kind"] == "attentive":
        stack = AttentiveStack(1, **sizes)
        stack.load_state_dict(tensors)
        return AttentiveGrid(stack.to(device), settings=one, **asked)
    if entry["kind"] == "attentive-deep":
        blocks = AttentiveBlocks(**sizes)
        blocks.load_state_dict(tensors)
        return DeepGrid(nn.ModuleList([blocks.to(device).eval()]), settings=one, **asked)
    raise ValueError(f"there is no head of kind {entry['kind']}")
