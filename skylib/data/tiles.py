"""Tiles: images of a part of the sky, found by their names, and read as one array with a WCS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.wcs import WCS

from skylib.bands import ZERO_POINT, sort_bands
from skylib.checks import check_fields, check_range, checked
from skylib.data.description import PIXEL_SCALE, Survey
from skylib.data.grids import grid_offset, pixel_position, pixel_scale, resample, sky_position
from skylib.data.planes import BandImage, bands_in, read_band, read_header
from skylib.data.surveys import HSC, get_survey

log = logging.getLogger(__name__)

FLUX_UNIT = f"counts at AB zero-point {ZERO_POINT:g}"  # of all tiles and cutouts, once read
_new_memory = partial(np.empty, dtype=np.float32)


@dataclass(frozen=True)
class TilePaths:
    """The files of one tile, band by band.

    Examples
    --------
    >>> tiles[0].bands, tiles[0].paths["g"].suffix
    (('g', 'r', 'i', 'z', 'y'), '.fits')
    """

    name: str
    paths: dict[str, Path | None]  # in wavelength order; None = this band is missing
    survey: Survey = field(default=HSC, repr=False)

    def __post_init__(self) -> None:
        check_fields(self, where=f"tile {self.name}: ")

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that exist."""
        return tuple(band for band, path in self.paths.items() if path is not None)

    @property
    def first(self) -> Path:
        """The file of the first band that exists."""
        for path in self.paths.values():
            if path is not None:
                return path
        raise ValueError(f"tile {self.name}: no file for any of the bands {', '.join(self.paths)}")


@dataclass(frozen=True)
class Tile:
    """One tile in memory.

    Attributes
    ----------
    flux : ndarray of float32, shape (C, H, W)
        In `unit`; NaN = no data, also for a whole missing band.
    bands : tuple of str
    wcs : astropy.wcs.WCS, or None
        None where positions are pixels only.
    name : str
    variance : ndarray of float32, shape (C, H, W), or None
        In `unit` squared.
    zero_point : float
        AB magnitude of one `unit` of flux: 27 for all tiles, whatever their files hold.

    Examples
    --------
    >>> tile = skylib.read_tile(tiles[0])
    >>> ra, dec = tile.sky_at(100, 120)
    >>> [round(float(x)) for x in tile.pixel_at(ra, dec)]
    [100, 120]
    """

    flux: np.ndarray
    bands: tuple[str, ...]
    wcs: WCS | None
    name: str
    variance: np.ndarray | None = None
    zero_point, unit = ZERO_POINT, FLUX_UNIT  # the same of all tiles

    def __post_init__(self) -> None:
        check_fields(self, where=f"tile {self.name}: ")
        shape = np.shape(self.flux)
        noise = shape if self.variance is None else np.shape(self.variance)
        if len(shape) != 3 or shape[0] != len(self.bands) or noise != shape:
            raise ValueError(f"tile {self.name}: flux has shape {shape}, variance {noise}: must be one plane per band")

    @checked
    def sky_at(self, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ra and dec (deg, ICRS) at pixel positions (0 = centre of the first pixel)."""
        return sky_position(self._grid(), rows, cols)

    @checked
    def pixel_at(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns (0 = centre of the first pixel) at positions in degrees ICRS."""
        return pixel_position(self._grid(), ra, dec)

    def _grid(self) -> WCS:
        if self.wcs is None:
            raise ValueError(f"tile {self.name} has no sky coordinates: its positions are pixels")
        return self.wcs


@checked
def find_tiles(
    directory: str | Path,
    *,
    bands: str | Sequence[str] | None = None,
    min_bands: int | None = None,
    survey: str | Path | Survey = "hsc",
) -> list[TilePaths]:
    """Find the tiles below a directory by the names of their files.

    Parameters
    ----------
    directory : path
        Searched with its sub-directories for names such as ``calexp-HSC-I-9813-4,5.fits`` (``.fits.fz``, ``.fits.gz``).
    bands : str or sequence of str, optional
        By default g r i z y of HSC, and all bands of other surveys.
    min_bands : int, optional
        Keep tiles with at least this many of the bands; all of them by default.
    survey : str, path or Survey
        A name such as ``"sdss"``, the path of a ``.toml`` file, or a `Survey`.

    Returns
    -------
    list of TilePaths
        Sorted by name; the bands in wavelength order.

    Raises
    ------
    FileNotFoundError
        If the directory does not exist or holds no tile with enough bands; the message says what was found.
    ValueError
        If a survey or band is unknown, `min_bands` is out of range, or two files hold the same band of a tile.

    Examples
    --------
    >>> tiles = skylib.find_tiles(sky.tiles, bands="grizy", min_bands=4)
    >>> [len(paths.bands) for paths in tiles]
    [5, 4]
    """
    directory, survey = Path(directory), get_survey(survey)
    if bands is None:
        bands = "grizy" if survey.name == HSC.name else tuple(survey.bands)
    bands = sort_bands(bands)
    if foreign := [band for band in bands if band not in survey.bands]:
        raise ValueError(f"bands {', '.join(foreign)}: the survey {survey.name!r} has {', '.join(survey.bands)}")
    min_bands = len(bands) if min_bands is None else min_bands
    check_range("min_bands", min_bands, 1, len(bands))
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory of tiles")
    found: dict[str, dict[str, Path]] = {}
    others = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file() or path.is_symlink()):
        if (parts := survey.match(path.name)) is None:
            others.append(path.name)
            continue
        name, one_band = parts
        for band in bands_in(path, survey) if one_band is None else (one_band,):
            other = found.setdefault(name, {}).setdefault(band, path)
            if other != path:
                raise ValueError(f"tile {name} has band {band} twice: {other} and {path}")
    if not found:
        held = ", ".join(others[:5]) + ", …" * (len(others) > 5) if others else "no file"
        example = "calexp-HSC-I-9813-4,5.fits" if survey.name == HSC.name else survey.examples
        raise FileNotFoundError(
            f"{directory}: no tile found; looked for names such as {example} (survey {survey.name!r}); it holds {held}"
        )
    tiles = [TilePaths(name, {b: files.get(b) for b in bands}, survey) for name, files in sorted(found.items())]
    kept = [tile for tile in tiles if len(tile.bands) >= min_bands]
    if not kept:
        exist = sort_bands({band for files in found.values() for band in files})
        raise FileNotFoundError(
            f"{directory}: none of {len(tiles)} tiles has {min_bands} of the bands {', '.join(bands)}; "
            f"bands found: {', '.join(exist)}; choose bands among these, or a lower min_bands"
        )
    if n_left := len(tiles) - len(kept):
        log.warning("%s: left out %d of %d tiles with fewer than %d bands", directory, n_left, len(tiles), min_bands)
    return kept


