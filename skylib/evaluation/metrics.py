"""How good a prediction is: definitions of the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
    complete = [float((prediction[truth == c] == c).mean()) for c in np.unique(truth)]
    metrics = {"accuracy": float((prediction == truth).mean()), "balanced_accuracy": float(np.mean(complete))}
    for c in np.unique(truth):
        label = (names or {}).get(c, str(c))
        right = float(((prediction == c) & (truth == c)).sum())
        metrics[f"completeness_{label}"] = right / float((truth == c).sum())
        called = float((prediction == c).sum())
        metrics[f"purity_{label}"] = right / called if called else float("nan")
    return {**metrics, "n": len(truth)}


def confusion_matrix(prediction: np.ndarray, truth: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Count objects by true class (rows) and predicted class (columns).

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), classes=(0, 1))
    array([[1, 1],
           [0, 1]])
    """
    prediction, truth = _pair(prediction, truth)
    return np.array([[((truth == t) & (prediction == p)).sum() for p in classes] for t in classes])


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
        mine = truth == c
        pairs = int(mine.sum()) * int((~mine).sum())
        if pairs:  # the share of pairs in the right order (Mann and Whitney 1947)
            smallest = mine.sum() * (mine.sum() + 1) / 2
            areas.append((rankdata(probability[:, i])[mine].sum() - smallest) / pairs)
    return float(np.mean(areas)) if areas else float("nan")


def _pair(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if any(np.ma.is_masked(values) for values in (prediction, truth)):
        raise ValueError("prediction or truth holds masked values: select the objects with a known value first")
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"prediction {prediction.shape} and truth {truth.shape}: must be two vectors of one length, not empty"
        )
    if not all(np.isfinite(values).all() for values in (prediction, truth) if values.dtype.kind in "fc"):
        raise ValueError("prediction or truth holds NaN or infinity: select the objects with a known value first")
    return prediction, truth


def _r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the share of the variance that is explained; NaN where there is none."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - prediction) ** 2).sum() / spread) if spread > 0 else float("nan")
