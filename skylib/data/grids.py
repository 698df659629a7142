"""Pixel grids on the sky: positions in any frame, how far two grids lie apart, and images brought from one to another."""

from __future__ import annotations

import warnings

import numpy as np
from astropy.coordinates import ICRS, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import wcs_to_celestial_frame
from scipy import ndimage

_STEP, _STRIP = 64, 256  # pixels: positions are computed on this mesh, and images are resampled in strips of rows
_NUMBERS = ("CRVAL", "CRPIX", "CDELT", "CD1_", "CD2_", "PC1_", "PC2_", "CROTA")


def read_grid(header: fits.Header) -> WCS | None:
    """Return the celestial WCS of an image, without further axes; None if the header states none.

    Raises
    ------
    ValueError
        If it is damaged, or in a frame that is not known.
    """
    for key in header:
        if key.startswith(_NUMBERS) and key[-1].isdigit():
            value = header[key]  # raises for a value that cannot be read
            if isinstance(value, str | bool) or not np.isfinite(value):
                raise ValueError(f"{key}={value!r}: must be a number")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(header)
    if not wcs.has_celestial:
        return None
    if wcs.naxis > 2:
        wcs = wcs.celestial
    scale = np.abs(np.linalg.det(wcs.pixel_scale_matrix))
    if not (np.isfinite(scale) and scale > 0 and np.all(np.abs(wcs.wcs.crval) <= 360)):
        raise ValueError(
            f"the sky coordinates are damaged: CRVAL {wcs.wcs.crval}, matrix {wcs.pixel_scale_matrix.tolist()}"
        )
    wcs_to_celestial_frame(wcs)
    return wcs


def sky_position(wcs: WCS, rows: np.ndarray | float, cols: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return ra and dec (deg, ICRS) at pixels (0 = centre of the first), whatever the frame and order of the axes."""
    world = wcs.all_pix2world(np.asarray(cols, float), np.asarray(rows, float), 0)
    lon, lat = world[wcs.wcs.lng], world[wcs.wcs.lat]
    frame = wcs_to_celestial_frame(wcs)
    if isinstance(frame, ICRS):
        return lon, lat
    sky = SkyCoord(lon, lat, unit="deg", frame=frame).icrs
    return sky.ra.deg, sky.dec.deg


def pixel_position(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (0 = centre of the first pixel) at positions in degrees ICRS; the inverse of the above."""
    lon, lat, frame = np.asarray(ra, float), np.asarray(dec, float), wcs_to_celestial_frame(wcs)
    if not isinstance(frame, ICRS):
        sky = SkyCoord(lon, lat, unit="deg").transform_to(frame).spherical
        lon, lat = sky.lon.deg, sky.lat.deg
    world = (lon, lat) if wcs.wcs.lng == 0 else (lat, lon)
    cols, rows = wcs.all_world2pix(*world, 0, quiet=True)
    return rows, cols


def pixel_scale(wcs: WCS) -> float:
    """Return the side of a pixel in arcsec."""
    return float(np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600)


def centre_and_corners(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the centre of an image and its four corner pixels."""
    last_row, last_col = shape[0] - 1, shape[1] - 1
    return np.array([last_row / 2, 0, 0, last_row, last_row]), np.array([last_col / 2, 0, last_col, 0, last_col])


def grid_offset(one: WCS | None, other: WCS | None, shape: tuple[int, ...]) -> float:
    """Return how many pixels two grids lie apart, at the worst of the centre and the corners of the image."""
    if one is None or other is None:
        return 0.0 if one is other else np.inf
    rows, cols = centre_and_corners(shape)
    found = pixel_position(other, *sky_position(one, rows, cols))
    apart = np.hypot(found[0] - rows, found[1] - cols)
    return float(apart.max()) if np.isfinite(apart).all() else np.inf


def resample(
    image: np.ndarray, source: WCS, target: WCS, shape: tuple[int, ...], *, order: int = 3, power: int = 1
) -> np.ndarray:
    """Bring an image to another grid; flux per area on the sky stays, so each pixel is scaled by the ratio of areas.

    Parameters
    ----------
    image : ndarray, shape (H, W)
        NaN = no data; so are pixels of the result next to such, or outside.
    source, target : WCS
    shape : (int, int)
        Of the result.
    order : int
        Of the spline.
    power : int
        Of the ratio of areas: 1 for flux, 2 for its variance.

    Returns
    -------
    ndarray of float32
    """
    bad = ~np.isfinite(image)
    filled = np.where(bad, 0, image).astype(np.float64)
    if bad.any() and not bad.all():  # what stands in for bad pixels should not ring into their neighbours
        nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
        filled = filled[tuple(nearest)]
    ratio = pixel_scale(target) / pixel_scale(source)
    parts = max(1, int(np.ceil(ratio - 0.25)))  # larger pixels are means of smaller ones
    spline = ndimage.spline_filter(filled, order) if order > 1 else filled
    mesh = _mesh(source, target, shape)
    out = np.empty(shape, dtype=np.float32)
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    for top in range(0, shape[0], _STRIP):
        rows, cols = np.mgrid[top : min(top + _STRIP, shape[0]), : shape[1]].astype(float)
        total, lost = np.zeros(rows.shape), np.zeros(rows.shape, bool)
        for dy in offsets:
            for dx in offsets:
                at = [
                    ndimage.map_coordinates(m, ((rows + dy) / _STEP, (cols + dx) / _STEP), order=1, mode="nearest")
                    for m in mesh
                ]
                total += ndimage.map_coordinates(spline, at, order=order, prefilter=False, mode="nearest")
                near = [np.rint(a).astype(int) for a in at]
                outside = (near[0] < 0) | (near[1] < 0) | (near[0] >= image.shape[0]) | (near[1] >= image.shape[1])
                lost |= outside
                if bad.any():
                    lost |= ndimage.map_coordinates(bad.astype(np.float32), at, order=1, mode="nearest") > 0.01
        out[top : top + _STRIP] = np.where(lost, np.nan, total / parts**2 * ratio ** (2 * power))
    return out


def _mesh(source: WCS, target: WCS, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns in the source of each _STEP-th pixel of the target; between them they are linear."""
    rows, cols = np.meshgrid(*(np.arange(0, n + _STEP, _STEP) for n in shape), indexing="ij")
    found = pixel_position(source, *sky_position(target, rows.ravel(), cols.ravel()))
    if not all(np.isfinite(f).all() for f in found):
        raise ValueError("the two images lie on different parts of the sky")
    return found[0].reshape(rows.shape), found[1].reshape(rows.shape)
