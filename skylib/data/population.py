"""What is on a simulated sky: classes, magnitudes, redshifts, sizes, and the profiles that objects are made of."""

from __future__ import annotations

from functools import cache

import galsim
import numpy as np
from astropy.cosmology import Planck18

from skylib.bands import mag_to_flux
from skylib.data.colours import BANDS, effective_wavelengths, galaxy_colours, quasar_colours, star_colours

GALAXY, QSO, STAR = 0, 1, 2
FRACTIONS = {"qso": 0.13, "star": 0.17, "dwarf": 0.004, "arc": 0.004}  # the rest are ordinary galaxies
FAST = galsim.GSParams(folding_threshold=2e-2, maxk_threshold=5e-3, kvalue_accuracy=1e-4, maximum_fft_size=8192)

Part = tuple[galsim.GSObject, np.ndarray]  # a profile of unit flux, and its flux in each band (counts)


def draw_population(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw what every object is: a structured array (n,)."""
    numbers = ("mag", "z", "type", "bulge", "radius", "q", "temperature")
    o = np.zeros(n, dtype=[("class", "i2"), ("rare", "U5"), *((name, "f8") for name in numbers)])
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
    distances, modulus, kpc_per_radian = _distances()
    absolute = o["mag"] - np.interp(z, distances, modulus)
    kpc = np.where(early, 3.5, 4.5) * 10 ** (-0.12 * (absolute + 20.5)) * (1 + z) ** -0.6 * rng.lognormal(0, 0.25, n)
    o["radius"] = np.clip(np.rad2deg(kpc / np.interp(z, distances, kpc_per_radian)) * 3600, 0.12, 2.5)

    dwarf, arc = kind == kinds.index("dwarf"), kind == kinds.index("arc")
    o["rare"] = np.where(dwarf, "dwarf", np.where(arc, "arc", "none"))
    for name, dwarf_range, arc_range in (
        ("mag", (20.3, 21.8), (19.3, 20.5)),
        ("z", (0.004, 0.03), (0.35, 0.7)),
        ("type", (1.6, 2.6), (0.0, 0.1)),
        ("bulge", (0.0, 0.0), (1.0, 1.0)),
        ("q", (0.6, 1.0), (0.75, 1.0)),
        ("radius", (1.6, 2.8), (0.6, 0.9)),
    ):
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


def relative_fluxes(objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the colours of all objects as flux relative to i, float (n, 5); `build` adds components of galaxies."""
    n = len(objects)
    scatter = 10 ** (-0.4 * rng.normal(0, 0.03, (n, len(BANDS))))
    slope = (effective_wavelengths() / 7700) ** rng.normal(0, 0.25, (n, 1))
    lines = rng.lognormal(0, 0.3, n)
    relative = np.empty((n, len(BANDS)))
    for i, o in enumerate(objects):
        if o["class"] == STAR:
            relative[i] = star_colours(float(o["temperature"]))
        elif o["class"] == QSO:
            relative[i] = quasar_colours(o["z"], lines[i])
            relative[i] *= slope[i]
        else:
            relative[i] = 1.0
    return relative / relative[:, [2]] * scatter


def build(o: np.void, relative: np.ndarray, rng: np.random.Generator) -> list[Part]:
    """Return the parts that an object is made of: what does not depend on the band, with fluxes in each."""
    total = mag_to_flux(o["mag"])
    knots_seed, angle = int(rng.integers(1, 2**31)), rng.uniform(0, 180) * galsim.degrees
    if o["class"] != GALAXY:
        return [(galsim.DeltaFunction(), total * relative)]
    z, r, q = float(o["z"]), float(o["radius"]), float(o["q"])
    old, disc = galaxy_colours(0.0, z) * relative, galaxy_colours(float(o["type"]), z) * relative
    if o["rare"] == "dwarf":
        return [(galsim.Sersic(0.8, half_light_radius=r, gsparams=FAST).shear(q=q, beta=angle), total * disc)]
    bulge = galsim.Sersic(3.0, half_light_radius=0.6 * r if o["bulge"] < 0.6 else r, gsparams=FAST)
    parts: list[Part] = [(bulge.shear(q=max(q, 0.5), beta=angle), total * o["bulge"] * old)]
    if o["rare"] == "arc":
        return parts + _arc(np.random.default_rng(knots_seed))
    if o["bulge"] < 0.98:
        exponential = galsim.Exponential(half_light_radius=r, gsparams=FAST)
        clumpy = 0.35 * min(1.0, o["type"] / 2) if o["type"] > 0.7 else 0.0
        light = total * (1 - o["bulge"])
        parts.append((exponential.shear(q=q, beta=angle), light * (1 - clumpy) * disc))
        if clumpy and r > 0.25:
            knots = galsim.RandomKnots(
                int(6 + 6 * o["type"]), profile=exponential, rng=galsim.BaseDeviate(knots_seed), gsparams=FAST
            )
            young = galaxy_colours(3.0, z) * relative
            parts.append((knots.shear(q=q, beta=angle), light * clumpy * young))
        elif clumpy:
            parts.append((exponential.shear(q=q, beta=angle), light * clumpy * disc))
    return parts


def _arc(rng: np.random.Generator) -> list[Part]:
    """Return a blue arc of a distant source around a lens, and its counter image."""
    radius, start, length = rng.uniform(1.2, 1.9), rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 3.0)
    blob = galsim.Gaussian(sigma=0.13, gsparams=FAST)
    along = start + np.linspace(-0.5, 0.5, 17) * length
    weights = np.cos(np.linspace(-1.2, 1.2, 17))
    pieces = [
        blob.shift(radius * np.cos(a), radius * np.sin(a)) * w
        for a, w in zip(along, weights / weights.sum(), strict=True)
    ]
    counter = blob.shift(-0.7 * radius * np.cos(start), -0.7 * radius * np.sin(start))
    flux = mag_to_flux(rng.uniform(21.0, 22.0)) * galaxy_colours(3.0, rng.uniform(1.2, 2.2))
    return [(galsim.Sum([*pieces, counter * 0.12]) / 1.12, flux)]


@cache
def _distances() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return redshifts, and for each the distance modulus and kpc per radian."""
    z = np.geomspace(0.002, 5, 300)
    return z, Planck18.distmod(z).value, Planck18.angular_diameter_distance(z).value * 1000
