"""Probes for notebooks: `fit_linear`, `fit_attentive`, `fit_knn`, and what they return, with scikit-learn's names.

    from vfz.temporal.probes import fit_linear

    probe = fit_linear("caches/k400-…", layers=11)  # a cache by path or name, or open; its train split
    probe.score("caches/k400-…")                    # on val, else test

    probe = fit_linear(x_train, y_train)          # [V, D] or [V, T, N, D], arrays or tensors; labels of any kind
    probe.predict(x_test), probe.predict_proba(x_test), probe.score(x_test, y_test), probe.chosen

Settings are chosen on a held-out tenth of what is fitted on (or by cross-validation, `folds=5`); what is predicted or
scored later chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.cache.request import Layers, as_names, is_whole, shown
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import UsageError
from vfz.pipeline.format.folder import find_cache
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.data.features import ArrayFeatures, CacheFeatures, Features, as_labels, rows_in_views
from vfz.temporal.data.options import CLIP_FRAMES, CLIP_STRIDE, LAST_LAYER, TOKEN_PARTS, TRAIN_SPLIT
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.videos import check_layers, choose_eval_split
from vfz.temporal.probes.fitters import PROBES, ProbeSpec
from vfz.temporal.probes.heads import answer, probabilities
from vfz.temporal.probes.selection import HELD_OUT_FRACTION, Choice, fit_and_choose

Data = FeatureCache | str | Path | Features | Tensor | NDArray[Any]
"""A cache, open or by path or name, or features: arrays or tensors [V,D] or [V,T,N,D]."""
_SEVERAL = frozenset({"inverse_penalties", "lrs", "weight_decays", "neighbours"})
"""Settings that are chosen from several."""
Labels = Sequence[Any] | Tensor | NDArray[Any]


def fit_linear(
    features: Data,
    labels: Labels | None = None,
    *,
    pool: str = "mean",
    solver: str = "auto",
    standardize: bool | None = None,
    inverse_penalties: Sequence[float] | float | None = None,
    lrs: Sequence[float] | float | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    **settings: Any,
) -> FittedProbe:
    """A linear probe on one vector a clip (DINOv2, arXiv 2304.07193).

    Args:
        features: a cache (open, its path or its name), or arrays or tensors [V,D] or [V,T,N,D].
        labels: [V] of arrays; a cache has its own.
        pool: `mean` over frames, the `last` one, or each `frame` on its own.
        solver: `exact` logistic regression, `sgd` as published, or `auto`: exact where it takes minutes at most.
        standardize: bring features to mean 0 and deviation 1 first; default: for `exact` only.
        inverse_penalties: exact: values of C to choose from; default: 45 from 1e-6 to 1e5.
        lrs: sgd: learning rates to choose from, for batches of 256; default: 13 from 1e-5 to 0.1.
        epochs: sgd: passes over the videos.
        batch_size: sgd: videos a step.
        **settings: see `FitSettings`.

    Raises:
        UsageError: for features, labels or settings that cannot be fitted. RunError: for features that are not finite.
    """
    return _fit("linear", features, labels, settings, pool=pool, solver=solver, standardize=standardize,
                inverse_penalties=inverse_penalties, lrs=lrs, epochs=epochs,
                batch_size=batch_size)  # fmt: skip


def fit_attentive(
    features: Data,
    labels: Labels | None = None,
    *,
    pool: str = "all",
    depth: int = 1,
    lrs: Sequence[float] | float | None = None,
    weight_decays: Sequence[float] | float | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    **settings: Any,
) -> FittedProbe:
    """An attentive probe on all tokens of a clip (V-JEPA 2, arXiv 2506.09985).

    Args:
        features: a cache (open, its path or its name), or arrays or tensors [V,T,N,D].
        labels: [V] of arrays; a cache has its own.
        pool: `all` frames together, their `mean`, the `last` one, or each `frame` on its own.
        depth: 1 is one cross-attention, 4 has three self-attention blocks in front.
        lrs: learning rates to choose from; default: five from 1e-4 to 5e-3.
        weight_decays: to choose from; default: 0.01, 0.1, 0.4, 0.8.
        epochs: passes over the videos.
        batch_size: videos a step.
        **settings: see `FitSettings`.

    Raises:
        UsageError: for features, labels or settings that cannot be fitted. RunError: for features that are not finite.
    """
    return _fit("attentive", features, labels, settings, pool=pool, depth=depth, lrs=lrs,
                weight_decays=weight_decays, epochs=epochs, batch_size=batch_size)  # fmt: skip


def fit_knn(
    features: Data,
    labels: Labels | None = None,
    *,
    pool: str = "mean",
    neighbours: Sequence[int] | int | None = None,
    temperature: float = 0.07,
    **settings: Any,
) -> FittedProbe:
    """A kNN probe on one vector a clip (DINO, arXiv 2104.14294).

    Args:
        features: a cache (open, its path or its name), or arrays or tensors [V,D] or [V,T,N,D].
        labels: [V] of arrays; a cache has its own.
        pool: `mean` over frames, the `last` one, or each `frame` on its own.
        neighbours: values of k to choose from; default: 10, 20, 100 and 200, as far as there are videos.
        temperature: votes weigh softmax(similarity / temperature).
        **settings: see `FitSettings`.

    Raises:
        UsageError: for features, labels or settings that cannot be fitted. RunError: for features that are not finite.
    """
    return _fit(
        "knn",
        features,
        labels,
        settings,
        pool=pool,
        neighbours=neighbours,
        temperature=temperature,
    )


class FittedProbe:
    """A probe, ready to be asked.

    Attributes:
        classes_: [K] the labels it knows, in the order of `predict_proba`'s columns.
        chosen: the chosen settings and how right they were on held-out videos.
        heads: the same of every setting that was tried.
        curves: of the chosen one's training, by name.
        num_parameters: of the probe.
        grid: the chosen head.
    """

    def __init__(self, choice: Choice, classes: NDArray[Any], settings: FitSettings, *, batch_size: int) -> None:
        self.classes_, self.chosen, self.heads = classes, choice.chosen, choice.heads
        self.curves = choice.curves.of_head(choice.best)
        self.num_parameters = choice.grid.num_parameters
        self._choice, self._settings, self._batch_size = choice, settings, batch_size
        self.grid = choice.grid.only(choice.best)

    def predict_proba(self, features: Data, *, split: str | None = None) -> Any:
        """Class probabilities [V,K]: a tensor for a tensor, else an array.

        Args:
            features: of the kind it was fitted on.
            split: of a cache; default: `val`, else `test`.
        """
        read = self._settings.features(features, split=split)
        every = torch.arange(len(read))
        parts = [proba[0].cpu() for _, proba in probabilities(self.grid, read, every, batch_size=self._batch_size)]
        proba_VK = torch.cat(parts)
        return proba_VK if isinstance(features, Tensor) else proba_VK.numpy()

    def predict(self, features: Data, *, split: str | None = None) -> Any:
        """The likeliest class [V] of each video: a tensor for a tensor, else an array."""
        proba_VK = self.predict_proba(features, split=split)
        predicted_V = self.classes_[np.asarray(proba_VK.argmax(1))]
        return torch.from_numpy(predicted_V) if isinstance(features, Tensor) else predicted_V

    def score(self, features: Data, labels: Labels | None = None, *, split: str | None = None) -> float:
        """Share of videos whose class is right; labels may be left out where the features know them."""
        if labels is None:
            known = self._settings.features(features, split=split).labels_V
            if known is None:
                raise UsageError("score needs the labels of these features; give them as the second argument")
            labels = known
        predicted = np.asarray(self.predict(features, split=split))
        return float((predicted == as_labels(labels, len(predicted))).mean())

    def best_head_score(self, features: Data, labels: Labels | None = None, *, split: str | None = None) -> float:
        """The greatest share over all settings: what others publish as the best head on the validation set.

        It is above what a user of the probe gets, since the reported videos chose the setting.
        """
        read = self._settings.features(features, split=split)
        given = as_labels(labels if labels is not None else read.labels_V, len(read))  # type: ignore[arg-type]
        places = {label: place for place, label in enumerate(self.classes_.tolist())}
        positions_V = torch.tensor([places.get(label, -1) for label in given.tolist()])
        known = (positions_V >= 0).nonzero().flatten()
        asked = answer(self._choice.grid, read, known, positions_V, batch_size=self._batch_size)
        return max(asked.top1) * len(known) / len(read)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What the `fit_` functions take besides the features, the labels and the probe's own settings.

    Attributes:
        split: of a cache, the videos to fit on.
        layers: of a cache, one or several; -1, the default, is the last.
        parts: of a cache: `all`, `patch` or `prefix` tokens.
        clip_frames, clip_stride: of a cache, the frames of a clip.
        segments, views: of a cache: clips along each video times crops of it; answers are averaged.
        num_prefix: of arrays [V,T,N,D]: how many of the N tokens are prefix tokens.
        device: `auto`, `cpu`, `cuda`.
        num_classes: labels are then the numbers below it; default: the labels that occur.
        held_out: share of every class that chooses the settings.
        folds: cross-validation instead.
        seed: decides the held-out videos, initial weights and order.
        progress: told of what is done.
    """

    split: str = TRAIN_SPLIT
    layers: Layers | None = None
    parts: str = TOKEN_PARTS[0]
    clip_frames: int = CLIP_FRAMES
    clip_stride: int = CLIP_STRIDE
    segments: int = 1
    views: int = 1
    num_prefix: int = 0
    device: str = "auto"
    num_classes: int | None = None
    held_out: float = HELD_OUT_FRACTION
    folds: int | None = None
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)

    def __post_init__(self) -> None:
        least = {"clip_frames": 1, "clip_stride": 1, "segments": 1, "views": 1, "num_prefix": 0, "seed": 0, "folds": 2}
        for name, minimum in least.items():
            value = getattr(self, name)
            if not (is_whole(value) and value >= minimum) and not (name == "folds" and value is None):
                raise UsageError(f"{name} is {shown(value)}; a whole number from {minimum} on is needed")
        if self.parts not in TOKEN_PARTS:
            raise UsageError(f"parts is {shown(self.parts)}; allowed: {', '.join(TOKEN_PARTS)}")
        if not isinstance(self.held_out, int | float):
            raise UsageError(f"held_out is {shown(self.held_out)}; a share between 0 and 1 is needed")
        if not isinstance(self.split, str) or not isinstance(self.device, str):
            raise UsageError(f"split is {shown(self.split)} and device {shown(self.device)}; their names are needed")

    def features(self, data: Data, *, split: str | None = None) -> Features:
        """What is to be read of some data.

        Raises:
            UsageError: for data of another shape or kind, or a cache that has no such videos.
        """
        device = choose_device(self.device)
        data = opened(data)
        if isinstance(data, Features):
            return data
        if isinstance(data, FeatureCache):
            asked = as_names(LAST_LAYER if self.layers is None else self.layers, "layers")
            layers = counted_layers(asked, tuple(data.layers))
            check_layers(data, layers, self.parts)
            split = split or choose_eval_split(data, None, layers=layers, parts=self.parts)
            return CacheFeatures(
                data,
                rows_in_views(data, split, views=self.views, layers=layers, parts=self.parts),
                layers=layers,
                parts=self.parts,
                rule=ClipRule(num_frames=self.clip_frames, stride=self.clip_stride),
                num_segments=self.segments,
                device=device,
            )
        tokens = data if isinstance(data, Tensor) else _as_tensor(data)
        if not tokens.is_floating_point() or tokens.ndim not in (2, 4, 5) or not tokens.numel():
            raise UsageError(
                f"features are {tuple(tokens.shape)} of {tokens.dtype}; give floats [videos, channels], "
                "[videos, frames, tokens, channels] or [videos, clips, frames, tokens, channels]"
            )
        shape = tokens.shape[:1] + (1,) * (5 - tokens.ndim) + tokens.shape[1:]
        return ArrayFeatures(tokens.reshape(shape), None, num_prefix=self.num_prefix, device=device)


