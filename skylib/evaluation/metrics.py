"""How good a prediction is, by the definitions of the field, over all objects and in bins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest, rankdata

from skylib.checks import checked
from skylib.data.plain import as_label, plain_column
from skylib.evaluation.bootstrap import Metric, bootstrap_intervals


@checked
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
    if (z_spec <= -1).any():
        raise ValueError(f"z_spec holds {z_spec.min():g}: no redshift; select the objects with a known one first")
    dz = (z_pred - z_spec) / (1 + z_spec)
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


@checked
def classification_metrics(
    prediction: np.ndarray, truth: np.ndarray, *, names: Mapping[int, str] | None = None
) -> dict[str, float]:
    """Return accuracy, balanced accuracy, and completeness and purity of each class.

    Completeness is the share of a class that is classified as such; purity the share of the objects classified as such
    that belong to it.

    Examples
    --------
    >>> m = classification_metrics(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    >>> m["accuracy"], round(m["balanced_accuracy"], 3), m["purity_0"], round(m["completeness_1"], 3)
    (0.75, 0.833, 0.5, 0.667)
    """
    prediction, truth = _pair(prediction, truth, numbers=False)
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


def balanced_log_loss(probability: np.ndarray, truth: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean over classes of -ln p of the true class; p below 0.001 counts as that.

    Examples
    --------
    >>> p = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    >>> round(balanced_log_loss(p, np.array([0, 0, 1]), np.array([0, 1])), 4)
    0.3466
    """
    found = [probability[truth == c, i] for i, c in enumerate(classes) if (truth == c).any()]
    return float(np.mean([-np.log(p.clip(min=1e-3)).mean() for p in found]))


def metric_for(task: str, target: str | np.ndarray = "") -> tuple[Metric, str]:
    """Return the metrics of a task, and the name of the one by which models are chosen.

    A value whose name begins with z is a redshift.
    """
    if task == "classification":
        return classification_metrics, "balanced_accuracy"
    if isinstance(target, str) and target.startswith("z"):
        return photoz_metrics, "r2"
    return regression_metrics, "r2"


def effective_rank(vectors: np.ndarray) -> float:
    """Return the exponential of the entropy of the normalised singular values of centred vectors (n, D).

    Examples
    --------
    >>> round(effective_rank(np.vstack([np.eye(4), -np.eye(4)])), 6)
    4.0
    """
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@checked
def binned_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    by: np.ndarray,
    *,
    edges: Sequence[float] | np.ndarray,
    metric: Metric,
    min_count: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure in bins of another quantity: of the true or predicted redshift, magnitude, or signal to noise.

    Parameters
    ----------
    prediction, truth, by : ndarray, shape (n,)
        Objects whose `by` is not finite are in no bin.
    edges : sequence of float, length k + 1
        A bin holds its lower edge; the last one its upper edge too.
    metric : callable
        From (prediction, truth) to a dict of numbers.
    min_count : int
        Bins with fewer objects have their number alone, and NaN else.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame, k rows
        ``low``, ``high``, ``centre`` (the median of `by`), ``n``, and for each measure m: m, ``m_low``, ``m_high``.

    Examples
    --------
    >>> truth = np.arange(40) % 2
    >>> t = binned_metrics(truth, truth, np.arange(40.0), edges=(0, 20, 35, 39), metric=classification_metrics)
    >>> t["n"].tolist(), t["accuracy"].tolist()
    ([20, 15, 5], [1.0, 1.0, nan])
    """
    edges = np.asarray(edges, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges={edges.tolist()}: must be at least two, and ascend")
    by = as_label("by", by)[0].astype(np.float64)
    prediction, truth = (as_label(name, x)[0] for name, x in (("prediction", prediction), ("truth", truth)))
    if not prediction.shape == truth.shape == by.shape:
        raise ValueError(f"prediction {prediction.shape}, truth {truth.shape}, by {by.shape}: must be of one length")
    bins = np.searchsorted(edges, by, side="right") - 1
    bins[by == edges[-1]] = len(edges) - 2
    rows = []
    for i, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        inside = np.flatnonzero((bins == i) & np.isfinite(by))
        row: dict[str, float] = {"low": low, "high": high, "centre": (low + high) / 2, "n": len(inside)}
        if len(inside) >= min_count:
            p, t = prediction[inside], truth[inside]
            intervals = bootstrap_intervals(p, t, metric, n_resamples=300, seed=seed)
            row["centre"] = float(np.median(by[inside]))
            for name, value in metric(p, t).items():
                if name in intervals:
                    row |= {name: value, f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
        rows.append(row)
    return pd.DataFrame(rows)


@checked
def redshift_bins(
    z_phot: np.ndarray,
    z_spec: np.ndarray,
    *,
    by: Literal["z_spec", "z_pred"] = "z_spec",
    n_bins: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure `photoz_metrics` in even bins of redshift, for `plotting.plot_redshift_panels`.

    Parameters
    ----------
    z_phot, z_spec : ndarray, shape (n,)
    by : {"z_spec", "z_pred"}
        By the spectroscopic redshift, as errors are understood, or by the predicted one, as samples are selected.
    n_bins : int
        From 0, or the lowest redshift below it, to the 99.8th percentile.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        As of `binned_metrics`; the intervals of outlier fractions are Wilson's.
    """
    z_phot, z_spec = _pair(z_phot, z_spec)
    x = z_spec if by == "z_spec" else z_phot
    edges = np.linspace(min(0.0, float(x.min())), float(np.percentile(x, 99.8)), n_bins + 1)
    table = binned_metrics(z_phot, z_spec, x, edges=edges, metric=photoz_metrics, seed=seed)
    for name in ("outlier_fraction", "outlier_fraction_0.05"):
        for i in table.index[table[name].notna()] if name in table else ():
            n = int(table["n"][i])  # by Wilson 1927: not empty where none, or all, were found
            interval = binomtest(round(table[name][i] * n), n).proportion_ci(method="wilson")
            table.loc[i, [f"{name}_low", f"{name}_high"]] = interval.low, interval.high
    return table


def _pair(prediction: np.ndarray, truth: np.ndarray, *, numbers: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return both as plain arrays, float64 if they are `numbers`, or say why they cannot be compared."""
    found = []
    for name, values in (("prediction", prediction), ("truth", truth)):
        array, missing, _ = plain_column(values)
        if n_masked := int(missing.sum()):
            raise ValueError(f"{name} holds {n_masked} masked values: select the objects with a known value first")
        if array.dtype.kind == "f" and (n_bad := int((~np.isfinite(array)).sum())):
            raise ValueError(f"{name} holds NaN or infinity {n_bad} times: select the objects with a known value first")
        if array.dtype.kind not in ("fiu" if numbers else "fiubUSO"):
            raise ValueError(f"{name} holds {array.dtype}: must be numbers")
        found.append(array.astype(np.float64) if numbers else array.astype(str) if array.dtype.kind in "SO" else array)
    prediction, truth = found
    if (prediction.dtype.kind == "U") != (truth.dtype.kind == "U"):
        raise ValueError(f"prediction holds {prediction.dtype}, truth {truth.dtype}: must be of one kind")
    if prediction.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(f"shapes {prediction.shape}, {truth.shape}: must be two vectors of one length, not empty")
    return prediction, truth


def _r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the share of the variance that is explained; NaN where there is none."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - prediction) ** 2).sum() / spread) if spread > 0 else float("nan")
