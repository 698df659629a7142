"""Columns of tables, data frames and quantities as plain arrays: masked values stay missing, units are applied."""

from __future__ import annotations

import logging
from typing import Any

import astropy.units as u
import numpy as np
import pandas as pd
from astropy.coordinates import Angle
from astropy.table import Table

log = logging.getLogger(__name__)

EXACT = 2**53  # up to here float64 holds every integer
NO_TEXT = ("", "nan", "nat", "<na>", "na", "n/a", "null", "--")  # what tables write for a missing value, in lower case
_UNSET = [float(f"{'9' * n}") for n in range(3, 9)]  # degrees, of either sign: what tables write for "none"
_UNITS = {"degree": u.deg, "radian": u.rad, "hr": u.hourangle, "h": u.hourangle, "hour": u.hourangle}
_UNITS |= {str(unit): unit for unit in (u.deg, u.rad, u.arcsec, u.arcmin, u.mas, u.hourangle)}


def plain_column(values: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Return values as a plain array, which of them are missing (bool), and their unit as text.

    Examples
    --------
    >>> plain_column(np.ma.array([1, 2], mask=[False, True]))
    (array([1, 2]), array([False,  True]), '')
    """
    if hasattr(values, "isna"):  # of pandas, whose missing values numpy takes for objects
        values = Table.from_pandas(pd.DataFrame({"x": np.asarray(values) if values.dtype == "O" else values}))["x"]
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else getattr(values, "mask", False)
    held = getattr(values, "unmasked", values)
    unit = getattr(held, "unit", None)
    array = np.asarray(np.ma.getdata(held if unit is None else getattr(held, "value", held)))
    missing = np.broadcast_to(np.asarray(mask, bool), array.shape)
    if array.dtype.kind == "O" and array.ndim == 1:
        missing = missing | pd.isna(array) | np.array([value is np.ma.masked for value in array], bool)
        numbers = np.array(array[~missing].tolist()) if all(map(np.isscalar, array[~missing])) else array
        exact = numbers.ndim == 1 and numbers.dtype.kind in "biuf" and bool((numbers == array[~missing]).all())
        if exact and len(numbers):
            array = np.zeros(len(array), numbers.dtype)
            array[~missing] = numbers
    return array, missing, "" if unit is None else str(unit).strip()


def filled(values: Any) -> Any:
    """Return row numbers, a mask of rows, or vectors, where what is masked is not chosen, or not known (NaN).

    Raises
    ------
    ValueError
        If a row number is masked.
    """
    if not isinstance(values, np.ma.MaskedArray):
        return values
    if values.dtype.kind not in "bf" and np.ma.is_masked(values):
        raise ValueError(f"{np.ma.count_masked(values)} of {values.size} row numbers are masked")
    return values.filled(False if values.dtype.kind == "b" else np.nan if values.dtype.kind == "f" else None)


def row_numbers(rows: Any, n: int, *, where: str = "") -> np.ndarray:
    """Return the rows, int64, of n that numbers (from the end if negative), a slice, or a mask of rows stand for.

    Raises
    ------
    IndexError
        If a row is out of range, or a mask has another length.

    Examples
    --------
    >>> row_numbers([0, -1], 5), row_numbers(np.array([True, False, True]), 3)
    (array([0, 4]), array([0, 2]))
    """
    if isinstance(rows, slice):
        return np.arange(n)[rows]
    rows = np.atleast_1d(np.asarray(filled(rows)))
    if rows.dtype == bool:
        if rows.shape != (n,):
            raise IndexError(f"{where}a mask of rows of shape {rows.shape} for {n} objects")
        return np.flatnonzero(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise IndexError(f"{where}rows of type {rows.dtype} and shape {rows.shape}: must be integers, or a mask")
    rows = rows.astype(np.int64)
    if (wrong := rows[(rows < -n) | (rows >= n)]).size:
        raise IndexError(f"{where}row {wrong[0]} of {n} objects")
    return rows % max(1, n)


def numbers_of(cutouts: Any, name: str) -> np.ndarray:
    """Return a column of numbers or truth values of a `CutoutFile`.

    Raises
    ------
    KeyError, ValueError
        If there is no such column, or it holds text.
    """
    values = cutouts.column(name)
    if values.dtype.kind == "U":
        raise ValueError(f"{cutouts.path}: column {name!r} holds text: must be numbers")
    return values


def has_text(values: np.ndarray) -> np.ndarray:
    """Return which texts say something: False where one is empty, ``"nan"`` or the like.

    Examples
    --------
    >>> has_text(np.array(["star", "", "nan", "N/A"]))
    array([ True, False, False, False])
    """
    return ~np.isin(np.char.lower(np.char.strip(values)), NO_TEXT)


def as_label(name: str, values: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a label as an array of numbers, truth values or text, with its unit and what stands for a missing value.

    Missing is NaN, empty in text, and -1 in whole numbers of ``class`` and in those too large for float64; where -1 is
    one of these, the attribute ``missing`` says which number it is.

    Raises
    ------
    ValueError
        If they are neither; the message names the label.
    """
    if type(values) is np.ndarray and values.dtype.kind in "biufU" and values.dtype.char != "g":
        return values.astype(values.dtype.newbyteorder("="), copy=False), {}
    array, missing, unit = plain_column(values)
    about: dict[str, Any] = {"unit": unit} if unit else {}
    if nested := [value for value in array.flat if np.ndim(value)] if array.dtype.kind == "O" else []:
        raise ValueError(f"column {name!r} holds {nested[0]!r}: must be one number, truth value or text per object")
    if array.dtype.kind in "OSUM":
        texts = array.astype(str) if array.dtype.kind == "M" else [_text(value) for value in array.flat]
        return np.where(missing, "", np.array(texts, dtype=str).reshape(array.shape)), about
    if array.dtype.kind not in "fiub":
        raise ValueError(f"column {name!r} holds {array.dtype}: must be numbers, truth values or text")
    array = array.astype(np.float64 if array.dtype.char == "g" else array.dtype.newbyteorder("="))
    if not missing.any():
        return array, about
    if array.dtype.kind == "f":
        return np.where(missing, np.array(np.nan, array.dtype), array), about
    if name == "class" and array.dtype.kind in "iu":
        return np.where(missing, -1, array.astype(np.int64)), about
    good = array[~missing]
    if not len(good) or array.dtype.kind == "b" or (int(good.max()) < EXACT and int(good.min()) > -EXACT):
        return np.where(missing, np.nan, array.astype(np.float64)), about
    info = np.iinfo(array.dtype)
    free = next(
        value for value in (-1, info.min, info.max, 0, 1) if info.min <= value <= info.max and value not in good
    )
    about["missing"] = array.dtype.type(free)
    return np.where(missing, array.dtype.type(free), array), about


def degrees(
    values: Any, name: str, *, where: str = "", hours: bool = False, unit: u.UnitBase | str | None = None
) -> np.ndarray:
    """Return angles in degrees, float64; NaN where one is missing, empty or infinite.

    Parameters
    ----------
    values : array, Quantity, Angle, column or list
        Numbers in degrees, or in the unit that they state; or text, sexagesimal or in degrees.
    name, where : str
        What they are, and in which file, for messages.
    hours : bool
        Sexagesimal text without a unit is in hours.
    unit : Unit or str, optional
        Instead of the one that they state.

    Raises
    ------
    ValueError
        If they are no angles; the message names them.

    Examples
    --------
    >>> degrees([np.pi, 0] * u.rad, "ra"), degrees(["10:00:00.12"], "ra", hours=True)
    (array([180.,   0.]), array([150.0005]))
    """
    array, missing, stated = plain_column(values)
    if not isinstance(unit, u.UnitBase):
        stated = (unit or stated).lower()
        unit = _UNITS.get(stated, _UNITS.get(stated.rstrip("s")))
    if array.dtype.kind in "OSU":
        texts = ["" if gone else _text(value) for value, gone in zip(array.flat, missing.flat, strict=True)]
        return np.array([_from_text(text, name, where, hours, unit) for text in texts]).reshape(array.shape)
    if stated and unit is None:
        raise ValueError(f"{where}column {name!r} is in {stated!r}; known are {', '.join(_UNITS)}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{where}column {name!r} holds {array.dtype}: must be numbers in degrees, or text")
    found = (array.astype(np.float64) * (unit or u.deg)).to_value(u.deg)
    return np.where(missing | ~np.isfinite(found), np.nan, found)


def positions(ra: np.ndarray, dec: np.ndarray, *, where: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return positions in degrees, both NaN where a table holds -999 or the like (also -99 and 99, as declination).

    Raises
    ------
    ValueError
        If another value is no position; the message names what `where` says, row, value and remedy.

    Examples
    --------
    >>> positions(np.array([150.0, -999.0]), np.array([2.0, -999.0]))
    (array([150.,  nan]), array([ 2., nan]))
    """
    if ra.shape != dec.shape:
        raise ValueError(f"{where}ra has shape {ra.shape}, dec {dec.shape}: must be of one shape")
    unset = np.isin(np.abs(ra), _UNSET) | np.isin(np.abs(dec), [99.0, *_UNSET])
    if unset.any():
        row = int(np.argmax(unset))
        log.warning(
            "%s%d of %d positions are %g, %g or the like: taken as unknown",
            *(where, unset.sum(), len(unset), ra[row], dec[row]),
        )
        ra, dec = np.where(unset, np.nan, ra), np.where(unset, np.nan, dec)
    for name, values, low, high in (("ra", ra, -360, 720), ("dec", dec, -90, 90)):
        if len(bad := np.flatnonzero((values < low) | (values > high))):
            raise ValueError(
                f"{where}{len(bad)} values of {name} such as {values[bad[0]]:.9g} are not {low} to {high} degrees, "
                f"the first in row {bad[0]}: mend or mask them, or leave these rows out"
            )
    return ra, dec


def _from_text(text: str, name: str, where: str, hours: bool, unit: u.UnitBase | None) -> float:
    """Return degrees of text such as ``"10:00:00.12"``, ``"+02 12 00"`` or ``"150.0005"``."""
    text = text.strip()
    if text.lower() in (*NO_TEXT, "none", "-", "inf", "-inf"):
        return np.nan
    try:
        return float((float(text) * (unit or u.deg)).to_value(u.deg))
    except ValueError:
        try:
            return float(Angle(text, unit or (u.hourangle if hours else u.deg)).deg)
        except ValueError as error:
            raise ValueError(
                f"{where}column {name!r} holds {text!r}: must be degrees, or sexagesimal as in '10:00:00.1'"
            ) from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else str(value)