def opened(data: Any) -> Any:
    """A cache that is named by path or name, opened; other data as they are.

    Raises:
        UsageError: there is no such cache. CacheError: as `FeatureCache`.
    """
    return FeatureCache(find_cache(data)) if isinstance(data, str | Path) else data


def _as_tensor(data: Any) -> Tensor:
    """Arrays, and lists of numbers, as a tensor.

    Raises:
        UsageError: for anything else.
    """
    try:
        array = np.ascontiguousarray(data)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:  # no numbers; rows of several lengths
        raise UsageError(
            f"features are {shown(data)}; give a cache (open, its path or its name), or floats [videos, channels] or "
            "[videos, frames, tokens, channels] as an array or tensor"
        ) from error


def _fit(name: str, data: Data, labels: Labels | None, values: dict[str, Any], **of_probe: Any) -> FittedProbe:
    known = [one.name for one in fields(FitSettings)]
    if unknown := sorted(values.keys() - set(known)):
        raise TypeError(f"fit_{name}() got an unexpected argument {unknown[0]!r}; besides its own it takes {known}")
    settings, data = FitSettings(**values), opened(data)
    of_probe |= {name: _numbers(name, of_probe[name]) for name in _SEVERAL & of_probe.keys()}
    kind, spec = PROBES[name], ProbeSpec(seed=settings.seed, progress=settings.progress, **of_probe)
    features = settings.features(data, split=settings.split)
    if labels is None:
        if features.labels_V is None:
            raise UsageError(f"fit_{name} needs the labels of these features; give them as the second argument")
        labels = features.labels_V
    given = as_labels(labels, len(features))
    num_classes = len(data.class_names) if isinstance(data, FeatureCache) else settings.num_classes
    if num_classes is None:
        classes, places = np.unique(given, return_inverse=True)
        labels_V = torch.from_numpy(places.astype(np.int64))
    else:
        classes, labels_V = np.arange(num_classes), torch.from_numpy(given.astype(np.int64))
    held = kind.held(features, spec.pool, settings.progress, "reading the features")
    choice = fit_and_choose(
        lambda num_videos: kind.make(spec, held, len(classes), num_videos),
        held,
        labels_V,
        num_classes=len(classes),
        held_out=settings.held_out,
        folds=settings.folds,
        seed=settings.seed,
        batch_size=spec.batch_size,
        progress=settings.progress,
    )
    return FittedProbe(choice, classes, settings, batch_size=spec.batch_size)


def _numbers(name: str, values: Any) -> tuple[Any, ...] | None:
    """Settings to choose from, one or several; None stands for the default.

    Raises:
        UsageError: for what is no number above 0.
    """
    if values is None:
        return None
    several = (values,) if isinstance(values, int | float | str) else tuple(values) if _is_many(values) else (values,)
    if not several or not all(isinstance(one, int | float | np.number) and one > 0 for one in several):
        raise UsageError(f"{name} is {shown(values)}; a number above 0 or several of them are needed, or None")
    return several


def _is_many(values: object) -> bool:
    return isinstance(values, Iterable) and not (isinstance(values, np.ndarray | Tensor) and values.ndim == 0)
