"""FITS coadd tiles: find them by name, read them as one array with a WCS."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS

from skylib.bands import ZERO_POINT, sort_bands
from skylib.data.surveys import split_tile_name

log = logging.getLogger(__name__)

_new_memory = partial(np.empty, dtype=np.float32)
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
            hdu = _find_hdu(hdus, "IMAGE", path)
            return WCS(hdu.header), hdu.shape
    except (OSError, KeyError, TypeError, ValueError, EOFError, zlib.error, AstropyUserWarning) as error:
        raise OSError(f"{path}: cannot be read as a FITS tile: {error}") from error


def read_tile(
    paths: TilePaths, *, bad_planes: Sequence[str] = (), variance: bool = False,
    allocate: Callable[[tuple[int, int, int]], np.ndarray] = _new_memory,
) -> Tile:  # fmt: skip
    """Read all bands of a tile.

    Parameters
    ----------
    paths : TilePaths
        From `find_tiles`. A missing band becomes a plane of NaN.
    bad_planes : sequence of str
        Mask planes, named as in the ``MP_*`` cards, whose pixels become NaN.
    variance : bool
        Also read the variance plane.
    allocate : callable
        Given a shape, returns the memory (float32) to read into.

    Returns
    -------
    Tile
        Counts at zero-point 27: where a file states another by ``FLUXMAG0``, flux and variance are scaled.

    Raises
    ------
    OSError
        If a file is truncated or no FITS tile; the message names it.
    ValueError
        If the bands differ in shape or position on the sky, a mask plane is unknown, or a variance is missing.
    """
    there = {plane: path for plane, path in enumerate(paths.paths.values()) if path is not None}
    if not there:
        raise ValueError(f"tile {paths.name}: no file for any of the bands {', '.join(paths.paths)}")
    first = _read_band(next(iter(there.values())), mask=bool(bad_planes), variance=variance)
    height, width = first.image.shape
    flux = allocate((len(paths.paths), height, width))
    noise = allocate(flux.shape) if variance else None
    for planes in (flux, noise):
        if planes is not None:
            planes[[plane for plane in range(len(planes)) if plane not in there]] = np.nan
    for plane, path in there.items():
        band = first if path == first.path else _read_band(path, mask=bool(bad_planes), variance=variance)
        if band.image.shape != first.image.shape:
            raise ValueError(f"{path}: {band.image.shape} pixels, but {first.path} of the same tile has {first.image.shape}")  # fmt: skip
        if (apart := _offset(band.wcs, first.wcs, band.image.shape)) > 0.5:
            raise ValueError(f"{path}: {apart:.1f} pixels off the sky position of {first.path}")
        flux[plane] = band.image
        if (infinite := np.isinf(flux[plane])).any():
            flux[plane][infinite] = np.nan
        for name in bad_planes:
            flux[plane][band.pixels_in(name)] = np.nan
        if noise is not None:
            if band.variance is None or band.variance.shape != band.image.shape:
                got = "no" if band.variance is None else f"{band.variance.shape} pixels of"
                raise ValueError(f"{path}: {got} variance for an image of {band.image.shape} pixels")
            noise[plane] = band.variance
        if band.scale != 1:
            flux[plane] *= band.scale
            if noise is not None:
                noise[plane] *= band.scale**2
    return Tile(flux=flux, bands=tuple(paths.paths), wcs=first.wcs, name=paths.name, variance=noise)


@dataclass(frozen=True)
class _Band:
    """One file as it is: big-endian, and perhaps mapped into memory rather than read."""

    path: Path
    image: np.ndarray
    wcs: WCS
    scale: float  # to counts at zero-point 27
    variance: np.ndarray | None
    mask: np.ndarray | None
    planes: dict[str, int]  # bit of each mask plane

    def pixels_in(self, name: str) -> np.ndarray:
        """Return where a mask plane is set."""
        if self.mask is None or name not in self.planes:
            raise ValueError(f"{self.path}: no mask plane {name!r}; planes there: {', '.join(self.planes) or 'none'}")
        return (self.mask & (1 << self.planes[name])) != 0


def _read_band(path: Path, *, mask: bool, variance: bool) -> _Band:
    try:
        with fits.open(path) as hdus:
            hdu = _find_hdu(hdus, "IMAGE", path)
            if hdu.data is None or hdu.data.ndim != 2:
                raise KeyError(f"{path} has no two-dimensional image in HDU {hdu.name or 1}")
            bits = _find_hdu(hdus, "MASK", path) if mask else None
            noise = _find_hdu(hdus, "VARIANCE", path) if variance else None
            # A survey's long plane names are HIERARCH cards, which astropy gives under the same keys.
            planes = {k.removeprefix("MP_"): v for k, v in bits.header.items() if k.startswith("MP_")} if bits else {}
            zero_point = hdus[0].header.get("FLUXMAG0", hdu.header.get("FLUXMAG0"))
            return _Band(
                path=path, image=hdu.data, wcs=WCS(hdu.header),
                scale=1.0 if zero_point is None else _zero_point_scale(float(zero_point)),
                variance=noise.data if noise else None,
                mask=bits.data if bits else None, planes=planes,
            )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError, EOFError, zlib.error, AstropyUserWarning) as error:
        raise OSError(f"{path}: cannot be read as a FITS tile: {error}") from error


def _zero_point_scale(flux_at_mag_0: float) -> float:
    """Return the factor from counts of this calibration to counts at zero-point 27; 1 if they are the same."""
    zero_point = 2.5 * math.log10(flux_at_mag_0)
    return 1.0 if abs(zero_point - ZERO_POINT) < 1e-4 else 10 ** (0.4 * (ZERO_POINT - zero_point))


def _find_hdu(hdus: fits.HDUList, name: str, path: Path) -> fits.ImageHDU:
    """Return the HDU with EXTNAME or EXTTYPE `name`, or else the one at HSC's position."""
    for hdu in hdus:
        if name in (hdu.name, str(hdu.header.get("EXTTYPE", "")).strip()):
            return hdu
    if _HDU_POSITION[name] < len(hdus) and not hdus[_HDU_POSITION[name]].name:
        return hdus[_HDU_POSITION[name]]
    raise KeyError(f"{path} has no {name} among its HDUs {[hdu.name for hdu in hdus]}")


def _offset(one: WCS, other: WCS, shape: tuple[int, ...]) -> float:
    """Return how far (pixels) the centre of the image lies apart in two WCS."""
    centre = np.array([[shape[1] / 2, shape[0] / 2]])
    return float(np.hypot(*(other.all_world2pix(one.all_pix2world(centre, 0), 0) - centre)[0]))
