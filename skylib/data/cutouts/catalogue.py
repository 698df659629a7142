"""Catalogues of objects: read in any format, positions found in any of their usual forms."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import Angle, SkyCoord
from astropy.table import Column, MaskedColumn, Table

log = logging.getLogger(__name__)

# Pairs of columns that hold a position (ICRS), in lower case; of several in one table, the first counts.
POSITION_NAMES = (
    ("ra", "dec"), ("raj2000", "dej2000"), ("raj2000", "decj2000"), ("ra_j2000", "dec_j2000"), ("_raj2000", "_dej2000"),
    ("ra_icrs", "de_icrs"), ("ra_icrs", "dec_icrs"), ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"),
    ("ra_deg", "dec_deg"), ("radeg", "dedeg"), ("radeg", "decdeg"), ("right_ascension", "declination"),
    ("coord_ra", "coord_dec"), ("target_ra", "target_dec"), ("plug_ra", "plug_dec"), ("ramean", "decmean"),
)  # fmt: skip
_UNITS = {
    "deg": u.deg, "degree": u.deg, "rad": u.rad, "radian": u.rad, "hour": u.hourangle, "hourangle": u.hourangle,
    "h": u.hourangle, "hr": u.hourangle, "arcsec": u.arcsec, "arcmin": u.arcmin, "mas": u.mas,
}  # fmt: skip


def read_catalogue(catalogue: str | Path | Table, *, columns: Sequence[str] = (), pixels: bool = False) -> Table:
    """Read a table of objects in any format that astropy knows: FITS, VOTable, CSV, ECSV, Parquet, ….

    Parameters
    ----------
    catalogue : path, Table or pandas DataFrame
        With the positions in columns ``ra`` and ``dec``, or named as in `POSITION_NAMES`, in any case of letters; in
        degrees, in the unit that the column states, or as sexagesimal text; or as one column of `SkyCoord`.
    columns : sequence of str
        Others that must exist.
    pixels : bool
        Also take a table with columns ``x`` and ``y`` instead (column and row, 0 = centre of the first pixel).

    Returns
    -------
    Table
        With ``ra`` and ``dec`` in degrees ICRS, or ``x`` and ``y``, as plain float64; NaN where they are masked or empty.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If it cannot be read.
    ValueError
        If a column is missing, or does not hold positions; the message names it.
    """
    where = ""
    if isinstance(catalogue, Table):
        table = catalogue.copy(copy_data=False)
    elif hasattr(catalogue, "iloc"):
        table = Table.from_pandas(catalogue)
    else:
        where = f" {catalogue}"
        if not Path(catalogue).is_file():
            raise FileNotFoundError(f"{catalogue}: no such catalogue")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", u.UnitsWarning)
                table = Table.read(catalogue)
        except Exception as error:  # each format raises its own
            raise OSError(f"{catalogue}: cannot be read as a catalogue: {error}") from error
    for name in columns:
        if name not in table.colnames:
            raise ValueError(f"catalogue{where} has no column {name!r}; columns: {', '.join(table.colnames)}")
    sky = [name for name in table.colnames if isinstance(table[name], SkyCoord)]
    pair = _pair(table, where)
    if pair is None and sky:
        place = table[sky[0]].icrs
        values = {name: _plain(getattr(place, name).deg) for name in ("ra", "dec")}
    elif pair is None and pixels and (names := _named(table, ("x", "y"), where)):
        for name, column in zip(("x", "y"), names, strict=True):
            table[name] = _pixels(table[column], column, where)
        return table
    elif pair is None:
        absent = "dec" if any(name.lower() == "ra" for name in table.colnames) else "ra"
        raise ValueError(
            f"catalogue{where} has no column {absent!r}; columns: {', '.join(table.colnames)} (positions are ra and dec, or "
            f"named as {', '.join('/'.join(names) for names in POSITION_NAMES[1:4])}, …{', or x and y' if pixels else ''})"
        )
    else:
        radians = pair[0].lower() == "coord_ra" and _looks_like_radians(table, pair, where)
        values = {
            name: _degrees(table[column], column, where, is_ra=name == "ra", unit=u.rad if radians else None)
            for name, column in zip(("ra", "dec"), pair, strict=True)
        }
    for name, low, high in (("ra", -360, 360), ("dec", -90, 90)):
        bad = (values[name] < low) | (values[name] > high)
        if bad.any():
            raise ValueError(
                f"catalogue{where}: {bad.sum()} values of {name} such as {values[name][bad][0]:g} are not {low} to {high} degrees"
            )
        table[name] = np.mod(values[name], 360) if name == "ra" else values[name]
    return table


def describe_extent(table: Table) -> str:
    """Return which part of the sky, or of the image, a catalogue covers, as text."""
    names = ("ra", "dec") if "ra" in table.colnames else ("x", "y")
    return ", ".join(
        f"{n} {np.nanmin(table[n]):.4f} to {np.nanmax(table[n]):.4f}" if np.isfinite(table[n]).any() else f"no {n}"
        for n in names
    )


def _pair(table: Table, where: str) -> list[str] | None:
    """Return the names of the columns with the position."""
    for names in POSITION_NAMES:
        if found := _named(table, names, where):
            return found
    return None


def _named(table: Table, names: tuple[str, ...], where: str) -> list[str] | None:
    """Return the columns of these names, as they are written in the table; None unless all exist."""
    found = []
    for name in names:
        same = [
            column for column in table.colnames if column.lower() == name and not isinstance(table[column], SkyCoord)
        ]
        if len(same) > 1 and name not in same:
            raise ValueError(f"catalogue{where} has columns {', '.join(same)}: which of them is {name} is not clear")
        if not same:
            return None
        found.append(name if name in same else same[0])
    return found


def _degrees(column: Any, name: str, where: str, *, is_ra: bool, unit: u.UnitBase | None) -> np.ndarray:
    """Return one coordinate in degrees, float64; NaN where it is masked or empty."""
    stated = getattr(column, "unit", None)
    if column.ndim != 1:
        raise ValueError(f"catalogue{where}: column {name!r} has several values per object")
    values = _plain(getattr(column, "value", column))
    if unit is None and stated is not None and str(stated).strip() and not isinstance(column, Angle):
        word = str(stated).strip().lower()
        unit = _UNITS.get(word, _UNITS.get(word.rstrip("s")))
        if unit is None:
            raise ValueError(f"catalogue{where}: column {name!r} is in {str(stated)!r}; known are {', '.join(_UNITS)}")
    if isinstance(column, Angle):
        return _plain(column.deg)
    if values.dtype.kind in "OSU":
        return _from_text(values, name, where, unit or (u.hourangle if is_ra else u.deg), numbers=unit or u.deg)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"catalogue{where}: column {name!r} holds {values.dtype}: must be numbers in degrees, or text")
    return (values.astype(np.float64) * (unit or u.deg)).to_value(u.deg)


def _from_text(values: np.ndarray, name: str, where: str, unit: u.UnitBase, *, numbers: u.UnitBase) -> np.ndarray:
    """Return degrees of text such as ``"10:00:00.12"``, ``"+02 12 00"`` or ``"150.0005"``."""
    out = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        text = (value.decode() if isinstance(value, bytes) else str(value)).strip()
        if value is None or not text or text.lower() in ("nan", "none", "--", "null"):
            continue
        try:
            out[i] = (float(text) * numbers).to_value(u.deg)
        except ValueError:
            try:
                out[i] = Angle(text, unit).deg
            except ValueError as error:
                raise ValueError(
                    f"catalogue{where}: column {name!r} holds {text!r}: must be degrees, or sexagesimal as in '10:00:00.1'"
                ) from error
    return out


def _pixels(column: Any, name: str, where: str) -> np.ndarray:
    values = _plain(column)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"catalogue{where}: column {name!r} holds {values.dtype}: must be pixel positions")
    return values.astype(np.float64)


def _plain(column: Any) -> np.ndarray:
    """Return values as an ndarray, what is masked as NaN (numbers) or empty (text)."""
    mask = getattr(column, "mask", None)
    if mask is None or not np.any(mask):
        return np.asarray(getattr(column, "unmasked", column))
    values = np.asarray(getattr(column, "unmasked", getattr(column, "data", column)))
    values = np.array(np.ma.getdata(values))
    values = values.astype(
        object if values.dtype.kind in "SU" else np.float64 if values.dtype.kind in "iuf" else values.dtype
    )
    values[np.broadcast_to(mask, values.shape)] = "" if values.dtype.kind == "O" else np.nan
    return values


def _looks_like_radians(table: Table, pair: list[str], where: str) -> bool:
    """Whether ``coord_ra`` and ``coord_dec`` without a unit are in radians, as the pipelines write them, or in degrees."""
    if any(getattr(table[name], "unit", None) is not None for name in pair):
        return False
    ra, dec = (_plain(table[name]).astype(np.float64) for name in pair)
    small = bool(np.nanmax(np.abs(ra), initial=0) <= 2 * np.pi and np.nanmax(np.abs(dec), initial=0) <= np.pi / 2)
    log.warning("catalogue%s: %s and %s have no unit; taken as %s", where, *pair, "radians" if small else "degrees")
    return small


def is_label(column: Any) -> bool:
    """Whether a column can be kept as a label: one number, truth value or text per object, no times or coordinates."""
    if not isinstance(column, Column | MaskedColumn | np.ndarray | u.Quantity) or getattr(column, "ndim", 0) != 1:
        return False
    values = np.asarray(getattr(column, "value", column))
    return values.dtype.kind in "fiubSU" or (
        values.dtype.kind == "O"
        and all(isinstance(v, str | bytes | None.__class__ | np.ma.core.MaskedConstant) for v in values)
    )
