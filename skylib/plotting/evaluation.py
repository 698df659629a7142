"""Figures of data and results: counts, progress, comparisons, confusion, regression, label efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.plotting.style import COLOURS, METRIC_LABELS, draw_equality, metric_label, plain

REACH = 1.2  # a score that is lower than the best by more is not drawn to scale
LEAST_RANGE = 0.1  # of the axis of a score, in the figure of a training


def plot_counts(
    values: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    names: Sequence[str] = (),
    label: str = "magnitude (AB)",
    ax: Axes | None = None,
) -> Axes:
    """Show how many objects of each class there are at each magnitude.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Magnitudes; NaN is left out.
    classes : ndarray of int, shape (n,), optional
        Negative = undecided.
    names : sequence of str
        Of classes 0, 1, …
    label : str
        Of the magnitude, with its unit.
    """
    ax = ax or plt.subplots(figsize=(4.5, 3))[1]
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    if finite.any():
        low, high = np.percentile(values[finite], [0.2, 99.8])
        edges = np.linspace(low, high, 25).tolist()
        if classes is None:
            ax.hist(values[finite], edges, color=COLOURS[0])
        else:
            legend = {-1: ("undecided", "0.75")} | {c: (plain(n), COLOURS[c % 7]) for c, n in enumerate(names)}
            shown = [c for c in legend if (np.maximum(classes, -1) == c).any()]
            parts = [values[finite & (np.maximum(classes, -1) == c)] for c in shown]
            colours, labels = [legend[c][1] for c in shown], [legend[c][0] for c in shown]
            ax.hist(parts, edges, stacked=True, color=colours, label=labels)
            ax.legend()
    ax.set(xlabel=label, ylabel="objects per bin")
    return ax


def plot_progress(metrics: pd.DataFrame) -> Figure:
    """Show a pretraining run: the loss by step, and the score of each linear probe as it went."""
    probes = [name for name in metrics.columns if name.startswith("probe_")]
    figure, axes = plt.subplots(1, 1 + len(probes), figsize=(3.6 * (1 + len(probes)), 3), squeeze=False)
    ax = axes[0, 0]
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        if name in metrics:
            measured = metrics[["step", name]].dropna()
            ax.plot(measured["step"], measured[name], label=label, marker="o" if name != "loss" else None, ms=4)
    ax.set(xlabel="step", ylabel="loss on hidden pixels")
    ax.legend()
    for ax, name in zip(axes[0, 1:], probes, strict=True):
        measured = metrics[["step", name]].dropna()
        ax.plot(measured["step"], measured[name], marker="o", ms=4, color=COLOURS[2])
        low, high = ax.get_ylim()
        if (wider := (LEAST_RANGE - (high - low)) / 2) > 0:  # changes as small as chance makes them look small
            ax.set_ylim(low - wider, high + wider)
        endings = sorted((m for m in METRIC_LABELS if name.endswith(f"_{m}")), key=len)
        metric = endings[-1] if endings else name.rpartition("_")[2]  # the longest: balanced_accuracy, not accuracy
        target = plain(name.removeprefix("probe_").removesuffix(f"_{metric}"))
        ax.set(xlabel="step", ylabel=f"linear probe of {target}: {metric_label(metric)}")
    return figure


def plot_comparison(
    results: Mapping[str, tuple[float, tuple[float, float]]], *, label: str, ax: Axes | None = None
) -> Axes:
    """Compare a score between methods, the best on top: pretrained ones blue, an upper bound hollow.

    One that is far below the best is an arrow at the edge.

    Parameters
    ----------
    results : mapping of str to (value, (low, high))
        By method, with the interval.
    label : str
        Of the score.
    """
    ax = ax or plt.subplots(figsize=(6, 0.42 * len(results) + 1))[1]
    order = sorted(results, key=lambda name: results[name][0])
    edge = max(value for value, _ in results.values()) - REACH
    for y, name in enumerate(order):
        value, (low, high) = results[name]
        colour = COLOURS[0] if name.startswith("pretrained") else "0.45"
        if value < edge:
            ax.plot(edge, y, "<", color=colour)
        else:
            bars = [[min(value - edge, max(0, value - low))], [max(0, high - value)]]
            inside = "white" if name.startswith("upper bound") else colour
            ax.errorbar(value, y, xerr=bars, fmt="o", color=colour, mfc=inside, capsize=3)
        at = (max(value, edge), y)
        ax.annotate(f"{value:.3f}", at, textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    ax.set_yticks(range(len(order)), [plain(name) for name in order])
    ax.set(xlabel=f"{label} on test", ylim=(-0.6, len(order) - 0.3))
    ax.margins(x=0.12)  # room for the numbers
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_confusion(prediction: np.ndarray, truth: np.ndarray, names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Show the confusion matrix: each row (true class) sums to one; the number of objects is in brackets."""
    ax = ax or plt.subplots(figsize=(3.6, 3.3))[1]
    classes = np.unique(truth)
    counts = pd.crosstab(np.asarray(truth), np.asarray(prediction)).reindex(columns=classes, fill_value=0).to_numpy()
    shares = counts / np.array([[(truth == t).sum()] for t in classes])
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="upper")
    for (t, p), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        ax.text(p, t, f"{share:.2f}\n({counts[t, p]})", ha="center", va="center", color=colour, fontsize=9)
    labels = [plain(names[c]) if c < len(names) else str(c) for c in classes]
    ax.set_xticks(range(len(classes)), labels)
    ax.set_yticks(range(len(classes)), labels)
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax


def plot_regression(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    label: str = "z",
    outlier_threshold: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show predicted against true values, with the 1:1 line; for redshifts also the outlier limits (dashed)."""
    ax = ax or plt.subplots(figsize=(3.8, 3.6))[1]
    low, high = np.percentile(np.concatenate([prediction, truth]), [0.5, 99.5])
    margin = 0.03 * (high - low) or 1.0
    draw_equality(ax, truth, prediction, low - margin, high + margin, outlier_threshold=outlier_threshold)
    ax.set(xlabel=f"true {plain(label)}", ylabel=f"predicted {plain(label)}")
    return ax


def plot_label_efficiency(
    table: pd.DataFrame, *, metric: str = "balanced_accuracy", reference: str = "supervised", ax: Axes | None = None
) -> Axes:
    """Show a score against the number of labels: a point per seed, and a line through the medians.

    Parameters
    ----------
    table : DataFrame
        Of `label_efficiency`, one target: ``method``, ``n_labels``, ``seed`` and the score.
    metric : str
    reference : str
        The dashed line is the median of this method with the most labels.
    """
    ax = ax or plt.subplots(figsize=(4.8, 3.4))[1]
    methods = table["method"].unique().tolist()
    ticks = sorted(table["n_labels"].unique().tolist())
    for number, method in enumerate(methods):
        rows, colour = table[table["method"] == method], COLOURS[number % len(COLOURS)]
        median = rows.groupby("n_labels")[metric].median()
        beside = 1 + 0.03 * (number - (len(methods) - 1) / 2)  # so that points of two methods do not hide each other
        ax.plot(rows["n_labels"] * beside, rows[metric], "o", ms=4, mew=0, alpha=0.5, color=colour)
        ax.plot(median.index, median, color=colour, label=plain(method))
        if method == reference:
            ax.axhline(median.iloc[-1], color=colour, lw=0.9, ls="--")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set(xlabel="labelled training objects", ylabel=f"{metric_label(metric)} on test")
    ax.minorticks_off()
    ax.legend(fontsize=8, ncols=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1))  # no line crosses it
    return ax
