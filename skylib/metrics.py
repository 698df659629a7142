"""How good a prediction is: definitions of the field, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from sklearn.metrics import r2_score

Metric = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def photoz_metrics(z_pred: np.ndarray, z_spec: np.ndarray, *, outlier_threshold: float = 0.15) -> dict[str, float]:
    """Return the usual measures of photometric redshifts.

    With dz = (z_pred - z_spec) / (1 + z_spec): ``bias`` is the mean dz, ``bias_median`` its median, ``sigma_mad`` is
    1.4826 median|dz - median dz|, ``outlier_fraction`` the share with |dz| above the threshold.

    Parameters
    ----------
    z_pred, z_spec : ndarray, shape (n,)
    outlier_threshold : float

    Examples
    --------
    >>> m = photoz_metrics(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0]))
    >>> round(m["bias"], 3), m["sigma_mad"], round(m["outlier_fraction"], 3), m["n"]
    (0.167, 0.0, 0.333, 3)
    """
    z_pred, z_spec = _pair(z_pred, z_spec)
    dz = (z_pred - z_spec) / (1 + z_spec)
    return {
        "bias": float(dz.mean()),
        "bias_median": float(np.median(dz)),
        "sigma_mad": float(1.4826 * np.median(np.abs(dz - np.median(dz)))),
        "outlier_fraction": float((np.abs(dz) > outlier_threshold).mean()),
        "r2": _r2(z_spec, z_pred),
        "n": len(dz),
    }


def regression_metrics(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return R2, root mean square error and mean error."""
    prediction, truth = _pair(prediction, truth)
    error = prediction - truth
    return {
        "r2": _r2(truth, prediction),
        "rms": float(np.sqrt((error**2).mean())),
        "bias": float(error.mean()),
        "n": len(error),
    }


def classification_metrics(
    prediction: np.ndarray, truth: np.ndarray, *, names: Mapping[int, str] | None = None
) -> dict[str, float]:
    """Return accuracy, balanced accuracy, and completeness and purity of each class.

    Completeness is the share of a class that was found; purity the share of what was called so that is so.

    Examples
    --------
    >>> m = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    >>> m["accuracy"], round(m["balanced_accuracy"], 3), m["purity_0"], round(m["completeness_1"], 3)
    (0.75, 0.833, 0.5, 0.667)
    """
    prediction, truth = _pair(prediction, truth)
    complete = [float((prediction[truth == c] == c).mean()) for c in np.unique(truth)]
    metrics = {"accuracy": float((prediction == truth).mean()), "balanced_accuracy": float(np.mean(complete))}
    for c in np.unique(truth):
        label = (names or {}).get(int(c), str(c))
        right = float(((prediction == c) & (truth == c)).sum())
        metrics[f"completeness_{label}"] = right / float((truth == c).sum())
        called = float((prediction == c).sum())
        metrics[f"purity_{label}"] = right / called if called else float("nan")
    return {**metrics, "n": len(truth)}


def bootstrap_intervals(
    prediction: np.ndarray,
    truth: np.ndarray,
    metric: Metric,
    *,
    level: float = 0.95,
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the percentile bootstrap interval of each measure, by drawing objects with replacement.

    Parameters
    ----------
    prediction, truth : ndarray, shape (n,)
    metric : callable
        From (prediction, truth) to a dict of numbers.
    level : float
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {name: [] for name in metric(prediction, truth) if name != "n"}
    for _ in range(n_resamples):
        rows = rng.integers(len(truth), size=len(truth))
        if len(np.unique(truth[rows])) < min(2, len(np.unique(truth))):
            continue  # one class alone defines no score
        values = metric(prediction[rows], truth[rows])
        for name, collected in draws.items():
            if name in values:
                collected.append(values[name])
    edges = (50 * (1 - level), 50 * (1 + level))
    return {n: (float(np.nanpercentile(v, edges[0])), float(np.nanpercentile(v, edges[1]))) for n, v in draws.items() if np.isfinite(v).any()}  # fmt: skip


def paired_margin(
    first: np.ndarray,
    second: np.ndarray,
    truth: np.ndarray,
    metric: Metric,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Return by how much one prediction beats another on the same objects: difference, and its interval.

    Both are measured on each bootstrap draw, so what is hard for both cancels.

    Parameters
    ----------
    first, second, truth : ndarray, shape (n,)
    metric : callable
        From (prediction, truth) to a dict of numbers.

    Returns
    -------
    dict of str to (difference, low, high)
        First minus second.

    Examples
    --------
    >>> truth = np.arange(40) % 2
    >>> paired_margin(truth, np.zeros(40, int), truth, classification_metrics)["accuracy"][0]
    0.5
    """
    one, two = metric(first, truth), metric(second, truth)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        rows = rng.integers(len(truth), size=len(truth))
        if len(np.unique(truth[rows])) == len(np.unique(truth)) or truth.dtype.kind == "f":
            a, b = metric(first[rows], truth[rows]), metric(second[rows], truth[rows])
            draws.append({name: a[name] - b[name] for name in one if name != "n"})
    edges = (50 * (1 - level), 50 * (1 + level))
    margins = {}
    for name in one:
        if name != "n":
            known = [draw[name] for draw in draws if np.isfinite(draw[name])]
            low, high = np.percentile(known, edges) if known else (np.nan, np.nan)
            margins[name] = (one[name] - two[name], float(low), float(high))
    return margins


def _pair(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: must be two vectors of one length, not empty"
        )
    if truth.dtype.kind == "f" and not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError("prediction or truth holds NaN or infinity: select the objects with a known value first")
    return prediction, truth


def _r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    return float(r2_score(truth, prediction)) if len(truth) > 1 else float("nan")
