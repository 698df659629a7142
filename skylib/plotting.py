"""Every figure of the project: arrays and axes in, axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRIC_LABELS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "r2": "$R^2$",
    "sigma_mad": r"$\sigma_\mathrm{MAD}$", "outlier_fraction": "outlier fraction",
}  # fmt: skip


def set_style() -> None:
    """Set matplotlib to the project's style: readable at the width of a column."""
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 160, "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.origin": "lower",
        "image.interpolation": "nearest", "axes.prop_cycle": plt.cycler(color=COLOURS), "figure.constrained_layout.use": True,
    })  # fmt: skip


def rgb_image(
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    rgb: Sequence[str] = ("i", "r", "g"),
    stretch: float = 1.0,
    q: float = 8.0,
) -> np.ndarray:
    """Return a colour picture after Lupton et al. 2004 (astro-ph/0312483).

    Parameters
    ----------
    flux : ndarray, shape (C, H, W)
        Counts; NaN = no data.
    bands : sequence of str
        Of the planes.
    rgb : sequence of str
        Bands shown as red, green and blue; a band that is not there is shown as the nearest one that is.
    stretch, q : float
        Brightness (small is bright) and softening.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
    """
    bands = list(bands)
    there = [c for c in range(len(bands)) if np.isfinite(flux[c]).any()] or [0]
    planes = []
    for position, band in enumerate(rgb):
        wanted = bands.index(band) if band in bands else round((2 - position) / 2 * (len(bands) - 1))
        planes.append(flux[min(there, key=lambda c: abs(c - wanted))])
    gain = (0.8, 1.0, 1.6)  # brings the noise of i, r and g to about one level
    r, g, b = (np.nan_to_num(plane.astype(np.float64)) * k for plane, k in zip(planes, gain, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # where all three are zero
        return make_lupton_rgb(r, g, b, stretch=stretch, Q=q)


def show_cutouts(
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    titles: Sequence[str] = (),
    n_cols: int = 8,
    stretch: float = 1.0,
    zoom: float = 1.2,
) -> Figure:
    """Show colour pictures of cutouts (n, C, S, S) in a grid."""
    n_rows = max(1, -(-len(flux) // n_cols))
    height = zoom * (1.15 if len(titles) else 1.02)
    figure, axes = plt.subplots(n_rows, n_cols, figsize=(zoom * n_cols, height * n_rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, image) in enumerate(zip(axes.flat, flux, strict=False)):
        ax.imshow(rgb_image(image, bands, stretch=stretch))
        if i < len(titles):
            ax.set_title(titles[i], fontsize=7, pad=2)
    return figure


def show_bands(
    flux: np.ndarray, bands: Sequence[str], *, sky_sigma: np.ndarray, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Show one cutout (C, S, S), band by band, as arcsinh(flux / sky noise) in grey."""
    if axes is None:
        axes = plt.subplots(1, len(bands), figsize=(1.5 * len(bands), 1.7))[1]
    for ax, image, band, sigma in zip(np.atleast_1d(np.asarray(axes)), flux, bands, sky_sigma, strict=True):
        ax.imshow(np.arcsinh(image / sigma), cmap="gray", vmin=-1.5, vmax=5)
        ax.set_title(band)
        ax.set(xticks=[], yticks=[])
    return axes


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


def plot_reconstruction(
    flux: np.ndarray, reconstruction: np.ndarray, mask: np.ndarray, bands: Sequence[str], *, norm_pix: str | None = None,
    band: str | None = None, sky_sigma: np.ndarray | None = None,
) -> Figure:  # fmt: skip
    """Show original, what the model saw, what it filled in, and the difference, one object a row.

    Parameters
    ----------
    flux, reconstruction : ndarray, shape (n, C, S, S)
        Counts.
    mask : ndarray of bool, shape (n, C, S, S)
        True where hidden.
    norm_pix : str, optional
        As in the model; then the title says whose statistics the picture uses.
    band : str, optional
        Whose difference is shown; the middle one by default.
    sky_sigma : ndarray, shape (C,), optional
        Unit of the difference.
    """
    n, c = len(flux), list(bands).index(band) if band else len(bands) // 2
    figure, axes = plt.subplots(n, 4, figsize=(6.4, 1.62 * n + 0.4), squeeze=False)
    for row, original, filled, hidden in zip(axes, flux, reconstruction, mask, strict=True):
        seen = rgb_image(np.where(hidden, np.nan, original), bands)
        seen[hidden.all(axis=0)] = 128  # grey: hidden in all bands
        row[0].imshow(rgb_image(original, bands))
        row[1].imshow(seen)
        row[2].imshow(rgb_image(filled, bands))
        sigma = 1.0 if sky_sigma is None else sky_sigma[c]
        picture = row[3].imshow((filled[c] - original[c]) / sigma, cmap="RdBu_r", vmin=-10, vmax=10)
        for ax in row:
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(
        axes[0], ("original", "seen by the model", "reconstruction", f"difference, {bands[c]}"), strict=True
    ):
        ax.set_title(title)
    figure.colorbar(
        picture, ax=axes[:, 3], shrink=min(1.0, 2 / n), label="sky sigma" if sky_sigma is not None else "counts"
    )
    if norm_pix:
        figure.suptitle("Hidden patches use the true mean and scale of each patch (norm_pix): structure is predicted, level is not", fontsize=8)  # fmt: skip
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
    ax.set(xlabel=f"{label} on test, 95 % interval", ylim=(-0.6, len(order) - 0.3))
    ax.margins(x=0.12)  # room for the numbers
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_confusion(prediction: np.ndarray, truth: np.ndarray, names: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Show the confusion matrix; each row (true class) sums to one, with the counts below."""
    ax = ax or plt.subplots(figsize=(3.6, 3.3))[1]
    classes = np.unique(truth)
    counts = np.array([[((truth == t) & (prediction == p)).sum() for p in classes] for t in classes])
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


def plot_map(
    xy: np.ndarray, values: np.ndarray, *, label: str = "", names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Show a map (n, 2) coloured by class (with `names`) or by a value; unlabelled objects grey, below."""
    ax = ax or plt.subplots(figsize=(4.4, 4))[1]
    size = float(np.clip(4e4 / len(xy), 1, 16))
    known = values >= 0 if names else np.isfinite(values)
    ax.scatter(xy[~known, 0], xy[~known, 1], s=size, c="0.85", lw=0)
    if names:
        order = np.random.default_rng(0).permutation(np.flatnonzero(known))  # no class covers another
        ax.scatter(xy[order, 0], xy[order, 1], s=size, c=[COLOURS[int(v)] for v in values[order]], lw=0)
        for c, name in enumerate(names):
            if (values == c).any():
                ax.scatter([], [], c=COLOURS[c], s=25, label=name)
        if (~known).any():
            ax.scatter([], [], c="0.85", s=25, label="unlabelled")
        ax.legend(loc="best", markerscale=1)
    else:
        low, high = np.percentile(values[known], [2, 98])
        points = ax.scatter(
            xy[known, 0], xy[known, 1], s=size, c=values[known], vmin=low, vmax=high, cmap="viridis", lw=0
        )
        ax.figure.colorbar(points, ax=ax)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=label)
    return ax


def plot_thumbnails(
    xy: np.ndarray,
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    n_side: int = 14,
    stretch: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Lay pictures over a map (n, 2): in each cell of a grid, the object nearest to its middle."""
    ax = ax or plt.subplots(figsize=(7.5, 7.5))[1]
    low, high = xy.min(axis=0), xy.max(axis=0)
    cells = np.clip(((xy - low) / (high - low) * n_side).astype(int), 0, n_side - 1)
    middle = low + (cells + 0.5) / n_side * (high - low)
    off_centre = np.linalg.norm((xy - middle) / (high - low), axis=1)
    ax.scatter(xy[:, 0], xy[:, 1], s=1, c="0.8", lw=0)
    for cell in np.unique(cells, axis=0):
        members = np.flatnonzero((cells == cell).all(axis=1))
        i = members[off_centre[members].argmin()]
        picture = OffsetImage(rgb_image(flux[i], bands, stretch=stretch), zoom=30 / flux.shape[-1])
        ax.add_artist(AnnotationBbox(picture, middle[i], frameon=False, pad=0))
    margin = (high - low) / n_side / 2
    ax.set(
        xticks=[],
        yticks=[],
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
    )
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    return ax


def plot_label_efficiency(table: pd.DataFrame, *, metric: str = "balanced_accuracy", ax: Axes | None = None) -> Axes:
    """Show a score against the number of labels: the mean over seeds, and the range from the lowest to the highest."""
    ax = ax or plt.subplots(figsize=(4.8, 3.4))[1]
    for method, rows in table.groupby("method", sort=False):
        by_n = rows.groupby("n_labels")[metric]
        n, mean = by_n.mean().index.to_numpy(), by_n.mean().to_numpy()
        (line,) = ax.plot(n, mean, marker="o", ms=4, label=method)
        ax.fill_between(n, by_n.min(), by_n.max(), color=line.get_color(), alpha=0.15, lw=0)
    ax.set_xscale("log", base=2)
    ticks = sorted(table["n_labels"].unique())
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set(xlabel="labels", ylabel=f"{METRIC_LABELS.get(metric, metric)} on test")
    ax.minorticks_off()
    ax.legend()
    return ax
