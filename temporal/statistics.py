"""How sure an accuracy is, and whether two probes differ: intervals, McNemar's test, the paired bootstrap.

`bootstrap_of` takes any figure of videos; the others take outcomes of videos, [V]: right or wrong, or any number a
video. A resample of V values draws each of the few distinct values a multinomially distributed number of times, so that
ten thousand resamples of 0/1 outcomes cost ten thousand binomial draws and not ten thousand passes over the videos; the
distribution is the same.

Resampling says nothing about a share near 0 or 1 of a few videos: where all five are right, so are they in each
resample. A share therefore has Wilson's interval, which stays apart from its ends (Wilson, "Probable inference, the law
of succession, and statistical inference", 1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfz.pipeline.errors import UsageError

Measure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A figure of videos, [R], where each was drawn as often as a row says, [R, V]."""

NUM_RESAMPLES = 10_000
NUM_RESAMPLES_OF_FIGURES = 1_000
"""Of figures that every resample is measured anew for."""
_DRAWS_AT_ONCE = 2_000_000
FEW_VIDEOS = 30
"""Fewer than so many say little, whatever the share."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over videos with an interval.

    Attributes:
        mean: of the outcomes.
        low, high: its ends.
        confidence: of the interval.
        method: how it was made: `Wilson`, or `bootstrap` for the percentiles of resamples.
    """

    mean: float
    low: float
    high: float
    confidence: float
    method: str = "bootstrap"


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Outcome of McNemar's exact test of two classifiers on the same videos.

    Attributes:
        num_only_first: videos that the first has right and the second wrong.
        num_only_second: the other way round.
        p_value: two-sided; how often two equally good classifiers would differ at least as much.
    """

    num_only_first: int
    num_only_second: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class PairedBootstrap:
    """The difference of two means over the same videos, first minus second.

    Attributes:
        difference: of the means.
        low, high: its percentile interval.
        p_value: two-sided; twice the share of resamples on the other side of zero, never below 1 / resamples.
        confidence: share of resamples within the interval.
    """

    difference: float
    low: float
    high: float
    p_value: float
    confidence: float


def bootstrap_interval(
    values_V: ArrayLike, *, confidence: float = 0.95, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of a mean over videos.

    Args:
        values_V: one number or truth value a video.
        confidence: between 0 and 1.
        num_resamples: draws of V videos with replacement.
        seed: of the draws.

    Raises:
        UsageError: when there is no value, one is not finite, or `confidence` is no share.
    """
    values_V = _outcomes(values_V, "values")
    means_R = _resampled_means(values_V, num_resamples=num_resamples, seed=seed)
    low, high = _percentiles(means_R, confidence)
    return Interval(mean=float(values_V.mean()), low=low, high=high, confidence=confidence)


def bootstrap_of(
    measure: Measure,
    num_videos: int,
    *,
    value: float,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES_OF_FIGURES,
    seed: int = 0,
) -> Interval | None:
    """The percentile bootstrap interval of a figure of all videos together that is no mean over them (mAP, R2).

    Args:
        measure: from how often each video was drawn, [R, V], to the figure of each resample, [R]; NaN where it cannot
            be said, which counts as not drawn.
        num_videos: V.
        value: the figure of the videos themselves, the interval's `mean`.
        confidence: between 0 and 1.
        num_resamples: draws of V videos with replacement.
        seed: of the draws.

    Returns:
        None where the figure cannot be said of the videos or of any resample.

    Raises:
        UsageError: when `confidence` is no share, or there is no video.
    """
    _check_confidence(confidence)
    if num_videos < 1:
        raise UsageError("an interval is of at least one video, and there is none")
    figures_R = np.concatenate([measure(part_RV) for part_RV in _draws(num_videos, num_resamples, seed)])
    figures_R = figures_R[np.isfinite(figures_R)]
    if not len(figures_R) or not math.isfinite(value):
        return None
    low, high = _percentiles(figures_R, confidence)
    return Interval(mean=value, low=low, high=high, confidence=confidence)


