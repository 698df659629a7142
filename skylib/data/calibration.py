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

_KEYWORDS = ("MAGZERO", "MAGZPT", "MAGZP", "PHOTZP", "ZEROPNT", "ZEROPOINT", "ABMAGZP")  # usual names of a zero-point
_COUNTS = re.compile(
    r"(electrons?|e-?|counts?|cts?|adus?|dn|data\s*units?|none)?\s*((/|\s)?\s*s(ec(ond)?)?(\^?-1)?)?", re.I
)
_MAGGIES = re.compile(r"(nano)?(maggy|maggie|maggies|mgy)s?", re.I)
_AB = 8.9  # magnitude of 1 Jy
_PLAUSIBLE = (-50.0, 100.0)


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
                f"the zero-point is missing: neither FLUXMAG0, BUNIT, {survey.zero_point_keyword or _KEYWORDS[0]} in the "
                f"header nor the survey {survey.name!r} states it; give Survey(zero_point=…)"
            )
        zero_point = float(survey.zero_point)
        if survey.exposure_keyword is not None:
            zero_point += 2.5 * math.log10(_number(survey.exposure_keyword, header, primary))
        stated = {"survey": zero_point}
    values = list(stated.values())
    if max(values) - min(values) > 0.02:
        both = ", ".join(f"{name} says {value:.3f}" for name, value in stated.items())
        raise ValueError(
            f"the zero-point is stated differently: {both}; Survey(trust_header=False, zero_point=…) decides"
        )
    if not _PLAUSIBLE[0] < values[0] < _PLAUSIBLE[1]:
        raise ValueError(f"{next(iter(stated))} gives a zero-point of {values[0]:.4g} mag, which cannot be")
    return 1.0 if abs(values[0] - ZERO_POINT) < 1e-4 else 10 ** (0.4 * (ZERO_POINT - values[0]))


def undo_asinh(image: np.ndarray, header: fits.Header) -> np.ndarray:
    """Return linear flux where Pan-STARRS stored its inverse hyperbolic sine (``BOFFSET`` and ``BSOFTEN``)."""
    if "BSOFTEN" not in header or "BOFFSET" not in header:
        return image
    softening, offset = float(header["BSOFTEN"]), float(header["BOFFSET"])
    return (offset + 2 * softening * np.sinh(image.astype(np.float64) * (np.log(10) / 2.5))).astype(np.float32)


def _stated(
    header: fits.Header, primary: fits.Header, survey: Survey, band: str, area: float | None
) -> dict[str, float]:
    """Return the zero-points that a header states, by the name of what states it."""
    stated: dict[str, float] = {}
    if _get("FLUXMAG0", header, primary) is not None:
        value = _number("FLUXMAG0", header, primary)
        if value <= 0:
            raise ValueError(f"FLUXMAG0={value!r}: must be positive")
        stated["FLUXMAG0"] = 2.5 * math.log10(value)
    for key in [survey.zero_point_keyword, *_KEYWORDS]:
        if key is not None and _get(key, header, primary) is not None and not {key, "FLUXMAG0"} & set(stated):
            stated[key] = _number(key, header, primary)
    unit = str(_get("BUNIT", header, primary) or "").strip()
    if "FLUXMAG0" not in stated and "PHOTFLAM" in header and "PHOTPLAM" in header and header["PHOTFLAM"] > 0:
        rate = -2.5 * math.log10(header["PHOTFLAM"]) - 5 * math.log10(header["PHOTPLAM"]) - 2.408
        summed = unit and (counts := _COUNTS.fullmatch(unit)) and not counts[2]  # over the exposure
        stated["PHOTFLAM"] = rate + (2.5 * math.log10(_number("EXPTIME", header, primary)) if summed else 0)
    zero_point = _zero_point_of(unit, header, band, area, certain=not stated)
    if zero_point is not None:
        stated[f"BUNIT={unit!r}"] = zero_point
    return stated


def _zero_point_of(text: str, header: fits.Header, band: str, area: float | None, *, certain: bool) -> float | None:
    """Return the zero-point of a flux unit, or None of counts, whose zero-point the unit does not tell."""
    if not text or _COUNTS.fullmatch(text):
        return None
    if match := _MAGGIES.fullmatch(text):
        return 22.5 if match[1] else 0.0
    unit: Any = u.Unit(text, parse_strict="silent")
    if isinstance(unit, u.UnrecognizedUnit):
        unit = u.Unit(text, format="fits", parse_strict="silent")
    if isinstance(unit, u.UnrecognizedUnit):
        if certain:
            raise ValueError(f"BUNIT={text!r} is no flux unit known here, such as nJy, nanomaggy or MJy/sr")
        return None
    spectral = u.spectral_density(wavelength_of(band) * u.nm)
    if unit.is_equivalent(u.Jy / u.sr):
        pixel = (
            float(header["PIXAR_SR"]) * u.sr if "PIXAR_SR" in header else None if area is None else area * u.arcsec**2
        )
        if pixel is None:
            raise ValueError(f"BUNIT={text!r} is a surface brightness, but the size of a pixel is not known")
        return _AB - 2.5 * math.log10((unit * pixel).to_value(u.Jy))
    if unit.is_equivalent(u.Jy, spectral):
        return _AB - 2.5 * math.log10((1 * unit).to_value(u.Jy, spectral))
    counts = unit.decompose()
    if counts.is_equivalent(u.one) or counts.is_equivalent(u.ct) or counts.is_equivalent(u.electron / u.s):
        return None
    raise ValueError(f"BUNIT={text!r} is no unit of flux; known are counts, nJy, nanomaggy, MJy/sr and their like")


def _get(key: str, header: fits.Header, primary: fits.Header) -> Any:
    value = header.get(key, primary.get(key))
    return None if isinstance(value, fits.card.Undefined) else value


def _number(key: str, header: fits.Header, primary: fits.Header) -> float:
    value = _get(key, header, primary)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}={value!r}: must be a finite number")
    return number
