"""What all figures share: colours, names of measures and columns, matplotlib's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.files import replaced

# Okabe & Ito: readers with colour blindness can tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
METRIC_LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "r2": "$R^2$",
    "roc_auc": "area under the ROC curve",
    "rms": "RMS error",
    "sigma_mad": r"$\sigma_\mathrm{MAD}$",
    "outlier_fraction": "outlier fraction",
}
COLUMN_LABELS = {
    "z_spec": r"redshift $z_\mathrm{spec}$",
    "z_phot": r"redshift $z_\mathrm{phot}$",
    "log_snr": r"$\log_{10}$ signal to noise",
    "ra": "right ascension (deg)",
    "dec": "declination (deg)",
}
FEW = 2000  # fewer objects are drawn as points, more as a density


def set_style() -> None:
    """Set matplotlib to the project's style: readable at the width of a column."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "image.origin": "lower",
            "image.interpolation": "nearest",
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "figure.constrained_layout.use": True,
        }
    )


def save_figure(drawn: Axes | Figure, run_dir: str | Path, name: str) -> None:
    """Write a figure, or the one that an Axes is in, to ``figures/NAME.png`` of a run folder."""
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None
    with replaced(Path(run_dir) / "figures" / f"{name}.png") as partial:
        figure.savefig(partial, format="png")


def plain(text: object) -> str:
    r"""Return a name as matplotlib draws it letter by letter: a ``$`` in it begins no formula.

    Examples
    --------
    >>> plain("cost ($)")
    'cost (\\$)'
    """
    return str(text).replace("$", r"\$")


def column_label(name: str) -> str:
    """Return what a column of a catalogue means, with its unit, for an axis.

    Examples
    --------
    >>> column_label("mag_i"), column_label("size_arcsec")
    ('i magnitude (AB)', 'size_arcsec')
    """
    if name.startswith("mag_"):
        return f"{plain(name.removeprefix('mag_'))} magnitude (AB)"
    return COLUMN_LABELS.get(name, plain(name))


def metric_label(name: str) -> str:
    """Return the name of a measure for an axis."""
    return METRIC_LABELS.get(name, plain(name.replace("_", " ")))


def draw_cloud(ax: Axes, x: np.ndarray, y: np.ndarray, *, extent: tuple[float, float, float, float]) -> None:
    """Draw objects as points, or as a density with a colour bar if there are `FEW` or more.

    Parameters
    ----------
    ax : Axes
    x, y : ndarray, shape (n,)
    extent : tuple of float
        Left, right, bottom and top edge of what is shown.
    """
    if len(x) < FEW:
        ax.plot(x, y, "o", ms=3, alpha=0.5, mew=0, color=COLOURS[0])
        return
    scale: Literal["log"] | None = "log" if len(x) > 5000 else None  # of few objects it has no room for its numbers
    hexes = ax.hexbin(x, y, gridsize=35, extent=extent, mincnt=1, cmap="viridis", bins=scale, lw=0)
    bar = ax.figure.colorbar(hexes, ax=ax, label="objects per cell", format="%d", pad=0.01)
    bar.ax.yaxis.set_minor_formatter("")


def draw_equality(
    ax: Axes, truth: np.ndarray, prediction: np.ndarray, low: float, high: float, *, outlier_threshold: float | None
) -> None:
    """Draw predicted against true values (n,) from `low` to `high`: 1:1 as a line, the limits of outliers dashed."""
    line = np.array([low, high])
    draw_cloud(ax, truth, prediction, extent=(low, high, low, high))
    ax.plot(line, line, color="k", lw=1)
    for sign in (-1, 1) if outlier_threshold is not None else ():
        ax.plot(line, line + sign * (outlier_threshold or 0) * (1 + line), color="k", lw=0.8, ls="--")
    ax.set(xlim=(low, high), ylim=(low, high))
