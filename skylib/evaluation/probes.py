"""What frozen embeddings hold: simple probes, fitted on train, chosen on validation, reported on test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skylib.checks import checked
from skylib.data.splits import TEST, TRAIN, VALIDATION
from skylib.evaluation.bootstrap import bootstrap_intervals
from skylib.evaluation.labels import Labels, Task, select_labels
from skylib.evaluation.metrics import balanced_log_loss, metric_for, roc_auc
from skylib.evaluation.solvers import SoftmaxRegression
from skylib.model.embeddings import Embeddings

Models = Mapping[str, Any]  # scikit-learn estimators by the name of their setting

# Chosen among on validation. C of the logistic regression, with classes weighted as they come or all the same; alpha
# of the ridge; number of neighbours.
LOGISTIC_C = (1e-3, 1e-2, 1e-1, 1.0)
CLASS_WEIGHTS = (None, "balanced")
RIDGE_ALPHA = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe said of the test objects.

    Attributes
    ----------
    metrics : dict of str to float
        On test, with ``n`` objects.
    intervals : dict of str to (low, high)
        95 % bootstrap intervals of the metrics.
    prediction, truth : ndarray, shape (n,)
        Of the test objects.
    rows : ndarray of int, shape (n,)
        Which objects these are.
    settings : dict
        What was chosen on validation, and the score there.
    probability : ndarray, shape (n, n_classes), or None
        Of each class, where the probe gives it; ``settings["classes"]`` are those of the columns.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    prediction: np.ndarray
    truth: np.ndarray
    rows: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)
    probability: np.ndarray | None = None

    def describe(self, name: str) -> str:
        """Return a metric with its interval, as text.

        Examples
        --------
        >>> nothing = np.empty(0)
        >>> r = ProbeResult(
        ...     metrics={"r2": 0.5}, intervals={"r2": (0.4, 0.6)}, prediction=nothing, truth=nothing, rows=nothing
        ... )
        >>> r.describe("r2")
        '0.500 [0.400, 0.600]'
        """
        low, high = self.intervals.get(name, (np.nan, np.nan))
        return f"{self.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


@checked
def linear_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Fit a linear model to frozen embeddings: multinomial logistic regression, or ridge regression.

    Parameters
    ----------
    embeddings : Embeddings
    target : str or ndarray, shape (n,)
        A column, or the values. Negative classes and numbers that are not finite count as unlabelled; text is a class.
    task : {"classification", "regression"}
    split : str or ndarray of int, shape (n,)
        0 train, 1 validation, 2 test; others are left out. The scaler and the model are fitted on train, the
        regularisation is chosen on validation, test is looked at once.
    seed : int
        Of the bootstrap.

    Returns
    -------
    ProbeResult
    """
    return _probe(embeddings, target, task, split, seed, candidates("linear", task))


@checked
def knn_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict from the nearest training objects, in standardised embeddings; parameters as in `linear_probe`."""
    return _probe(embeddings, target, task, split, seed, candidates("knn", task))


@checked
def original_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Fit the linear probes of the original with its fixed settings, so that numbers compare.

    Multinomial logistic regression with C = 0.01, or an elastic net with alpha = 1e-4 and an L1 share of 0.9. The
    original feeds them the four central patch tokens side by side (pool ``central_flat``). Its scaler saw all objects
    and its test part was drawn at random; here both are as in every other probe. Parameters as in `linear_probe`.
    """
    return _probe(embeddings, target, task, split, seed, candidates("original", task))


@checked
def constant_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict the majority class, or the mean, of the training objects: the floor that any probe must beat."""
    return _probe(embeddings, target, task, split, seed, candidates("constant", task))


@checked
def catalogue_probe(
    embeddings: Embeddings,
    target: str | np.ndarray,
    *,
    magnitudes: Sequence[str],
    task: Task,
    split: str | np.ndarray,
    seed: int = 0,
) -> ProbeResult:
    """Predict from catalogue magnitudes and their colours by gradient boosting: what is known without any image.

    Parameters
    ----------
    embeddings : Embeddings
        Of which only the columns are used.
    magnitudes : sequence of str
        Columns, in the order of wavelength; NaN where a band is missing.
    target, task, split, seed
        As in `linear_probe`.
    """
    mags = np.stack([embeddings.column(name) for name in magnitudes], axis=1)
    labels = select_labels(embeddings.column, target, split, task)
    return probe(with_colours(mags[labels.used]), labels, candidates("boosting", task, seed=seed), seed=seed)


def with_colours(magnitudes: np.ndarray) -> np.ndarray:
    """Return magnitudes (n, C) and the differences of neighbouring bands, (n, 2 C - 1)."""
    magnitudes = magnitudes.astype(np.float64)
    return np.concatenate([magnitudes, np.diff(magnitudes, axis=1)], axis=1)


def candidates(
    kind: Literal["linear", "knn", "original", "constant", "boosting"], task: Task, *, seed: int = 0
) -> dict[str, Any]:
    """Return the models among which validation chooses, by the name of their setting."""
    classes = task == "classification"
    if kind == "knn":
        nearest = KNeighborsClassifier if classes else KNeighborsRegressor
        return {f"k={k}": nearest(k, weights="distance", algorithm="brute") for k in NEIGHBOURS}
    if kind == "original":
        net = {"alpha=0.0001, l1_ratio=0.9": ElasticNet(alpha=1e-4, l1_ratio=0.9, max_iter=10_000)}
        return {"C=0.01": SoftmaxRegression(0.01)} if classes else net
    if kind == "constant":
        return {"constant": DummyClassifier(strategy="most_frequent") if classes else DummyRegressor()}
    if kind == "boosting":
        boosting = HistGradientBoostingRegressor
        if classes:
            boosting = partial(HistGradientBoostingClassifier, class_weight="balanced")
        return {f"{n} leaves": boosting(max_leaf_nodes=n, max_bins=64, random_state=seed) for n in (7, 15)}
    if not classes:
        return {f"alpha={a:g}": Ridge(alpha=a) for a in RIDGE_ALPHA}
    return {
        f"C={c:g}" + (", balanced" if weight else ""): SoftmaxRegression(c, class_weight=weight)
        for c in LOGISTIC_C
        for weight in CLASS_WEIGHTS
    }


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The candidate that was best on validation: its setting, its loss and score there, and the fitted model."""

    setting: str
    loss: float
    score: float
    model: Pipeline


