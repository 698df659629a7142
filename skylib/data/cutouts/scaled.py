"""Cutouts brought to another pixel scale as they are read."""

from __future__ import annotations

import astropy.units as u
import numpy as np

from skylib.checks import check_range, checked
from skylib.data.cutouts.file import CutoutFile, Index
from skylib.data.cutouts.stated import checked_number

_FINE = 8  # points per pixel and axis at which an image is looked at


class ScaledCutouts(CutoutFile):
    """The cutouts of a file as they would be with pixels of another size: see `at_scale`."""

    def __init__(self, cutouts: CutoutFile, pixel_scale: float) -> None:
        self.__dict__.update(cutouts.__dict__)
        self._native, self._ratio = cutouts, pixel_scale / cutouts.pixel_scale
        side = max(1, int(cutouts.size / self._ratio))
        self.pixel_scale, self.shape, self.has_weight = pixel_scale, (*cutouts.shape[:2], side, side), False

    def flux(
        self, index: Index = slice(None), *, size: int | None = None, pad: bool = False, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return cutouts as `CutoutFile.flux` does."""
        side = self.size if size is None else size
        if side > self.size and not pad:
            raise ValueError(
                f"size={size}: {self.path} holds cutouts of {self.size} pixels of {self.pixel_scale:g} arcsec"
            )
        flux = rescale(self._native.flux(index), self._ratio, side)
        if out is None:
            return flux
        out[:] = flux
        return out


@checked
def at_scale(cutouts: CutoutFile, pixel_scale: float | u.Quantity) -> CutoutFile:
    """Return cutouts brought to another pixel scale, such as that of the data a model was trained on.

    Parameters
    ----------
    cutouts : CutoutFile
    pixel_scale : float
        Arcsec.

    Returns
    -------
    CutoutFile
        Of the same file, resampled as it is read: the flux per area of sky stays, the object stays at the centre, and a
        pixel has no data where half of it has none. Without inverse variances.

    Raises
    ------
    ValueError
        If the scale is not positive.
    """
    pixel_scale = checked_number("pixel_scale", pixel_scale)
    check_range("size of the cutouts in pixels", int(cutouts.size * cutouts.pixel_scale / pixel_scale), 0, 16_384)
    return ScaledCutouts(cutouts, pixel_scale)


def rescale(flux: np.ndarray, ratio: float, size: int) -> np.ndarray:
    """Resample images (..., S, S) to `size` pixels, each `ratio` times as large; linear, and averaged over the pixel.

    Examples
    --------
    >>> rescale(np.ones((1, 8, 8), np.float32), 2.0, 2)
    array([[[4., 4.],
            [4., 4.]]], dtype=float32)
    """
    n = flux.shape[-1]
    place = ((np.arange(size * _FINE) + 0.5) / _FINE - 0.5 - size // 2) * ratio + n // 2
    part = (np.floor(place)[:, None] == np.arange(n)) * (1 - place % 1)[:, None]
    part += (np.floor(place)[:, None] + 1 == np.arange(n)) * (place % 1)[:, None]
    weight = part.reshape(size, _FINE, n).mean(axis=1).astype(np.float32)  # of the pixels of a row in those of the new
    has_data = np.isfinite(flux)
    share = weight @ has_data.astype(np.float32) @ weight.T
    total = weight @ np.where(has_data, flux, 0) @ weight.T
    return np.where(share > 0.5, total / np.maximum(share, 0.5) * ratio**2, np.nan).astype(np.float32)
