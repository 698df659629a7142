"""FITS coadd tiles: find them by name, read them as one array with a WCS."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS

from skylib.bands import sort_bands, split_tile_name

log = logging.getLogger(__name__)

_HDU_POSITION = {"IMAGE": 1, "MASK": 2, "VARIANCE": 3}


@dataclass(frozen=True)
class TilePaths:
    """The files of one tile, band by band."""

    name: str
    paths: dict[str, Path | None]  # in wavelength order; None = this band is missing

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that are there."""
        return tuple(band for band, path in self.paths.items() if path is not None)


@dataclass(frozen=True)
class Tile:
    """One tile in memory.

    Attributes
    ----------
    flux : ndarray of float32, shape (C, H, W)
        Counts; NaN = no data, also for a whole missing band.
    bands : tuple of str
    wcs : astropy.wcs.WCS
    name : str
    variance : ndarray of float32, shape (C, H, W), or None
    """

    flux: np.ndarray
    bands: tuple[str, ...]
    wcs: WCS
    name: str
    variance: np.ndarray | None = None

    def sky_at(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ra and dec (deg, ICRS) at pixel positions (0 = centre of the first pixel)."""
        return tuple(self.wcs.all_pix2world(cols, rows, 0))  # (x, y) = (col, row), inside WCS calls only

    def pixel_at(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns (0 = centre of the first pixel) at positions in degrees ICRS."""
        cols, rows = self.wcs.all_world2pix(ra, dec, 0)
        return rows, cols


def find_tiles(
    directory: str | Path, *, bands: str | Sequence[str] = "grizy", min_bands: int | None = None
) -> list[TilePaths]:
    """Find the tiles below a directory by the names of their files.

    Parameters
    ----------
    directory : path
        Searched with its sub-directories for names such as ``calexp-HSC-I-9813-4,5.fits`` (``.fits.fz``, ``.fits.gz``).
    bands : str or sequence of str
    min_bands : int, optional
        Keep tiles with at least this many of the bands; all of them by default.

    Returns
    -------
    list of TilePaths
        Sorted by name; the bands in wavelength order.

    Raises
    ------
    FileNotFoundError
        If the directory does not exist or holds no tile with enough bands; the message says what was found.
    ValueError
        If a band is unknown, `min_bands` is out of range, or two files hold the same band of a tile.
    """
    directory, bands = Path(directory), sort_bands(bands)
    min_bands = len(bands) if min_bands is None else min_bands
    if not 1 <= min_bands <= len(bands):
        raise ValueError(f"min_bands={min_bands}: must be 1 to {len(bands)}, the number of bands")
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory of tiles")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(directory.rglob("*.fits*")):
        if (parts := split_tile_name(path)) is None:
            continue
        band, name = parts
        other = found.setdefault(name, {}).setdefault(band, path)
        if other != path:
            raise ValueError(f"tile {name} has band {band} twice: {other} and {path}")
    if not found:
        raise FileNotFoundError(f"{directory}: no tile found; looked for names such as calexp-HSC-I-9813-4,5.fits")
    tiles = [TilePaths(name, {band: files.get(band) for band in bands}) for name, files in sorted(found.items())]
    kept = [tile for tile in tiles if len(tile.bands) >= min_bands]
    if not kept:
        there = sort_bands({band for files in found.values() for band in files})
        raise FileNotFoundError(
            f"{directory}: none of {len(tiles)} tiles has {min_bands} of the bands {', '.join(bands)}; "
            f"bands found: {', '.join(there)}"
        )
    if len(kept) < len(tiles):
        log.warning("%s: left out %d of %d tiles with fewer than %d bands", directory, len(tiles) - len(kept), len(tiles), min_bands)  # fmt: skip
    return kept


def read_wcs(paths: TilePaths) -> tuple[WCS, tuple[int, int]]:
    """Return the WCS and the shape (H, W) of a tile without reading its pixels."""
    path = next(path for path in paths.paths.values() if path is not None)
    try:
        with fits.open(path) as hdus:
            header = _find_hdu(hdus, "IMAGE", path).header
            shape = (header["NAXIS2"], header["NAXIS1"])
            return WCS(header), shape
    except (OSError, KeyError, TypeError) as error:
        raise OSError(f"{path}: cannot be read as a FITS tile: {error}") from error


def read_tile(paths: TilePaths, *, bad_planes: Iterable[str] = (), variance: bool = False) -> Tile:
    """Read all bands of a tile.

    Parameters
    ----------
    paths : TilePaths
        From `find_tiles`. A missing band becomes a plane of NaN.
    bad_planes : iterable of str
        Mask planes, named as in the ``MP_*`` cards, whose pixels become NaN.
    variance : bool
        Also read the variance plane.

    Raises
    ------
    OSError
        If a file is truncated or no FITS tile; the message names it.
    ValueError
        If the bands differ in shape or position on the sky, or a mask plane is unknown.
    """
    images: dict[str, np.ndarray] = {}
    variances: dict[str, np.ndarray] = {}
    wcs: WCS | None = None
    first: Path | None = None
    for band, path in paths.paths.items():
        if path is None:
            continue
        image, band_variance, band_wcs = _read_band(path, tuple(bad_planes), variance)
        if first is None or wcs is None:
            first, wcs = path, band_wcs
        elif image.shape != images[next(iter(images))].shape:
            raise ValueError(f"{path}: {image.shape} pixels, but {first} of the same tile has {next(iter(images.values())).shape}")  # fmt: skip
        elif _offset(band_wcs, wcs, image.shape) > 0.5:
            raise ValueError(
                f"{path}: {_offset(band_wcs, wcs, image.shape):.1f} pixels off the sky position of {first}"
            )
        images[band] = image
        if band_variance is not None:
            variances[band] = band_variance
    if wcs is None:
        raise ValueError(f"tile {paths.name}: no file for any of the bands {', '.join(paths.paths)}")
    empty = np.full(next(iter(images.values())).shape, np.nan, dtype=np.float32)
    return Tile(
        flux=np.stack([images.get(band, empty) for band in paths.paths]),
        bands=tuple(paths.paths),
        wcs=wcs,
        name=paths.name,
        variance=np.stack([variances.get(band, empty) for band in paths.paths]) if variance else None,
    )


def _find_hdu(hdus: fits.HDUList, name: str, path: Path) -> fits.ImageHDU:
    """Return the HDU with EXTNAME or EXTTYPE `name`, or else the one at HSC's position."""
    for hdu in hdus:
        if name in (hdu.name, str(hdu.header.get("EXTTYPE", "")).strip()):
            return hdu
    if _HDU_POSITION[name] < len(hdus) and not hdus[_HDU_POSITION[name]].name:
        return hdus[_HDU_POSITION[name]]
    raise KeyError(f"{path} has no {name} among its HDUs {[hdu.name for hdu in hdus]}")


def _read_band(path: Path, bad_planes: tuple[str, ...], variance: bool) -> tuple[np.ndarray, np.ndarray | None, WCS]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*truncated")  # astropy only warns, and reads what there is
            hdus = fits.open(path, memmap=False)
        with hdus:
            hdu = _find_hdu(hdus, "IMAGE", path)
            if hdu.data is None or hdu.data.ndim != 2:
                raise KeyError(f"{path} has no two-dimensional image in HDU {hdu.name or 1}")
            image = np.array(hdu.data, dtype=np.float32)
            wcs = WCS(hdu.header)
            bits = _find_hdu(hdus, "MASK", path) if bad_planes else None
            mask, planes = (bits.data, bits.header) if bits is not None else (None, {})
            noise = np.array(_find_hdu(hdus, "VARIANCE", path).data, dtype=np.float32) if variance else None
    except (OSError, KeyError, TypeError, ValueError, EOFError, AstropyUserWarning) as error:
        raise OSError(f"{path}: cannot be read as a FITS tile: {error}") from error
    image[~np.isfinite(image)] = np.nan
    for plane in bad_planes:
        if f"MP_{plane}" not in planes or mask is None:
            known = [card.removeprefix("MP_") for card in planes if card.startswith("MP_")]
            raise ValueError(f"{path}: no mask plane {plane!r}; planes there: {', '.join(known) or 'none'}")
        image[(mask & (1 << planes[f"MP_{plane}"])) != 0] = np.nan
    if noise is not None and noise.shape != image.shape:
        raise ValueError(f"{path}: variance of shape {noise.shape} for an image of shape {image.shape}")
    return image, noise, wcs


def _offset(one: WCS, other: WCS, shape: tuple[int, ...]) -> float:
    """Return how far (pixels) the centre of the image lies apart in two WCS."""
    centre = np.array([[shape[1] / 2, shape[0] / 2]])
    return float(np.hypot(*(other.all_world2pix(one.all_pix2world(centre, 0), 0) - centre)[0]))
