"""What the attributes of an HDF5 file of cutouts state: numbers, and the unit of flux."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import astropy.units as u
import h5py
import numpy as np

from skylib.data.calibration import PLAUSIBLE, unit_zero_point
from skylib.data.cutouts.layouts import text


def unit_of(attributes: Mapping[str, Any]) -> str:
    """Return the unit that the attributes of a file or dataset state."""
    found = (attributes[name] for name in ("unit", "units", "BUNIT", "bunit", "flux_unit") if name in attributes)
    return next((text(value).strip() for value in found if isinstance(value, str | bytes)), "")


def zero_point_of_unit(images: h5py.Dataset, bands: tuple[str, ...], pixel_scale: float, *given: Any) -> float | None:
    """Return the zero-point of the stated unit of images; None for counts, no unit, or where a zero-point is stated.

    Raises
    ------
    ValueError
        If it is no unit of flux, and nothing of what decides otherwise was `given`; the message names it.
    """
    if "zero_point" in images.file.attrs:
        return None
    try:
        unit = unit_of(images.attrs) or unit_of(images.file.attrs)
        return unit_zero_point(unit, bands, name="unit of flux", area=pixel_scale**2)
    except ValueError as error:
        if not any(value is not None for value in given):
            raise ValueError(f"{error}; zero_point=… or survey=… decides") from error
        return None


def number_of(file: h5py.File, name: str, given: float | None, default: float | None) -> float:
    """Return what the file states, which goes first, what the user states, or what the survey has."""
    value = file.attrs.get(name, default if given is None else given)
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r}: must be a number")
    value = checked_number(name, value)
    if name in file.attrs and given is not None and abs(given - value) > 1e-3 * abs(value):
        raise ValueError(f"{name}={given!r} is given, but the file states {value!r}")
    return value


def checked_number(name: str, value: Any) -> float:
    """Return a pixel scale (arcsec) or zero-point (AB mag), given as a number or with a unit, or raise ValueError."""
    if isinstance(value, u.Quantity):
        value = value.to_value(u.arcsec) if name == "pixel_scale" else value.value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be a finite number")
    value = float(value)
    if name == "pixel_scale" and not 0 < value <= 3600:
        raise ValueError(f"{name}={value!r}: must be positive, and at most 3600 arcsec")
    if name == "zero_point" and not PLAUSIBLE[0] < value < PLAUSIBLE[1]:
        raise ValueError(f"{name}={value!r}: must be a magnitude, {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}")
    return value
