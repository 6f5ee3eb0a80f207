"""Names to probes: what is asked of a probe, and which fitter does it.

A new kind of probe is one file with a `Fitter` and its `HeadGrid`, and one line in the registry at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.pipeline.registry import Registry
from vfz.temporal.data.features import HELD_BYTES, ArrayFeatures, Features, hold
from vfz.temporal.data.pooling import POOLS, VECTOR_POOLS, check_pool, clip_tokens, clip_vectors
from vfz.temporal.probes import attentive, knn, linear
from vfz.temporal.probes.heads import CLASSES, REGRESSION, Schedule
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.selection import Fitter

SOLVERS = ("auto", "exact", "sgd")
DEPTHS = (1, 4)
_EXACT_BYTES = 2**30
_EXACT_PRODUCTS = {"cpu": 2e9, "cuda": 2e11}
"""Videos x width x classes up to which all 45 penalties are solved within minutes."""


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """What is asked of a probe; None stands for the published setting.

    Attributes:
        pool: which frames are seen; see `vfz.temporal.data.pooling`.
        epochs, batch_size, seed: of probes that are trained.
        solver, standardize, inverse_penalties: of the linear probe.
        depth, weight_decays: of the attentive probe.
        lrs: of both.
        neighbours, temperature: of the kNN probe.
        label_kind: what is to be answered: `classes`, `multilabel` or `regression`.
    """

    pool: str
    epochs: int = 20
    batch_size: int = 32
    seed: int = 0
    solver: str = "auto"
    standardize: bool | None = None
    inverse_penalties: tuple[float, ...] | None = None
    depth: int = 1
    lrs: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    neighbours: tuple[int, ...] | None = None
    temperature: float = knn.TEMPERATURE
    label_kind: str = CLASSES
    progress: Progress = dataclasses.field(default_factory=SilentProgress)

    @classmethod
    def of(
        cls, options: ProbeOptions, *, pool: str, seed: int, progress: Progress, label_kind: str = CLASSES
    ) -> ProbeSpec:
        """What the options of `vfz probe` ask for."""
        return cls(
            pool=pool,
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=seed,
            solver=options.solver,
            depth=options.depth,
            lrs=options.lrs,
            weight_decays=options.weight_decays,
            neighbours=options.neighbours,
            label_kind=label_kind,
            progress=progress,
        )

    @property
    def schedule(self) -> Schedule:
        """Of probes that are trained."""
        return Schedule(epochs=self.epochs, batch_size=self.batch_size, seed=self.seed, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class ProbeKind:
    """How one kind of probe sees clips and is fitted.

    Attributes:
        pools: ways of pooling it has, the default first.
        sees_vectors: whether it sees one vector a frame; otherwise all tokens.
        make: the fitter of a specification, given the features, the number of classes (labels, targets) and the least
            number of videos that it will be fitted on.
    """

    pools: tuple[str, ...]
    sees_vectors: bool
    make: Callable[[ProbeSpec, Features, int, int], Fitter]

    def held(self, features: Features, pool: str, progress: Progress, what: str) -> Features:
        """The features, in memory as the probe sees them where that fits, else as they are."""
        check_pool(pool, self.pools)
        shapes = features.frame_shapes()
        clip = torch.zeros(1, dtype=torch.int64)
        num_bytes = len(features) * features.num_clips * 4
        if self.sees_vectors:
            vectors_BFE = clip_vectors(features.read(clip, clip), features.num_prefix, pool)
            if num_bytes * vectors_BFE.numel() > HELD_BYTES:
                return features
            return hold(
                features,
                lambda layers: clip_vectors(layers, features.num_prefix, pool).unsqueeze(2),
                num_prefix=0,
                what=what,
                progress=progress,
            )
        num_bytes *= sum(shape.numel() for shape in shapes) // (1 if pool in {"all", "frame"} else shapes[0][0])
        if num_bytes > HELD_BYTES or isinstance(features, ArrayFeatures):
            return features
        return hold(features, lambda layers: clip_tokens(layers, pool), num_prefix=0, what=what, progress=progress)


def _make_linear(spec: ProbeSpec, features: Features, num_classes: int, num_videos: int) -> Fitter:
    solver = spec.solver
    if solver not in SOLVERS:
        raise UsageError(f"--solver {solver!r} is not allowed; choose from {', '.join(SOLVERS)}")
    if solver == "auto":
        clip = torch.zeros(1, dtype=torch.int64)
        width = clip_vectors(features.read(clip, clip), features.num_prefix, spec.pool)[0].numel() * features.num_clips
        small = num_videos * width * 8 <= _EXACT_BYTES
        quick = num_videos * width * num_classes <= _EXACT_PRODUCTS[features.device.type]
        solver = "exact" if small and quick and spec.lrs is None else "sgd"
    if solver == "exact":
        return linear.ExactFitter(
            num_classes=num_classes,
            schedule=spec.schedule,
            pool=spec.pool,
            inverse_penalties=tuple(sorted(spec.inverse_penalties or linear.INVERSE_PENALTIES)),
            standardize=spec.standardize is not False,
            label_kind=spec.label_kind,
        )
    return linear.SgdFitter(
        num_classes=num_classes,
        schedule=spec.schedule,
        pool=spec.pool,
        lrs=spec.lrs or linear.LEARNING_RATES,
        standardize=spec.label_kind == REGRESSION if spec.standardize is None else spec.standardize,
        label_kind=spec.label_kind,
    )


def _make_attentive(spec: ProbeSpec, features: Features, num_classes: int, num_videos: int) -> Fitter:  # noqa: ARG001
    if spec.depth not in DEPTHS:
        raise UsageError(f"--depth {spec.depth} is not allowed; choose from {', '.join(map(str, DEPTHS))}")
    kind = attentive.AttentiveFitter if spec.depth == 1 else attentive.DeepFitter
    return kind(
        num_classes=num_classes,
        schedule=spec.schedule,
        pool=spec.pool,
        lrs=spec.lrs or attentive.LEARNING_RATES,
        weight_decays=spec.weight_decays or attentive.WEIGHT_DECAYS,
        label_kind=spec.label_kind,
    )


def _make_knn(spec: ProbeSpec, features: Features, num_classes: int, num_videos: int) -> Fitter:
    asked = spec.neighbours or knn.NEIGHBOURS
    num_voters = num_videos * features.num_clips
    too_many = max(spec.neighbours) if spec.neighbours else min(asked)
    if too_many > num_voters:
        raise UsageError(
            f"k {too_many} is more than the {num_voters} training clips that vote; give smaller --neighbours"
        )
    return knn.KnnFitter(
        num_classes=num_classes,
        pool=spec.pool,
        neighbours=tuple(k for k in asked if k <= num_voters),
        temperature=spec.temperature,
        label_kind=spec.label_kind,
    )


PROBES: Registry[ProbeKind] = Registry("probe")
PROBES.register("linear", ProbeKind(pools=VECTOR_POOLS, sees_vectors=True, make=_make_linear))
PROBES.register("attentive", ProbeKind(pools=POOLS, sees_vectors=False, make=_make_attentive))
PROBES.register("knn", ProbeKind(pools=VECTOR_POOLS, sees_vectors=True, make=_make_knn))
