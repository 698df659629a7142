"""Figures of redshift: against the truth, bin by bin, by signal to noise, and the honesty of p(z)."""

from __future__ import annotations

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.checks import check_choice
from skylib.evaluation.bootstrap import binned_metrics
from skylib.evaluation.metrics import normalised_error, photoz_metrics
from skylib.plotting.style import COLOURS

DZ = r"$\Delta z = (z_\mathrm{phot} - z_\mathrm{spec}) / (1 + z_\mathrm{spec})$"


def plot_redshift(
    z_phot: np.ndarray, z_spec: np.ndarray, *, outlier_threshold: float = 0.15, ax: Axes | None = None
) -> Axes:
    """Show photometric against spectroscopic redshift, with the 1:1 line, the outlier limits and the numbers."""
    ax = ax or plt.subplots(figsize=(3.9, 3.6))[1]
    low, high = min(0.0, float(z_spec.min())), float(np.percentile(np.concatenate([z_phot, z_spec]), 99.5)) * 1.05
    line = np.array([low, high])
    hexes = ax.hexbin(
        z_spec, z_phot, gridsize=35, extent=(low, high, low, high), mincnt=1, cmap="viridis", bins=_scale(z_spec)
    )
    ax.plot(line, line, color="k", lw=1)
    for sign in (-1, 1):
        ax.plot(line, line + sign * outlier_threshold * (1 + line), color="k", lw=0.8, ls="--")
    m = photoz_metrics(z_phot, z_spec, outlier_threshold=outlier_threshold)
    told = (f"bias {m['bias']:+.3f}\n$\\sigma_\\mathrm{{MAD}}$ {m['sigma_mad']:.3f}\n"
            f"outliers {100 * m['outlier_fraction']:.1f} %\n$n$ = {m['n']}")  # fmt: skip
    ax.text(0.03, 0.97, told, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel=r"$z_\mathrm{spec}$", ylabel=r"$z_\mathrm{phot}$", xlim=(low, high), ylim=(low, high))
    bar = ax.figure.colorbar(hexes, ax=ax, label="objects", format="%d")
    bar.ax.yaxis.set_minor_formatter("")
    return ax


def plot_redshift_panels(
    z_phot: np.ndarray, z_spec: np.ndarray, *, by: Literal["z_spec", "z_pred"] = "z_spec", n_bins: int = 8,
    outlier_threshold: float = 0.15, min_count: int = 10,
) -> Figure:  # fmt: skip
    """Show counts, residuals, bias, scatter and outliers by redshift, one below the other.

    By the spectroscopic one, as errors are understood, or by the predicted one, as samples are selected. Bins with
    fewer than `min_count` objects have no measure; bars are 95 % bootstrap intervals.
    """
    check_choice("by", by, ("z_spec", "z_pred"))
    x = z_spec if by == "z_spec" else z_phot
    low, high = min(0.0, float(x.min())), float(np.percentile(x, 99.8))
    edges = np.linspace(low, high, n_bins + 1)
    table = binned_metrics(z_phot, z_spec, x, edges=edges, min_count=min_count,
                           metric=lambda p, t: photoz_metrics(p, t, outlier_threshold=outlier_threshold))  # fmt: skip
    figure, axes = plt.subplots(5, 1, figsize=(4.2, 8.2), sharex=True, height_ratios=(1, 1.8, 1, 1, 1))
    axes[0].hist(x, np.linspace(low, high, 4 * n_bins + 1).tolist(), color=COLOURS[0])
    axes[0].set_ylabel("objects\na bin")
    dz = normalised_error(z_phot, z_spec)
    reach = max(2 * outlier_threshold, float(np.percentile(np.abs(dz), 98)))
    hexes = axes[1].hexbin(x, dz, gridsize=(35, 18), extent=(low, high, -reach, reach), mincnt=1, cmap="viridis", bins=_scale(z_spec))  # fmt: skip
    for y, style in ((0, "-"), (-outlier_threshold, "--"), (outlier_threshold, "--")):
        axes[1].axhline(y, color="k", lw=0.8, ls=style)
    bar = figure.colorbar(hexes, ax=axes[1], label="objects", format="%d", pad=0.01, aspect=12)
    bar.ax.yaxis.set_minor_formatter("")
    axes[1].set(ylabel=r"$\Delta z$", ylim=(-reach, reach))
    limits = (
        ("bias", "bias"),
        ("sigma_mad", r"$\sigma_\mathrm{MAD}$"),
        ("outlier_fraction", f"share with\n$|\\Delta z|$ > {outlier_threshold:g}"),
    )
    for ax, (name, label) in zip(axes[2:], limits, strict=True):
        plot_binned(table, name, ax=ax)
        ax.set(ylabel=label, xlabel="")
    axes[2].axhline(0, color="k", lw=0.8)
    axes[-1].set(xlabel=r"$z_\mathrm{spec}$" if by == "z_spec" else r"$z_\mathrm{phot}$", xlim=(low, high))
    figure.align_ylabels(axes)
    return figure


