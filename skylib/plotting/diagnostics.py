"""Figures of diagnostics: layers and poolings, missing bands, observing conditions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from skylib.plotting.style import COLOURS, metric_label, plain

STYLES = ("-", ":", "--")  # of the encoders


def plot_layer_sweep(sweep: pd.DataFrame, *, label: str = "score", ax: Axes | None = None) -> Axes:
    """Show the score on validation by layer, a line per pooling; the chosen one is ringed.

    Parameters
    ----------
    sweep : DataFrame
        ``layer``, ``pool``, ``score``, ``chosen``, and ``encoder`` if there is more than one.
    label : str
        Of the score.
    """
    ax = ax or plt.subplots(figsize=(5.4, 3))[1]
    sweep = sweep if "encoder" in sweep else sweep.assign(encoder="")
    encoders, pools = sweep["encoder"].unique().tolist(), sweep["pool"].unique().tolist()
    for (encoder, pool), rows in sweep.groupby(["encoder", "pool"], sort=False):
        rows = rows.sort_values("layer")
        style, colour = STYLES[encoders.index(encoder) % 3], COLOURS[pools.index(pool) % 7]
        name = plain(pool) if encoder == encoders[0] else None
        ax.plot(rows["layer"] + 1, rows["score"], style, marker="o", ms=4, color=colour, label=name)
    for encoder, style in zip(encoders[1:], STYLES[1:], strict=False):
        ax.plot([], [], style, color="0.4", label=plain(encoder))
    best = sweep[sweep["chosen"]]
    ax.plot(best["layer"] + 1, best["score"], "o", ms=11, mfc="none", mec="k")
    ax.set(xlabel="encoder block", ylabel=f"{metric_label(label)} on validation")
    ax.set_xticks(sorted(set((sweep["layer"] + 1).tolist())))
    ax.legend(fontsize=8, title="pooling", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_missing_bands(table: pd.DataFrame, *, metric: str = "balanced_accuracy", ax: Axes | None = None) -> Axes:
    """Show the score by the number of bands removed: a point for each subset, and the mean as a line.

    Parameters
    ----------
    table : DataFrame
        Of `missing_bands`: ``dropped``, ``n_dropped``, the score, ``low`` and ``high``.
    metric : str
    """
    ax = ax or plt.subplots(figsize=(4.8, 3.2))[1]
    mean = table.groupby("n_dropped")[metric].mean()
    ax.plot(mean.index, mean, color=COLOURS[0], label="mean")
    for n in mean.index.tolist():
        rows = table[table["n_dropped"] == n]
        ax.plot([n] * len(rows), rows[metric], "o", ms=4, color=COLOURS[1], alpha=0.7)
        named = rows.sort_values(metric)
        named = named if len(rows) <= 6 else named.iloc[[0, -1]]  # all, or the worst and the best
        for i, (dropped, value) in enumerate(zip(named["dropped"], named[metric], strict=True)):
            if dropped:  # names of neighbours stand on different sides, so that both can be read
                text, x, side = f"no {plain(dropped)}", (5, -5)[i % 2], ("left", "right")[i % 2]
                ax.annotate(text, (n, value), xytext=(x, -3), ha=side, textcoords="offset points", fontsize=7)
    whole = table[table["n_dropped"] == 0].iloc[0]
    ax.axhspan(whole["low"], whole["high"], color="0.9", lw=0, label="all bands, 95 %")
    ax.set(xlabel="number of missing bands", ylabel=f"{metric_label(metric)} on test", xticks=list(mean.index))
    ax.margins(x=0.15, y=0.12)
    ax.legend(fontsize=8)
    return ax


def plot_nuisances(audit: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Show how far above chance a linear probe recovers each observing condition: 0 is chance, 1 is exactly.

    Parameters
    ----------
    audit : DataFrame
        Of `nuisance_audit`: ``nuisance``, ``value``, ``low``, ``high`` and ``chance``.
    """
    ax = ax or plt.subplots(figsize=(4.6, 0.45 * len(audit) + 1))[1]
    scale = 1 - audit["chance"]
    value, low, high = ((audit[name] - audit["chance"]) / scale for name in ("value", "low", "high"))
    y = np.arange(len(audit))
    bars = [np.maximum(0, value - low), np.maximum(0, high - value)]
    ax.errorbar(value, y, xerr=bars, fmt="o", capsize=3, color=COLOURS[0])
    ax.axvline(0, color="k", lw=0.8)
    ax.set_yticks(y, [plain(name.replace("_", " ")) for name in audit["nuisance"]])
    left = min(-0.2, float(value.min()) - 0.05) if len(audit) else -0.2
    ax.set(xlabel="recovered (0: chance, 1: exactly)", xlim=(left, 1))
    ax.set_ylim(-0.6, len(audit) - 0.4)
    ax.grid(axis="x", alpha=0.3)
    return ax
