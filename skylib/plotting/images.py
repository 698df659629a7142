"""Pictures of the sky: tiles, colour images of objects, single bands, reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skylib.plotting.style import plain

_NOISE = 0.1  # to which the noise of each band is brought


def rgb_image(
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    rgb: Sequence[str] = ("i", "r", "g"),
    stretch: float = 1.0,
    q: float = 8.0,
    sky_sigma: np.ndarray | None = None,
) -> np.ndarray:
    """Return a colour picture after Lupton et al. 2004 (astro-ph/0312483).

    Parameters
    ----------
    flux : ndarray, shape (C, H, W)
        Counts; NaN = no data.
    bands : sequence of str
        Of the planes.
    rgb : sequence of str
        Bands shown as red, green and blue; a band without data is replaced by the nearest one that has some.
    stretch, q : float
        Brightness (small is bright) and softening. With 1, flux above about 10 times the noise is compressed.
    sky_sigma : ndarray, shape (C,), optional
        Noise of a pixel, to which each band is scaled, so that no survey and no band looks noisier than others; by
        default as the image shows it.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Black where no band has data.
    """
    bands = list(bands)
    filled = [c for c in range(len(bands)) if np.isfinite(flux[c]).any()] or [0]
    sigma = noise(flux) if sky_sigma is None else np.asarray(sky_sigma)
    planes = []
    for position, band in enumerate(rgb):
        wanted = bands.index(band) if band in bands else round((2 - position) / 2 * (len(bands) - 1))
        shown = min(filled, key=lambda c: abs(c - wanted))
        planes.append(np.nan_to_num(flux[shown].astype(np.float64) / (sigma[shown] / _NOISE)))
    r, g, b = planes
    with np.errstate(invalid="ignore", divide="ignore"):  # where all three are zero
        return make_lupton_rgb(r, g, b, stretch=stretch, Q=q)


def noise(flux: np.ndarray) -> np.ndarray:
    """Return the noise of a pixel (C,) in images (..., C, H, W), by neighbouring pixels; 1 where there is none."""
    step = np.moveaxis(np.abs(np.diff(flux, axis=-1)), -3, 0).reshape(flux.shape[-3], -1)
    sigma = np.array([1.4826 * np.median(x[np.isfinite(x)]) / np.sqrt(2) if np.isfinite(x).any() else 1 for x in step])
    return np.where(sigma > 0, sigma, 1.0)


def show_tile(
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    wcs: Any = None,
    title: str = "",
    stretch: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Show a tile (C, H, W) in colour, with right ascension and declination if its WCS is given; black is no data."""
    if ax is None:
        ax = plt.figure(figsize=(6, 6)).add_subplot(projection=wcs)
    ax.imshow(rgb_image(flux, bands, stretch=stretch))
    if wcs is None:
        ax.set(xlabel="column (pixels)", ylabel="row (pixels)")
    else:
        ax.set(xlabel="right ascension", ylabel="declination")
    ax.set_title(plain(title))
    return ax


def show_cutouts(
    flux: np.ndarray,
    bands: Sequence[str],
    *,
    titles: Sequence[str] = (),
    n_cols: int = 8,
    stretch: float = 1.0,
    zoom: float = 1.2,
) -> Figure:
    """Show colour pictures of cutouts (n, C, S, S) in a grid; "no data" is written where a picture is all NaN."""
    n_cols = max(1, min(n_cols, len(flux)))
    n_rows = max(1, -(-len(flux) // n_cols))
    height = zoom * (1.15 if len(titles) else 1.02)
    figure, axes = plt.subplots(n_rows, n_cols, figsize=(zoom * n_cols, height * n_rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    sigma = noise(flux)
    for i, (ax, image) in enumerate(zip(axes.flat, flux, strict=False)):
        ax.imshow(rgb_image(image, bands, stretch=stretch, sky_sigma=sigma))
        if not np.isfinite(image).any():
            _say_no_data(ax, colour="white")
        if i < len(titles):
            ax.set_title(plain(titles[i]), fontsize=7, pad=2)
    return figure


def show_bands(
    flux: np.ndarray, bands: Sequence[str], *, sky_sigma: np.ndarray, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Show one cutout (C, S, S), band by band, as arcsinh(flux / sky noise) in grey."""
    if axes is None:
        axes = plt.subplots(1, len(bands), figsize=(1.5 * len(bands), 1.7))[1]
    for ax, image, band, sigma in zip(np.atleast_1d(np.asarray(axes)), flux, bands, sky_sigma, strict=True):
        ax.imshow(np.arcsinh(image / sigma), cmap="gray", vmin=-1.5, vmax=5)
        if not np.isfinite(image).any():
            _say_no_data(ax, colour="black")
        ax.set_title(plain(band))
        _bare(ax)
    return axes


def _bare(ax: Axes) -> None:
    """Show the picture alone, without ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _say_no_data(ax: Axes, *, colour: str) -> None:
    ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color=colour, fontsize=8)


def plot_reconstruction(
    flux: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    bands: Sequence[str],
    *,
    norm_pix: str | None = None,
    sky_sigma: np.ndarray | None = None,
) -> Figure:
    """Show original, what the model saw, what it filled in, and the difference in the middle band: an object per row.

    Parameters
    ----------
    flux, reconstruction : ndarray, shape (n, C, S, S)
        Counts.
    mask : ndarray of bool, shape (n, C, S, S)
        True where hidden.
    norm_pix : str, optional
        As in the model; if it is set, a line above the figure says that true statistics of each patch are used.
    sky_sigma : ndarray, shape (C,), optional
        Unit of the difference.
    """
    n, c = len(flux), len(bands) // 2
    figure, axes = plt.subplots(n, 4, figsize=(6.4, 1.33 * n + 0.5), squeeze=False)
    level = noise(flux) if sky_sigma is None else sky_sigma
    for row, original, filled, hidden in zip(axes, flux, reconstruction, mask, strict=True):
        seen = rgb_image(np.where(hidden, np.nan, original), bands, sky_sigma=level)
        seen[hidden.all(axis=0)] = 128  # grey: hidden in all bands
        row[0].imshow(rgb_image(original, bands, sky_sigma=level))
        row[1].imshow(seen)
        row[2].imshow(rgb_image(filled, bands, sky_sigma=level))
        sigma = 1.0 if sky_sigma is None else sky_sigma[c]
        picture = row[3].imshow((filled[c] - original[c]) / sigma, cmap="RdBu_r", vmin=-10, vmax=10)
        for ax in row:
            _bare(ax)
    for ax, title in zip(axes[0], ("original", "seen by the model", "reconstruction"), strict=False):
        ax.set_title(title)
    axes[0, 3].set_title(f"difference, {plain(bands[c])}")
    unit = "difference (sky noise)" if sky_sigma is not None else "difference (counts)"
    figure.colorbar(picture, ax=axes[:, 3], shrink=min(1.0, 2 / n), label=unit, extend="both")
    if norm_pix:
        note = "Hidden patches are shown with their true mean and scale (norm_pix): the model predicts structure only"
        figure.suptitle(note, fontsize=8)
    return figure
