"""Intervals and tests against closed forms, brute force and what they promise."""

import math

import numpy as np
import pytest

from vfz.pipeline.errors import UsageError
from vfz.temporal import balanced_accuracy, bootstrap_interval, mcnemar, paired_bootstrap, share_interval
from vfz.temporal.statistics import bootstrap_of

pytestmark = pytest.mark.quick


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    interval = bootstrap_interval(np.arange(400) < 300, num_resamples=100_000)
    assert interval.mean == 0.75
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert interval.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.004)
    assert interval.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.004)


def test_resampling_by_distinct_values_is_resampling_of_videos():
    generator = np.random.default_rng(1)
    values = generator.normal(size=40)
    plain = generator.choice(values, size=(50_000, 40)).mean(axis=1)
    interval = bootstrap_interval(values, num_resamples=50_000)
    assert interval.low == pytest.approx(np.quantile(plain, 0.025), abs=0.01)
    assert interval.high == pytest.approx(np.quantile(plain, 0.975), abs=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        interval = bootstrap_interval(generator.random(200) < 0.6, confidence=0.9, num_resamples=500, seed=trial)
        held += interval.low <= 0.6 <= interval.high
    assert 0.84 < held / 400 < 0.95


@pytest.mark.parametrize("count", [1, 5, 12, 100])
def test_the_interval_of_a_share_does_not_collapse_where_all_or_none_are_right(count):
    z = 1.959964
    whole, none = share_interval(np.ones(count)), share_interval(np.zeros(count))
    assert (whole.mean, whole.high, whole.method) == (1.0, 1.0, "Wilson")
    assert whole.low == pytest.approx(count / (count + z**2), abs=1e-6)  # Wilson's, solved by hand for p = 1
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - whole.low)
    assert bootstrap_interval(np.ones(count)).low == 1.0, "resampling would say that nothing can go wrong"


@pytest.mark.parametrize("count", [5, 10, 30])
def test_the_interval_of_a_share_holds_the_truth_on_average_as_often_as_it_says(count):
    held = [share_interval(np.arange(count) < right) for right in range(count + 1)]
    coverage = []
    for truth in np.linspace(0.005, 0.995, 199):
        weights = [math.comb(count, k) * truth**k * (1 - truth) ** (count - k) for k in range(count + 1)]
        coverage.append(sum(w for w, one in zip(weights, held, strict=True) if one.low <= truth <= one.high))
    assert 0.94 <= np.mean(coverage) <= 0.97
    assert min(coverage) > 0.8


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (0, 7), (3, 3), (10, 2), (40, 60), (600, 500)])
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    scipy_stats = pytest.importorskip("scipy.stats")  # comes with scikit-learn
    first = [1] * only_first + [0] * only_second + [1] * 20 + [0] * 5
    second = [0] * only_first + [1] * only_second + [1] * 20 + [0] * 5
    test = mcnemar(first, second)
    assert (test.num_only_first, test.num_only_second) == (only_first, only_second)
    number = only_first + only_second
    expected = scipy_stats.binomtest(only_first, number, 0.5).pvalue if number else 1.0
    assert test.p_value == pytest.approx(expected)


def test_balanced_accuracy_is_the_mean_over_classes_however_many_videos_they_have():
    labels = [0] * 90 + [1] * 10
    found = balanced_accuracy([True] * 90 + [False] * 10, labels)
    assert found.mean == 0.5
    assert found.low <= 0.5 <= found.high
    mixed = balanced_accuracy([True] * 80 + [False] * 10 + [True] * 5 + [False] * 5, labels)
    assert mixed.mean == pytest.approx((80 / 90 + 0.5) / 2)
    assert 0.5 < mixed.low < mixed.mean < mixed.high < 0.9
    assert mixed == balanced_accuracy([True] * 80 + [False] * 10 + [True] * 5 + [False] * 5, labels), "seeded"


@pytest.mark.parametrize("right", [True, False])
def test_balanced_accuracy_of_a_few_that_are_all_right_or_all_wrong_has_an_interval_that_does_not_collapse(right):
    found = balanced_accuracy([right] * 9, [0] * 7 + [1] * 2)
    assert found.mean == float(right)
    assert found.method == "Wilson"
    assert 0.3 < found.high - found.low < 0.8


def test_mcnemar_of_many_videos_is_finite_and_symmetric():
    first, second = np.arange(20_000) < 11_000, np.arange(20_000) >= 9_500
    assert mcnemar(first, second).p_value == mcnemar(second, first).p_value
    assert 0 < mcnemar(first, second).p_value < 1
    assert mcnemar([1] * 5000, [0] * 5000).p_value == 0.0  # 2 ** -4999 is below the least float


def test_a_paired_bootstrap_finds_a_difference_that_unpaired_intervals_hide():
    generator = np.random.default_rng(0)
    hard = generator.random(1000)
    first, second = hard < 0.62, hard < 0.60
    test = paired_bootstrap(first, second)
    assert test.difference == pytest.approx(first.mean() - second.mean())
    assert 0 < test.low < test.difference < test.high
    assert test.p_value < 0.01
    one, two = bootstrap_interval(first), bootstrap_interval(second)
    assert one.low < two.high


def test_the_sign_of_a_paired_test_turns_with_its_arguments():
    first, second = np.arange(100) < 70, np.arange(100) < 50
    assert paired_bootstrap(first, second).difference == -paired_bootstrap(second, first).difference > 0
    assert paired_bootstrap(first, first).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_interval([]), "at least one"),
        (lambda: bootstrap_interval([1.0, math.nan]), "1 values that are not finite"),
        (lambda: bootstrap_interval([1, 0], confidence=95), "0.95"),
        (lambda: bootstrap_interval([1, 0], num_resamples=0), "at least 1"),
        (lambda: share_interval([]), "at least one"),
        (lambda: share_interval([0.5, 1.5]), "0 to 1"),
        (lambda: share_interval([1, 0], confidence=95), "0.95"),
        (lambda: mcnemar([1, 0], [1]), "2 outcomes against 1"),
        (lambda: mcnemar([0.5, 0], [1, 0]), "paired_bootstrap"),
        (lambda: paired_bootstrap([1, 0], [1, 0, 1]), "2 outcomes against 3"),
    ],
)
def test_outcomes_that_cannot_be_meant_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_the_interval_of_a_figure_that_is_a_mean_is_that_of_the_mean():
    values = np.random.default_rng(3).normal(size=60)
    plain = bootstrap_interval(values, num_resamples=20_000)
    found = bootstrap_of(lambda drawn: drawn @ values / 60, 60, value=values.mean(), num_resamples=20_000)
    assert (found.mean, found.method) == (values.mean(), "bootstrap")
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_resamples_without_a_figure_are_as_not_drawn_and_a_figure_that_cannot_be_said_has_no_interval():
    def of_some(drawn):
        return np.where(drawn[:, 0] > 0, drawn[:, 0], np.nan)

    found = bootstrap_of(of_some, 5, value=1.0)
    assert found.low == 1
    assert bootstrap_of(lambda drawn: np.full(len(drawn), np.nan), 5, value=1.0) is None
    assert bootstrap_of(of_some, 5, value=math.nan) is None
    with pytest.raises(UsageError, match="at least one video"):
        bootstrap_of(of_some, 0, value=1.0)
