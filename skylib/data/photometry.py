"""Noise of the sky, signal-to-noise ratios and aperture magnitudes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skylib.checks import check_choice, checked
from skylib.data.cutouts import CutoutFile
from skylib.data.plain import numbers_of
from skylib.device import tensor_of


@checked
def measure_sky_noise(flux: np.ndarray) -> np.ndarray:
    """Measure the noise of the sky in each band, robustly against the objects in it.

    Differences of neighbouring pixels cancel whatever is smooth; their median absolute value is scaled to one
    sigma of a Gaussian.

    Parameters
    ----------
    flux : ndarray, shape (..., C, H, W)
        Any number of images; NaN = no data.

    Returns
    -------
    ndarray of float32, shape (C,)
        NaN for a band without any data.

    Examples
    --------
    >>> sky = np.random.default_rng(0).normal(0, [[[0.1]], [[0.5]]], size=(200, 2, 16, 16))
    >>> measure_sky_noise(sky).round(2)
    array([0.1, 0.5], dtype=float32)
    """
    if (flux := np.asarray(flux)).ndim < 3:
        raise ValueError(f"flux has shape {flux.shape}: must be (n, C, S, S)")
    difference = np.abs(np.diff(flux, axis=-1))
    sigma = np.full(flux.shape[-3], np.nan, dtype=np.float32)
    for c in range(flux.shape[-3]):
        step = difference[..., c, :, :]
        step = step[np.isfinite(step)]
        if step.size:
            sigma[c] = 1.4826 * np.median(step) / np.sqrt(2)
    return sigma


@checked
def signal_to_noise(
    flux: Tensor | np.ndarray, sky_sigma: Tensor | np.ndarray, *, box: int = 5, reach: int = 4
) -> Tensor:
    """Return the signal-to-noise ratio of the brightest spot near the centre of each image.

    The flux in a square of `box` pixels over its noise, band by band; the sum over the bands that have data there,
    over the square root of their number, so that at a given place pure noise has mean 0 and variance 1. The largest of
    those values with the middle of the square up to `reach` pixels from the centre counts. As the largest of many it
    is biased upwards: pure noise has mean 0 and scatter 1 with ``reach=0`` only, 1.9 and 0.6 with ``reach=4`` (one in
    a hundred above 3.5), 2.7 and 0.5 with ``reach=10`` (3.9). For a source that stands out the bias is small.

    Parameters
    ----------
    flux : Tensor or ndarray, shape (n, C, S, S)
        Counts, with the sky subtracted; NaN = no data.
    sky_sigma : Tensor or ndarray, shape (C,)
        Noise of a pixel (`measure_sky_noise`).
    box, reach : int
        Pixels.

    Returns
    -------
    Tensor of float32, shape (n,)
        NaN where there is no data.

    Examples
    --------
    >>> flux = np.zeros((1, 2, 16, 16)); flux[..., 6:11, 6:11] = 1.0
    >>> signal_to_noise(flux, np.array([1.0, 1.0])).item()  # 5 in each of two bands
    7.071067810058594
    """
    flux, sigma = tensor_of("flux", flux).float(), tensor_of("sky_sigma", sky_sigma).float()
    if flux.ndim != 4 or sigma.shape != flux.shape[1:2] or box > flux.shape[-1]:
        shapes = f"flux has shape {tuple(flux.shape)}, sky_sigma {tuple(sigma.shape)}"
        raise ValueError(f"{shapes}: must be (n, C, S, S) and (C,), S at least box={box}")
    middle, around = flux.shape[-1] // 2, reach + box // 2
    near = slice(max(0, middle - around), middle + around + 1)
    centre = flux[..., near, near] / sigma.to(flux.device)[:, None, None]
    has_data = centre.isfinite()
    squares = functional.avg_pool2d(centre.nan_to_num(0.0), box, stride=1) * box**2  # sums over the square
    share = functional.avg_pool2d(has_data.float(), box, stride=1)
    covered = share > 0.5
    ratio = torch.where(covered, squares / (box * share.clamp(min=1e-6).sqrt()), 0.0)
    n_bands = covered.sum(dim=1)
    stacked = ratio.sum(dim=1) / n_bands.clamp(min=1).sqrt()
    stacked = torch.where(n_bands > 0, stacked, -torch.inf).flatten(1).amax(dim=1)
    return torch.where(stacked.isfinite(), stacked, torch.nan)


def aperture_magnitudes(
    cutouts: CutoutFile, *, rows: np.ndarray, sky_sigma: np.ndarray, radius: float = 8.0
) -> np.ndarray:
    """Measure magnitudes in a round aperture at the centre, (n, C), for a file that brings no catalogue.

    They are arcsinh magnitudes (Lupton et al. 1999, AJ 118, 1406), softened at the noise of the aperture, so that
    faint and negative fluxes have a value; NaN where a band has no data.
    """
    inside = _aperture(cutouts.size, radius)
    flux, _ = _aperture_flux(cutouts, rows, inside)
    soft = np.asarray(sky_sigma) * np.sqrt(inside.sum())
    factor = 2.5 / np.log(10)
    return cutouts.zero_point - factor * (np.arcsinh(flux / (2 * soft)) + np.log(soft))


@checked
def aperture_snr(
    cutouts: CutoutFile, band: str, *, rows: np.ndarray, sky_sigma: float | None = None, radius: float = 8.0
) -> np.ndarray:
    """Measure the flux in a round aperture at the centre over the noise of the sky in it, (n,); NaN without data.

    Pixels without data bring neither flux nor noise. Without `sky_sigma` it is measured on the first 500 cutouts.

    Examples
    --------
    >>> snr = skylib.aperture_snr(cutouts, "i", rows=np.arange(10))
    >>> snr.shape
    (10,)
    """
    check_choice("band", band, cutouts.bands)
    rows = cutouts.row_numbers(rows)
    plane = cutouts.bands.index(band)
    if sky_sigma is None:
        sky_sigma = float(measure_sky_noise(cutouts.flux(slice(0, 500)))[plane])
    flux, n_pixels = (one[:, plane] for one in _aperture_flux(cutouts, rows, _aperture(cutouts.size, radius)))
    return flux / (sky_sigma * np.sqrt(np.maximum(n_pixels, 1)))


def _aperture(size: int, radius: float) -> np.ndarray:
    """Return which pixels (S, S) lie within `radius` pixels of the centre."""
    y, x = np.indices((size, size)) - size // 2
    return x**2 + y**2 <= radius**2


def _aperture_flux(cutouts: CutoutFile, rows: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the pixels (n, C) inside, NaN where none has data; and count those that have, (n, C)."""
    flux, n_known = [], []
    for start in range(0, max(1, len(rows)), 1024):
        pixels = cutouts.flux(rows[start : start + 1024])[:, :, inside]
        n_known.append(np.isfinite(pixels).sum(axis=-1))
        flux.append(np.where(n_known[-1] > 0, np.nansum(pixels, axis=-1), np.nan))
    return np.concatenate(flux), np.concatenate(n_known)


@checked
def brighter(cutouts: CutoutFile, column: str, limit: float) -> np.ndarray:
    """Return which objects are brighter than a magnitude (n,); all, if the file lacks the column.

    An unknown magnitude (NaN) is not brighter.

    Examples
    --------
    >>> bright = skylib.brighter(cutouts, "mag_i", 23.0)
    >>> bool(cutouts.column("mag_i")[bright].max() < 23)
    True
    """
    if column not in cutouts.columns:
        return np.ones(len(cutouts), dtype=bool)
    return np.asarray(numbers_of(cutouts, column) < limit)
