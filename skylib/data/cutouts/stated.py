"""What the attributes of an HDF5 file of cutouts state: numbers, and the unit of flux."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import astropy.units as u
import h5py
import numpy as np

from skylib.data.calibration import PLAUSIBLE, unit_zero_point
from skylib.data.cutouts.layouts import text

_NAMES = {  # what attributes are called, in lower case and without underscores
    "unit": ("unit", "units", "bunit", "fluxunit", "fluxunits"),
    "zero_point": ("zeropoint", "magzero", "magzeropoint", "zp", "magzp", "photzp"),
    "pixel_scale": ("pixelscale", "pixscale"),
}


def stated(name: str, *attributes: Mapping[str, Any]) -> Any:
    """Return what the first of several attributes states, under any of its usual names; None if none does.

    One value for each band is taken as one where all are the same.
    """
    for held in attributes:
        for key, value in held.items():
            if key.lower().replace("_", "") in _NAMES[name]:
                values = np.unique(np.atleast_1d(value)).tolist()
                return values[0] if len(values) == 1 else value
    return None


def unit_of(*attributes: Mapping[str, Any]) -> str:
    """Return the unit that the attributes of a dataset or file state."""
    value = stated("unit", *attributes)
    return text(value).strip() if isinstance(value, str | bytes) else ""


def zero_point_of_unit(images: h5py.Dataset, bands: tuple[str, ...], pixel_scale: float, *given: Any) -> float | None:
    """Return the zero-point of the stated unit of images; None for counts, no unit, or where a zero-point is stated.

    Raises
    ------
    ValueError
        If it is no unit of flux, and nothing of what decides otherwise was `given`; the message names it.
    """
    if stated("zero_point", images.attrs, images.file.attrs) is not None:
        return None
    try:
        unit = unit_of(images.attrs, images.file.attrs)
        return unit_zero_point(unit, bands, name="unit of flux", area=pixel_scale**2)
    except ValueError as error:
        if not any(value is not None for value in given):
            raise ValueError(f"{error}; zero_point=… or survey=… decides") from error
        return None


def number_of(images: h5py.Dataset, name: str, given: float | None, default: float | None) -> float:
    """Return what the images or their file state, which goes first, what the user states, or what the survey has."""
    found = stated(name, images.attrs, images.file.attrs)
    value = found if found is not None else default if given is None else given
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r}: must be a number")
    value = checked_number(name, value)
    if found is not None and given is not None and abs(given - value) > 1e-3 * abs(value):
        raise ValueError(f"{name}={given!r} is given, but the file states {value!r}")
    return value


def checked_number(name: str, value: Any) -> float:
    """Return a pixel scale (arcsec) or zero-point (AB mag), given as a number or with a unit, or raise ValueError."""
    if isinstance(value, u.Quantity):
        value = value.to_value(u.arcsec) if name == "pixel_scale" else value.value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be a finite number")
    value = float(value)
    if name == "pixel_scale" and not 1e-3 <= value <= 3600:
        raise ValueError(f"{name}={value!r}: must be 0.001 to 3600 arcsec")
    if name == "zero_point" and not PLAUSIBLE[0] < value < PLAUSIBLE[1]:
        raise ValueError(f"{name}={value!r}: must be a magnitude, {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}")
    return value
