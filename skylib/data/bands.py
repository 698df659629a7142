"""Photometric bands: canonical names in wavelength order, HSC's constants, and how flux is stretched for a network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ZERO_POINT = 27.0  # magnitude (AB) of one count in an HSC coadd
PIXEL_SCALE = 0.168  # arcsec, HSC coadds

# Broad bands, then narrow bands, each in wavelength order; effective wavelengths in nm.
BROAD_BANDS = {"u": 355, "g": 482, "r": 622, "i": 771, "z": 890, "y": 978, "J": 1252, "H": 1645, "Ks": 2147}
NARROW_BANDS = {
    "NB0387": 387, "NB0400": 400, "NB0468": 468, "NB0515": 515, "NB0527": 527, "NB0656": 656, "NB0718": 718,
    "NB0816": 817, "NB0921": 921, "NB0926": 926, "NB0973": 973, "NB1010": 1010,
}  # fmt: skip
BANDS = BROAD_BANDS | NARROW_BANDS
_ORDER = {band: position for position, band in enumerate(BANDS)}
_CANONICAL = (
    {band.lower(): band for band in BANDS} | {"k": "Ks"} | {"i2": "i", "r2": "r"}
)  # HSC-R2 and HSC-I2 replaced HSC-R and HSC-I

_FITS = r"\.fits(?:\.fz|\.gz)?"
_COADD_NAME = re.compile(rf"(?:calexp-)?(?:[A-Za-z]+-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>\d+-\d+,\d+){_FITS}")
_CUTOUT_NAME = re.compile(rf"(?P<number>(?:\d+-)?)cutout-(?:HSC-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>.+?){_FITS}")


def canonical_band(name: str) -> str:
    """Return the one name by which a band is known here.

    Parameters
    ----------
    name : str
        In any case, with or without the survey: ``"HSC-G"``, ``"g"``, ``"hsc-i2"``, ``"NB0816"``, ``"KIDS-KS"``.

    Raises
    ------
    ValueError
        If no such band is known.

    Examples
    --------
    >>> canonical_band("HSC-I"), canonical_band("nb0816"), canonical_band("KIDS-KS")
    ('i', 'NB0816', 'Ks')
    """
    key = str(name).strip().lower().rsplit("-", 1)[-1]
    if key not in _CANONICAL:
        raise ValueError(f"unknown band {name!r}: known bands are {', '.join(BANDS)}")
    return _CANONICAL[key]


def sort_bands(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return canonical names in wavelength order: broad bands first, then narrow bands.

    Parameters
    ----------
    names : str or iterable of str
        A string is taken as a list of names parted by spaces or commas, or else as one-letter bands.

    Raises
    ------
    ValueError
        If a band is unknown, given twice, or none is given.

    Examples
    --------
    >>> sort_bands("yzirg")
    ('g', 'r', 'i', 'z', 'y')
    >>> sort_bands(["NB0921", "HSC-I", "nb0387"])
    ('i', 'NB0387', 'NB0921')
    """
    if isinstance(names, str):
        names = re.split(r"[\s,]+", names.strip()) if re.search(r"[\s,]|\d|-", names.strip()) else list(names.strip())
    bands = [canonical_band(name) for name in names]
    if not bands:
        raise ValueError("no band given")
    twice = {band for band in bands if bands.count(band) > 1}
    if twice:
        raise ValueError(f"bands given twice: {', '.join(sorted(twice))}")
    return tuple(sorted(bands, key=_ORDER.__getitem__))


def split_tile_name(path: Path) -> tuple[str, str] | None:
    """Return the band and the tile name that a file name states, or None where it states none.

    Of coadds, the last three ``-`` parts of the stem are band, tract and patch. HSC's cutout service puts a number and
    the word ``cutout`` before the band, and tract, rerun and more behind it.

    Examples
    --------
    >>> split_tile_name(Path("calexp-HSC-I-9813-4,5.fits")), split_tile_name(Path("NB0816-9813-4,5.fits.fz"))
    (('i', '9813-4,5'), ('NB0816', '9813-4,5'))
    >>> split_tile_name(Path("det-HSC-I-9813-4,5.fits"))  # the detections of the same coadd
    >>> split_tile_name(Path("2-cutout-HSC-I-8279-pdr2_wide.fits"))
    ('i', '2-8279-pdr2_wide')
    """
    for pattern in (_COADD_NAME, _CUTOUT_NAME):
        match = pattern.fullmatch(path.name)
        if match is not None and match["band"].lower() in _CANONICAL:
            return canonical_band(match["band"]), match.groupdict().get("number", "") + match["tile"]
    return None


def flux_to_mag(flux: np.ndarray, zero_point: float = ZERO_POINT) -> np.ndarray:
    """Return AB magnitudes; NaN where the flux is not positive.

    Examples
    --------
    >>> flux_to_mag(np.array([1.0, 100.0, -1.0]))
    array([27., 22., nan])
    """
    flux = np.asarray(flux, dtype=np.float64)
    return zero_point - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def mag_to_flux(mag: np.ndarray | float, zero_point: float = ZERO_POINT) -> np.ndarray:
    """Return flux in counts; the inverse of `flux_to_mag`."""
    return 10 ** (-0.4 * (np.asarray(mag, dtype=np.float64) - zero_point))


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
    flux = np.asarray(flux)
    difference = np.abs(np.diff(flux, axis=-1))
    sigma = np.full(flux.shape[-3], np.nan, dtype=np.float32)
    for c in range(flux.shape[-3]):
        step = difference[..., c, :, :]
        step = step[np.isfinite(step)]
        if step.size:
            sigma[c] = 1.4826 * np.median(step) / np.sqrt(2)
    return sigma
