"""How good a prediction is, by the definitions of the field, and how sure these numbers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

Metric = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def photoz_metrics(z_pred: np.ndarray, z_spec: np.ndarray, *, outlier_threshold: float = 0.15) -> dict[str, float]:
    """Return the usual measures of photometric redshifts.

    With dz = (z_pred - z_spec) / (1 + z_spec): ``bias`` is the mean dz, ``bias_median`` its median, ``sigma_mad`` is
    1.4826 median|dz - median dz|, ``outlier_fraction`` the share with |dz| above the threshold and
    ``outlier_fraction_0.05`` the share above 0.05, ``rms`` the root mean square of dz, ``r2`` that of z itself.

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
    dz = normalised_error(z_pred, z_spec)
    return {
        "bias": float(dz.mean()),
        "bias_median": float(np.median(dz)),
        "sigma_mad": float(1.4826 * np.median(np.abs(dz - np.median(dz)))),
        "outlier_fraction": float((np.abs(dz) > outlier_threshold).mean()),
        "outlier_fraction_0.05": float((np.abs(dz) > 0.05).mean()),
        "rms": float(np.sqrt((dz**2).mean())),
        "r2": _r2(z_spec, z_pred),
        "n": len(dz),
    }


def normalised_error(z_pred: np.ndarray, z_spec: np.ndarray) -> np.ndarray:
    """Return dz = (z_pred - z_spec) / (1 + z_spec)."""
    return (z_pred - z_spec) / (1 + z_spec)


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
    right = prediction == truth
    classes, codes, n = np.unique(truth, return_inverse=True, return_counts=True)
    found = np.bincount(codes, weights=right)
    metrics = {"accuracy": float(right.mean()), "balanced_accuracy": float((found / n).mean())}
    for c, hits, total in zip(classes, found.tolist(), n.tolist(), strict=True):
        label = (names or {}).get(c, str(c))
        called = int((prediction == c).sum())
        metrics[f"completeness_{label}"] = hits / total
        metrics[f"purity_{label}"] = hits / called if called else float("nan")
    return {**metrics, "n": len(truth)}


def roc_auc(probability: np.ndarray, truth: np.ndarray, *, classes: Sequence[int] | np.ndarray) -> float:
    """Return the area under the ROC curve, each class against the rest, as the mean over the classes there are.

    Parameters
    ----------
    probability : ndarray, shape (n, n_classes)
        Or any score that grows with it.
    truth : ndarray of int, shape (n,)
    classes : sequence of int
        Of the columns of `probability`.

    Examples
    --------
    >>> roc_auc(np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]), np.array([0, 0, 1, 1]), classes=(0, 1))
    0.75
    """
    areas = []
    for i, c in enumerate(classes):
        members = truth == c
        n = int(members.sum())
        if 0 < n < len(truth):  # the share of pairs in the right order (Mann and Whitney 1947)
            ranks = rankdata(probability[:, i])[members].sum()
            areas.append((ranks - n * (n + 1) / 2) / (n * (len(truth) - n)))
    return float(np.mean(areas)) if areas else float("nan")


def balanced_log_loss(probability: np.ndarray, truth: np.ndarray, classes: np.ndarray, *, floor: float = 1e-3) -> float:
    """Return the mean over classes of -ln p of the true class; p below `floor` counts as that.

    Examples
    --------
    >>> p = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    >>> round(balanced_log_loss(p, np.array([0, 0, 1]), np.array([0, 1])), 4)
    0.3466
    """
    found = [probability[truth == c, i] for i, c in enumerate(classes) if (truth == c).any()]
    return float(np.mean([-np.log(p.clip(min=floor)).mean() for p in found]))


def metric_for(task: str, target: str | np.ndarray = "") -> tuple[Metric, str]:
    """Return the metrics of a task, and the name of the one by which models are chosen.

    A value whose name begins with z is a redshift.
    """
    if task == "classification":
        return classification_metrics, "balanced_accuracy"
    if isinstance(target, str) and target.startswith("z"):
        return photoz_metrics, "r2"
    return regression_metrics, "r2"


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

    Where the truth is a class, objects are drawn within each, so that every draw measures the same classes.

    Parameters
    ----------
    prediction, truth : ndarray, shape (n,)
        A truth of float is a value; any other is a class.
    metric : callable
        From (prediction, truth) to a dict of numbers.
    level : float
    """
    draws: dict[str, list[float]] = {name: [] for name in metric(prediction, truth) if name != "n"}
    for rows in _resamples(truth, n_resamples, seed):
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

    Both are measured on each draw of `bootstrap_intervals`, so what is hard for both cancels.

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
    >>> from skylib.evaluation.metrics import classification_metrics
    >>> truth = np.arange(40) % 2
    >>> paired_margin(truth, np.zeros(40, int), truth, classification_metrics)["accuracy"][0]
    0.5
    """
    one, two = metric(first, truth), metric(second, truth)
    draws = []
    for rows in _resamples(truth, n_resamples, seed):
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
    """Return both as plain arrays, or say why they cannot be compared."""
    for name, values in (("prediction", prediction), ("truth", truth)):
        if n_masked := int(np.ma.getmaskarray(values).sum()):
            raise ValueError(f"{name} holds {n_masked} masked values: select the objects with a known value first")
        if (kind := np.asarray(values)).dtype.kind == "f" and (n_bad := int((~np.isfinite(kind)).sum())):
            raise ValueError(f"{name} holds NaN or infinity {n_bad} times: select the objects with a known value first")
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: must be two vectors of one length, not empty"
        )
    return prediction, truth


def _r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the share of the variance that is explained; NaN where there is none."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - prediction) ** 2).sum() / spread) if spread > 0 else float("nan")


def _resamples(truth: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows drawn with replacement: as many as there are, and of each class as many as it has."""
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(truth))
    strata = [everyone] if truth.dtype.kind == "f" else [everyone[truth == c] for c in np.unique(truth)]
    for _ in range(n_resamples):
        yield np.concatenate([rows[rng.integers(len(rows), size=len(rows))] for rows in strata])
