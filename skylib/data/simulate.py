"""A sky like Hyper Suprime-Cam's, rendered with GalSim [1]_: FITS tiles and a catalogue of the truth.

What is taken from where:

- seeing and depth: medians of the HSC-SSP Wide layer, third data release [2]_ (`SEEING`, `DEPTH`);
- galaxy colours: the templates of Coleman, Wu & Weedman [3]_ that GalSim ships, redshifted through LSST's
  bandpasses, which stand in for HSC's;
- star colours: a temperature sequence rounded from the median stellar locus of SDSS [4]_ (`STELLAR_LOCUS`);
- quasars: a power law with the broad lines of composite spectra [5]_, and absorption by intergalactic hydrogen;
- distances: Planck 2018 cosmology.

Stars and quasars are far more common than in nature, so that every class can be learnt from a small field.

References
----------
.. [1] Rowe et al. 2015, arXiv:1407.7676.
.. [2] Aihara et al. 2022, arXiv:2108.13045.
.. [3] Coleman, Wu & Weedman 1980, ApJS 43, 393.
.. [4] Covey et al. 2007, arXiv:0707.4473.
.. [5] Vanden Berk et al. 2001, arXiv:astro-ph/0105231.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import galsim
import numpy as np
from astropy.cosmology import Planck18
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS
from tqdm.auto import tqdm

from skylib.bands import ZERO_POINT, mag_to_flux, sort_bands
from skylib.data.description import PIXEL_SCALE

SEEING = {"g": 0.79, "r": 0.75, "i": 0.61, "z": 0.68, "y": 0.68}  # FWHM, arcsec
DEPTH = {"g": 26.5, "r": 26.5, "i": 26.2, "z": 25.2, "y": 24.4}  # magnitude of a point source at 5 sigma
MOFFAT_BETA = 3.5
GAIN = 5000.0  # electrons a count: shot noise of a source equals the sky's at about 20 counts a pixel
SATURATION = 250.0  # counts in a pixel; the peak of a star of about magnitude 17.5
MASK_PLANES = {"BAD": 0, "SAT": 1, "INTRP": 2, "CR": 3, "EDGE": 4, "DETECTED": 5, "NO_DATA": 8, "BRIGHT_OBJECT": 9}
OBJECTS_PER_TILE = 1500  # on 1024 x 1024 pixels
GALAXY, QSO, STAR = 0, 1, 2
FRACTIONS = {"qso": 0.13, "star": 0.17, "dwarf": 0.004, "arc": 0.004}  # the rest are ordinary galaxies

_TEMPLATES = ("CWW_E_ext", "CWW_Sbc_ext", "CWW_Scd_ext", "CWW_Im_ext")
_Z_GRID = np.linspace(0, 4.5, 226)
_LINES = ((1216, 90), (1549, 25), (1909, 21), (2800, 32), (4861, 46), (5007, 13), (6563, 195))  # angstrom, rest EW
# Temperature (K), and the colours g-r, r-i, i-z, z-y.
STELLAR_LOCUS = np.array([
    [9000, -0.20, -0.15, -0.10, -0.05], [7500, 0.10, 0.00, -0.03, -0.02], [6500, 0.28, 0.08, 0.02, 0.01],
    [5800, 0.45, 0.14, 0.04, 0.02], [5000, 0.72, 0.25, 0.10, 0.05], [4400, 1.05, 0.40, 0.20, 0.10],
    [3900, 1.30, 0.62, 0.34, 0.18], [3500, 1.42, 1.05, 0.58, 0.28], [3200, 1.47, 1.50, 0.80, 0.40],
    [2900, 1.55, 2.00, 1.10, 0.60],
])[::-1]  # fmt: skip
_FAST = galsim.GSParams(folding_threshold=2e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4, maximum_fft_size=8192)

Part = tuple[galsim.GSObject, np.ndarray]  # a profile of unit flux, and its flux in each band (counts)


@dataclass(frozen=True)
class SimulatedSky:
    """Where `simulate_sky` wrote the tiles (a directory) and the catalogue (a FITS table)."""

    tiles: Path
    catalogue: Path


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
        Square tiles of so many pixels of 0.168 arcsec.
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
    """
    names = sort_bands(bands)
    if unknown := [band for band in names if band not in SEEING]:
        raise ValueError(f"bands {', '.join(unknown)} cannot be simulated: choose among {', '.join(SEEING)}")
    if not 1 <= n_tiles <= 81:
        raise ValueError(f"n_tiles={n_tiles}: must be 1 to 81, the patches of a tract")
    if tile_size < 64:
        raise ValueError(f"tile_size={tile_size}: must be at least 64 pixels")
    if n_objects is not None and n_objects < n_tiles:
        raise ValueError(f"n_objects={n_objects}: must be at least one a tile")
    seeings, depths = _each_tile("seeing", seeing, n_tiles), _each_tile("depth", depth, n_tiles)
    if min(seeings) <= 0:
        raise ValueError(f"seeing={seeing}: a factor must be above 0")
    sky = SimulatedSky(Path(directory) / "tiles", Path(directory) / "catalogue.fits")
    try:
        sky.tiles.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{directory}: cannot be written: {error}") from error
    per_tile = round(OBJECTS_PER_TILE * (tile_size / 1024) ** 2) if n_objects is None else n_objects // n_tiles
    jobs = [
        partial(
            _simulate_tile,
            sky.tiles,
            number,
            tile_size,
            names,
            max(1, per_tile),
            seed,
            seeing=seeings[number],
            depth=depths[number],
            damaged=n_tiles >= 2 and number == n_tiles - 1,
        )
        for number in range(n_tiles)
    ]
    catalogues = list(tqdm(_run(jobs, workers), total=n_tiles, desc="simulate", unit="tile"))
    for number, catalogue in enumerate(catalogues):
        catalogue["object_id"] = np.arange(len(catalogue)) + 100_000 * (number + 1)
    table = vstack(catalogues, metadata_conflicts="silent")
    table.meta = {"SEED": seed, "CLASS0": "galaxy", "CLASS1": "qso", "CLASS2": "star"}
    _write_whole(sky.catalogue, lambda path: table.write(path, format="fits", overwrite=True))
    return sky


