"""Linear models solved at many penalties at once are those that scikit-learn finds one by one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from vfz.temporal.solvers import fit_one_vs_rest, fit_ridge

PENALTIES = (0.01, 1.0, 30.0)


@pytest.fixture(params=[(80, 7), (30, 50)], ids=["more samples", "more features"])
def problem(request):
    """Features, labels and numbers of some samples, a fifth of which are not known."""
    rng = np.random.default_rng(0)
    num_samples, num_features = request.param
    x = rng.normal(size=(num_samples, num_features)) * rng.lognormal(size=num_features) + 1
    numbers = x @ rng.normal(size=(num_features, 3)) + rng.normal(size=(num_samples, 3))
    numbers[rng.random(numbers.shape) < 0.2] = np.nan
    numbers[:, 2] = np.nan_to_num(numbers[:, 2])
    labels = np.where(np.isnan(numbers), np.nan, numbers > np.nanmedian(numbers, axis=0))
    return x, labels, numbers


def test_each_label_has_scikit_learns_logistic_regression_on_what_is_known_of_it(problem):
    x, labels, _ = problem
    weight_HKE, bias_HK = fit_one_vs_rest(torch.from_numpy(x), torch.from_numpy(labels), inverse_penalties=PENALTIES)
    for head, penalty in enumerate(PENALTIES):
        for label, column in enumerate(labels.T):
            known = np.isfinite(column)
            theirs = LogisticRegression(C=penalty, max_iter=20_000, tol=1e-10).fit(x[known], column[known])
            np.testing.assert_allclose(
                x @ weight_HKE[head, label].numpy() + float(bias_HK[head, label]), theirs.decision_function(x),
                rtol=1e-3, atol=2e-3,
            )  # fmt: skip


def test_beginning_elsewhere_ends_at_the_same_optimum(problem):
    x, labels, _ = (torch.from_numpy(array) for array in problem)
    first = fit_one_vs_rest(x, labels, inverse_penalties=PENALTIES)
    start = first[0] + 0.1 * torch.ones_like(first[0]), first[1] - 0.2
    weight_HKE, bias_HK = fit_one_vs_rest(x, labels, inverse_penalties=PENALTIES, start=start)
    logits, theirs = x @ weight_HKE.mT + bias_HK[:, None], x @ first[0].mT + first[1][:, None]
    torch.testing.assert_close(logits, theirs, atol=2e-3, rtol=0)


def test_each_target_has_scikit_learns_ridge_regression_on_what_is_known_of_it(problem):
    x, _, numbers = problem
    weight_HKE, bias_HK = fit_ridge(torch.from_numpy(x), torch.from_numpy(numbers), inverse_penalties=PENALTIES)
    for head, penalty in enumerate(PENALTIES):
        for target, column in enumerate(numbers.T):
            known = np.isfinite(column)
            theirs = Ridge(alpha=1 / penalty).fit(x[known], column[known])
            np.testing.assert_allclose(weight_HKE[head, target].numpy(), theirs.coef_, rtol=1e-6, atol=1e-8)
            assert float(bias_HK[head, target]) == pytest.approx(theirs.intercept_)


def test_a_target_of_which_nothing_is_known_is_answered_by_zero():
    x = torch.randn(5, 3)
    weight_HKE, bias_HK = fit_ridge(x, torch.full((5, 1), torch.nan), inverse_penalties=PENALTIES)
    assert not weight_HKE.any()
    assert not bias_HK.any()
