"""What frozen embeddings know: linear and nearest-neighbour probes, fitted on train, chosen on validation, told on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skylib.config import check_choice
from skylib.embed import Embeddings
from skylib.metrics import (
    Metric,
    bootstrap_intervals,
    classification_metrics,
    paired_margin,
    photoz_metrics,
    regression_metrics,
)
from skylib.splits import TEST, TRAIN, VALIDATION

Task = Literal["classification", "regression"]

# Chosen among on validation. C of the logistic regression, alpha of the ridge, number of neighbours.
LOGISTIC_C = (1e-3, 1e-2, 1e-1, 1.0)
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
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    prediction: np.ndarray
    truth: np.ndarray
    rows: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self, name: str) -> str:
        """Return a metric with its interval, as text.

        Examples
        --------
        >>> nothing = np.empty(0)
        >>> r = ProbeResult(metrics={"r2": 0.5, "n": 9}, intervals={"r2": (0.4, 0.6)}, prediction=nothing, truth=nothing, rows=nothing)
        >>> r.describe("r2")
        '0.500 [0.400, 0.600]'
        """
        low, high = self.intervals.get(name, (np.nan, np.nan))
        return f"{self.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


def linear_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Fit a linear model to frozen embeddings: multinomial logistic regression, or ridge regression.

    Parameters
    ----------
    embeddings : Embeddings
    target : str or ndarray, shape (n,)
        A column, or the values. Negative classes and values that are not finite count as unlabelled.
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
    if task == "classification":
        models = {f"C={c:g}": LogisticRegression(C=c, max_iter=2000) for c in LOGISTIC_C}
    else:
        models = {f"alpha={a:g}": Ridge(alpha=a) for a in RIDGE_ALPHA}
    return _probe(embeddings, target, task, split, seed, models)


def knn_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict from the nearest training objects, in standardised embeddings; parameters as in `linear_probe`."""
    model = KNeighborsClassifier if task == "classification" else KNeighborsRegressor
    return _probe(embeddings, target, task, split, seed, {f"k={k}": model(k, weights="distance") for k in NEIGHBOURS})


def constant_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict the majority class, or the mean, of the training objects: the floor that any probe must beat."""
    model = DummyClassifier(strategy="most_frequent") if task == "classification" else DummyRegressor()
    return _probe(embeddings, target, task, split, seed, {"constant": model})


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
    mags = np.stack([embeddings.column(name) for name in magnitudes], axis=1).astype(np.float64)
    features = np.concatenate([mags, np.diff(mags, axis=1)], axis=1)
    known = Embeddings(features, ra=embeddings.ra, dec=embeddings.dec, columns=embeddings.columns)
    kind = HistGradientBoostingClassifier if task == "classification" else HistGradientBoostingRegressor
    models = {f"{n} leaves": kind(max_leaf_nodes=n, random_state=seed) for n in (7, 15, 31)}
    return _probe(known, target, task, split, seed, models)


def headline(
    results: Mapping[str, ProbeResult],
    target: str,
    task: Task,
    *,
    best: str = "pretrained, linear",
    rival: str = "random weights, linear",
) -> dict[str, dict[str, Any]]:
    """Return the main score of each result, and by how much the best beats its rival on the same objects.

    Returns
    -------
    dict
        ``{"target, name: score": {"value": …, "interval": [low, high], "n": …}}``.
    """
    metric, score = metric_for(task, target)
    lines: dict[str, dict[str, Any]] = {
        f"{target}, {name}: {score}": {
            "value": r.metrics[score],
            "interval": list(r.intervals[score]),
            "n": r.metrics["n"],
        }
        for name, r in results.items()
    }
    one, two = results[best], results[rival]
    value, low, high = paired_margin(one.prediction, two.prediction, one.truth, metric)[score]
    label = f"{target}, {best.split(',')[0]} minus {rival.split(',')[0]}: {score}"
    return lines | {label: {"value": value, "interval": [low, high], "n": len(one.truth)}}


def metric_for(task: str, target: str | np.ndarray = "") -> tuple[Metric, str]:
    """Return the metrics of a task, and the name of the one by which models are chosen."""
    if task == "classification":
        return classification_metrics, "balanced_accuracy"
    if isinstance(target, str) and target.startswith("z"):
        return photoz_metrics, "r2"
    return regression_metrics, "r2"


def labelled_parts(
    embeddings: Embeddings | Mapping[str, np.ndarray], target: str | np.ndarray, split: str | np.ndarray, task: str
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the target of all objects, and the rows of the labelled ones in train, validation and test.

    Raises
    ------
    ValueError
        If a part has no labelled object, or lengths differ.
    """
    check_choice("task", task, get_args(Task))
    name = target if isinstance(target, str) else "target"
    column = embeddings.column if isinstance(embeddings, Embeddings) else embeddings.__getitem__
    values = column(target) if isinstance(target, str) else np.asarray(target)
    parts = np.asarray(column(split) if isinstance(split, str) else split)
    if values.shape != parts.shape or values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, split {parts.shape}: must be one value an object")
    known = values >= 0 if task == "classification" and values.dtype.kind in "iu" else values == values
    if task == "regression":
        known &= np.isfinite(values)
    rows = {part: np.flatnonzero((parts == part) & known) for part in (TRAIN, VALIDATION, TEST)}
    for part, label in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        if not len(rows[part]):
            raise ValueError(f"no object with a known {name!r} in the {label} part of {len(parts)} objects")
    if task == "classification" and len(np.unique(values[rows[TRAIN]])) < 2:
        raise ValueError(
            f"all {len(rows[TRAIN])} training objects have {name!r} = {values[rows[TRAIN]][0]}: no classes to tell apart"
        )
    return values, rows


def on_test(
    prediction: np.ndarray, truth: np.ndarray, rows: np.ndarray, metric: Metric, *, seed: int = 0, **settings: Any
) -> ProbeResult:
    """Return a `ProbeResult` with metrics and intervals."""
    return ProbeResult(
        metrics=dict(metric(prediction, truth)),
        intervals=bootstrap_intervals(prediction, truth, metric, seed=seed),
        prediction=prediction, truth=truth, rows=rows, settings=settings,
    )  # fmt: skip


def _probe(
    embeddings: Embeddings,
    target: str | np.ndarray,
    task: Task,
    split: str | np.ndarray,
    seed: int,
    models: dict[str, Any],
) -> ProbeResult:
    values, rows = labelled_parts(embeddings, target, split, task)
    metric, score = metric_for(task, target)
    x, train, validation, test = embeddings.vectors, rows[TRAIN], rows[VALIDATION], rows[TEST]
    models = {name: m for name, m in models.items() if getattr(m, "n_neighbors", 1) <= len(train)}
    fitted: dict[str, Pipeline] = {}
    scores: dict[str, float] = {}
    for name, model in models.items():
        fitted[name] = make_pipeline(StandardScaler(), model).fit(x[train], values[train])
        scores[name] = metric(fitted[name].predict(x[validation]), values[validation])[score]
    best = max(scores, key=lambda name: scores[name])
    prediction = fitted[best].predict(x[test])
    return on_test(
        prediction, values[test], test, metric, seed=seed, chosen=best, validation=scores[best], n_train=len(train)
    )