def plot_binned(
    table: pd.DataFrame, measure: str, *, label: str = "", colour: str = COLOURS[0], name: str | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Show a measure of `binned_metrics` with its intervals; `label` is that of the binned quantity, with its unit."""
    ax = ax or plt.subplots(figsize=(4.2, 2.6))[1]
    if measure in table:
        t = table.dropna(subset=[measure])
        middle = (t["low"] + t["high"]) / 2
        bars = [np.maximum(0, t[measure] - t[f"{measure}_low"]), np.maximum(0, t[f"{measure}_high"] - t[measure])]
        ax.errorbar(middle, t[measure], yerr=bars, xerr=(t["high"] - t["low"]) / 2, fmt="o", ms=4, capsize=2,
                    color=colour, label=name)  # fmt: skip
    ax.set(xlabel=label, ylabel=measure.replace("_", " "))
    return ax


def plot_residual_by_snr(
    z_phot: np.ndarray, z_spec: np.ndarray, snr: np.ndarray, *, band: str = "", ax: Axes | None = None
) -> Axes:
    """Show the residual of each object by its signal to noise, with the median and the 16 to 84 % range in bins."""
    ax = ax or plt.subplots(figsize=(4.6, 3))[1]
    known = np.isfinite(snr) & (snr > 0)
    dz, snr = normalised_error(z_phot, z_spec)[known], snr[known]
    ax.plot(snr, dz, ".", ms=2, color="0.6", zorder=1, rasterized=True)
    edges = np.unique(np.quantile(snr, np.linspace(0, 1, 9)))
    bins = np.clip(np.searchsorted(edges, snr, side="right") - 1, 0, len(edges) - 2)
    there = [b for b in range(len(edges) - 1) if (bins == b).sum() >= 5]
    x = [np.median(snr[bins == b]) for b in there]
    low, middle, high = np.array([np.percentile(dz[bins == b], [16, 50, 84]) for b in there]).T
    ax.plot(x, middle, color=COLOURS[1], marker="o", ms=4, label="median")
    ax.fill_between(x, low, high, color=COLOURS[1], alpha=0.25, lw=0, label="16 to 84 %")
    ax.axhline(0, color="k", lw=0.8)
    reach = float(np.percentile(np.abs(dz), 97))
    ax.set(xscale="log", ylim=(-reach, reach), xlabel=f"signal to noise{f' in {band}' if band else ''}", ylabel=DZ)
    ax.yaxis.label.set_fontsize(8)
    ax.legend(fontsize=8)
    return ax


def plot_pit(pit: np.ndarray, *, n_bins: int = 10, ax: Axes | None = None) -> Axes:
    """Show the probability integral transform of test objects, with the 95 % range of an honest p(z)."""
    from scipy.stats import binom

    ax = ax or plt.subplots(figsize=(4, 2.8))[1]
    low, high = binom.ppf([0.025, 0.975], len(pit), 1 / n_bins)
    ax.axhspan(low, high, color="0.85", lw=0, label="honest p(z), 95 %")
    ax.axhline(len(pit) / n_bins, color="0.4", lw=0.8)
    ax.hist(
        pit, np.linspace(0, 1, n_bins + 1).tolist(), histtype="step", color=COLOURS[0], lw=1.8, label="test objects"
    )
    ax.set(xlabel="probability below the true redshift (PIT)", ylabel="objects a bin", xlim=(0, 1), ylim=(0, None))
    ax.legend(loc="lower right", fontsize=8)
    return ax


def _scale(values: np.ndarray) -> Literal["log"] | None:
    """Return how the colours of a hexbin grow: with few objects a logarithm has no room for its numbers."""
    return "log" if len(values) > 5000 else None
