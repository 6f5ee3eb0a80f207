"""What answers for clips of tokens: the model of a run, or a saved probe, behind one face.

Shapes: B clips, T frames, N tokens, D channels, K classes, labels or targets, O objects, Q points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.tokens import ORDER_IN_ALL
from vfz.pipeline.errors import CacheError, CacheMismatchError, UsageError
from vfz.pipeline.format.folder import CACHES, DEFAULT_FOLDER
from vfz.pipeline.recipe import describe_difference
from vfz.temporal.data.loader import ClipBatch
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.prediction.rows import NUMBERS
from vfz.temporal.probes.saved import SavedProbe, load_probe
from vfz.temporal.run_record import caches_of_run
from vfz.temporal.tasks import TASKS, build_task
from vfz.temporal.tasks.base import LabelTask
from vfz.temporal.tasks.geometry import rotation_from_6d
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.step import ClipLoss, autocast_dtype


def check_predicted(task: str, *, asked: object) -> None:
    """Refuse a task whose answers are no rows of a table; `asked` is what was trained for it, in messages.

    Raises:
        UsageError: says why.
    """
    if not issubclass(TASKS[task], LabelTask) and task not in NUMBERS:
        raise UsageError(
            f"{asked} is of task {task}, whose answers are no rows of a table; ask its model in Python "
            "(load_model), or measure it on a cache with vfz evaluate"
        )


def check_new_videos(task: str, *, asked: object) -> None:
    """Refuse new videos of a task that starts from what a new video does not say.

    Raises:
        UsageError: says what that is.
    """
    if task in _STARTS:
        raise UsageError(
            f"{asked} is of task {task} and must be told {_STARTS[task]}, which a new video does not say; predict the "
            "videos of a --cache, whose targets.npz does"
        )


class Predictor(ABC):
    """Answers for clips.

    Attributes:
        path: of the run or result.
        task: `classify`, `multilabel`, `regression`, `pose`, `boxes` or `points`.
        names: [K] of classes, labels or targets; empty for the others.
        starts_from: what of the truth it must be given (boxes or points of a first frame), in words; empty for none.
        layers, parts: which tokens it takes.
        rule, segments, views: which clips of a video.
        needs_all_views: whether a cached video that lacks a view is not answered for.
        recipe, fingerprint: of the cache it was trained on.
        request: how that cache's encoder was built; None where that is not recorded.
    """

    path: Path
    task: str
    names: tuple[str, ...]
    starts_from: str = ""
    layers: tuple[str, ...]
    parts: str
    rule: ClipRule
    segments: int
    views: tuple[int, ...]
    needs_all_views: bool
    recipe: Mapping[str, Any]
    fingerprint: str
    request: Mapping[str, Any] | None

    @abstractmethod
    def answers(self, batch: ClipBatch) -> Tensor:
        """For each clip, float64 on the CPU: probabilities or values [B,K]; or the `NUMBERS` of frames.

        Those are [B,T,12] of poses, [B,O,T,4] of O objects and [B,Q,T,3] of Q points, NaN for those that a clip does
        not have.
        """

    @abstractmethod
    def cache_paths(self) -> Sequence[Path]:
        """Where its own cache may lie."""

    @abstractmethod
    def parts_of_layers(self, cache: FeatureCache | None) -> dict[str, tuple[str, ...]]:
        """The parts of each layer it takes, in their order, as its cache holds them."""

    def check(self, cache: FeatureCache) -> None:
        """Refuses a cache of another recipe.

        Raises:
            CacheMismatchError: with the field-by-field difference.
        """
        if cache.fingerprint != self.fingerprint:
            difference = "; ".join(describe_difference(cache.recipe, self.recipe, names=("cache", "trained on")))
            raise CacheMismatchError(
                f"{self.path} was trained on tokens of another recipe than {cache.path}: {difference}; use its "
                "own cache"
            )

    def own_cache(self, named: Path | None) -> FeatureCache | None:
        """The cache it was trained on: the named one, else where it was; None where it is not there any more.

        Raises:
            CacheMismatchError: a named one of another recipe.
        """
        if named is not None:
            cache = FeatureCache(CACHES.find(named), allow_incomplete=True)
            self.check(cache)
            return cache
        for path in self.cache_paths():
            try:
                cache = FeatureCache(path, allow_incomplete=True)
            except CacheError:
                continue  # gone, or damaged: what is needed of it will be asked for
            if cache.fingerprint == self.fingerprint:
                return cache
        return None


def open_predictor(options: PredictOptions, device: torch.device) -> Predictor:
    """The run or probe that the options name.

    Raises:
        UsageError: none there, or one of a task that is not offered. RunError: not finished or damaged.
    """
    if options.run is not None:
        return RunPredictor(options.run, options, device)
    assert options.probe is not None  # noqa: S101 - the options have seen to that
    return ProbePredictor(load_probe(options.probe, device), options)


class RunPredictor(Predictor):
    """The model of a run of `vfz train-temporal`."""

    needs_all_views = False

    def __init__(self, path: Path, options: PredictOptions, device: torch.device) -> None:
        model, run = load_model(path, device)
        config, cache = model.config, run.values["cache"]
        self._run, self.path, self.task = run, run.path, config.task
        check_predicted(config.task, asked=run.path)
        self.starts_from = _STARTS.get(config.task, "")
        labels: dict[str, Any] = run.values.get("labels", {})
        self.names = () if TASKS[config.task].needs_targets else tuple(labels.get("names", run.values["class_names"]))
        settings = {name: value for name, value in labels.items() if name.startswith("target_")}
        sizes = {"num_classes": len(self.names), **settings} if self.names else {}
        task = build_task(config.task, protocol=config.protocol, **sizes).to(device)
        self._loss = ClipLoss(model, task, autocast=autocast_dtype(options.dtype, device)).eval()
        self.layers, self.parts, self._num_prefix = config.encoder_layers, config.parts, config.num_prefix
        self.rule = ClipRule.of_run(run.values["clips"])
        self.segments, self.views = options.segments or 1, options.views or (0,)
        self.recipe, self.fingerprint, self.request = (
            cache["recipe"], cache["fingerprint"], cache.get("encoder_request"),
        )  # fmt: skip

    @torch.no_grad()
    def answers(self, batch: ClipBatch) -> Tensor:
        """See `Predictor`."""
        outputs, task = self._loss.answer(batch), self._loss.task
        if isinstance(task, LabelTask):
            return task.answers(outputs).double().cpu()  # type: ignore[arg-type]
        return _NUMBERS_OF[self.task](outputs, batch).double().cpu()

    def cache_paths(self) -> Sequence[Path]:
        """See `Predictor`."""
        try:
            return caches_of_run(self._run)
        except UsageError:  # gone: the recipe in run.json is enough but for int8 and int4
            return ()

    def parts_of_layers(self, cache: FeatureCache | None) -> dict[str, tuple[str, ...]]:
        """See `Predictor`."""
        if cache is not None:
            return {layer: _chosen(self.parts, tuple(cache.layers[layer])) for layer in self.layers}
        return {layer: _chosen(self.parts, ("prefix", "patch") if self._num_prefix else ("patch",))
                for layer in self.layers}  # fmt: skip


class ProbePredictor(Predictor):
    """A probe that `vfz probe` has kept, with the temporal run before it where it is of one."""

    needs_all_views = True

    def __init__(self, probe: SavedProbe, options: PredictOptions) -> None:
        cache = probe.record["cache"]
        self._probe, self.path = probe, probe.path
        self.task, self.names = probe.task, tuple(map(str, probe.classes_))
        self.layers, self.parts, self.rule = probe.layers, probe.parts, probe.rule
        self.segments = options.segments or probe.segments
        self.views = options.views or tuple(range(probe.views))
        self.recipe, self.request = cache["recipe"], cache.get("encoder_request")
        self.fingerprint = probe.record["digests"]["cache"]

    def answers(self, batch: ClipBatch) -> Tensor:
        """See `Predictor`."""
        return self._probe.answers(batch.layers_BTND).double().cpu()

    def cache_paths(self) -> Sequence[Path]:
        """See `Predictor`."""
        recorded = Path(self._probe.record["cache"]["path"])
        beside = [parent / DEFAULT_FOLDER / recorded.name for parent in self.path.resolve().parents]
        return [recorded, DEFAULT_FOLDER / recorded.name, *beside]

    def parts_of_layers(self, cache: FeatureCache | None) -> dict[str, tuple[str, ...]]:  # noqa: ARG002 - recorded
        """See `Predictor`."""
        shapes = self._probe.record["features"]["token_shapes"]
        return {layer: _chosen(self.parts, tuple(shapes[layer])) for layer in self.layers}


def _chosen(parts: str, there: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in ORDER_IN_ALL if part in there) if parts == "all" else (parts,)


def _pose_numbers(outputs: Any, batch: ClipBatch) -> Tensor:  # noqa: ARG001 - as the others
    return torch.cat([outputs[..., :3], rotation_from_6d(outputs[..., 3:]).flatten(-2)], dim=-1)


def _box_numbers(outputs: Any, batch: ClipBatch) -> Tensor:
    return _of_those_that_are(outputs, batch.targets["objects_valid"])


def _point_numbers(outputs: Any, batch: ClipBatch) -> Tensor:
    numbers = torch.cat([outputs["xy"], outputs["visibility_logit"].sigmoid().unsqueeze(-1)], dim=-1)
    return _of_those_that_are(numbers, batch.targets["queries_valid"])


def _of_those_that_are(numbers_BOTX: Tensor, valid_BO: Tensor) -> Tensor:
    return numbers_BOTX.masked_fill(~valid_BO[:, :, None, None], torch.nan)


_NUMBERS_OF: dict[str, Callable[[Any, ClipBatch], Tensor]] = {
    "pose": _pose_numbers,
    "boxes": _box_numbers,
    "points": _point_numbers,
}
_STARTS = {"boxes": "where objects are in the first frame", "points": "which points are followed, and from where"}