def choose(x: np.ndarray, labels: Labels, models: Models) -> Chosen:
    """Fit every candidate on train, and return the best on validation.

    Classifiers are compared by their log loss, each class counting the same: with few objects of a class it is much
    less a matter of luck than the balanced accuracy, which moves in steps of one object. Regressions, and neighbours,
    whose votes are no probabilities where classes are unequal, by the score.

    Parameters
    ----------
    x : ndarray, shape (n, D)
        Of the objects that `labels` uses, in their order.
    labels : Labels
    models : mapping of str to estimator
        They stay as they are: copies are fitted.
    """
    metric, score = metric_for(labels.task, labels.name)
    y, truth = labels.of(TRAIN), labels.of(VALIDATION)
    steps: list[Any] = [StandardScaler()]
    if any(isinstance(model, SoftmaxRegression) for model in models.values()):
        steps.append(PCA(svd_solver="covariance_eigh"))
    scaler = make_pipeline(*steps).fit(x[labels.places(TRAIN)].astype(np.float64))
    # In float64: weak penalties on features that say the same want every digit.
    train, validation = (scaler.transform(x[labels.places(p)].astype(np.float64)) for p in (TRAIN, VALIDATION))
    found = []
    for name, model in models.items():
        k = getattr(model, "n_neighbors", 0)
        if k > len(y):
            continue
        model = clone(model)  # one that is given to several calls is fitted by none
        with warnings.catch_warnings():
            # With a penalty as weak as the original's, its descent ends at the last iteration, as it did there.
            warnings.simplefilter("ignore", ConvergenceWarning)
            prediction = model.fit(train, y).predict(validation)
        value = metric(prediction, truth)[score]
        loss = -value
        if hasattr(model, "predict_proba") and not k:
            loss = balanced_log_loss(model.predict_proba(validation), truth, model.classes_)
        found.append(Chosen(setting=name, loss=loss, score=value, model=Pipeline([*scaler.steps, ("probe", model)])))
    return min(found, key=lambda one: one.loss)


def probe(x: np.ndarray, labels: Labels, models: Models, *, seed: int = 0) -> ProbeResult:
    """Return what the best of some models says of the test objects; parameters as in `choose`."""
    return judge(choose(x, labels, models), x, labels, seed=seed)


def judge(best: Chosen, x: np.ndarray, labels: Labels, *, seed: int = 0) -> ProbeResult:
    """Return what a model that was chosen says of the test objects."""
    test = x[labels.places(TEST)].astype(np.float64)
    settings: dict[str, Any] = {"chosen": best.setting, "validation": best.score, "n_train": len(labels.rows[TRAIN])}
    if labels.task == "classification":
        settings |= {"probability": best.model.predict_proba(test), "classes": best.model.classes_}
    return on_test(best.model.predict(test), labels, seed=seed, **settings)


def on_test(
    prediction: np.ndarray,
    labels: Labels,
    *,
    seed: int = 0,
    probability: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    **settings: Any,
) -> ProbeResult:
    """Return a `ProbeResult` with metrics and intervals; with probabilities, the area under the ROC curve too."""
    metric, _ = metric_for(labels.task, labels.name)
    truth = labels.of(TEST)
    metrics, intervals = dict(metric(prediction, truth)), bootstrap_intervals(prediction, truth, metric, seed=seed)
    if probability is not None and classes is not None:

        def area(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
            return {"roc_auc": roc_auc(p, t, classes=classes)}

        metrics |= area(probability, truth)
        intervals |= bootstrap_intervals(probability, truth, area, n_resamples=200, seed=seed)
        settings["classes"] = np.asarray(classes).tolist()
    return ProbeResult(
        metrics=metrics,
        intervals=intervals,
        prediction=prediction,
        truth=truth,
        rows=labels.rows[TEST],
        settings=settings,
        probability=probability,
    )


def _probe(
    embeddings: Embeddings, target: str | np.ndarray, task: Task, split: str | np.ndarray, seed: int, models: Models
) -> ProbeResult:
    labels = select_labels(embeddings.column, target, split, task, usable=embeddings.finite)
    return probe(embeddings.vectors[labels.used], labels, models, seed=seed)
