"""Pixel grids on the sky: positions in any frame, how far two grids lie apart, and images brought onto another."""

from __future__ import annotations

import re

import numpy as np
from astropy.coordinates import ICRS, BarycentricMeanEcliptic, BaseCoordinateFrame, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import wcs_to_celestial_frame
from scipy import ndimage

from skylib.data.fitsfile import unwarned
from skylib.data.plain import degrees

_BLOCK = 64  # pixels: images are resampled block by block, each by an affine map
_NUMBERS = ("CRVAL", "CRPIX", "CDELT", "CD1_", "CD2_", "PC1_", "PC2_", "CROTA")
_SCALES = ("CDELT", "CD1_", "CD2_", "CD001", "CD002")


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
    with unwarned(FITSFixedWarning):
        try:
            wcs = WCS(_with_distortions(_one_matrix(header)))
        except KeyError:  # an alternate one alone, of which no one knows whether it is meant
            return None
        except ValueError as error:  # of wcslib, over several lines
            raise ValueError(f"the sky coordinates are damaged: {' '.join(str(error).split())}") from error
    if not wcs.has_celestial:
        return None
    if not any(key.startswith(_SCALES) for key in header):
        raise ValueError(
            f"the pixel scale is missing: the header has CTYPE {' '.join(wcs.wcs.ctype)}, but no CDELT or CD"
        )
    if {wcs.wcs.lng, wcs.wcs.lat} != {0, 1}:
        raise ValueError(f"the axes of the image are {' '.join(wcs.wcs.ctype)}: the first two must be those of the sky")
    if wcs.naxis > 2:
        wcs = wcs.celestial
    scale = np.abs(np.linalg.det(wcs.pixel_scale_matrix))
    if not (0 < scale <= 1 and np.all(np.abs(wcs.wcs.crval) <= 360)):  # square degrees per pixel
        raise ValueError(
            f"the sky coordinates are damaged: CRVAL {wcs.wcs.crval}, matrix {wcs.pixel_scale_matrix.tolist()}"
        )
    _frame(wcs)
    return wcs


def _one_matrix(header: fits.Header) -> fits.Header:
    """Return a header without PC beside CD, of which astropy would take the wrong one, where CD is a whole matrix."""
    if not any(re.fullmatch("CD[12]_[12]", key) for key in header):
        if sum(f"CDELT{axis}" in header for axis in (1, 2)) == 1:
            raise ValueError("the pixel scale of one axis is missing: CDELT1 or CDELT2")
        return header
    matrix = [[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)]
    if not np.linalg.det(matrix):
        raise ValueError(f"the matrix CD is {matrix}")
    if stale := list(header["PC?_?"]):
        header = header.copy()
        for key in stale:
            del header[key]
    return header


def _with_distortions(header: fits.Header) -> fits.Header:
    """Return a header that says TPV where PV keywords of SCAMP, which TAN has none of, describe distortions."""
    types = [str(header.get(f"CTYPE{axis}", "")) for axis in (1, 2)]
    polynomial = any(re.fullmatch(r"PV2_\d+|PV1_(?:[5-9]|\d\d)", key) for key in header)
    if not polynomial or not all(text.endswith("TAN") for text in types):
        return header
    header = header.copy()
    for axis, text in enumerate(types, 1):
        header[f"CTYPE{axis}"] = text[:-3] + "TPV"
    return header


def _frame(wcs: WCS) -> BaseCoordinateFrame:
    kind = wcs.wcs.lngtyp.strip()
    if kind == "ELON":
        return BarycentricMeanEcliptic()
    if kind not in ("RA", "GLON"):  # astropy takes any other for right ascension
        raise ValueError(f"the sky coordinates are {kind!r}: must be RA, GLON or ELON")
    try:
        return wcs_to_celestial_frame(wcs)
    except ValueError as error:
        raise ValueError(f"RADESYS={wcs.wcs.radesys!r}: must be ICRS, FK5, FK4 or FK4-NO-E") from error


def sky_position(wcs: WCS, rows: np.ndarray | float, cols: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return ra and dec (deg, ICRS) at pixels (0 = centre of the first), whatever the frame and order of the axes."""
    world = wcs.all_pix2world(np.asarray(cols, float), np.asarray(rows, float), 0)
    lon, lat = world[wcs.wcs.lng], world[wcs.wcs.lat]
    frame = _frame(wcs)
    if isinstance(frame, ICRS):
        return lon, lat
    sky = SkyCoord(lon, lat, unit="deg", frame=frame).icrs
    return sky.ra.deg, sky.dec.deg


def pixel_position(wcs: WCS, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (0 = centre of the first pixel) at positions in degrees ICRS, the inverse."""
    lon, lat, frame = degrees(ra, "ra"), degrees(dec, "dec"), _frame(wcs)
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
    weight = bad.astype(np.float32) if bad.any() else None
    out = np.empty(shape, dtype=np.float32)
    corners = _corners(source, target, shape)
    for i, top in enumerate(range(0, shape[0], _BLOCK)):
        for j, left in enumerate(range(0, shape[1], _BLOCK)):
            block = out[top : top + _BLOCK, left : left + _BLOCK]
            (a, b), (c, d) = corners[i : i + 2, j : j + 2]
            matrix = np.stack([c + d - a - b, b + d - a - c], axis=1) / (2 * _BLOCK)
            first = (a + b + c + d) / 4 - matrix.sum(axis=1) * (_BLOCK - 1 / parts + 1) / 2
            split = block.shape[0], parts, block.shape[1], parts
            how = {"matrix": matrix / parts, "offset": first, "prefilter": False, "cval": np.nan}
            how["output_shape"] = split[0] * parts, split[2] * parts
            found = ndimage.affine_transform(spline, order=order, **how).reshape(split)
            block[:] = found.mean(axis=(1, 3)) * ratio ** (2 * power)
            if weight is not None:
                near = ndimage.affine_transform(weight, order=1, **how).reshape(split)
                block[(near > 0.01).any(axis=(1, 3))] = np.nan
    return out


def _corners(source: WCS, target: WCS, shape: tuple[int, ...]) -> np.ndarray:
    """Return rows and columns in the source of the corners of blocks of the target, (n, m, 2), linear in between."""
    rows, cols = np.meshgrid(*(np.arange(0, n + _BLOCK, _BLOCK) for n in shape), indexing="ij")
    found = pixel_position(source, *sky_position(target, rows.ravel(), cols.ravel()))
    if not np.isfinite(found).all():
        raise ValueError("the two images lie on different parts of the sky")
    return np.stack(found, axis=-1).reshape(*rows.shape, 2)
