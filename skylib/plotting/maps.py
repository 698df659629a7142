"""Maps of embeddings: coloured points, and pictures laid over them."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from skylib.plotting.images import rgb_image
from skylib.plotting.style import COLOURS


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


def plot_density(xy: np.ndarray, *, label: str = "density", ax: Axes | None = None) -> Axes:
    """Show how many objects lie where on a map (n, 2), in hexagons, on a logarithmic scale."""
    ax = ax or plt.subplots(figsize=(4.4, 4))[1]
    n_side = int(np.clip(np.sqrt(len(xy)) / 2, 10, 80))
    hexes = ax.hexbin(xy[:, 0], xy[:, 1], gridsize=n_side, mincnt=1, bins="log", cmap="cividis", lw=0)
    ax.figure.colorbar(hexes, ax=ax, label="objects", format="%d").ax.yaxis.set_minor_formatter("")
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
