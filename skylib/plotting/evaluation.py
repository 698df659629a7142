"""What is known and what was learnt: counts, progress, comparisons, confusion, regression, label efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.evaluation.metrics import confusion_matrix
from skylib.plotting.style import COLOURS, METRIC_LABELS


def plot_counts(
    columns: Mapping[str, np.ndarray], magnitude: str, class_names: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Show how many objects of each class there are at each magnitude; unlabelled ones (negative) too."""
    ax = ax or plt.subplots(figsize=(4.5, 3))[1]
    values, classes = columns[magnitude], columns["class"]
    finite = np.isfinite(values)
    low, high = np.nanpercentile(values, [0.2, 99.8])
    edges = np.linspace(low, high, 25).tolist()
    names = {-1: "undecided"} | dict(enumerate(class_names))
    present = [c for c in names if (classes == c).any()]
    colours = {-1: "0.75"} | {c: COLOURS[c] for c in range(len(class_names))}
    ax.hist([values[finite & (classes == c)] for c in present], edges, stacked=True,
            color=[colours[c] for c in present], label=[names[c] for c in present])  # fmt: skip
    ax.set(xlabel=f"{magnitude.replace('mag_', '')} magnitude (AB)", ylabel="objects a bin")
    ax.legend()
    return ax


def plot_progress(metrics: pd.DataFrame) -> Figure:
    """Show a pretraining run: the loss, and what linear probes read from the embeddings as it went."""
    probes = [name for name in metrics.columns if name.startswith("probe_")]
    figure, axes = plt.subplots(1, 1 + len(probes), figsize=(3.6 * (1 + len(probes)), 3), squeeze=False)
    ax = axes[0, 0]
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        if name in metrics:
            known = metrics[["step", name]].dropna()
            ax.plot(known["step"], known[name], label=label, marker="o" if name != "loss" else None, ms=4)
    ax.set(xlabel="step", ylabel="loss on hidden pixels")
    ax.legend()
    for ax, name in zip(axes[0, 1:], probes, strict=True):
        known = metrics[["step", name]].dropna()
        ax.plot(known["step"], known[name], marker="o", ms=4, color=COLOURS[2])
        target, metric = name.removeprefix("probe_").rsplit("_", 1)
        ax.set(xlabel="step", ylabel=f"linear probe, {target}: {METRIC_LABELS.get(metric, metric)}")
    return figure


def plot_comparison(
    results: Mapping[str, tuple[float, tuple[float, float]]], *, label: str, ax: Axes | None = None
) -> Axes:
    """Compare a score between methods: {method: (value, (low, high))}, best on top."""
    ax = ax or plt.subplots(figsize=(4.6, 0.45 * len(results) + 1))[1]
    order = sorted(results, key=lambda name: results[name][0])
    for y, name in enumerate(order):
        value, (low, high) = results[name]
        ax.errorbar(
            value, y, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", color=COLOURS[0], capsize=3
        )
        ax.annotate(f"{value:.3f}", (value, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=f"{label} (test, 95 %)", ylim=(-0.6, len(order) - 0.3))
    ax.margins(x=0.12)  # room for the numbers
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_confusion(prediction: np.ndarray, truth: np.ndarray, names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Show the confusion matrix; each row (true class) sums to one, with the counts below."""
    ax = ax or plt.subplots(figsize=(3.6, 3.3))[1]
    classes = np.unique(truth)
    counts = confusion_matrix(prediction, truth, classes)
    shares = counts / np.array([[(truth == t).sum()] for t in classes])
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="upper")
    for (t, p), share in np.ndenumerate(shares):
        colour = "white" if share > 0.5 else "black"
        ax.text(p, t, f"{share:.2f}\n({counts[t, p]})", ha="center", va="center", color=colour, fontsize=9)
    labels = [names[c] for c in classes]
    ax.set_xticks(range(len(classes)), labels)
    ax.set_yticks(range(len(classes)), labels)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def plot_regression(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    label: str = "z",
    outlier_threshold: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show predicted against true values, with the 1:1 line; for redshifts also the outlier limits."""
    ax = ax or plt.subplots(figsize=(3.8, 3.6))[1]
    low, high = np.percentile(np.concatenate([prediction, truth]), [0.5, 99.5])
    line = np.array([low, high])
    hexes = ax.hexbin(
        truth, prediction, gridsize=35, extent=(low, high, low, high), mincnt=1, cmap="viridis", bins="log"
    )
    ax.plot(line, line, color="k", lw=1)
    if outlier_threshold is not None:
        for sign in (-1, 1):
            ax.plot(line, line + sign * outlier_threshold * (1 + line), color="k", lw=0.8, ls="--")
    ax.set(xlabel=f"true {label}", ylabel=f"predicted {label}", xlim=(low, high), ylim=(low, high))
    bar = ax.figure.colorbar(hexes, ax=ax, label="objects", format="%d")
    bar.ax.yaxis.set_minor_formatter("")
    return ax


def plot_label_efficiency(
    table: pd.DataFrame, *, metric: str = "balanced_accuracy", reference: str = "supervised", ax: Axes | None = None
) -> Axes:
    """Show a score against the number of labels: the mean over seeds, and its 95 % interval by Student's t.

    With one seed there is none; what the choice of test objects adds, which all seeds share, is in none. The frame
    fits the runs: with few seeds an interval may leave it. The dashed line is `reference` with the most labels; a mark
    stands where another method reaches it.
    """
    from skylib.evaluation.label_study import labels_to_match, seed_means

    ax = ax or plt.subplots(figsize=(4.8, 3.4))[1]
    means = seed_means(table, metric=metric)
    colours: dict[str, str] = {}
    for method in means["method"].unique():
        mine = means[means["method"] == method]
        known = mine.dropna(subset=["low", "high"])
        colours[method] = COLOURS[len(colours) % len(COLOURS)]
        ax.plot(mine["n_labels"], mine[metric], marker="o", ms=4, label=method, color=colours[method])
        if len(known):
            ax.fill_between(known["n_labels"], known["low"], known["high"], color=colours[method], alpha=0.15, lw=0)
    low, high = float(table[metric].min()), float(table[metric].max())
    ax.set_ylim(low - 0.3 * (high - low) - 0.01, high + 0.3 * (high - low) + 0.01)
    ax.set_xscale("log", base=2)
    if reference in colours:
        rows = table[table["method"] == reference]
        goal = rows.loc[rows["n_labels"] == rows["n_labels"].max(), metric].mean()
        ax.axhline(goal, color=colours[reference], lw=0.9, ls="--")
        found = labels_to_match(table, metric=metric, reference=reference, n_resamples=10)
        for method, n in found.loc[found["note"] == "", ["method", "n_labels"]].to_numpy().tolist():
            ax.plot(n, goal, marker="D", ms=7, mfc="none", mec=colours[method])
    ticks = sorted(table["n_labels"].unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set(xlabel="labels", ylabel=f"{METRIC_LABELS.get(metric, metric)} on test")
    ax.minorticks_off()
    ax.legend(fontsize=8)
    return ax
