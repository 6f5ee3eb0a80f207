"""Asking what was trained about videos: the public call behind `vfz predict`.

An answer is the mean of those of a video's clips, as in `vfz evaluate` and `vfz probe`; on the videos of its own cache
a run or probe says what it said there. Videos that cannot be decoded are told by name and cost nobody else anything.
Rows are written as they come, so that what was said is kept however it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.config import check_out_file
from vfz.pipeline.datasets.folder import videos_at
from vfz.pipeline.devices import choose_device
from vfz.pipeline.errors import RunError, StorageError
from vfz.pipeline.files import make_folder
from vfz.pipeline.format.folder import find_cache
from vfz.pipeline.progress import Progress, SilentProgress
from vfz.temporal.prediction.clips import CachedClips, NewClips, Unanswered
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.prediction.predictors import Predictor, open_predictor
from vfz.temporal.prediction.rows import NUMBERS, FrameAnswer, Prediction, Rows


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """What became of the videos.

    Attributes:
        path: the run or result that was asked.
        task: its task.
        names: of its classes, labels or targets.
        num_videos: asked about.
        num_failed: of those, without an answer.
        out: the file with the rows; None where there is none.
        predictions: of all videos; empty where they went to a file, or to whoever asked for them.
    """

    path: str
    task: str
    names: tuple[str, ...]
    num_videos: int
    num_failed: int
    out: str | None
    predictions: tuple[Prediction, ...] = ()


OnVideo = Callable[[Prediction, Rows], None]
"""Told of every video when it is answered for, with how it is written."""


def predict(
    options: PredictOptions, *, progress: Progress | None = None, on_video: OnVideo | None = None
) -> PredictReport:
    """Ask a run or a probe about videos.

    Args:
        options: what, and about which.
        progress: told of every video.
        on_video: told of every prediction as it comes; they are then not kept.

    Raises:
        UsageError: no such run, probe, video or split, or a task that is not offered. RunError: a run or probe that
        does not load. CacheMismatchError: other weights than the encoder's, or a cache of another recipe.
        StorageError: the file cannot be written. A video that cannot be decoded raises nothing.
    """
    progress = progress or SilentProgress()
    if options.out is not None:
        check_out_file(options.out, force=options.force)
    files = videos_at(options.videos) if options.videos else None
    device = choose_device(options.device)
    predictor = open_predictor(options, device)
    clips: NewClips | CachedClips
    if files is not None:
        clips = NewClips(files, predictor, options, device)
    else:
        clips = CachedClips(FeatureCache(find_cache(options.cache)), predictor, options, device)
    rows = Rows(predictor.task, predictor.names, top_k=options.top_k, probabilities=options.probabilities)
    kept: list[Prediction] = []
    num_failed = 0
    progress.start("predicting", total=clips.num_videos, unit="videos")
    with _writer(options, rows) as write:
        for prediction in _predictions(predictor, clips):
            write(prediction)
            if on_video is not None:
                on_video(prediction, rows)
            elif options.out is None:
                kept.append(prediction)
            num_failed += bool(prediction.error)
            progress.advance()
    progress.finish()
    return PredictReport(
        path=str(predictor.path),
        task=predictor.task,
        names=predictor.names,
        num_videos=clips.num_videos,
        num_failed=num_failed,
        out=None if options.out is None else str(options.out),
        predictions=tuple(kept),
    )


def _predictions(predictor: Predictor, clips: NewClips | CachedClips) -> Iterator[Prediction]:
    """Answers, video by video: the clips of one follow each other, perhaps into the next batch."""
    held = _Held(predictor)
    for batch in clips:
        if isinstance(batch, Unanswered):
            yield from held.take()
            yield Prediction(video=batch.video, scores={}, error=batch.error)
            continue
        answers, masks, times = predictor.answers(batch), batch.frame_mask_BT.cpu(), batch.pts_seconds_BT.cpu()
        for place, video in enumerate(batch.video_ids):
            number = int(batch.indices_B[place])
            if number != held.number:
                yield from held.take()
                held.begin(number, video)
            held.add(answers[place], masks[place], times[place])
        if clips.whole_videos:
            yield from held.take()
    yield from held.take()


class _Held:
    """The answers for the clips of one video, until all of them are there."""

    def __init__(self, predictor: Predictor) -> None:
        self._task, self._names = predictor.task, predictor.names
        self.number: int | None = None
        self._video = ""
        self._clips: list[tuple[Tensor, Tensor, Tensor]] = []

    def begin(self, number: int, video: str) -> None:
        self.number, self._video, self._clips = number, video, []

    def add(self, answer: Tensor, mask_T: Tensor, pts_T: Tensor) -> None:
        self._clips.append((answer, mask_T, pts_T))

    def take(self) -> Iterator[Prediction]:
        """What they say together; nothing where there are none."""
        if self.number is None:
            return
        self.number = None
        answers = [answer for answer, _, _ in self._clips]
        if self._task in NUMBERS:
            frames = tuple(self._frames())
            is_finite = all(math.isfinite(number) for frame in frames for number in frame.numbers)
            answered = Prediction(video=self._video, scores={}, frames=frames)
        else:
            mean_K = torch.stack(answers).mean(dim=0)
            is_finite = bool(mean_K.isfinite().all())
            answered = Prediction(video=self._video, scores=dict(zip(self._names, mean_K.tolist(), strict=True)))
        yield answered if is_finite else Prediction(video=self._video, scores={}, error="the answer is not finite")

    def _frames(self) -> Iterator[FrameAnswer]:
        """Of every real frame of each clip; the pose of the first has none before it."""
        for clip, (numbers, mask_T, pts_T) in enumerate(self._clips):
            frames = np.flatnonzero(mask_T.numpy())[1 if self._task == "pose" else 0 :].tolist()
            for thing, numbers_TX in enumerate(numbers if numbers.ndim == 3 else numbers[None]):
                if bool(numbers_TX.isnan().all()):  # a clip of fewer objects or points than others
                    continue
                for frame in frames:
                    yield FrameAnswer(
                        clip=clip,
                        thing=thing if numbers.ndim == 3 else None,
                        pts_seconds=float(pts_T[frame]),
                        numbers=tuple(numbers_TX[frame].tolist()),
                    )


@contextmanager
def _writer(options: PredictOptions, rows: Rows) -> Iterator[Callable[[Prediction], None]]:
    """Writes predictions into `--out`, each at once; does nothing where there is none."""
    if options.out is None:
        yield lambda _: None
        return
    suffix = options.out.suffix.lower()
    make_folder(options.out.parent)

    def write(text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {options.out}: {error.strerror}; what was written is kept") from error

    with _opened(options) as file:
        if suffix == ".csv":
            write(rows.csv_line(rows.header()))
        yield lambda prediction: write(rows.text(prediction, suffix))


def _opened(options: PredictOptions) -> TextIO:
    assert options.out is not None  # noqa: S101 - asked by whoever calls
    try:
        return options.out.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise RunError(f"cannot write {options.out}: {error.strerror}; choose another --out") from error
