"""How sure a number is: intervals of one prediction, of the difference of two, bin by bin, and of a mean over runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from skylib.evaluation.metrics import Metric


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


def seed_error(values: np.ndarray) -> tuple[float, int]:
    """Return the standard error of the mean of a few runs, and its degrees of freedom; NaN and 0 for one run."""
    return (float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")), len(values) - 1


def mean_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean of a few runs, such as seeds, by Student's t; NaN for one run, which has none.

    Drawing two or five runs with replacement, as a bootstrap would, gives intervals far too short. What all runs
    share, such as the objects they are judged on, is not in it.

    Examples
    --------
    >>> [round(x, 3) for x in mean_interval(np.array([0.7, 0.8, 0.9]))]
    [0.552, 1.048]
    """
    error, freedom = seed_error(values)
    reach = error * student.ppf(0.5 + level / 2, freedom) if freedom else float("nan")
    return float(values.mean() - reach), float(values.mean() + reach)


def _resamples(truth: np.ndarray, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield rows drawn with replacement: as many as there are, and of each class as many as it has."""
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(truth))
    strata = [everyone] if truth.dtype.kind == "f" else [everyone[truth == c] for c in np.unique(truth)]
    for _ in range(n_resamples):
        yield np.concatenate([rows[rng.integers(len(rows), size=len(rows))] for rows in strata])