def share_interval(right_V: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share of the videos, which stays apart from 0 and 1 however few there are.

    Args:
        right_V: right or wrong, or how often of several times, 0 to 1, a video.
        confidence: between 0 and 1.

    Raises:
        UsageError: when there is no video, a value is no share, or `confidence` is none.
    """
    right_V = _outcomes(right_V, "outcomes")
    if right_V.min() < 0 or right_V.max() > 1:
        raise UsageError("outcomes must be 0 to 1; use bootstrap_interval for other numbers")
    return wilson(float(right_V.mean()), len(right_V), confidence=confidence)


def wilson(share: float, count: int, *, confidence: float = 0.95) -> Interval:
    """The same of a share of `count` videos, at least one.

    Raises:
        UsageError: when `confidence` is no share.
    """
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 / (1 + z**2 / count)
    centre = scale * (share + z**2 / (2 * count))
    half = scale * z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(mean=share, low=min(low, share), high=max(high, share), confidence=confidence, method="Wilson")


def balanced_accuracy(
    right_V: ArrayLike,
    labels_V: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over classes of the share that is right, with its percentile bootstrap interval.

    Videos are drawn again; a class of which a draw has none does not count in it. Where all are right, or all wrong,
    every draw is the same, and the interval is Wilson's for as many videos as the classes' uneven numbers are worth.

    Args:
        right_V: whether each video is right.
        labels_V: its class, a whole number.
        confidence: between 0 and 1.
        num_resamples: draws of V videos with replacement.
        seed: of the draws.

    Raises:
        UsageError: when there is no video, they are not as many, or `confidence` is no share.
    """
    right_V, labels_V = _pair(right_V, labels_V)
    _, classes_V = np.unique(labels_V, return_inverse=True)
    count_K, right_K = np.bincount(classes_V), np.bincount(classes_V, weights=right_V)
    mean = float((right_K / count_K).mean())
    if mean in (0.0, 1.0):
        worth = max(1, round(len(count_K) ** 2 / float((1 / count_K).sum())))
        return wilson(mean, worth, confidence=confidence)
    generator = np.random.default_rng(seed)
    cells = np.concatenate([right_K, count_K - right_K]) / len(right_V)
    rows = max(1, _DRAWS_AT_ONCE // len(cells))
    means = []
    for start in range(0, num_resamples, rows):
        drawn = generator.multinomial(len(right_V), cells, size=min(rows, num_resamples - start))
        drawn_right, drawn_wrong = np.split(drawn, 2, axis=1)
        drawn_count = drawn_right + drawn_wrong
        shares = drawn_right / np.maximum(1, drawn_count)
        means.append(shares.sum(axis=1) / (drawn_count > 0).sum(axis=1))
    low, high = _percentiles(np.concatenate(means), confidence)
    return Interval(mean=mean, low=low, high=high, confidence=confidence)


def mcnemar(first_V: ArrayLike, second_V: ArrayLike) -> McNemar:
    """McNemar's exact test: do two classifiers, right or wrong on the same videos, differ?

    Only videos on which they disagree tell anything; were both equally good, each of them would go either way like a
    fair coin.

    Args:
        first_V: whether the first is right on each video.
        second_V: whether the second is.

    Raises:
        UsageError: when they are not truth values of the same videos.
    """
    first_V, second_V = _pair(first_V, second_V)
    if not np.isin(np.concatenate([first_V, second_V]), (0.0, 1.0)).all():
        raise UsageError(
            "mcnemar takes right or wrong, 1 or 0, for every video; use paired_bootstrap for other numbers"
        )
    only_first, only_second = int((first_V > second_V).sum()), int((second_V > first_V).sum())
    num_differing = only_first + only_second
    # Exact integers: the tail of a fair coin thrown `num_differing` times.
    tail, term = 0, 1
    for heads in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (num_differing - heads) // (heads + 1)
    p_value = min(1.0, _ratio(2 * tail, num_differing))
    return McNemar(num_only_first=only_first, num_only_second=only_second, p_value=p_value)


def paired_bootstrap(
    first_V: ArrayLike,
    second_V: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> PairedBootstrap:
    """The bootstrap of a difference of means over the same videos, which are drawn together.

    Args:
        first_V: one number or truth value a video.
        second_V: the same of the other probe.
        confidence: between 0 and 1.
        num_resamples: draws of V videos with replacement.
        seed: of the draws.

    Raises:
        UsageError: when they are not of the same videos, or a value is not finite.
    """
    first_V, second_V = _pair(first_V, second_V)
    differences_V = first_V - second_V
    means_R = _resampled_means(differences_V, num_resamples=num_resamples, seed=seed)
    low, high = _percentiles(means_R, confidence)
    on_one_side = min(float((means_R <= 0).mean()), float((means_R >= 0).mean()))
    return PairedBootstrap(
        difference=float(differences_V.mean()),
        low=low,
        high=high,
        p_value=min(1.0, max(1 / num_resamples, 2 * on_one_side)),
        confidence=confidence,
    )


def paired_bootstrap_of(
    first: Measure,
    second: Measure,
    num_videos: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES_OF_FIGURES,
    seed: int = 0,
) -> PairedBootstrap:
    """The bootstrap of a difference of two figures that are no means over videos (mAP, R2), of the same draws.

    Args:
        first: from how often each video was drawn, [R, V], to the figure of each resample, [R]; NaN where it cannot be
            said, which counts as not drawn.
        second: the same of the other.
        num_videos: V.
        confidence: between 0 and 1.
        num_resamples: draws of V videos with replacement.
        seed: of the draws.

    Raises:
        UsageError: when a figure cannot be said of the videos, or of no resample.
    """
    parts = _draws(num_videos, num_resamples, seed)
    differences_R = np.concatenate([first(part_RV) - second(part_RV) for part_RV in parts])
    differences_R = differences_R[np.isfinite(differences_R)]
    every = np.ones((1, num_videos))
    difference = float((first(every) - second(every))[0])
    if not len(differences_R) or not math.isfinite(difference):
        raise UsageError("the figure cannot be said of these videos, so that two of them do not differ")
    low, high = _percentiles(differences_R, confidence)
    on_one_side = min(float((differences_R <= 0).mean()), float((differences_R >= 0).mean()))
    return PairedBootstrap(
        difference=difference,
        low=low,
        high=high,
        p_value=min(1.0, max(1 / num_resamples, 2 * on_one_side)),
        confidence=confidence,
    )


def _draws(num_videos: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of V videos is drawn in each resample, some rows [R, V] at a time to bound the memory."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // num_videos)
    share_V = np.full(num_videos, 1 / num_videos)
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        yield generator.multinomial(num_videos, share_V, size=size).astype(np.float64)


def _resampled_means(values_V: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    if num_resamples < 1:
        raise UsageError(f"{num_resamples} resamples; at least 1 is needed")
    distinct_U, counts_U = np.unique(values_V, return_counts=True)
    generator = np.random.default_rng(seed)
    share_U = counts_U / len(values_V)
    # A row of draws is as long as the distinct values are many; rows are made some at a time to bound the memory.
    rows = max(1, 10_000_000 // len(distinct_U))
    means = [
        generator.multinomial(len(values_V), share_U, size=min(rows, num_resamples - start)) @ distinct_U
        for start in range(0, num_resamples, rows)
    ]
    return np.concatenate(means) / len(values_V)


def _percentiles(means_R: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    _check_confidence(confidence)
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is no share; give a number between 0 and 1, such as 0.95")


def _pair(first_V: ArrayLike, second_V: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first_V, second_V = _outcomes(first_V, "first"), _outcomes(second_V, "second")
    if len(first_V) != len(second_V):
        raise UsageError(
            f"{len(first_V)} outcomes against {len(second_V)}; a paired test needs both probes on the same videos"
        )
    return first_V, second_V


def _outcomes(values_V: ArrayLike, name: str) -> NDArray[np.float64]:
    values_V = np.asarray(values_V, dtype=np.float64)
    if values_V.ndim != 1 or not len(values_V):
        raise UsageError(f"{name} has shape {values_V.shape}; one value for each of at least one video is needed")
    if not np.isfinite(values_V).all():
        raise UsageError(f"{name} has {int((~np.isfinite(values_V)).sum())} values that are not finite")
    return values_V


def _ratio(numerator: int, num_throws: int) -> float:
    """`numerator / 2**num_throws`, also where neither fits a float."""
    spare = max(0, numerator.bit_length() - 64)
    return math.ldexp(float(numerator >> spare), spare - num_throws)
