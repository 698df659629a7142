"""How sure a measure is: by drawing the test objects again, or from the scatter of a few runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import t as student

Metric = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
LEVEL = 0.95  # of all intervals


def bootstrap_intervals(
    prediction: np.ndarray, truth: np.ndarray, metric: Metric, *, n_resamples: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile bootstrap interval of each measure, by drawing objects with replacement.

    Where the truth is a class, objects are drawn within each, so that every draw measures the same classes.

    Parameters
    ----------
    prediction, truth : ndarray, shape (n, ...) and (n,)
        A truth of float is a value; any other is a class.
    metric : callable
        From (prediction, truth) to a dict of numbers.
    """
    rng, everyone = np.random.default_rng(seed), np.arange(len(truth))
    strata = [everyone] if truth.dtype.kind == "f" else [everyone[truth == c] for c in np.unique(truth)]
    draws = []
    for _ in range(n_resamples):
        rows = np.concatenate([rows[rng.integers(len(rows), size=len(rows))] for rows in strata])
        draws.append(metric(prediction[rows], truth[rows]))
    table = pd.DataFrame(draws).drop(columns="n", errors="ignore").dropna(axis="columns", how="all")
    ends = table.quantile([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).to_numpy().T.tolist()
    return {str(name): (low, high) for name, (low, high) in zip(table, ends, strict=True)}


def paired_margin(
    first: np.ndarray, second: np.ndarray, truth: np.ndarray, metric: Metric
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
        First minus second; NaN limits where no draw has the measure.

    Examples
    --------
    >>> from skylib.evaluation.metrics import classification_metrics
    >>> truth = np.arange(40) % 2
    >>> paired_margin(truth, np.zeros(40, int), truth, classification_metrics)["accuracy"][0]
    0.5
    """

    def difference(both: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        one, two = (metric(both[:, i], truth) for i in (0, 1))
        return {name: one[name] - two[name] for name in one if name != "n"}

    both = np.stack([first, second], axis=1)
    ends = bootstrap_intervals(both, truth, difference)
    return {name: (value, *ends.get(name, (np.nan, np.nan))) for name, value in difference(both, truth).items()}


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a few runs, such as seeds, by Student's t; NaN for one run.

    Drawing two or five runs with replacement, as a bootstrap would, gives intervals far too short. What all runs
    share, such as the objects they are judged on, is not in it.

    Examples
    --------
    >>> [round(x, 3) for x in mean_interval(np.array([0.7, 0.8, 0.9]))]
    [0.552, 1.048]
    """
    error, freedom = seed_error(values)
    reach = error * student.ppf((1 + LEVEL) / 2, freedom) if freedom else float("nan")
    return float(values.mean() - reach), float(values.mean() + reach)


def seed_error(values: np.ndarray) -> tuple[float, int]:
    """Return the standard error of the mean of a few runs, and its degrees of freedom; NaN and 0 for one run."""
    return (float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")), len(values) - 1
