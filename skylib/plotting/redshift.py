"""Figures of redshift: against spectra, bin by bin, by signal to noise, and the calibration of p(z)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.checks import check_choice
from skylib.plotting.style import COLOURS, draw_cloud, draw_equality, metric_label

DZ = r"$\Delta z = (z_\mathrm{phot} - z_\mathrm{spec}) / (1 + z_\mathrm{spec})$"
OUTLIER = 0.15  # of |dz|, beyond which a redshift counts as an outlier
PIT_BINS = 10
BY = {"z_spec": r"$z_\mathrm{spec}$", "z_pred": r"$z_\mathrm{phot}$"}


def plot_redshift(
    z_phot: np.ndarray,
    z_spec: np.ndarray,
    *,
    metrics: Mapping[str, float] | None = None,
    outlier_threshold: float = OUTLIER,
    ax: Axes | None = None,
) -> Axes:
    """Show photometric against spectroscopic redshift, with the 1:1 line and the outlier limits (dashed).

    Parameters
    ----------
    z_phot, z_spec : ndarray, shape (n,)
    metrics : mapping, optional
        Of `photoz_metrics`; bias, scatter and outliers are written into the figure.
    outlier_threshold : float
        Of the absolute error over (1 + z_spec).
    """
    ax = ax or plt.subplots(figsize=(3.9, 3.6))[1]
    low, high = min(0.0, float(z_spec.min())), float(np.percentile(np.concatenate([z_phot, z_spec]), 99.5)) * 1.05
    draw_equality(ax, z_spec, z_phot, low, high, outlier_threshold=outlier_threshold)
    if metrics is not None:
        text = (
            f"bias {metrics['bias']:+.3f}\n$\\sigma_\\mathrm{{MAD}}$ {metrics['sigma_mad']:.3f}\n"
            f"outliers {100 * metrics['outlier_fraction']:.1f} %\n$n$ = {metrics['n']:.0f}"
        )
        ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlabel=BY["z_spec"], ylabel=BY["z_pred"])
    return ax


def plot_redshift_panels(
    z_phot: np.ndarray, z_spec: np.ndarray, table: pd.DataFrame, *, by: Literal["z_spec", "z_pred"] = "z_spec"
) -> Figure:
    """Show, from top to bottom: counts, residuals (dashed: outlier limits), bias, scatter and outlier fraction.

    Parameters
    ----------
    z_phot, z_spec : ndarray, shape (n,)
    table : DataFrame
        Of `redshift_bins`, by the same redshift.
    by : {"z_spec", "z_pred"}
        By the spectroscopic redshift, as errors are understood, or by the predicted one, as samples are selected.
    """
    check_choice("by", by, tuple(BY))
    x = z_spec if by == "z_spec" else z_phot
    low, high = float(table["low"].min()), float(table["high"].max())
    figure, axes = plt.subplots(5, 1, figsize=(4.2, 8.2), sharex=True, height_ratios=(1, 1.8, 1, 1, 1))
    axes[0].hist(x, np.linspace(low, high, 4 * len(table) + 1).tolist(), color=COLOURS[0])
    axes[0].set_ylabel("objects\nper bin")
    dz = normalised(z_phot, z_spec)
    reach = max(2 * OUTLIER, float(np.percentile(np.abs(dz), 98)))
    draw_cloud(axes[1], x, dz, extent=(low, high, -reach, reach))
    for y, style in ((0, "-"), (-OUTLIER, "--"), (OUTLIER, "--")):
        axes[1].axhline(y, color="k", lw=0.8, ls=style)
    axes[1].set(ylabel=r"$\Delta z$", ylim=(-reach, reach))
    labels = {
        "bias": "bias",
        "sigma_mad": r"$\sigma_\mathrm{MAD}$",
        "outlier_fraction": f"fraction with\n$|\\Delta z|$ > {OUTLIER:g}",
    }
    for ax, (name, label) in zip(axes[2:], labels.items(), strict=True):
        plot_binned(table, name, ax=ax)
        ax.set(ylabel=label, xlabel="")
    axes[2].axhline(0, color="k", lw=0.8)
    axes[-1].set(xlabel=BY[by], xlim=(low, high))
    figure.align_ylabels(axes)
    return figure


def plot_binned(table: pd.DataFrame, measure: str, *, label: str = "", ax: Axes | None = None) -> Axes:
    """Show a measure in bins with its 95 % intervals.

    Parameters
    ----------
    table : DataFrame
        Of `binned_metrics`: ``low`` and ``high`` of each bin, the measure, and its ``…_low`` and ``…_high``.
    measure : str
    label : str
        Of the binned quantity, with its unit.
    """
    ax = ax or plt.subplots(figsize=(4.2, 2.6))[1]
    if measure in table:
        t = table.dropna(subset=[measure])
        middle = (t["low"] + t["high"]) / 2
        bars = [np.maximum(0, t[measure] - t[f"{measure}_low"]), np.maximum(0, t[f"{measure}_high"] - t[measure])]
        width = (t["high"] - t["low"]) / 2
        ax.errorbar(middle, t[measure], yerr=bars, xerr=width, fmt="o", ms=4, capsize=2, color=COLOURS[0])
    ax.set(xlabel=label, ylabel=metric_label(measure))
    return ax


def plot_residual_by_snr(
    z_phot: np.ndarray, z_spec: np.ndarray, snr: np.ndarray, *, band: str = "", ax: Axes | None = None
) -> Axes:
    """Show the residual of each object by its signal to noise, with the median and the 16 to 84 % range in bins."""
    ax = ax or plt.subplots(figsize=(4.6, 3))[1]
    use = np.isfinite(snr) & (snr > 0)
    dz, snr = normalised(z_phot, z_spec)[use], snr[use]
    ax.set(xlabel=f"signal to noise{f' in {band}' if band else ''}", ylabel=DZ)
    ax.yaxis.label.set_fontsize(8)
    ax.axhline(0, color="k", lw=0.8)
    if not len(dz):
        return ax
    ax.plot(snr, dz, ".", ms=2, color="0.6", zorder=1, rasterized=True)
    bins = pd.qcut(snr, 8, labels=False, duplicates="drop")
    parts = [(snr[bins == b], dz[bins == b]) for b in np.unique(bins[np.isfinite(bins)]) if (bins == b).sum() >= 5]
    if parts:
        x = [np.median(s) for s, _ in parts]
        low, middle, high = np.array([np.percentile(d, [16, 50, 84]) for _, d in parts]).T
        ax.plot(x, middle, color=COLOURS[1], marker="o", ms=4, label="median")
        ax.fill_between(x, low, high, color=COLOURS[1], alpha=0.25, lw=0, label="16 to 84 %")
        ax.legend(fontsize=8)
    reach = float(np.percentile(np.abs(dz), 97)) or 1.0
    ax.set(xscale="log", ylim=(-reach, reach))
    return ax


def plot_pit(pit: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Show the histogram of PIT values, with the 95 % range of a calibrated p(z), for which they are uniform."""
    from scipy.stats import binom

    ax = ax or plt.subplots(figsize=(4, 2.8))[1]
    low, high = binom.ppf([0.025, 0.975], len(pit), 1 / PIT_BINS)
    ax.axhspan(low, high, color="0.85", lw=0, label="calibrated p(z), 95 %")
    ax.axhline(len(pit) / PIT_BINS, color="0.4", lw=0.8)
    edges = np.linspace(0, 1, PIT_BINS + 1).tolist()
    ax.hist(pit, edges, histtype="step", color=COLOURS[0], lw=1.8, label="test objects")
    ax.set(xlabel="PIT: probability below the true redshift", ylabel="objects per bin", xlim=(0, 1), ylim=(0, None))
    ax.legend(loc="lower right", fontsize=8)
    return ax


def normalised(z_phot: np.ndarray, z_spec: np.ndarray) -> np.ndarray:
    """Return dz = (z_phot - z_spec) / (1 + z_spec)."""
    return (z_phot - z_spec) / (1 + z_spec)
