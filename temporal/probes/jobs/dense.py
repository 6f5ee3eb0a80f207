"""Probes of boxes, points, depth and pose: a task's own readout, trained on frozen features.

`vfz probe --task depth` trains the readout of `vfz train-temporal --task depth` on a cache's tokens, or with
`--temporal` on a run's outputs, which are streamed once into a derived cache. One readout for each learning rate sees
each batch, which is read once for all; a tenth of the training videos chooses one of them by the task's headline metric
(AbsRel, mIoU, AJ, RPE_tr), and the reported split is asked once.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.progress import Progress
from vfz.temporal.data.features import Features
from vfz.temporal.data.loader import ClipBatch, ClipLoader
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import ClipRequest, ClipTokens
from vfz.temporal.data.videos import ClipVideo
from vfz.temporal.probes.heads import HeadOptimizer
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import StoredResult
from vfz.temporal.probes.sources import Sources
from vfz.temporal.readouts import build_readout
from vfz.temporal.statistics import bootstrap_interval
from vfz.temporal.tasks import TASKS, Task, build_task
from vfz.temporal.training.step import one_answer, one_clip

LEARNING_RATES = (1e-3, 3e-4, 1e-4)
WEIGHT_DECAY = 0.05
MAX_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class DenseReport:
    """What a readout on frozen features reached on the reported split.

    Attributes:
        result: the folder with `probe.json`.
        task, protocol: of the readout.
        features: what was probed: `tokens` or the temporal run.
        layers: of the encoder.
        headline, value: the metric people quote, and its mean over seeds.
        metrics: all of them, of the first seed.
        low, high: the 95% bootstrap interval of the mean of the videos' own headline figures.
        deviation: of `value` over seeds; None for one seed.
        num_eval_clips, num_eval_missing, num_eval_planned: present, missing and all videos of the reported split.
        best_head_on_validation: the best headline figure of all rates on the reported split itself.
        num_train: training videos, held-out ones among them.
        chosen: the rate that the held-out videos chose, and its figure there.
        reused: whether this is a stored result.
    """

    result: str
    probe: str
    task: str
    protocol: str
    features: str
    layers: tuple[str, ...]
    headline: str
    value: float
    metrics: dict[str, float]
    low: float | None
    high: float | None
    deviation: float | None
    num_seeds: int
    num_eval_clips: int
    num_eval_missing: int
    num_eval_planned: int
    eval_split: str
    best_head_on_validation: float
    num_train: int
    chosen: dict[str, Any]
    num_parameters: int
    seconds: float
    reused: bool = False


def probe_dense(options: ProbeOptions, sources: Sources, *, progress: Progress) -> DenseReport:
    """Train readouts on frozen features, choose one on held-out videos, and report it.

    Raises:
        UsageError: several layers without a run to mix them, or sizes that do not fit. DatasetError: targets that do
        not fit the videos. RunError: features that are not finite, or no rate that did not diverge.
    """
    if sources.run is None and len(sources.layers) > 1:
        raise UsageError(f"--task {options.task} reads one layer, {len(sources.layers)} were given; give one of them")
    stored = StoredResult.of(options, sources, pool="all", kind=options.task)
    record = stored.record()
    if record is not None:
        progress.note(f"{stored.folder} has this result already; --force probes again")
        values = record["report"] | {"result": str(stored.folder), "reused": True}
        return DenseReport(**(values | {"layers": tuple(values["layers"])}))
    started = time.perf_counter()
    job = _DenseJob(options, sources, progress)
    runs = [job.fit(options.seed + turn) for turn in range(options.seeds)]
    report = job.report(runs, result=str(stored.folder), seconds=time.perf_counter() - started)
    stored.write(
        {
            "vfz": version("vfz"),
            "cache": sources.describe_cache(),
            "features": sources.describe() | {"pool": "all"},
            "class_names": list(sources.cache.class_names),
            "report": dataclasses.asdict(report),
            "videos": {"ids": job.eval_ids, "labels": []},
            "missing": [dataclasses.asdict(video) for video in sources.missing(sources.eval_split)],
            "runs": runs,
        }
    )
    return report


class FrozenTokens:
    """Features as a `TokenSource`: one centred clip of each video."""

    def __init__(self, features: Features, cache: FeatureCache) -> None:
        self._features, self._cache = features, cache
        self._places = {id_: place for place, id_ in enumerate(features.ids)}

    @property
    def num_prefix(self) -> int:
        """See `TokenSource`."""
        return self._features.num_prefix[-1]

    def pts_seconds(self, video: Any, cache: int) -> Any:  # noqa: ARG002 - of one cache
        """See `TokenSource`."""
        return self._cache.pts_seconds(video.id, video.view)

    def read_clips(self, requests: Sequence[ClipRequest], device: torch.device) -> ClipTokens:
        """See `TokenSource`."""
        videos_B = torch.tensor([self._places[request.id] for request in requests])
        layers_BTND = self._features.read_finite(videos_B, torch.zeros_like(videos_B))
        times = [self._cache.pts_seconds(request.id, request.view)[request.frames] for request in requests]
        return ClipTokens(
            layers_BTND=[tokens_BTND.to(device) for tokens_BTND in layers_BTND], pts_seconds_BT=np.stack(times)
        )


class _Head(nn.Module):
    """A readout and its task, whose loss may have weights of its own."""

    def __init__(self, readout: nn.Module, task: Task[Any]) -> None:
        super().__init__()
        self.readout, self.task = readout, task

    def forward(self, batch: ClipBatch) -> Tensor | dict[str, Tensor]:
        inputs = self.task.readout_inputs(batch, training=self.training)
        outputs: Tensor | dict[str, Tensor] = self.readout(batch.layers_BTND[0], **inputs)
        return outputs


class _DenseJob:
    """One configuration, any number of seeds."""

    def __init__(self, options: ProbeOptions, sources: Sources, progress: Progress) -> None:
        self._options, self._sources, self._progress = options, sources, progress
        self._train = sources.features(options.train_split)
        self._evaluated = sources.features(sources.eval_split)
        self.eval_ids = list(self._evaluated.ids)
        num_frames, _, self._dim = self._train.frame_shapes()[0]
        sizes = {
            "readout_dim": options.readout_dim,
            "num_heads": options.readout_heads,
            "num_frames": num_frames if options.protocol == "clip" else None,
        }
        self._sizes = {name: size for name, size in sizes.items() if size is not None}
        self._sizes |= TASKS[options.task].default_sizes(int(sources.cache.recipe["encoder"]["image_size"]))
        if "output_size" in self._sizes and options.depth_size is not None:
            self._sizes["output_size"] = options.depth_size
        self._targets = FrameTargets(
            sources.cache,
            task=options.task,
            device=self._train.device,
            targets=options.targets,
            output_size=self._sizes.get("output_size"),
        )
        self._lrs = options.lrs or LEARNING_RATES
        self._task = build_task(options.task, protocol=options.protocol)

    def fit(self, seed: int) -> dict[str, Any]:
        """Train a readout for each rate, choose one, ask it about the reported split."""
        started = time.perf_counter()
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(seed)).tolist()
        num_held = max(1, round(self._options.held_out * len(order)))
        if num_held >= len(order):
            raise UsageError(f"the training split has {len(order)} video; a probe needs two to choose its settings")
        held, kept = sorted(order[:num_held]), sorted(order[num_held:])
        heads = self._heads(seed)
        losses = self._fit_heads(heads, self._loader(self._train, self._options.train_split, kept, seed))
        held_clips = self._loader(self._train, self._options.train_split, held, seed)
        held_metrics, _ = self._ask(heads, held_clips)
        headline = self._task.headline
        best = self._best([metrics[headline] for metrics in held_metrics])
        eval_metrics, per_video = self._ask(heads, self._loader(self._evaluated, self._sources.eval_split, None, seed))
        scores = [
            {"lr": lr, f"held_out_{headline}": of_held[headline], f"eval_{headline}": of_eval[headline]}
            for lr, of_held, of_eval in zip(self._lrs, held_metrics, eval_metrics, strict=True)
        ]
        return {
            "seed": seed,
            "num_train": len(order),
            "num_fitted": len(kept),
            "num_held_out": num_held,
            "num_parameters": sum(parameter.numel() for parameter in heads[best].parameters()),
            "seconds": time.perf_counter() - started,
            "chosen": {
                "lr": self._lrs[best],
                f"held_out_{headline}": held_metrics[best][headline],
                "num_held_out": num_held,
            },
            "heads": scores,
            "best_head": self._best([metrics[headline] for metrics in eval_metrics]),
            "curves": {"train_loss": [epoch[best] for epoch in losses]},
            "metrics": eval_metrics[best],
            "headline_of_videos": per_video[best],
        }

    def report(self, runs: Sequence[Mapping[str, Any]], *, result: str, seconds: float) -> DenseReport:
        """The figures of all seeds together."""
        options, sources, headline = self._options, self._sources, self._task.headline
        values = [run["metrics"][headline] for run in runs]
        per_video = np.array([run["headline_of_videos"] for run in runs], dtype=np.float64).mean(axis=0)
        known = per_video[np.isfinite(per_video)]
        interval = bootstrap_interval(known) if len(known) else None
        num_videos, num_planned = len(self.eval_ids), sources.num_planned(sources.eval_split)
        bests = [run["heads"][run["best_head"]][f"eval_{headline}"] for run in runs]
        return DenseReport(
            result=result,
            probe="readout",
            task=options.task,
            protocol=options.protocol,
            features=str(options.temporal) if options.temporal else "tokens",
            layers=sources.layers,
            headline=headline,
            value=statistics.fmean(values),
            metrics=runs[0]["metrics"],
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            num_seeds=len(runs),
            num_eval_clips=num_videos,
            num_eval_missing=num_planned - num_videos,
            num_eval_planned=num_planned,
            eval_split=sources.eval_split,
            best_head_on_validation=statistics.fmean(bests),
            num_train=runs[0]["num_train"],
            chosen=runs[0]["chosen"],
            num_parameters=runs[0]["num_parameters"],
            seconds=seconds,
        )

    def _heads(self, seed: int) -> nn.ModuleList:
        options = self._options
        heads = []
        for _ in self._lrs:
            torch.manual_seed(seed)  # all rates begin with the same weights
            readout = build_readout(options.task, dim=self._dim, protocol=options.protocol, **self._sizes)
            heads.append(_Head(readout, build_task(options.task, protocol=options.protocol)))
        return nn.ModuleList(heads).to(self._train.device)

    def _loader(self, features: Features, split: str, videos: Sequence[int] | None, seed: int) -> ClipLoader:
        rows = self._sources.rows(split)
        return ClipLoader(
            FrozenTokens(features, self._sources.cache),
            [ClipVideo(rows=rows[video]) for video in (range(len(rows)) if videos is None else videos)],
            rule=self._sources.rule,
            batch_size=self._options.batch_size,
            device=features.device,
            seed=seed,
            targets=self._targets,
        )

    def _fit_heads(self, heads: nn.ModuleList, clips: ClipLoader) -> list[list[float]]:
        """Mean losses [epochs][heads]."""
        options = self._options
        decay = options.weight_decays[0] if options.weight_decays else WEIGHT_DECAY
        optimizer = HeadOptimizer(
            [head.parameters() for head in heads],
            [{"lr": lr, "weight_decay": decay} for lr in self._lrs],
            kind="adamw",
            num_steps=options.epochs * clips.num_batches,
        )
        heads.train()
        curves = []
        self._progress.start("fitting", total=options.epochs * clips.num_clips, unit="videos")
        for epoch in range(options.epochs):
            total_H = torch.zeros(len(heads))
            for batch in clips.shuffled(epoch):
                optimizer.zero_grad()
                for place, head in enumerate(heads):  # backward at once: the activations of one head at a time
                    assert isinstance(head, _Head)  # noqa: S101 - for type checkers
                    loss = head.task.loss(head(batch), batch)
                    loss.backward()
                    nn.utils.clip_grad_norm_(head.parameters(), MAX_NORM)
                    total_H[place] += float(loss.detach()) * len(batch.video_ids)
                optimizer.step()
                self._progress.advance(len(batch.video_ids))
            curves.append((total_H / clips.num_clips).tolist())
        self._progress.finish()
        return curves

    @torch.no_grad()
    def _ask(self, heads: nn.ModuleList, clips: ClipLoader) -> tuple[list[dict[str, float]], list[list[float]]]:
        """Every head's metrics over some clips, and its headline figure of each video."""
        heads.eval()
        metrics = [self._task.new_metrics() for _ in heads]
        per_video: list[list[float]] = [[] for _ in heads]
        for batch in clips.in_order():
            for head, sums, figures in zip(heads, metrics, per_video, strict=True):
                outputs = head(batch)
                sums.update(outputs, batch)
                for place in range(len(batch.video_ids)):
                    alone = self._task.new_metrics()
                    alone.update(one_answer(outputs, place), one_clip(batch, place))
                    figures.append(alone.compute()[self._task.headline])
        return [sums.compute() for sums in metrics], per_video

    def _best(self, figures: Sequence[float]) -> int:
        """The best of some headline figures.

        Raises:
            RunError: when none is a number.
        """
        sign = 1 if self._task.higher_is_better else -1
        finite = [place for place, figure in enumerate(figures) if np.isfinite(figure)]
        if not finite:
            raise RunError(f"no learning rate of {', '.join(map(str, self._lrs))} ended finite; give smaller --lrs")
        return max(finite, key=lambda place: sign * figures[place])
