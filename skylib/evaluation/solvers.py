"""The two estimators of frozen embeddings: logistic regression that converges in few passes, and nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestNeighbors

_CURVATURE = 0.15  # typical second derivative of the cross-entropy by a logit: p (1 - p)


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression over classes with an L2 penalty: the minimum of scikit-learn's, reached faster.

    Features of a network are strongly correlated, so that L-BFGS on them needs hundreds of iterations. Here it works in
    the principal axes of the features, each scaled by the curvature that is expected along it. The penalty is on the
    weights of the features as they came.

    Parameters
    ----------
    C : float
        Inverse of the penalty, as in `sklearn.linear_model.LogisticRegression`.
    class_weight : {"balanced", None}
        Let each class count the same, or each object.
    tol : float
        Largest gradient at which to stop, relative to the number of objects.
    max_iter : int

    Attributes
    ----------
    coef_ : ndarray, shape (n_classes, n_features)
    intercept_ : ndarray, shape (n_classes,)
    classes_ : ndarray

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> SoftmaxRegression().fit(x, np.array([0, 0, 1, 1])).predict(x)
    array([0, 0, 1, 1])
    """

    def __init__(self, C: float = 1.0, *, class_weight: str | None = None, tol: float = 1e-5, max_iter: int = 500):
        self.C, self.class_weight, self.tol, self.max_iter = C, class_weight, tol, max_iter

    def fit(self, X: np.ndarray, y: np.ndarray) -> SoftmaxRegression:
        """Fit to features (n, D), best standardised, and classes (n,)."""
        x = np.asarray(X, dtype=np.float64)
        self.classes_, codes = np.unique(y, return_inverse=True)
        n, width, n_classes = len(x), x.shape[1], len(self.classes_)
        counts = np.bincount(codes)
        balanced = self.class_weight == "balanced"
        weight = (n / n_classes / counts)[codes] if balanced else np.ones(n)
        truth = np.eye(n_classes)[codes]
        spread, axes = np.linalg.eigh(x.T @ x / n)
        scale = 1 / np.sqrt(_CURVATURE * self.C * n * spread.clip(min=0) + 1)
        rotated = (x @ axes) * scale
        penalty = (scale**2)[:, None]
        step = 1 / np.sqrt(_CURVATURE * self.C * n)  # of the intercept

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            """Return loss and gradient; scaled weights first, then intercepts."""
            v, b = np.split(values.reshape(width + 1, n_classes), [width])
            logs = log_softmax(rotated @ v + b * step, axis=1)
            loss = -self.C * (weight * (truth * logs).sum(1)).sum() + 0.5 * (penalty * v**2).sum()
            error = self.C * weight[:, None] * (np.exp(logs) - truth)
            gradient = np.concatenate([rotated.T @ error + penalty * v, step * error.sum(0, keepdims=True)])
            return loss / n, gradient.ravel() / n

        start = np.zeros((width + 1) * n_classes)
        options: dict[str, Any] = {"maxiter": self.max_iter, "gtol": self.tol * min(1.0, self.C), "maxcor": 20}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        v, b = np.split(found.x.reshape(width + 1, n_classes), [width])
        self.coef_, self.intercept_ = (axes @ (scale[:, None] * v)).T, b[0] * step
        self.n_iter_ = int(found.nit)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probability of each class, (n, n_classes)."""
        return np.exp(log_softmax(np.asarray(X, dtype=np.float64) @ self.coef_.T + self.intercept_, axis=1))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the most probable class, (n,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class Neighbours(BaseEstimator):
    """Predict from the k nearest training objects, each weighted by its inverse distance.

    Parameters
    ----------
    k : int
    classes : bool
        Vote for classes, or take the mean of values.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> Neighbours(2).fit(x, np.array([0, 0, 1, 1])).predict(np.array([[0.4]]))
    array([0])
    >>> Neighbours(2, classes=False).fit(x, np.array([0.0, 1.0, 2.0, 3.0])).predict(np.array([[0.25]]))
    array([0.25])
    """

    def __init__(self, k: int = 10, *, classes: bool = True):
        self.k, self.classes = k, classes

    def fit(self, X: np.ndarray, y: np.ndarray) -> Neighbours:
        """Keep training objects (n, D) and their classes or values (n,)."""
        self.search_ = NearestNeighbors(algorithm="brute").fit(np.asarray(X, dtype=np.float32))
        self.classes_: np.ndarray | None = None
        self.targets_ = np.asarray(y)
        if self.classes:
            self.classes_, codes = np.unique(y, return_inverse=True)
            self.targets_ = np.eye(len(self.classes_))[codes]
        return self

    def neighbours(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return distances and numbers of the k nearest training objects, (n, k) each."""
        return self.search_.kneighbors(np.asarray(X, dtype=np.float32), k)

    def average(self, distance: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the weighted mean of the targets of neighbours: values (n,), or the share of each class (n, n_classes)."""
        weight = 1 / distance.clip(min=1e-9)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.einsum("nk,nk...->n...", weight, self.targets_[rows])

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the share of each class, (n, n_classes)."""
        return self.average(*self.neighbours(X, self.k))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return classes or values, (n,)."""
        found = self.average(*self.neighbours(X, self.k))
        return found if self.classes_ is None else self.classes_[found.argmax(axis=1)]
