"""From the flux unit of a file to counts at zero-point 27, in which all fluxes of this library are."""

from __future__ import annotations

import math
import re
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits

from skylib.bands import ZERO_POINT, wavelength_of
from skylib.data.description import Survey
from skylib.data.fitsfile import unwarned

_KEYWORDS = ("MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPNT", "ZEROPOINT", "ABMAGZP")  # usual names of a zero-point
_SYSTEMS = ("MAGSYS", "MAG_SYS", "PHOTSYS", "ZPSYS")  # the magnitude system, where a header states it
_COUNTS = re.compile(
    r"(?:electrons?|e-?|counts?|cts?|adus?|dn|data\s*units?|none)?\s*(?P<rate>[/\s]?\s*s(?:ec(?:ond)?)?(?:\^?-1)?)?"
    r"|(?P<cps>cps)",
    re.I,
)
_MAGGY, _JANSKY = "(?:magg(?:y|ys|ie|ies)|mgy)", "(?:jy|janskys?)"
_SPELLINGS = (  # of units in headers, and how astropy spells them
    (rf"\b(?:nano|n){_MAGGY}\b", "nmgy"),
    (rf"\b{_MAGGY}\b", "mgy"),
    (rf"\b(?:nano-?|n){_JANSKY}\b", "nJy"),
    (rf"\b(?:micro-?|u){_JANSKY}\b", "uJy"),
    (rf"\b{_JANSKY}\b", "Jy"),
    (r"(?-i:\bMJY)(?=\W*SR\b)", "MJy"),  # milli would be strange there
    (r"\bsr\b", "sr"),
    (r"\s*(?:/\s*|[ .*])pix(?:el)?\W*(?:-1)?\W*$", ""),  # flux per pixel is what pixels hold
)
_AB = 8.9  # magnitude of 1 Jy
MAX_FLUX = 1e20  # in the file's unit; beyond, as 1e30, pixels are marked as unknown
FILLERS = (-99.0, -999.0, -9999.0, -32768.0)  # which areas without data hold, besides 0
PLAUSIBLE = (-60.0, 60.0)  # zero-points, AB magnitude


def flux_scale(
    header: fits.Header, survey: Survey, band: str, *, primary: fits.Header, pixel_area: float | None
) -> float:
    """Return the factor from the flux in a file to counts at zero-point 27.

    Parameters
    ----------
    header, primary : Header
        Of the image, and of the first HDU.
    survey : Survey
    band : str
    pixel_area : float, optional
        Arcsec^2, for images in surface brightness.

    Raises
    ------
    ValueError
        If nothing states the calibration, two statements differ, or a unit is unknown.
    """
    stated = _stated(header, primary, survey, band, pixel_area) if survey.trust_header else {}
    if not stated:
        if survey.zero_point is None:
            raise ValueError(
                f"the zero-point is missing: neither FLUXMAG0, BUNIT, {survey.zero_point_keyword or _KEYWORDS[0]} in "
                f"the header nor the survey {survey.name!r} states it; give Survey(zero_point=…)"
            )
        stated = {"survey": float(survey.zero_point) + _exposure(survey.exposure_keyword, header, primary)}
    values = list(stated.values())
    if max(values) - min(values) > 0.02:
        both = ", ".join(f"{name} says {value:.3f}" for name, value in stated.items())
        raise ValueError(
            f"the zero-point is stated differently: {both}; Survey(trust_header=False, zero_point=…) decides"
        )
    if not PLAUSIBLE[0] < values[0] < PLAUSIBLE[1]:
        raise ValueError(f"{next(iter(stated))} gives a zero-point of {values[0]:.4g} mag, which cannot be")
    return 1.0 if abs(values[0] - ZERO_POINT) < 1e-4 else 10 ** (0.4 * (ZERO_POINT - values[0]))


def undo_asinh(image: np.ndarray, header: fits.Header) -> np.ndarray:
    """Return linear flux where Pan-STARRS stored its inverse hyperbolic sine (``BOFFSET`` and ``BSOFTEN``)."""
    if "BSOFTEN" not in header or "BOFFSET" not in header:
        return image
    softening, offset = float(header["BSOFTEN"]), float(header["BOFFSET"])
    return (offset + 2 * softening * np.sinh(image.astype(np.float64) * (np.log(10) / 2.5))).astype(np.float32)


