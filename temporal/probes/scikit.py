"""Probes as scikit-learn's own kind of estimator: `LinearProbe` and `KNNProbe`, for pipelines, searches and cloning.

    X, y, ids = to_numpy("caches/k400-…", "train")
    make_pipeline(PCA(64), LinearProbe()).fit(X, y).score(*to_numpy("caches/k400-…", "val")[:2])
    cross_val_score(KNNProbe(neighbours=20), X, y)

They fit what `fit_linear` and `fit_knn` fit, on pooled features [V, E], and keep scikit-learn's conventions, which its
`check_estimator` checks: wrong arrays are its ValueErrors, settings are read when `fit` is called. They need
scikit-learn (`pip install 'vfz[sklearn]'`); nothing else of vfz does.

Shapes: V videos, E features of each, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vfz.pipeline.errors import UsageError
from vfz.temporal.probes.estimators import FittedProbe, fit_knn, fit_linear
from vfz.temporal.probes.knn import NEIGHBOURS, TEMPERATURE, KnnGrid
from vfz.temporal.probes.selection import HELD_OUT_FRACTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfz.temporal.probes.heads import HeadGrid
    from vfz.temporal.probes.linear import LinearGrid

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise

    class _Missing:
        """In the place of scikit-learn's base classes."""

        def __new__(cls, *_: Any, **__: Any) -> Any:
            """Refuses.

            Raises:
                UsageError: always; says what to install.
            """
            raise UsageError(
                f"{cls.__name__} is an estimator of scikit-learn, which is not there: pip install 'vfz[sklearn]'; "
                "fit_linear and fit_knn do without"
            )

    class BaseEstimator(_Missing):  # type: ignore[no-redef]
        """See `_Missing`."""

    class ClassifierMixin:  # type: ignore[no-redef]
        """See `_Missing`."""


class UnfitError(UsageError, ValueError):
    """A `UsageError` as scikit-learn expects it of an estimator: a ValueError."""


class _Probe(ClassifierMixin, BaseEstimator):
    """What both share.

    Attributes after `fit`:
        classes_: [K] labels, in the order of `predict_proba`'s columns.
        n_features_in_: E.
        chosen_: the chosen settings and how right they were on held-out videos.
    """

    def fit(self, X: Any, y: Any) -> Any:
        """Fits to features [V, E] and their labels [V], which may be of any kind; returns the probe itself.

        Raises:
            ValueError: for what cannot be fitted.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UnfitError("the labels are of one class; a probe needs at least two")
        try:
            fitted = self._fitted(np.array(X, np.float32), places.astype(np.int64))
        except UsageError as error:
            raise UnfitError(str(error)) from error
        self.chosen_ = fitted.chosen
        self._grid: HeadGrid = fitted.grid
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities [V, K] of features [V, E].

        Raises:
            NotFittedError, ValueError: as scikit-learn's.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        tokens_V11E = torch.from_numpy(np.array(X, np.float64)[:, None, None])
        proba_VK: NDArray[np.float64] = self._grid.proba([tokens_V11E], (0,))[0].double().numpy()
        return proba_VK

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class [V]; see `predict_proba`."""
        best_V = self.predict_proba(X).argmax(axis=1)
        predicted_V: NDArray[Any] = self.classes_[best_V]
        return predicted_V

    def _fitted(self, X: NDArray[np.float32], y: NDArray[np.int64]) -> FittedProbe:
        raise NotImplementedError


class LinearProbe(_Probe):
    """Logistic regression whose penalty is chosen on held-out videos: `fit_linear` with its exact solver.

    Args:
        inverse_penalties: values of C to choose from, or one; default: 45 from 1e-6 to 1e5.
        standardize: bring features to mean 0 and deviation 1 first.
        held_out: share of every class that chooses.
        folds: cross-validation with so many folds instead.
        random_state: a whole number; which videos are held out.

    Attributes after `fit`:
        coef_, intercept_: [K, E] and [K], for features as they are given.
    """

    def __init__(
        self,
        *,
        inverse_penalties: Sequence[float] | float | None = None,
        standardize: bool = True,
        held_out: float = HELD_OUT_FRACTION,
        folds: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.inverse_penalties, self.standardize = inverse_penalties, standardize
        self.held_out, self.folds, self.random_state = held_out, folds, random_state

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """See `_Probe.fit`."""
        super().fit(X, y)
        grid = cast("LinearGrid", self._grid)
        self.coef_, self.intercept_ = grid.weight_HKE[0].numpy(), grid.bias_HK[0].numpy()
        return self

    def _fitted(self, X: NDArray[np.float32], y: NDArray[np.int64]) -> FittedProbe:
        return fit_linear(
            X,
            y,
            solver="exact",
            inverse_penalties=self.inverse_penalties,
            standardize=self.standardize,
            held_out=self.held_out,
            folds=self.folds,
            seed=self.random_state,
            device="cpu",
        )


class KNNProbe(_Probe):
    """A vote of the most similar training videos, whose number is chosen on held-out ones: `fit_knn`.

    Args:
        neighbours: values of k to choose from, or one; default: of 10, 20, 100 and 200 those that there are videos for.
        temperature: votes weigh softmax(cosine similarity / temperature).
        held_out: share of every class that chooses.
        folds: cross-validation with so many folds instead.
        random_state: a whole number; which videos are held out.
    """

    def __init__(
        self,
        *,
        neighbours: Sequence[int] | int | None = None,
        temperature: float = TEMPERATURE,
        held_out: float = HELD_OUT_FRACTION,
        folds: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.neighbours, self.temperature = neighbours, temperature
        self.held_out, self.folds, self.random_state = held_out, folds, random_state

    def fit(self, X: Any, y: Any) -> KNNProbe:
        """See `_Probe.fit`."""
        super().fit(X, y)
        grid = cast("KnnGrid", self._grid)
        self._grid = KnnGrid(  # asked in float64, a video's answer does not depend on those beside it
            grid.bank_ME.double(),
            grid.labels_M,
            num_classes=grid.num_classes,
            neighbours=grid.neighbours,
            temperature=grid.temperature,
            pool=grid.pool,
        )
        return self

    def _fitted(self, X: NDArray[np.float32], y: NDArray[np.int64]) -> FittedProbe:
        few = None if self.neighbours is not None or len(X) > 2 * NEIGHBOURS[0] else max(1, len(X) // 2)
        return fit_knn(
            X,
            y,
            neighbours=few or self.neighbours,
            temperature=self.temperature,
            held_out=self.held_out,
            folds=self.folds,
            seed=self.random_state,
            device="cpu",
        )
