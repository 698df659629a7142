"""Figures of diagnostics: layers and poolings, missing bands, what embeddings know of the observation."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from skylib.plotting.style import COLOURS, METRIC_LABELS


def plot_layer_sweep(sweep: pd.DataFrame, *, label: str = "score", ax: Axes | None = None) -> Axes:
    """Show the score on validation by layer, a line a pooling; the chosen one is ringed."""
    ax = ax or plt.subplots(figsize=(5.4, 3))[1]
    encoders = sweep["encoder"].unique() if "encoder" in sweep else [None]
    pools = list(sweep["pool"].unique())
    for encoder, style in zip(encoders, ("-", ":", "--"), strict=False):
        mine = sweep if encoder is None else sweep[sweep["encoder"] == encoder]
        for pool, rows in mine.groupby("pool", sort=False):
            rows = rows.sort_values("layer")
            name = pool if encoder is None or encoder == encoders[0] else None
            ax.plot(rows["layer"] + 1, rows["score"], style, marker="o", ms=4, color=COLOURS[pools.index(pool) % 7], label=name)  # fmt: skip
        best = mine[mine["chosen"]]
        ax.plot(best["layer"] + 1, best["score"], "o", ms=11, mfc="none", mec="k")
    for encoder, style in zip(encoders[1:], (":", "--"), strict=False):
        ax.plot([], [], style, color="0.4", label=encoder)
    ax.set(xlabel="after block", ylabel=f"{METRIC_LABELS.get(label, label)} on validation")
    ax.set_xticks(sorted(set((sweep["layer"] + 1).tolist())))
    ax.legend(fontsize=8, title="pooling", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_missing_bands(table: pd.DataFrame, *, metric: str = "balanced_accuracy", ax: Axes | None = None) -> Axes:
    """Show the score by the number of bands taken away: a point a subset with what is left, and the mean as a line."""
    ax = ax or plt.subplots(figsize=(4.8, 3.2))[1]
    mean = table.groupby("n_dropped")[metric].mean()
    ax.plot(mean.index, mean, color=COLOURS[0], label="mean")
    for n in mean.index.tolist():
        rows = table[table["n_dropped"] == n]
        ax.plot([n] * len(rows), rows[metric], "o", ms=4, color=COLOURS[1], alpha=0.7)
        told = rows if len(rows) <= 6 else rows.sort_values(metric).iloc[[0, -1]]  # all of a few, or worst and best
        for dropped, value in told[["dropped", metric]].to_numpy().tolist():
            if dropped:
                ax.annotate(f"no {dropped}", (n, value), xytext=(5, -3), textcoords="offset points", fontsize=7)
    whole = table[table["n_dropped"] == 0].iloc[0]
    ax.axhspan(whole["low"], whole["high"], color="0.9", lw=0, label="all bands, 95 %")
    ax.set(xlabel="bands taken away", ylabel=f"{METRIC_LABELS.get(metric, metric)} on test", xticks=list(mean.index))
    ax.margins(x=0.15, y=0.12)
    ax.legend(fontsize=8)
    return ax


def plot_nuisances(audit: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Show how far above chance a probe reads each nuisance: 0 is chance, 1 is all of it."""
    ax = ax or plt.subplots(figsize=(4.6, 0.45 * len(audit) + 1))[1]
    scale = 1 - audit["chance"]
    value, low, high = ((audit[name] - audit["chance"]) / scale for name in ("value", "low", "high"))
    y = np.arange(len(audit))
    ax.errorbar(value, y, xerr=[np.maximum(0, value - low), np.maximum(0, high - value)], fmt="o", capsize=3, color=COLOURS[0])  # fmt: skip
    ax.axvline(0, color="k", lw=0.8)
    ax.set_yticks(y, [f"{n.replace('_', ' ')}" for n in audit["nuisance"]])
    ax.set(xlabel="read from the embeddings (0 chance, 1 all)", ylim=(-0.6, len(audit) - 0.4), xlim=(min(-0.2, float(value.min()) - 0.05), 1))  # fmt: skip
    ax.grid(axis="x", alpha=0.3)
    return ax
