"""A sky like Hyper Suprime-Cam's, rendered with GalSim [1]_: FITS tiles and a catalogue of the truth.

What is taken from where:

- seeing and depth: medians of the HSC-SSP Wide layer, third data release [2]_ (`SEEING`, `DEPTH`);
- objects and their colours: see `skylib.data.population` and `skylib.data.colours`;
- distances: Planck 2018 cosmology.

Stars and quasars are far more common than in nature, so that every class can be learnt from a small field.

References
----------
.. [1] Rowe et al. 2015, arXiv:1407.7676.
.. [2] Aihara et al. 2022, arXiv:2108.13045.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import galsim
import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS
from tqdm.auto import tqdm

from skylib.bands import ZERO_POINT, mag_to_flux, sort_bands
from skylib.checks import check_range, checked
from skylib.data.description import PIXEL_SCALE
from skylib.data.population import FAST, STAR, Part, build, draw_population, relative_fluxes
from skylib.files import replaced
from skylib.processes import in_processes

SEEING = {"g": 0.79, "r": 0.75, "i": 0.61, "z": 0.68, "y": 0.68}  # FWHM, arcsec
DEPTH = {"g": 26.5, "r": 26.5, "i": 26.2, "z": 25.2, "y": 24.4}  # magnitude of a point source at 5 sigma
MOFFAT_BETA = 3.5
GAIN = 5000.0  # electrons a count: shot noise of a source equals the sky's at about 20 counts a pixel
SATURATION = 250.0  # counts in a pixel; the peak of a star of about magnitude 17.5
MASK_PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "NO_DATA": 8, "BRIGHT_OBJECT": 9}
OBJECTS_PER_TILE = 1500  # on 1024 x 1024 pixels


@dataclass(frozen=True)
class SimulatedSky:
    """Where `simulate_sky` wrote the tiles (a directory) and the catalogue (a FITS table).

    Examples
    --------
    >>> sky.catalogue.name, len(list(sky.tiles.glob("*.fits"))) > 5
    ('catalogue.fits', True)
    """

    tiles: Path
    catalogue: Path


@checked
def simulate_sky(
    directory: str | Path,
    *,
    n_tiles: int = 2,
    tile_size: int = 1024,
    bands: str = "grizy",
    n_objects: int | None = None,
    seeing: float | Sequence[float] = 1.0,
    depth: float | Sequence[float] = 0.0,
    seed: int = 0,
    workers: int = 1,
) -> SimulatedSky:
    """Render a field of stars, quasars and galaxies as HSC coadd tiles.

    The last of two or more tiles lacks its reddest band and has a strip without data, as real surveys do. A few
    objects in a thousand are rare: diffuse ``dwarf`` galaxies, and lens-like ``arc`` systems.

    Parameters
    ----------
    directory : path
        Gets ``tiles/calexp-HSC-G-9813-0,0.fits`` … and ``catalogue.fits``.
    n_tiles, tile_size : int
        Side of the square tiles, in pixels of 0.168 arcsec.
    bands : str
        Some of g r i z y.
    n_objects : int, optional
        In the whole field; 1,500 for every 1024 x 1024 pixels by default.
    seeing : float or sequence of float
        Factor on the survey's seeing (`SEEING`), of all tiles or of each.
    depth : float or sequence of float
        Magnitudes deeper than the survey (`DEPTH`), negative for shallower, of all tiles or of each.
    seed : int
        The same arguments give the same sky; the first tiles do not depend on `n_tiles`, and the objects depend on
        neither seeing nor depth.
    workers : int
        Processes that render, a tile at a time each.

    Returns
    -------
    SimulatedSky

    Raises
    ------
    ValueError
        If an argument is out of range.
    OSError
        If the directory cannot be written.

    Examples
    --------
    >>> sky = simulate_sky("sky", n_tiles=1, tile_size=128, n_objects=10)
    >>> sorted(path.suffix for path in sky.tiles.iterdir())[0]
    '.fits'
    """
    names = sort_bands(bands)
    if unknown := [band for band in names if band not in SEEING]:
        raise ValueError(f"bands {', '.join(unknown)} cannot be simulated: choose among {', '.join(SEEING)}")
    check_range("n_tiles", n_tiles, 1, 81)  # the patches of a tract
    check_range("tile_size", tile_size, 64)
    if n_objects is not None and n_objects < n_tiles:
        raise ValueError(f"n_objects={n_objects}: must be at least one per tile")
    seeings, depths = _each_tile("seeing", seeing, n_tiles), _each_tile("depth", depth, n_tiles)
    if min(seeings) <= 0:
        raise ValueError(f"seeing={seeing}: a factor must be above 0")
    sky = SimulatedSky(Path(directory) / "tiles", Path(directory) / "catalogue.fits")
    try:
        sky.tiles.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{directory}: cannot be written: {error}") from error
    per_tile = round(OBJECTS_PER_TILE * (tile_size / 1024) ** 2) if n_objects is None else n_objects // n_tiles
    jobs = []
    for number, conditions in enumerate(zip(seeings, depths, strict=True)):
        damaged = n_tiles >= 2 and number == n_tiles - 1
        given = (sky.tiles, number, tile_size, names, max(1, per_tile), seed)
        jobs.append(partial(_simulate_tile, *given, *conditions, damaged))
    drawn = in_processes(jobs, workers) if min(workers, len(jobs)) > 1 else (job() for job in jobs)
    catalogues = list(tqdm(drawn, total=n_tiles, desc="simulate", unit="tile"))
    for number, catalogue in enumerate(catalogues):
        catalogue["object_id"] = np.arange(len(catalogue)) + 100_000 * (number + 1)
    table = vstack(catalogues, metadata_conflicts="silent")
    table.meta = {"SEED": seed, "CLASS0": "galaxy", "CLASS1": "qso", "CLASS2": "star"}
    with replaced(sky.catalogue) as path:
        fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)]).writeto(path, checksum=True)
    return sky


def _each_tile(name: str, value: float | Sequence[float], n_tiles: int) -> list[float]:
    """Return one number for each tile."""
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if values.shape not in ((1,), (n_tiles,)) or not np.isfinite(values).all():
        raise ValueError(f"{name}={value}: must be one number, or one for each of {n_tiles} tiles")
    return np.broadcast_to(values, n_tiles).tolist()


def tile_wcs(number: int, tile_size: int) -> WCS:
    """Return the WCS of a patch: all patches of a tract share one tangent plane, and abut."""
    x, y = number % 9, number // 9
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.2]
    wcs.wcs.crpix = [(4.5 - x) * tile_size + 0.5, (4.5 - y) * tile_size + 0.5]
    wcs.wcs.cd = np.diag([-PIXEL_SCALE, PIXEL_SCALE]) / 3600
    wcs.wcs.radesys = "ICRS"
    return wcs


def _simulate_tile(
    directory: Path,
    number: int,
    size: int,
    bands: tuple[str, ...],
    n: int,
    seed: int,
    seeing: float,
    depth: float,
    damaged: bool,
) -> Table:
    """Draw one tile, write its bands, and return its part of the catalogue."""
    rng = np.random.default_rng([seed, number])
    objects = draw_population(rng, n)
    mags = relative_fluxes(objects, rng)
    parts = [build(objects[i], mags[i], rng) for i in range(n)]
    rows, cols = rng.uniform(0, size, (2, n)) - 0.5
    name = f"9813-{number % 9},{number // 9}"
    wcs = tile_wcs(number, size)
    for band in SEEING:  # all of them, whichever are written: the draws must not depend on `bands`
        fwhm = SEEING[band] * seeing * rng.lognormal(0, 0.04)
        noise_rng = np.random.default_rng([seed, number, list(SEEING).index(band)])
        if band not in bands or (damaged and len(bands) > 1 and band == bands[-1]):
            continue
        image, variance, mask = _render(parts, rows, cols, size, band, fwhm, depth, noise_rng)
        if damaged:
            strip = slice(size - max(1, size // 40), None)
            image[:, strip], variance[:, strip], mask[:, strip] = np.nan, np.nan, 1 << MASK_PLANES["NO_DATA"]
        _write_tile(directory / f"calexp-HSC-{band.upper()}-{name}.fits", image, mask, variance, wcs, band)
    ra, dec = wcs.all_pix2world(cols, rows, 0)
    columns = {"object_id": np.zeros(n, np.int64), "ra": ra, "dec": dec, "class": objects["class"].astype(np.int16)}
    columns["z_spec"] = np.where(objects["class"] == STAR, np.nan, objects["z"])
    for b, band in enumerate(SEEING):
        if band in bands:
            total = np.array([sum(flux[b] for _, flux in p) for p in parts])
            columns[f"mag_{band}"] = ZERO_POINT - 2.5 * np.log10(total)
    columns["half_light_radius"] = objects["radius"]
    return Table({**columns, "rare": objects["rare"], "tile": np.full(n, name)})


def _render(
    parts: list[list[Part]],
    rows: np.ndarray,
    cols: np.ndarray,
    size: int,
    band: str,
    fwhm: float,
    depth: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw all objects in one band; return image, variance and mask, each (size, size)."""
    psf = galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm, gsparams=FAST)  # of the image: pixel included
    b = list(SEEING).index(band)
    canvas = galsim.ImageF(size, size, scale=PIXEL_SCALE)
    for pieces, row, col in zip(parts, rows, cols, strict=True):
        point = isinstance(pieces[0][0], galsim.DeltaFunction)
        if point:
            profile = psf.withFlux(pieces[0][1][b])
        else:
            profile = galsim.Convolve(
                galsim.Sum([p.withFlux(f[b]) for p, f in pieces]), psf, real_space=False, gsparams=FAST
            )
        x, y = col + 1.0, row + 1.0  # GalSim counts pixels from 1, centres whole
        side = 96 if point else int(np.clip(profile.getGoodImageSize(PIXEL_SCALE), 24, 160))
        centre = galsim.PositionI(round(x), round(y))
        bounds = galsim.BoundsI(centre.x - side // 2, centre.x + side // 2, centre.y - side // 2, centre.y + side // 2)
        stamp = galsim.ImageF(bounds, scale=PIXEL_SCALE)
        profile.drawImage(stamp, center=galsim.PositionD(x, y), method="no_pixel")
        if (overlap := bounds & canvas.bounds).isDefined():
            canvas[overlap] += stamp[overlap]
    light = canvas.array.astype(np.float64).clip(min=0)
    sigma = sky_sigma(band, fwhm) * 10 ** (-0.4 * depth)
    variance = sigma**2 + light / GAIN
    image = light + rng.normal(size=light.shape) * np.sqrt(variance)
    mask = np.zeros(light.shape, dtype=np.int32)
    mask[image > 5 * sigma] |= 1 << MASK_PLANES["DETECTED"]
    saturated = light > SATURATION
    image[saturated] = SATURATION
    mask[saturated] |= 1 << MASK_PLANES["SAT"]
    for row, col in np.argwhere(saturated):
        near = (slice(max(0, row - 9), row + 10), slice(max(0, col - 9), col + 10))
        mask[near] |= 1 << MASK_PLANES["BRIGHT_OBJECT"]
    return image.astype(np.float32), variance.astype(np.float32), mask


def sky_sigma(band: str, fwhm: float) -> float:
    """Return the noise of a pixel (counts) at which a point source of the survey's depth has S/N 5.

    A point source measured with its PSF has the noise of ``1 / sum(psf**2)`` pixels.
    """
    psf = galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm).drawImage(nx=65, ny=65, scale=PIXEL_SCALE, method="no_pixel").array
    psf = psf / psf.sum()
    return float(mag_to_flux(DEPTH[band]) / 5 * np.sqrt((psf.astype(np.float64) ** 2).sum()))


def _write_tile(path: Path, image: np.ndarray, mask: np.ndarray, variance: np.ndarray, wcs: WCS, band: str) -> None:
    header = wcs.to_header()
    header["FILTER"] = f"HSC-{band.upper()}"
    planes = fits.Header(
        [(f"HIERARCH MP_{name}" if len(name) > 5 else f"MP_{name}", bit) for name, bit in MASK_PLANES.items()]
    )
    primary = fits.PrimaryHDU()
    primary.header["ORIGIN"] = "simulate_sky"  # no survey has looked there
    primary.header["FLUXMAG0"] = 10 ** (0.4 * ZERO_POINT)
    content = {"IMAGE": (image, header), "MASK": (mask, header + planes), "VARIANCE": (variance, header)}
    hdus = [primary, *(fits.ImageHDU(*given, name=name) for name, given in content.items())]
    with replaced(path) as temporary:
        fits.HDUList(hdus).writeto(temporary, overwrite=True, checksum=True)
