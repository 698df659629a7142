"""Maps of embeddings: coloured points, density, and thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from skylib.plotting.images import noise, rgb_image
from skylib.plotting.style import COLOURS, column_label, plain

UNLABELLED = "0.85"
MANY = 100_000  # objects, beyond which points would cover each other


def plot_map(
    xy: np.ndarray, values: np.ndarray, *, label: str = "", names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Show a map coloured by class or by a value; objects without one are grey, below the others.

    Of more than 100,000 objects, hexagons show the most common class, or the median, of those in each.

    Parameters
    ----------
    xy : ndarray, shape (n, 2)
    values : ndarray, shape (n,)
        Classes if `names` are given (negative = unlabelled), else numbers (NaN = unknown). Colours cover the central
        96 % of the numbers; an arrow on the colour bar says that some lie beyond.
    label : str
        Of the colours, with their unit.
    names : sequence of str, optional
        Of classes 0, 1, …
    """
    ax = ax or plt.subplots(figsize=(4.4, 4))[1]
    size = float(np.clip(4e4 / max(1, len(xy)), 1, 16))
    has_value = values >= 0 if names else np.isfinite(values)
    hexagons: dict[str, Any] = {"gridsize": 120, "mincnt": 1, "extent": _limits(xy).ravel()}

    def draw(rows: np.ndarray, values: np.ndarray, reduce: Callable[..., Any] = np.median, **colours: Any) -> Any:
        x, y = xy[rows].T
        if len(xy) <= MANY:
            return ax.scatter(x, y, s=size, c=values, lw=0, **colours)
        return ax.hexbin(x, y, C=values, reduce_C_function=reduce, lw=0, **hexagons, **colours)

    below = np.ones(len(xy), dtype=bool) if len(xy) > MANY else ~has_value
    draw(below, np.zeros(below.sum()), cmap=ListedColormap([UNLABELLED]))
    if names:
        order = np.random.default_rng(0).permutation(np.flatnonzero(has_value))  # no class covers another
        draw(order, values[order] % 7, _most_common, cmap=ListedColormap(COLOURS[:7]), vmin=-0.5, vmax=6.5)
        for c, name in enumerate(names):
            if (values == c).any():
                ax.scatter([], [], c=COLOURS[c % 7], s=25, label=plain(name))
        if not has_value.all():
            ax.scatter([], [], c=UNLABELLED, s=25, label="unlabelled")
        ax.legend(loc="best", title=label or None)
    elif has_value.any():
        shown = values[has_value]
        low, high = np.percentile(shown, [2, 98])
        extend = ("neither", "min", "max", "both")[(shown.min() < low) + 2 * (shown.max() > high)]
        points = draw(has_value, shown, vmin=low, vmax=high, cmap="viridis")
        ax.figure.colorbar(points, ax=ax, label=label, extend=extend)
    _frame(ax, xy)
    return ax


def plot_maps(
    xy: np.ndarray, values: Mapping[str, np.ndarray], *, classes: np.ndarray | None = None, names: Sequence[str] = ()
) -> Figure:
    """Show a map in several panels: by class, if there are any, by each value, and the number of objects.

    Parameters
    ----------
    xy : ndarray, shape (n, 2)
    values : mapping of str to ndarray, shape (n,)
        By name of the column.
    classes : ndarray of int, shape (n,), optional
    names : sequence of str
        Of classes 0, 1, …
    """
    n_rows = -(-(len(values) + 1 + (classes is not None)) // 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=(12, 3.7 * n_rows), squeeze=False)
    panels = iter(axes.flat)
    if classes is not None:
        plot_map(xy, classes, names=names, ax=next(panels))
    for name, value in values.items():
        plot_map(xy, value, label=column_label(name), ax=next(panels))
    plot_density(xy, ax=next(panels))
    for empty in panels:
        empty.remove()
    return figure


def plot_density(xy: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """Show how many objects lie where on a map (n, 2), in hexagons, on a logarithmic scale."""
    ax = ax or plt.subplots(figsize=(4.4, 4))[1]
    n_side = int(np.clip(np.sqrt(len(xy)) / 2, 10, 80))
    (left, right), (bottom, top) = _limits(xy)
    extent = (left, right, bottom, top)
    hexes = ax.hexbin(xy[:, 0], xy[:, 1], gridsize=n_side, extent=extent, mincnt=1, bins="log", cmap="cividis", lw=0)
    ax.figure.colorbar(hexes, ax=ax, label="objects per cell", format="%d").ax.yaxis.set_minor_formatter("")
    _frame(ax, xy)
    return ax


def plot_thumbnails(
    xy: np.ndarray, flux: np.ndarray, bands: Sequence[str], *, n_side: int = 14, ax: Axes | None = None
) -> Axes:
    """Lay pictures over a map (n, 2): in each cell of a grid, the object nearest to its centre."""
    ax = ax or plt.subplots(figsize=(7.5, 7.5))[1]
    low, high = _limits(xy).T
    span = np.where(high > low, high - low, 1.0)
    inside = ((xy >= low) & (xy <= high)).all(axis=1)
    cells = np.clip(((xy - low) / span * n_side).astype(int), 0, n_side - 1)
    middle = low + (cells + 0.5) / n_side * span
    off_centre = np.where(inside, np.linalg.norm((xy - middle) / span, axis=1), np.inf)
    ax.scatter(xy[:, 0], xy[:, 1], s=1, c="0.8", lw=0)
    sigma = noise(flux)
    for cell in np.unique(cells[inside], axis=0):
        members = np.flatnonzero((cells == cell).all(axis=1))
        i = members[off_centre[members].argmin()]
        picture = OffsetImage(rgb_image(flux[i], bands, sky_sigma=sigma), zoom=30 / flux.shape[-1])
        ax.add_artist(AnnotationBbox(picture, middle[i], frameon=False, pad=0))
    _frame(ax, xy)
    return ax


def _most_common(classes: list[float]) -> int:
    return int(np.bincount(np.asarray(classes, dtype=int)).argmax())


def _limits(xy: np.ndarray) -> np.ndarray:
    """Return the lower and upper limit of each axis, (2, 2): a few objects far out do not shrink all the others."""
    if not len(xy):
        return np.array([[0.0, 1.0], [0.0, 1.0]])
    low, high = np.percentile(xy, [0.5, 99.5], axis=0)
    margin = 0.06 * np.where(high > low, high - low, 1.0)
    return np.stack([low - margin, high + margin], axis=1)


def _frame(ax: Axes, xy: np.ndarray) -> None:
    """Leave out the ticks, since the axes of UMAP have no unit, and show where most objects are."""
    (left, right), (bottom, top) = _limits(xy)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", xlim=(left, right), ylim=(bottom, top))
