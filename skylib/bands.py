"""Photometric bands: their names, wavelengths and order, and magnitudes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from skylib.checks import checked

ZERO_POINT = 27.0  # AB magnitude of one count: the flux unit of the whole library, that of HSC coadds

# Effective wavelengths in nm. Any other band becomes known by `register_band`, or by a survey or a file that states it.
_BROAD = """u 355, g 482, r 622, i 771, z 890, y 978, J 1252, H 1645, Ks 2147, FUV 154, NUV 232, VIS 715,
    W1 3353, W2 4603, W3 11561, W4 22088"""
BROAD_BANDS = {name: float(nm) for name, nm in re.findall(r"(\w+) (\d+)", _BROAD)}
NARROW_BANDS = {f"NB{nm:04d}": float(nm) for nm in (387, 400, 468, 515, 527, 656, 718, 816, 921, 926, 973, 1010)}
_STANDARD = frozenset((*BROAD_BANDS, *NARROW_BANDS))
_ALIASES = {"k": "Ks", "r2": "r", "i2": "i"}  # HSC-R2 and HSC-I2 replaced HSC-R and HSC-I


@checked
def register_band(name: str, wavelength: float, *, narrow: bool = False) -> None:
    """Make a band known, such as ``F814W``.

    Parameters
    ----------
    name : str
        Without spaces and commas; upper and lower case count as the same.
    wavelength : float
        Effective wavelength in nm, which sets the place of the band in the order of planes.
    narrow : bool
        Narrow bands come after all broad ones.

    Raises
    ------
    ValueError
        If the name is unusable, or is known with another wavelength.

    Examples
    --------
    >>> register_band("F606W", 592)
    >>> sort_bands("F606W i g")
    ('g', 'F606W', 'i')
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        raise ValueError(f"band {name!r}: must be letters, digits, '_', '.', '+' or '-', such as 'F814W'")
    if not 1 <= wavelength <= 1e7:
        raise ValueError(f"band {name!r}: wavelength={wavelength!r} must be a number from 1 to 10,000,000 nm")
    same = [band for band in (*BROAD_BANDS, *NARROW_BANDS) if band.lower() == name.lower()]
    if same:
        before = wavelength_of(same[0])
        if abs(before - wavelength) > 0.1 * before:
            raise ValueError(f"band {name!r} is known at {before:g} nm, not {wavelength:g} nm: choose another name")
        return
    (NARROW_BANDS if narrow else BROAD_BANDS)[name] = float(wavelength)


def is_band(name: str) -> bool:
    """Tell whether `canonical_band` knows a name."""
    return _find(name) is not None


def is_standard(band: str) -> bool:
    """Tell whether a band is known without `register_band`, by its canonical name."""
    return band in _STANDARD


def wavelength_of(band: str) -> float:
    """Return the effective wavelength in nm of a band by its canonical name."""
    return {**BROAD_BANDS, **NARROW_BANDS}[band]


@checked
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
    band = _find(name)
    if band is None:
        raise ValueError(
            f"unknown band {name!r}: known bands are {', '.join((*BROAD_BANDS, *NARROW_BANDS))}; "
            "register_band(name, wavelength) adds others"
        )
    return band


def split_bands(text: str) -> list[str]:
    """Take a string of names apart, in its order: at spaces and commas, or name by name, longer names first.

    Examples
    --------
    >>> split_bands("iKsg"), split_bands("HSC-I, g")
    (['i', 'Ks', 'g'], ['HSC-I', 'g'])
    """
    text = text.strip()
    if re.search(r"[\s,]", text):
        return [name for name in re.split(r"[\s,]+", text) if name]
    if not text or is_band(text):
        return [text] if text else []
    names = "|".join(re.escape(band) for band in sorted((*BROAD_BANDS, *NARROW_BANDS), key=len, reverse=True))
    for flags in (0, re.IGNORECASE):
        if re.fullmatch(f"(?:{names})+", text, flags):
            return re.findall(names, text, flags)
    return list(text) if text.isalpha() else [text]


@checked
def sort_bands(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return canonical names in wavelength order: broad bands first, then narrow bands.

    Parameters
    ----------
    names : str or iterable of str
        In a string, names are separated by spaces or commas, or follow one another as in ``"ugrizyJHKs"``.

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
    >>> sort_bands("ugrizyJHKs") == sort_bands("u g r i z y J H Ks")
    True
    """
    return tuple(sorted(named_bands(names), key=lambda band: (band in NARROW_BANDS, wavelength_of(band), band)))


def named_bands(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return canonical names in the order given; what is allowed, and raised, is as of `sort_bands`."""
    if not isinstance(names, Iterable):
        raise ValueError(f"bands={names!r}: must be names of bands")
    bands = [canonical_band(name) for name in (split_bands(names) if isinstance(names, str) else names)]
    if not bands:
        raise ValueError(f"bands={names!r}: no band given")
    if twice := {band for band in bands if bands.count(band) > 1}:
        raise ValueError(f"bands={names!r}: bands given twice: {', '.join(sorted(twice))}")
    return tuple(bands)


@checked
def flux_to_mag(flux: np.ndarray | Sequence[float] | float, zero_point: float = ZERO_POINT) -> np.ndarray:
    """Return AB magnitudes; NaN where the flux is not positive, or masked.

    Examples
    --------
    >>> flux_to_mag(np.array([1.0, 100.0, -1.0]))
    array([27., 22., nan])
    """
    if unit := str(getattr(flux, "unit", None) or ""):
        raise ValueError(f"flux is in {unit}: give its value, and the zero_point of that unit, such as 31.4 for nJy")
    flux = np.ma.filled(np.ma.asarray(flux, dtype=np.float64), np.nan)
    return zero_point - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def mag_to_flux(mag: np.ndarray | float, zero_point: float = ZERO_POINT) -> np.ndarray:
    """Return flux in counts; the inverse of `flux_to_mag`."""
    return 10 ** (-0.4 * (np.ma.filled(np.ma.asarray(mag, dtype=np.float64), np.nan) - zero_point))


def _find(name: str) -> str | None:
    """Return the band that a name stands for, as it is or behind the name of a survey."""
    names = {band.lower(): band for band in (*BROAD_BANDS, *NARROW_BANDS)} | _ALIASES
    key = (name.decode() if isinstance(name, bytes) else str(name)).strip().lower()
    return names.get(key, names.get(key.rsplit("-", 1)[-1]))
