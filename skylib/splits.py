"""Training, validation and test parts that do not share sky."""

from __future__ import annotations

from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1


def sky_split(
    ra: np.ndarray,
    dec: np.ndarray,
    *,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    nside: int = 8192,
    guard: float = 0.0,
) -> np.ndarray:
    """Split objects by whole HEALPix cells of the sky.

    A cell's part follows from its number and the seed alone, so an object keeps its part when a catalogue grows,
    and two catalogues of one field agree.

    Parameters
    ----------
    ra, dec : ndarray of float, shape (n,)
        Degrees ICRS.
    fractions : (float, float, float)
        Of the cells; they sum to 1.
    seed : int
    nside : int
        Resolution of the cells, a power of two. 8192: cells of 26 arcsec, which suits a field of a few arcmin; for a
        wide survey larger cells, such as 512 (7 arcmin), have fewer borders.
    guard : float
        Arcsec. Training objects closer than this to a validation or test object, and validation objects closer to
        a test object, are left out. With cutouts of S pixels, ``S * pixel_scale * sqrt(2)`` is always enough for
        no pixel to be shared.

    Returns
    -------
    ndarray of int64, shape (n,)
        0 train, 1 validation, 2 test, -1 left out by the guard.

    Raises
    ------
    ValueError
        If a position is not finite, the fractions do not sum to 1, or a part with a fraction above zero is empty.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> split = sky_split(rng.uniform(150, 151, 5000), rng.uniform(2, 3, 5000))
    >>> (np.bincount(split) / 5000).round(1)
    array([0.6, 0.2, 0.2])
    """
    ra, dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        bad = int((~(np.isfinite(ra) & np.isfinite(dec))).sum())
        raise ValueError(f"{bad} of {len(ra)} positions are not finite: these objects cannot be split on the sky")
    if len(fractions) != 3 or min(fractions) < 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(f"fractions={tuple(fractions)}: must be three numbers that sum to 1")
    cells = HEALPix(nside=nside, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)
    unique, inverse = np.unique(cells, return_inverse=True)
    draw = np.array([np.random.default_rng([seed, cell]).random() for cell in unique])
    split = np.searchsorted(np.cumsum(fractions)[:2], draw, side="right")[inverse]
    counts = np.bincount(split, minlength=3)
    if any(fraction > 0 and count == 0 for fraction, count in zip(fractions, counts, strict=True)):
        raise ValueError(
            f"{len(ra)} objects in {len(unique)} sky cells (nside={nside}) give parts of {counts.tolist()}: "
            f"use smaller cells (a larger nside) or another seed"
        )
    return _apply_guard(split, ra, dec, guard) if guard > 0 else split


def _apply_guard(split: np.ndarray, ra: np.ndarray, dec: np.ndarray, guard: float) -> np.ndarray:
    sky = SkyCoord(ra, dec, unit="deg")
    guarded = split.copy()
    for part in (TRAIN, VALIDATION):
        mine, later = np.flatnonzero(split == part), np.flatnonzero(split > part)
        if len(mine) and len(later):
            _, separation, _ = sky[mine].match_to_catalog_sky(sky[later])
            guarded[mine[separation.arcsec < guard]] = UNUSED
    return guarded
