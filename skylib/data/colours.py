"""Colours of simulated stars, quasars and galaxies: flux in each band, at any redshift.

What is taken from where:

- galaxies: the templates of Coleman, Wu & Weedman [1]_ that GalSim ships, redshifted through LSST's bandpasses, which
  stand in for HSC's;
- stars: a temperature sequence rounded from the median stellar locus of SDSS [2]_ (`STELLAR_LOCUS`);
- quasars: a power law with the broad lines of composite spectra [3]_, and absorption by intergalactic hydrogen.

References
----------
.. [1] Coleman, Wu & Weedman 1980, ApJS 43, 393.
.. [2] Covey et al. 2007, arXiv:0707.4473.
.. [3] Vanden Berk et al. 2001, arXiv:astro-ph/0105231.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import galsim
import numpy as np

BANDS = ("g", "r", "i", "z", "y")
_TEMPLATES = ("CWW_E_ext", "CWW_Sbc_ext", "CWW_Scd_ext", "CWW_Im_ext")
_Z_GRID = np.linspace(0, 4.5, 226)
_LINES = ((1216, 90), (1549, 25), (1909, 21), (2800, 32), (4861, 46), (5007, 13), (6563, 195))  # angstrom, rest EW
# Temperature (K), and the colours g-r, r-i, i-z, z-y; ascending.
STELLAR_LOCUS = np.array(
    [
        [2900, 1.55, 2.00, 1.10, 0.60],
        [3200, 1.47, 1.50, 0.80, 0.40],
        [3500, 1.42, 1.05, 0.58, 0.28],
        [3900, 1.30, 0.62, 0.34, 0.18],
        [4400, 1.05, 0.40, 0.20, 0.10],
        [5000, 0.72, 0.25, 0.10, 0.05],
        [5800, 0.45, 0.14, 0.04, 0.02],
        [6500, 0.28, 0.08, 0.02, 0.01],
        [7500, 0.10, 0.00, -0.03, -0.02],
        [9000, -0.20, -0.15, -0.10, -0.05],
    ]
)


@cache
def _bandpasses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return wavelength (angstrom) and throughput of each band."""
    folder = Path(galsim.meta_data.share_dir) / "bandpasses"
    passes = []
    for band in BANDS:
        wave, throughput = np.loadtxt(folder / f"LSST_{band}.dat", unpack=True)[:2]
        passes.append((wave * 10 if wave.max() < 2000 else wave, throughput))  # nm in some files
    return passes


@cache
def effective_wavelengths() -> np.ndarray:
    """Return the mean wavelength of each band, angstrom, (5,)."""
    return np.array([np.average(w, weights=t) for w, t in _bandpasses()])


def _band_fluxes(wave: np.ndarray, f_lambda: np.ndarray, *, absorption: bool = False) -> np.ndarray:
    """Return the AB flux of a spectrum in each band at each redshift of the grid, float (n_z, 5), arbitrary unit."""
    table = np.empty((len(_Z_GRID), len(BANDS)))
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


def galaxy_colours(kind: float, z: float) -> np.ndarray:
    """Return flux relative to i (5,) of a type between 0 (elliptical) and 3 (irregular)."""
    low = min(int(kind), 2)
    tables = _galaxy_tables()
    return (1 - kind + low) * _at_redshift(tables[low], z) + (kind - low) * _at_redshift(tables[low + 1], z)


def star_colours(temperature: float) -> np.ndarray:
    """Return flux relative to i (5,) on the stellar locus."""
    g_r, r_i, i_z, z_y = (np.interp(temperature, STELLAR_LOCUS[:, 0], STELLAR_LOCUS[:, c]) for c in range(1, 5))
    return 10 ** (-0.4 * np.array([g_r + r_i, r_i, 0.0, -i_z, -i_z - z_y]))


def quasar_colours(z: float, lines: float) -> np.ndarray:
    """Return the flux (5,) of a quasar, arbitrary unit, whose lines are stronger than usual by this factor."""
    return _at_redshift(_qso_table(True), z) * lines + _at_redshift(_qso_table(False), z)
