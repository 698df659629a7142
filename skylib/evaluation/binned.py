"""Redshift errors in bins, and the interval of a fraction."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from skylib.checks import check_choice
from skylib.evaluation.bootstrap import binned_metrics
from skylib.evaluation.metrics import photoz_metrics


def fraction_interval(fraction: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a fraction of n objects by Wilson's score: not empty where none, or all, were found.

    References
    ----------
    Wilson 1927, JASA 22, 209.

    Examples
    --------
    >>> [round(x, 3) for x in fraction_interval(0.0, 50)]
    [0.0, 0.071]
    """
    ci = binomtest(round(fraction * n), n).proportion_ci(level, method="wilson")
    return float(ci.low), float(ci.high)


def redshift_bins(
    z_phot: np.ndarray,
    z_spec: np.ndarray,
    *,
    by: Literal["z_spec", "z_pred"] = "z_spec",
    n_bins: int = 8,
    outlier_threshold: float = 0.15,
    min_count: int = 10,
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
    outlier_threshold : float
    min_count : int
        Bins with fewer objects have no measure.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        As of `binned_metrics`; the intervals of outlier fractions are Wilson's.
    """
    check_choice("by", by, ("z_spec", "z_pred"))
    x = z_spec if by == "z_spec" else z_phot
    edges = np.linspace(min(0.0, float(x.min())), float(np.percentile(x, 99.8)), n_bins + 1)

    def measure(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return photoz_metrics(prediction, truth, outlier_threshold=outlier_threshold)

    table = binned_metrics(z_phot, z_spec, x, edges=edges, metric=measure, min_count=min_count, seed=seed)
    for name in ("outlier_fraction", "outlier_fraction_0.05"):
        if name in table:
            pairs = zip(table[name].tolist(), table["n"].tolist(), strict=True)
            intervals = [fraction_interval(f, n) if np.isfinite(f) else (np.nan, np.nan) for f, n in pairs]
            table[[f"{name}_low", f"{name}_high"]] = intervals
    return table
