"""Where a probe's features come from, as the options of `vfz probe` say: a cache's tokens, or a run's outputs.

Each split is read once for all probes of a sweep, where it fits into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.pipeline.files import canonical_json, sha256_file, sha256_hex
from vfz.pipeline.format.ledger import LedgerRow, from_utf8
from vfz.pipeline.progress import Progress, counted
from vfz.pipeline.recipe import counted_layers
from vfz.temporal.data.derived import DerivedFeatures, derived_features
from vfz.temporal.data.features import CacheFeatures, Features, rows_in_views
from vfz.temporal.data.options import CLIP_FRAMES, CLIP_STRIDE, LAST_LAYER
from vfz.temporal.data.pooling import frame_tokens
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import default_targets_path
from vfz.temporal.data.videos import (
    check_layers,
    choose_eval_split,
    is_labelled,
    label_set_record,
    num_present_classes,
    num_unlabelled,
    num_without_split,
)
from vfz.temporal.model import TemporalModel
from vfz.temporal.probes.fitters import ProbeKind
from vfz.temporal.probes.heads import CLASSES
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.run_record import RunInfo, check_same_tokens
from vfz.temporal.tasks import TASK_OF_LABELS
from vfz.temporal.training.runs import load_model


class Sources:
    """The features of a cache's splits, as options ask for them.

    Attributes:
        cache: that they come from.
        run: the temporal run they went through; None for the tokens themselves.
        run_digest: of its weights and config.
        layers, parts: which tokens are read.
        rule, segments, views: which clips of them.
        eval_split: the reported split.
        derived: caches of the run's outputs that were opened.

    Raises:
        UsageError: for options that do not fit the cache. CacheMismatchError: for a run on tokens of another recipe.
    """

    def __init__(self, options: ProbeOptions, cache: FeatureCache, *, device: torch.device, progress: Progress) -> None:
        if options.task == TASK_OF_LABELS[CLASSES] and not cache.class_names:
            raise UsageError(f"{cache.path} has no class labels; a probe needs them")
        self.cache, self._options, self._device, self._progress = cache, options, device, progress
        self._labelled = options.task in TASK_OF_LABELS.values()
        self._is_labelled = is_labelled(cache)
        self.run: RunInfo | None = None
        self.run_digest: str | None = None
        self._model: TemporalModel | None = None
        layers, parts = counted_layers(options.layers or LAST_LAYER, tuple(cache.layers)), options.parts or "all"
        of_run = {"num_frames": CLIP_FRAMES, "stride": CLIP_STRIDE, "step_seconds": None}
        if options.temporal is not None:
            self._model, self.run, self.run_digest = open_run(options.temporal, cache, device)
            if options.layers is not None or options.parts is not None:
                raise UsageError("--layers and --parts contradict --temporal: the run fixes its tokens")
            layers, parts = self._model.config.encoder_layers, self._model.config.parts
            of_run = self.run.values["clips"]
        check_layers(cache, layers, parts)
        self.layers, self.parts = tuple(layers), parts
        self.rule = ClipRule.of_run(
            of_run, num_frames=options.clip_frames, stride=options.clip_stride, step_seconds=options.clip_seconds
        )
        self.segments, self.views = options.segments, options.views
        self.eval_split = choose_eval_split(cache, options.eval_split, layers=self.layers, parts=parts)
        self.derived: list[DerivedFeatures] = []
        self._in_memory: dict[tuple[str, str, bool], Features] = {}

    def held(self, split: str, kind: ProbeKind, pool: str) -> Features:
        """The features of a split as a probe sees them, read at most once where they fit into memory."""
        key = (split, pool, kind.sees_vectors)
        if key not in self._in_memory:
            features = self.features(split, frames_only=kind.sees_vectors)
            self._in_memory[key] = kind.held(features, pool, self._progress, f"reading the {split} split")
        return self._in_memory[key]

    def features(self, split: str, *, frames_only: bool = False) -> Features:
        """The features of a split; of a run's outputs all tokens, or one or two for each frame."""
        tokens = CacheFeatures(
            self.cache,
            self.rows(split),
            layers=self.layers,
            parts=self.parts,
            rule=self.rule,
            num_segments=self.segments,
            device=self._device,
        )
        if self._model is None:
            return tokens
        model, num_prefix = self._model, tokens.num_prefix[-1]

        def outputs(layers_BTND: list[Tensor]) -> Tensor:
            features_BTND = model.features(layers_BTND)
            return frame_tokens([features_BTND], [num_prefix]) if frames_only else features_BTND

        derived = derived_features(
            self._options.out / "derived",
            f"{Path(self._options.temporal or '').resolve().name}-{split}",
            self._identity(split, tokens.ids, kept="frames" if frames_only else "tokens"),
            tokens,
            outputs,
            num_prefix=min(num_prefix, 1) if frames_only else num_prefix,
            dtype=kept_dtype(self.cache.precision),
            progress=self._progress,
            batch_size=self._options.batch_size,
        )
        self.derived.append(derived)
        return derived

    def describe_cache(self) -> dict[str, Any]:
        """The cache, as `probe.json` has it."""
        cache = self.cache
        return {
            "path": str(cache.path),
            "name": cache.path.resolve().name,
            "fingerprint": cache.fingerprint,
            "ledger_digest": cache.ledger_digest,
            "encoder": cache.recipe["encoder"],
            "recipe": cache.recipe,
            "encoder_request": cache.provenance.get("encoder_request"),
            "precision": cache.precision,
            "store": cache.store,
            "num_bytes": cache.num_bytes,
            "layers": list(cache.layers),
            "label_set": None if cache.label_set is None else label_set_record(cache.label_set),
        }

    def describe(self) -> dict[str, Any]:
        """What is probed, as `probe.json` has it."""
        run, model = self.run, self._model
        derived = [{"path": str(one.path), "num_bytes": one.num_bytes, "made": one.made} for one in self.derived]
        return {
            "kind": "tokens" if run is None else "temporal",
            "run": None if run is None else str(run.path),
            "core": None if model is None else model.config.core,
            "run_parameters": None if model is None else sum(one.numel() for one in model.parameters()),
            "layers": list(self.layers),
            "parts": self.parts,
            "token_shapes": {layer: {part: list(shape) for part, shape in self.cache.layers[layer].items()}
                             for layer in self.layers},
            "clips": self._clips(),
            "derived": derived,
        }  # fmt: skip

    def missing(self, split: str) -> list[MissingVideo]:
        """The videos of a split, as planned (with a label, where it is needed), that lack these tokens in a view."""
        present = {rows[0].id for rows in self.rows(split)}
        return [
            MissingVideo(id=id_, status=status if status != "ok" else "lacking", reason=reason)
            for id_, _, status, reason in self._planned(split)
            if id_ not in present
        ]

    def rows(self, split: str) -> list[tuple[LedgerRow, ...]]:
        """The rows of every video of a split that is read, one for each view."""
        return rows_in_views(
            self.cache, split, views=self.views, layers=self.layers, parts=self.parts, labelled=self._labelled
        )

    def num_planned(self, split: str) -> int:
        """Videos of a split (with a label, where one is needed), whether they can be read or not."""
        return len(self._planned(split))

    def num_present_classes(self) -> int:
        """Classes that some video of the cache has, in whatever split."""
        return num_present_classes([self.cache])

    def tell_unlabelled(self, progress: Progress) -> None:
        """Says how many videos of the two splits are left out for want of a label, and how many are in no split."""
        if count := num_without_split(self.cache):
            progress.note(f"{counted(count, 'video')} of the cache in no split of the label set: left out")
        for split in dict.fromkeys((self._options.train_split, self.eval_split)):
            count = num_unlabelled([self.cache], split, layers=self.layers, parts=self.parts) if self._labelled else 0
            if count:
                progress.note(f"{counted(count, 'video')} of {split} without a label: left out")

    def labels_digest(self) -> str:
        """SHA-256 over the class names and the classes of all videos of both splits, sorted; or over the targets.

        Of a label set of other kinds its own digest, and the videos of both splits.
        """
        if not self._labelled:
            path = self._options.targets or default_targets_path(self.cache)
            return sha256_file(path) if path.is_file() else ""  # whoever opens it says that it is not there
        rows = [
            [split, *sorted([id_, -1 if label is None else label] for id_, label, _, _ in self._planned(split))]
            for split in (self._options.train_split, self.eval_split)
        ]
        labels = self.cache.label_set
        of_set = [] if labels is None or labels.kind == CLASSES else [labels.digest]
        return sha256_hex(canonical_json([list(self.cache.class_names), rows, *of_set]))

    def _planned(self, split: str) -> Sequence[tuple[str, int | None, str, str]]:
        table = self.cache.table().select(["id", "view", "split", "label", "status", "reason"]).to_pydict()
        return [
            (from_utf8(id_), label, status, from_utf8(reason))
            for id_, view, of_split, label, status, reason in zip(*table.values(), strict=True)
            if view == 0
            and from_utf8(of_split) == split
            and (not self._labelled or self._is_labelled(from_utf8(id_), label))
        ]

    def _clips(self) -> dict[str, Any]:
        return {
            "num_frames": self.rule.num_frames,
            "stride": self.rule.stride,
            "step_seconds": self.rule.step_seconds,
            "segments": self.segments,
            "views": self.views,
        }

    def _identity(self, split: str, ids: Sequence[str], *, kept: str) -> dict[str, Any]:
        # The labels of the extraction say which videos a split has, and so does the ledger; those of a set do not.
        videos = {} if self.cache.label_set is None else {"videos": sha256_hex(canonical_json(list(ids)))}
        return {
            **videos,
            "source_fingerprint": self.cache.fingerprint,
            "ledger_digest": self.cache.ledger_digest,
            "run_digest": self.run_digest,
            "clips": self._clips(),
            "split": split,
            "kept": kept,
        }


@dataclass(frozen=True, kw_only=True)
class MissingVideo:
    """A video of the reported split that has no tokens, and why."""

    id: str
    status: str
    reason: str


def open_run(path: Path, cache: FeatureCache, device: torch.device) -> tuple[TemporalModel, RunInfo, str]:
    """A trained temporal module that fits a cache, its record, and a digest of its weights and config.

    Raises:
        UsageError: no run there. RunError: not finished. CacheMismatchError: trained on tokens of another recipe.
    """
    model, run = load_model(path, device)
    check_same_tokens(run, fingerprint=cache.fingerprint, recipe=cache.recipe, cache=cache.path)
    return model, run, digest_of_run(run)


def digest_of_run(run: RunInfo) -> str:
    """SHA-256 over a run's weights and config: what decides its outputs."""
    weights = sha256_file(run.path / "model.safetensors")
    return sha256_hex(canonical_json([weights, run.values["model"]]))


def kept_dtype(precision: str) -> str:
    """What a run's outputs are rounded to before a probe sees them: the tokens they came from are no more exact."""
    return "float32" if precision == "fp32" else "float16"
