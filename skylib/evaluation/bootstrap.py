"""Measures in bins of another quantity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from skylib.evaluation.metrics import Metric, bootstrap_intervals


def binned_metrics(
    prediction: np.ndarray,
    truth: np.ndarray,
    by: np.ndarray,
    *,
    edges: Sequence[float] | np.ndarray,
    metric: Metric,
    min_count: int = 10,
    level: float = 0.95,
    n_resamples: int = 300,
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
    level, n_resamples, seed
        Of the bootstrap.

    Returns
    -------
    DataFrame, k rows
        ``low``, ``high``, ``centre`` (the median of `by`), ``n``, and for each measure m: m, ``m_low``, ``m_high``.

    Examples
    --------
    >>> from skylib.evaluation.metrics import classification_metrics
    >>> truth = np.arange(40) % 2
    >>> t = binned_metrics(truth, truth, np.arange(40.0), edges=(0, 20, 35, 39), metric=classification_metrics)
    >>> t["n"].tolist(), t["accuracy"].tolist()
    ([20, 15, 5], [1.0, 1.0, nan])
    """
    edges = np.asarray(edges, dtype=np.float64)
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges={edges.tolist()}: must be at least two, and ascend")
    bins = np.searchsorted(edges, by, side="right") - 1
    bins[by == edges[-1]] = len(edges) - 2
    rows = []
    for i, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        mine = np.flatnonzero((bins == i) & np.isfinite(by))
        row: dict[str, float] = {"low": low, "high": high, "centre": (low + high) / 2, "n": len(mine)}
        if len(mine) >= min_count:
            p, t = prediction[mine], truth[mine]
            intervals = bootstrap_intervals(p, t, metric, level=level, n_resamples=n_resamples, seed=seed)
            row["centre"] = float(np.median(by[mine]))
            for name, value in metric(p, t).items():
                if name in intervals:
                    row |= {name: value, f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
        rows.append(row)
    return pd.DataFrame(rows)
