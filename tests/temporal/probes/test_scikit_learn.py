"""Solved probes against scikit-learn's, on the same features; and as estimators of scikit-learn."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from vfz.pipeline.errors import UsageError
from vfz.temporal import KNNProbe, LinearProbe, to_numpy
from vfz.temporal.probes import fit_knn, fit_linear
from vfz.temporal.probes.linear import fit_logistic

TEMPERATURE = 0.07


@pytest.fixture(scope="module")
def data():
    """1500 training and 2000 other vectors [V,64] of 8 classes that overlap; channels of very different size."""
    generator = np.random.default_rng(0)
    centres, sizes = generator.normal(size=(8, 64)), generator.lognormal(size=64)

    def split(count):
        labels = generator.integers(8, size=count)
        return ((generator.normal(size=(count, 64)) + 0.35 * centres[labels]) * sizes + 1).astype(np.float32), labels

    return (*split(1500), *split(2000))


def agree(ours, theirs, labels):
    assert (ours == theirs).mean() >= 0.995
    assert abs(accuracy_score(labels, ours) - accuracy_score(labels, theirs)) <= 0.002
    assert 0.3 < accuracy_score(labels, theirs) < 0.95


@pytest.mark.parametrize("inverse_penalty", [1e-3, 1.0, 100.0])
def test_logistic_regression_predicts_as_scikit_learn_does(data, inverse_penalty):
    x, y, x_other, y_other = data
    ours = fit_linear(x, y, inverse_penalties=[inverse_penalty])
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-8)).fit(x, y)
    agree(ours.predict(x_other), theirs.predict(x_other), y_other)


@pytest.mark.parametrize("k", [10, 200])
def test_knn_votes_as_scikit_learn_does(data, k):
    x, y, x_other, y_other = data

    def weights(distances):
        return np.exp((1 - distances**2 / 2) / TEMPERATURE)

    theirs = make_pipeline(Normalizer(), KNeighborsClassifier(k, weights=weights)).fit(x, y)
    agree(fit_knn(x, y, neighbours=[k]).predict(x_other), theirs.predict(x_other), y_other)


def test_probabilities_are_scikit_learns(data):
    x, y, x_other, _ = data
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8)).fit(x, y)
    ours = fit_linear(x, y, inverse_penalties=[0.1])
    assert np.abs(ours.predict_proba(x_other) - theirs.predict_proba(x_other)).max() < 1e-3


@pytest.mark.parametrize("penalties", [(0.7,), (1e-4, 0.7, 10.0)])
def test_every_fit_is_where_the_gradient_vanishes(penalties):
    """Logistic regression has one optimum: there, the gradient of the whole objective is zero."""
    generator = torch.Generator().manual_seed(0)
    x_VE, labels_V = torch.randn(50, 4, dtype=torch.float64, generator=generator), torch.arange(50) % 3
    weights, biases = fit_logistic(x_VE, labels_V, num_classes=3, inverse_penalties=penalties)
    for weight_KE, bias_K, penalty in zip(weights, biases, penalties, strict=True):
        weight_KE, bias_K = weight_KE.clone().requires_grad_(), bias_K.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x_VE @ weight_KE.T + bias_K, labels_V, reduction="sum")
        (loss + weight_KE.square().sum() / (2 * penalty)).backward()
        assert weight_KE.grad.abs().max() < 1e-5
        assert bias_K.grad.abs().max() < 1e-5


def test_separable_classes_at_a_weak_penalty_end_finite():
    x_VE = torch.cat([torch.randn(20, 3) + 9, torch.randn(20, 3) - 9])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights, biases = fit_logistic(x_VE, torch.arange(40) // 20, num_classes=2, inverse_penalties=[1e5])
    assert weights.isfinite().all()
    assert biases.isfinite().all()
    assert ((x_VE.double() @ weights[0].T + biases[0]).argmax(dim=1) == torch.arange(40) // 20).all()


# --- as estimators of scikit-learn ---

ESTIMATORS = pytest.mark.parametrize("kind", [LinearProbe, KNNProbe])


@ESTIMATORS
def test_scikit_learn_finds_no_fault_with_them(kind):
    found = check_estimator(kind(), on_skip=None)
    assert {result["status"] for result in found} <= {"passed", "skipped"}
    assert sum(result["status"] == "passed" for result in found) > 50


@ESTIMATORS
def test_they_answer_as_the_functions_do(data, kind):
    x, y, x_other, y_other = data
    names = np.array([f"class {number}" for number in range(8)])
    settings = {"held_out": 0.2} | ({"inverse_penalties": (0.01, 0.1)} if kind is LinearProbe else {})
    probe = clone(kind(**settings)).fit(x, names[y])
    function = (fit_linear if kind is LinearProbe else fit_knn)(x, y, **settings)
    assert probe.chosen_ == function.chosen
    np.testing.assert_allclose(probe.predict_proba(x_other), function.predict_proba(x_other), atol=1e-5)
    assert (probe.predict(x_other) == names[function.predict(x_other)]).mean() > 0.999
    assert probe.score(x_other, names[y_other]) == pytest.approx(function.score(x_other, y_other), abs=1e-3)
    if kind is LinearProbe:
        logits = x_other.astype(np.float64) @ probe.coef_.T + probe.intercept_
        assert (names[logits.argmax(axis=1)] == probe.predict(x_other)).all()


def test_pooled_features_go_through_pipelines_searches_and_cross_validation(synthetic_cache):
    X, y, _ = to_numpy(synthetic_cache, "train")
    pipeline = make_pipeline(PCA(8), KNNProbe(neighbours=3)).fit(X, y)
    assert pipeline.predict_proba(X).shape == (len(y), 6)
    assert cross_val_score(LinearProbe(inverse_penalties=1.0), X, y, cv=2).shape == (2,)
    search = GridSearchCV(KNNProbe(), {"neighbours": [1, 5]}, cv=2).fit(X, y)
    assert search.best_params_["neighbours"] in (1, 5)


def test_what_cannot_be_fitted_is_a_value_error_of_one_line_and_of_vfz():
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    for probe, words in (
        (KNNProbe(neighbours=100), "k 100 is more than the"),
        (LinearProbe(inverse_penalties=-1), "inverse_penalties is -1; a number above 0"),
        (LinearProbe(held_out=2), "a held-out part of 2 is no share"),
        (LinearProbe(random_state="x"), "seed is 'x'; a whole number"),
        (KNNProbe(folds=1), "folds is 1; a whole number from 2"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            probe.fit(x, y)
        assert isinstance(caught.value, UsageError)
        assert "\n" not in str(caught.value)


def test_without_scikit_learn_they_say_what_to_install_and_the_rest_works():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import numpy as np\n"
        "from vfz.temporal import KNNProbe, LinearProbe, fit_linear\n"
        "x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2\n"
        "fit_linear(x, y).predict(x)\n"
        "for kind in (KNNProbe, LinearProbe):\n"
        "    try: kind()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["UsageError", "KNNProbe"], ["UsageError", "LinearProbe"]]
    assert all("pip install 'vfz[sklearn]'; fit_linear and fit_knn do without" in line for line in lines)