def unit_zero_point(
    text: str, bands: tuple[str, ...], *, name: str = "BUNIT", area: float | None = None
) -> float | None:
    """Return the AB magnitude of one unit of flux, or None of counts, whose zero-point the unit does not tell.

    Parameters
    ----------
    text : str
        The unit as headers spell it, such as ``"nJy"``, ``"nanomaggies"``, ``"uJy/pixel"`` or ``"MJy/sr"``.
    bands : tuple of str
        Units per wavelength differ between bands.
    name : str
        Of what states it, for the message.
    area : float, optional
        Arcsec^2 of a pixel, for units of surface brightness.

    Raises
    ------
    ValueError
        If it is no unit of flux, or not the same for all bands.

    Examples
    --------
    >>> unit_zero_point("nanomaggies", ("g", "r")), unit_zero_point("counts/s", ("g",))
    (22.5, None)
    """
    spelt = re.sub(r"\s+\([^)]*\)$", "", text)  # a remark
    if not spelt or _COUNTS.fullmatch(spelt):
        return None
    for pattern, form in _SPELLINGS:
        spelt = re.sub(pattern, form, spelt, flags=re.IGNORECASE)
    with unwarned(u.UnitsWarning):
        unit: Any = u.Unit(spelt, parse_strict="silent")
        if isinstance(unit, u.UnrecognizedUnit):
            unit = u.Unit(spelt, format="fits", parse_strict="silent")
    if isinstance(unit, u.UnrecognizedUnit):
        raise ValueError(f"{name}={text!r} is no flux unit known here, such as nJy, nanomaggy or MJy/sr")
    if isinstance(unit, u.function.FunctionUnitBase):
        raise ValueError(f"{name}={text!r} is a logarithm, such as magnitudes: convert to flux, such as nJy")
    if unit.is_equivalent(u.mgy):
        return -2.5 * math.log10(unit.to(u.mgy)) + 0.0
    if unit.is_equivalent(u.Jy / u.sr):
        if area is None:
            raise ValueError(f"{name}={text!r} is a surface brightness, but the size of a pixel is not known")
        return _AB - 2.5 * math.log10((unit * area * u.arcsec**2).to_value(u.Jy))
    spectral = [u.spectral_density(wavelength_of(band) * u.nm) for band in bands]
    if all(unit.is_equivalent(u.Jy, form) for form in spectral):
        found = [_AB - 2.5 * math.log10((1 * unit).to_value(u.Jy, form)) for form in spectral]
        if max(found) - min(found) > 1e-6:
            raise ValueError(
                f"{name}={text!r} stands for another flux density per frequency in each band: convert to nJy"
            )
        return found[0]
    plain = unit.decompose()
    if plain.is_equivalent(u.one) or plain.is_equivalent(u.ct) or plain.is_equivalent(u.electron / u.s):
        return None
    raise ValueError(f"{name}={text!r} is no unit of flux; known are counts, nJy, nanomaggy, MJy/sr and their like")


def _stated(
    header: fits.Header, primary: fits.Header, survey: Survey, band: str, area: float | None
) -> dict[str, float]:
    """Return the zero-points that a header states, by the name of what states it."""
    stated: dict[str, float] = {}
    if _get("FLUXMAG0", header, primary) is not None:
        stated["FLUXMAG0"] = 2.5 * math.log10(_positive("FLUXMAG0", header, primary))
    for key in [survey.zero_point_keyword, *_KEYWORDS]:
        if key is not None and _get(key, header, primary) is not None:
            stated[key] = _number(key, header, primary) + _exposure(survey.exposure_keyword, header, primary)
            system = [(name, text) for name in _SYSTEMS if (text := str(_get(name, header, primary) or "").strip())]
            if system and system[0][1].upper().startswith(("VEGA", "ST")):
                raise ValueError(
                    f"{key} is in the system {system[0][0]}={system[0][1]!r}: must be AB; Survey(trust_header=False, "
                    "zero_point=…) gives the AB zero-point"
                )
    unit = str(_get("BUNIT", header, primary) or "").strip()
    if "FLUXMAG0" not in stated and "PHOTFLAM" in header and "PHOTPLAM" in header and header["PHOTFLAM"] != 0:
        flam, pivot = (_positive(key, header, primary) for key in ("PHOTFLAM", "PHOTPLAM"))
        keyword = "EXPTIME" if unit and _COUNTS.fullmatch(unit) else None  # counts may be summed over the exposure
        stated["PHOTFLAM"] = -2.5 * math.log10(flam) - 5 * math.log10(pivot) - 2.408
        stated["PHOTFLAM"] += _exposure(keyword, header, primary)
    if "PIXAR_SR" in header:
        area = _positive("PIXAR_SR", header, primary) * float(u.sr.to(u.arcsec**2))
    try:
        zero_point = unit_zero_point(unit, (band,), area=area)
    except ValueError as error:
        if stated and "is no flux unit known" in str(error):
            return stated
        raise
    return stated if zero_point is None else {**stated, f"BUNIT={unit!r}": zero_point}


def _exposure(keyword: str | None, header: fits.Header, primary: fits.Header) -> float:
    """Return by how much the zero-point for 1 s differs from that of an image summed over its exposure, mag."""
    counts = _COUNTS.fullmatch(str(_get("BUNIT", header, primary) or "").strip())
    if keyword is None or (counts is not None and (counts["rate"] or counts["cps"])):  # counts per second
        return 0.0
    return 2.5 * math.log10(_positive(keyword, header, primary))


def _get(key: str, header: fits.Header, primary: fits.Header) -> Any:
    value = header.get(key, primary.get(key))
    return None if isinstance(value, fits.card.Undefined) else value


def _number(key: str, header: fits.Header, primary: fits.Header) -> float:
    value = _get(key, header, primary)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={value!r}: must be a finite number")
    return number


def _positive(key: str, header: fits.Header, primary: fits.Header) -> float:
    if (value := _number(key, header, primary)) <= 0:
        raise ValueError(f"{key}={value!r}: must be positive")
    return value