def _each_tile(name: str, value: float | Sequence[float], n_tiles: int) -> list[float]:
    """Return one number for each tile."""
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if values.shape not in ((1,), (n_tiles,)) or not np.isfinite(values).all():
        raise ValueError(f"{name}={value}: must be one number, or one for each of {n_tiles} tiles")
    return np.broadcast_to(values, n_tiles).tolist()


def _run(jobs: Sequence[Callable[[], Table]], workers: int) -> Iterator[Table]:
    """Do all jobs, in this process or in several, and give the results in order."""
    if workers <= 1 or len(jobs) == 1:
        yield from (job() for job in jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from (future.result() for future in [pool.submit(job) for job in jobs])


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
    *,
    seeing: float,
    depth: float,
    damaged: bool,
) -> Table:
    """Draw one tile, write its bands, and return its part of the catalogue."""
    rng = np.random.default_rng([seed, number])
    objects = _draw_population(rng, n)
    mags = _magnitudes(objects, rng)
    parts = [_build(objects[i], mags[i], rng) for i in range(n)]
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


def _draw_population(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw what every object is: a structured array (n,)."""
    fields = [("class", "i2"), ("rare", "U5"), ("mag", "f8"), ("z", "f8"), ("type", "f8"), ("bulge", "f8"),
              ("radius", "f8"), ("q", "f8"), ("temperature", "f8")]  # fmt: skip
    o = np.zeros(n, dtype=fields)
    kinds = [*FRACTIONS, "galaxy"]
    kind = rng.choice(len(kinds), n, p=[*FRACTIONS.values(), 1 - sum(FRACTIONS.values())])
    for rare in ("dwarf", "arc"):  # three of each in any field that is not tiny, for tests of search
        short = 3 - int((kind == kinds.index(rare)).sum())
        if n >= 1000 and short > 0:
            kind[rng.choice(np.flatnonzero(kind == kinds.index("galaxy")), short, replace=False)] = kinds.index(rare)
    is_qso, is_star = kind == kinds.index("qso"), kind == kinds.index("star")
    o["class"] = np.where(is_qso, QSO, np.where(is_star, STAR, GALAXY))
    o["mag"] = _draw_counts(rng, n, 18.5, 25.2, 0.28)
    o["mag"][is_qso] = _draw_counts(rng, n, 17.5, 24.5, 0.2)[is_qso]
    o["mag"][is_star] = _draw_counts(rng, n, 16.5, 24.8, 0.12)[is_star]

    # Redshift: n(z) of Smail et al. 1994 with a median that grows with magnitude.
    median = 0.25 + 0.13 * np.clip(o["mag"] - 20, -1, None)
    o["z"] = np.clip(median / 1.41 * rng.gamma(2.0, size=n) ** (2 / 3), 0.02, 2.5)
    o["z"][is_qso] = rng.uniform(0.3, 4.0, n)[is_qso]

    # Type from 0 (elliptical) to 3 (irregular); faint galaxies are late.
    early = rng.random(n) < np.clip(0.45 - 0.07 * (o["mag"] - 19), 0.08, 0.45)
    o["type"] = np.where(early, np.abs(rng.normal(0, 0.25, n)), rng.uniform(0.8, 3.0, n))
    o["bulge"] = np.where(early, rng.uniform(0.6, 1.0, n), rng.beta(1.2, 6, n))
    o["q"] = np.where(early, rng.uniform(0.55, 1.0, n), rng.uniform(0.2, 1.0, n))

    # Size in kpc grows with luminosity and shrinks with redshift, then is seen at its angular-diameter distance.
    z = np.maximum(o["z"], 0.02)
    absolute = o["mag"] - _distance_modulus(z)
    kpc = np.where(early, 3.5, 4.5) * 10 ** (-0.12 * (absolute + 20.5)) * (1 + z) ** -0.6 * rng.lognormal(0, 0.25, n)
    o["radius"] = np.clip(np.rad2deg(kpc / _angular_distance(z)) * 3600, 0.12, 2.5)

    dwarf, arc = kind == kinds.index("dwarf"), kind == kinds.index("arc")
    o["rare"] = np.where(dwarf, "dwarf", np.where(arc, "arc", "none"))
    for name, dwarf_range, arc_range in (
        ("mag", (20.3, 21.8), (19.3, 20.5)), ("z", (0.004, 0.03), (0.35, 0.7)), ("type", (1.6, 2.6), (0.0, 0.1)),
        ("bulge", (0.0, 0.0), (1.0, 1.0)), ("q", (0.6, 1.0), (0.75, 1.0)), ("radius", (1.6, 2.8), (0.6, 0.9)),
    ):  # fmt: skip
        o[name][dwarf] = rng.uniform(*dwarf_range, n)[dwarf]
        o[name][arc] = rng.uniform(*arc_range, n)[arc]
    o["radius"][o["class"] != GALAXY] = 0.0
    locus = np.clip(rng.normal(4300, 1300, n), 2900, 9000)
    o["temperature"] = np.where(rng.random(n) < 0.4, rng.uniform(2950, 4000, n), locus)
    return o


def _draw_counts(rng: np.random.Generator, n: int, bright: float, faint: float, slope: float) -> np.ndarray:
    """Draw magnitudes with counts that rise as 10**(slope * magnitude)."""
    low, high = 10 ** (slope * bright), 10 ** (slope * faint)
    return np.log10(rng.uniform(low, high, n)) / slope


def _magnitudes(objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the colours of all objects as flux relative to i, float (n, 5); components of galaxies follow in `_build`."""
    n = len(objects)
    scatter = 10 ** (-0.4 * rng.normal(0, 0.03, (n, len(SEEING))))
    slope = (_effective_wavelengths() / 7700) ** rng.normal(0, 0.25, (n, 1))
    lines = rng.lognormal(0, 0.3, n)
    relative = np.empty((n, len(SEEING)))
    for i, o in enumerate(objects):
        if o["class"] == STAR:
            relative[i] = _star_colours(float(o["temperature"]))
        elif o["class"] == QSO:
            relative[i] = _at_redshift(_qso_table(True), o["z"]) * lines[i] + _at_redshift(_qso_table(False), o["z"])
            relative[i] *= slope[i]
        else:
            relative[i] = 1.0
    return relative / relative[:, [2]] * scatter


def _build(o: np.void, relative: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Return the parts that an object is made of: what does not depend on the band, with fluxes in each."""
    total = mag_to_flux(o["mag"])
    knots_seed, angle = int(rng.integers(1, 2**31)), rng.uniform(0, 180) * galsim.degrees
    if o["class"] != GALAXY:
        return [(galsim.DeltaFunction(), total * relative)]
    z, r, q = float(o["z"]), float(o["radius"]), float(o["q"])
    old, disc = _galaxy_colours(0.0, z) * relative, _galaxy_colours(float(o["type"]), z) * relative
    if o["rare"] == "dwarf":
        return [(galsim.Sersic(0.8, half_light_radius=r, gsparams=_FAST).shear(q=q, beta=angle), total * disc)]
    bulge = galsim.Sersic(3.0, half_light_radius=0.6 * r if o["bulge"] < 0.6 else r, gsparams=_FAST)
    parts: list[Part] = [(bulge.shear(q=max(q, 0.5), beta=angle), total * o["bulge"] * old)]
    if o["rare"] == "arc":
        return parts + _arc(np.random.default_rng(knots_seed))
    if o["bulge"] < 0.98:
        exponential = galsim.Exponential(half_light_radius=r, gsparams=_FAST)
        clumpy = 0.35 * min(1.0, o["type"] / 2) if o["type"] > 0.7 else 0.0
        light = total * (1 - o["bulge"])
        parts.append((exponential.shear(q=q, beta=angle), light * (1 - clumpy) * disc))
        if clumpy and r > 0.25:
            knots = galsim.RandomKnots(
                int(6 + 6 * o["type"]), profile=exponential, rng=galsim.BaseDeviate(knots_seed), gsparams=_FAST
            )
            young = _galaxy_colours(3.0, z) * relative
            parts.append((knots.shear(q=q, beta=angle), light * clumpy * young))
        elif clumpy:
            parts.append((exponential.shear(q=q, beta=angle), light * clumpy * disc))
    return parts


def _arc(rng: np.random.Generator) -> list[Part]:
    """Return a blue arc of a distant source around a lens, and its counter image."""
    radius, start, length = rng.uniform(1.2, 1.9), rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 3.0)
    blob = galsim.Gaussian(sigma=0.13, gsparams=_FAST)
    along = start + np.linspace(-0.5, 0.5, 17) * length
    weights = np.cos(np.linspace(-1.2, 1.2, 17))
    pieces = [
        blob.shift(radius * np.cos(a), radius * np.sin(a)) * w
        for a, w in zip(along, weights / weights.sum(), strict=True)
    ]
    counter = blob.shift(-0.7 * radius * np.cos(start), -0.7 * radius * np.sin(start))
    flux = mag_to_flux(rng.uniform(21.0, 22.0)) * _galaxy_colours(3.0, rng.uniform(1.2, 2.2))
    return [(galsim.Sum([*pieces, counter * 0.12]) / 1.12, flux)]


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
    psf = galsim.Moffat(beta=MOFFAT_BETA, fwhm=fwhm, gsparams=_FAST)  # of the image: pixel included
    b = list(SEEING).index(band)
    canvas = galsim.ImageF(size, size, scale=PIXEL_SCALE)
    for pieces, row, col in zip(parts, rows, cols, strict=True):
        point = isinstance(pieces[0][0], galsim.DeltaFunction)
        if point:
            profile = psf.withFlux(pieces[0][1][b])
        else:
            profile = galsim.Convolve(
                galsim.Sum([p.withFlux(f[b]) for p, f in pieces]), psf, real_space=False, gsparams=_FAST
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
    primary.header["FLUXMAG0"] = 10 ** (0.4 * ZERO_POINT)
    hdus = fits.HDUList([
        primary,
        fits.ImageHDU(image, header, name="IMAGE"),
        fits.ImageHDU(mask, header + planes, name="MASK"),
        fits.ImageHDU(variance, header, name="VARIANCE"),
    ])  # fmt: skip
    _write_whole(path, lambda partial: hdus.writeto(partial, overwrite=True))


def _write_whole(path: Path, write: object) -> None:
    """Write under another name, then rename: a file is whole or not there."""
    partial = path.with_name(f"partial-{path.name}")
    write(partial)  # type: ignore[operator]
    os.replace(partial, path)


@cache
def _bandpasses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return wavelength (angstrom) and throughput of each band."""
    folder = Path(galsim.meta_data.share_dir) / "bandpasses"
    passes = []
    for band in SEEING:
        wave, throughput = np.loadtxt(folder / f"LSST_{band}.dat", unpack=True)[:2]
        passes.append((wave * 10 if wave.max() < 2000 else wave, throughput))  # nm in some files
    return passes


@cache
def _effective_wavelengths() -> np.ndarray:
    return np.array([np.average(w, weights=t) for w, t in _bandpasses()])


def _band_fluxes(wave: np.ndarray, f_lambda: np.ndarray, *, absorption: bool = False) -> np.ndarray:
    """Return the AB flux of a spectrum in each band at each redshift of the grid, float (n_z, 5), arbitrary unit."""
    table = np.empty((len(_Z_GRID), len(SEEING)))
    for b, (band_wave, throughput) in enumerate(_bandpasses()):
        rest = band_wave / (1 + _Z_GRID[:, None])  # (n_z, n_wave)
        flux = np.interp(rest, wave, f_lambda)
        if absorption:
            optical_depth = 0.0036 * (1 + _Z_GRID[:, None]) ** 3.46  # Lyman alpha forest, Madau 1995
            flux = np.where(rest < 912, 0.01 * flux, np.where(rest < 1216, flux * np.exp(-optical_depth), flux))
        table[:, b] = np.trapezoid(flux * throughput * band_wave, band_wave) / np.trapezoid(
            throughput / band_wave, band_wave
        )
    return table


@cache
def _galaxy_tables() -> np.ndarray:
    """Return flux relative to i of the four templates, float (4, n_z, 5)."""
    folder = Path(galsim.meta_data.share_dir) / "SEDs"
    spectra = [np.loadtxt(folder / f"{name}.sed", unpack=True) for name in _TEMPLATES]
    tables = [_band_fluxes(spectrum[0], spectrum[1], absorption=True) for spectrum in spectra]
    return np.stack([table / table[:, [2]] for table in tables])


@cache
def _qso_table(lines: bool) -> np.ndarray:
    """Return the flux (n_z, 5) of a quasar's lines, or of its continuum."""
    wave = np.arange(500.0, 12000.0, 2.0)
    continuum = (wave / 3000) ** -1.55
    broad = np.zeros_like(wave)
    for centre, width in _LINES:
        sigma = 0.008 * centre
        broad += (
            np.interp(centre, wave, continuum)
            * width
            * np.exp(-0.5 * ((wave - centre) / sigma) ** 2)
            / (sigma * 2.5066)
        )
    return _band_fluxes(wave, broad if lines else continuum, absorption=True)


def _at_redshift(table: np.ndarray, z: float) -> np.ndarray:
    return np.array([np.interp(z, _Z_GRID, column) for column in table.T])


def _galaxy_colours(kind: float, z: float) -> np.ndarray:
    """Return flux relative to i (5,) of a type between 0 (elliptical) and 3 (irregular)."""
    low = min(int(kind), 2)
    tables = _galaxy_tables()
    return (1 - kind + low) * _at_redshift(tables[low], z) + (kind - low) * _at_redshift(tables[low + 1], z)


def _star_colours(temperature: float) -> np.ndarray:
    """Return flux relative to i (5,) on the stellar locus."""
    g_r, r_i, i_z, z_y = (np.interp(temperature, STELLAR_LOCUS[:, 0], STELLAR_LOCUS[:, c]) for c in range(1, 5))
    return 10 ** (-0.4 * np.array([g_r + r_i, r_i, 0.0, -i_z, -i_z - z_y]))


@cache
def _distances() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    z = np.geomspace(0.002, 5, 300)
    return z, Planck18.distmod(z).value, Planck18.angular_diameter_distance(z).value * 1000


def _distance_modulus(z: np.ndarray) -> np.ndarray:
    return np.interp(z, _distances()[0], _distances()[1])


def _angular_distance(z: np.ndarray) -> np.ndarray:
    """Return kpc a radian."""
    return np.interp(z, _distances()[0], _distances()[2])