def read_wcs(paths: TilePaths) -> tuple[WCS | None, tuple[int, int]]:
    """Return the WCS and the shape (H, W) of a tile without reading its pixels."""
    return read_header(paths.first, paths.survey, paths.bands[0])


def tile_pixel_scale(paths: TilePaths) -> float:
    """Return the side of a pixel in arcsec: as the header says, or else the survey, or else that of HSC."""
    wcs, _ = read_wcs(paths)
    return (paths.survey.pixel_scale or PIXEL_SCALE) if wcs is None else pixel_scale(wcs)


@checked
def read_tile(
    paths: TilePaths,
    *,
    bad_planes: Sequence[str | int] = (),
    variance: bool = False,
    align: bool | None = None,
    sky: bool | None = None,
    allocate: Callable[[tuple[int, int, int]], np.ndarray] = _new_memory,
) -> Tile:
    """Read all bands of a tile.

    Parameters
    ----------
    paths : TilePaths
        From `find_tiles`. A missing band becomes a plane of NaN, as does one that is zero everywhere.
    bad_planes : sequence of str or int
        Mask planes, named as in the ``MP_*`` cards or by the survey, or bits, whose pixels become NaN.
    variance : bool
        Also read the variance; weights and standard deviations are turned into it.
    align : bool, optional
        Bring bands whose pixels lie elsewhere on the sky to those of the first band, by cubic interpolation; by default
        as the survey says. If not, such bands are refused.
    sky : bool, optional
        Refuse images without sky coordinates; by default as the survey says.
    allocate : callable
        Given a shape, returns the memory (float32) to read into.

    Returns
    -------
    Tile
        Counts at zero-point 27, whatever the unit of the files.

    Raises
    ------
    OSError
        If a file is truncated or no FITS tile; the message names it.
    ValueError
        If the bands differ in shape or position on the sky, a mask plane is unknown, a variance is missing, or the
        calibration or the sky coordinates are.

    Examples
    --------
    >>> tile = skylib.read_tile(tiles[0], bad_planes=["SAT"])
    >>> tile.flux.shape, tile.bands
    ((5, 256, 256), ('g', 'r', 'i', 'z', 'y'))
    """
    survey = paths.survey
    align, sky = survey.align if align is None else align, survey.sky if sky is None else sky
    planes = (*survey.bad_planes, *bad_planes)

    def read(path: Path, band: str) -> BandImage:
        image = read_band(path, survey, band, bad_planes=planes, variance=variance)
        if sky and image.wcs is None:
            raise ValueError(
                f"{path}: no sky coordinates in the header; Survey(sky=False), and objects with columns x and y, "
                "take such files"
            )
        return image

    first = read(paths.first, paths.bands[0])
    shape = first.image.shape
    kinds = ("flux", "variance") if variance else ("flux",)
    held: dict[str, Any] = {kind: allocate((len(paths.paths), *shape)) for kind in kinds}
    for plane, (band, path) in enumerate(paths.paths.items()):
        image = None if path is None else first if band == paths.bands[0] else read(path, band)
        moved = image is not None and _moved(image, first, align=align)
        for kind, stack in held.items():
            if image is None:
                stack[plane] = np.nan
            elif not moved:
                getattr(image, kind)(stack[plane])
            else:
                own = getattr(image, kind)(np.empty(image.image.shape, np.float32))
                how = {"order": 1, "power": 2} if kind == "variance" else {}
                stack[plane] = resample(own, image.wcs, first.wcs, shape, **how)
    return Tile(bands=tuple(paths.paths), wcs=first.wcs, name=paths.name, **held)


def _moved(image: BandImage, first: BandImage, *, align: bool) -> bool:
    """Whether a band lies elsewhere than the first one and is to be aligned."""
    if image is first:
        return False
    shape = image.image.shape
    if shape != first.image.shape:
        problem = f"{shape} pixels, but {first.path} of the same tile has {first.image.shape}"
    elif (apart := grid_offset(image.wcs, first.wcs, shape)) > (0.02 if align else 0.5):
        problem = f"{apart:.1f} pixels off the sky position of {first.path}"
    else:
        return False
    if not align:
        raise ValueError(f"{image.path}: {problem}; align=True brings the bands to one grid")
    if image.wcs is None or first.wcs is None:
        raise ValueError(f"{image.path}: {problem}, and without sky coordinates it cannot be aligned")
    return True
