"""Catalogues of objects: read in any format, positions found in any of their usual forms."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pandas as pd
from astropy.coordinates import FK4, FK5, FK4NoETerms, SkyCoord
from astropy.io import fits, votable
from astropy.io.registry import IORegistryError
from astropy.table import Column, MaskedColumn, Table

from skylib.data.fitsfile import opened, unwarned
from skylib.data.plain import NO_TEXT, degrees, plain_column, positions

log = logging.getLogger(__name__)
_MISSING = [(word, "0") for word in {*NO_TEXT, *map(str.upper, NO_TEXT), "NaN", "NaT"}]
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # with which some programs begin a text file

# Pairs of columns that hold a position, in lower case, by their frame; of several in one table, the first counts.
_NAMES = """icrs: ra/dec raj2000/dej2000 raj2000/decj2000 ra_j2000/dec_j2000 _raj2000/_dej2000 ra_icrs/de_icrs
    ra_icrs/dec_icrs alpha_j2000/delta_j2000 alphawin_j2000/deltawin_j2000 alphapeak_j2000/deltapeak_j2000
    alpha_sky/delta_sky ra_deg/dec_deg radeg/dedeg radeg/decdeg right_ascension/declination coord_ra/coord_dec
    target_ra/target_dec plug_ra/plug_dec i_ra/i_dec ramean/decmean ra_1/dec_1; galactic: glon/glat gal_lon/gal_lat
    l/b; fk4: rab1950/deb1950 ra_b1950/dec_b1950 _rab1950/_deb1950"""
POSITION_NAMES = {
    tuple(pair.split("/")): frame for frame, pairs in re.findall(r"(\w+):([^;]+)", _NAMES) for pair in pairs.split()
}


def read_catalogue(
    catalogue: str | Path | Table | pd.DataFrame, *, columns: Sequence[str] = (), pixels: bool = False
) -> Table:
    """Read a table of objects in any format that astropy knows: FITS, VOTable, CSV, ECSV, Parquet, ….

    Parameters
    ----------
    catalogue : path, Table or pandas DataFrame
        With the positions in columns ``ra`` and ``dec``, or named as in `POSITION_NAMES`, in any case of letters; in
        degrees, in the unit that the column states, or as sexagesimal text; or as one column of `SkyCoord`. Of a FITS
        file with several tables, the first with positions.
    columns : sequence of str
        Others that must exist.
    pixels : bool
        Also take a table with columns ``x`` and ``y`` instead (column and row, 0 = centre of the first pixel).

    Returns
    -------
    Table
        With ``ra`` and ``dec`` in degrees ICRS, or ``x`` and ``y``, as plain float64; NaN where they are masked, empty
        or infinite.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If it cannot be read.
    ValueError
        If a column is missing, or does not hold positions; the message names it.
    """
    where = f" {catalogue}" if isinstance(catalogue, str | Path) else ""
    if isinstance(catalogue, Table):
        table = catalogue.copy(copy_data=False)
    elif isinstance(catalogue, pd.DataFrame):
        table = _from_pandas(catalogue)
    elif isinstance(catalogue, str | Path):
        table = _load(Path(catalogue))
    else:
        try:
            table = Table(catalogue)
            len(table)  # which fails for single values
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"catalogue of type {type(catalogue).__name__}: must be a path or a table: {error}"
            ) from error
    if table.colnames and table.colnames[0].startswith(_MARK):
        table.rename_column(table.colnames[0], table.colnames[0].removeprefix(_MARK))
    for name in columns:
        if name not in table.colnames:
            raise ValueError(f"catalogue{where} has no column {name!r}; columns: {', '.join(table.colnames)}")
    sky = [name for name in table.colnames if isinstance(table[name], SkyCoord)]
    pair, frame = _pair(table, where)
    if pair is None and sky:
        place = table[sky[0]].icrs
        values = {name: degrees(getattr(place, name), name) for name in ("ra", "dec")}
    elif pair is None and pixels and (names := _named(table, ("x", "y"), where)):
        for name, column in zip(("x", "y"), names, strict=True):
            table[name] = _pixels(table[column], column, where)
        return table
    elif pair is None:
        absent = "dec" if any(name.lower() == "ra" for name in table.colnames) else "ra"
        raise ValueError(
            f"catalogue{where} has no column {absent!r}; columns: {', '.join(table.colnames)} (positions are ra and "
            f"dec, or named as {', '.join('/'.join(names) for names in list(POSITION_NAMES)[1:4])}, "
            f"…{', or x and y' if pixels else ''})"
        )
    else:
        unit = _unstated_unit(table, pair, where)
        values = {
            name: _angles(table[column], column, where, hours=name == "ra" and frame != "galactic", unit=unit)
            for name, column in zip(("ra", "dec"), pair, strict=True)
        }
    values = dict(zip(("ra", "dec"), positions(values["ra"], values["dec"], where=f"catalogue{where}: "), strict=True))
    if frame == "icrs" and pair is not None:
        frame = _stated_frame(table, where)
    if frame != "icrs":
        place = SkyCoord(values["ra"], values["dec"], unit="deg", frame=frame).icrs
        values = {"ra": place.ra.deg, "dec": place.dec.deg}
    table["ra"], table["dec"] = np.mod(values["ra"], 360), values["dec"]
    return table


def describe_extent(table: Table) -> str:
    """Return which part of the sky, or of the image, a catalogue covers, as text."""
    names = ("ra", "dec") if "ra" in table.colnames else ("x", "y")
    return ", ".join(
        f"{n} {np.nanmin(table[n]):.4f} to {np.nanmax(table[n]):.4f}" if np.isfinite(table[n]).any() else f"no {n}"
        for n in names
    )


def is_label(column: Any) -> bool:
    """Whether a column can be kept as a label: one number, truth value or text per object, no times or coordinates."""
    if not isinstance(column, Column | MaskedColumn | np.ndarray | u.Quantity) or getattr(column, "ndim", 0) != 1:
        return False
    values = np.asarray(getattr(column, "value", column))
    if values.dtype.kind != "O":
        return values.dtype.kind in "fiubSU"
    array, missing, _ = plain_column(column)
    return array.dtype.kind in "fiub" or all(isinstance(value, str | bytes) for value in array[~missing])


def _from_pandas(frame: pd.DataFrame) -> Table:
    """Return a data frame as a table, with those levels of its index that have names as columns."""
    frame = frame.reset_index([name for name in frame.index.names if name is not None and name not in frame.columns])
    if not frame.columns.is_unique:
        raise ValueError(f"catalogue: several columns have one name: {', '.join(map(str, frame.columns))}")
    return Table.from_pandas(frame.set_axis([str(name) for name in frame.columns], axis=1))


def _load(path: Path) -> Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such catalogue")
    with path.open("rb") as file:
        start = file.read(5000)
    is_fits = start.startswith(b"SIMPLE") or re.search(r"\.fits?(\.\w+)?$", path.name, re.IGNORECASE)
    with unwarned(u.UnitsWarning):
        if is_fits:
            with opened(path, "a catalogue") as hdus:  # which looks at the checksums
                kinds = fits.BinTableHDU | fits.TableHDU
                held = [h for h in hdus if isinstance(h, kinds) and not isinstance(h, fits.CompImageHDU)]
                tables = [Table.read(hdu) for hdu in held]
                if not tables:
                    raise ValueError(f"no table among the HDUs {[hdu.name for hdu in hdus]}")
            return next((table for table in tables if _pair(table, f" {path}")[0]), tables[0])
        try:
            try:
                if start.startswith(b"PAR1") and not _of_astropy(path):
                    return _from_pandas(pd.read_parquet(path, dtype_backend="numpy_nullable"))
                table = Table.read(path, **_csv_dialect(path))
                if b"<VOTABLE" in start:
                    table.meta |= _coordinate_system(path)
                return table
            except IORegistryError:  # a name that tells no format
                return Table.read(path, format="ascii", fill_values=_MISSING)
        except Exception as error:  # each format raises its own
            raise OSError(
                f"{path}: cannot be read as a catalogue: {(str(error).strip() or repr(error)).splitlines()[0]}"
            ) from error


def _of_astropy(path: Path) -> bool:
    """Whether astropy wrote a Parquet file; in those of others it turns missing values into floats, or fails."""
    from pyarrow import parquet  # late: it takes long

    return b"table_meta_yaml" in (parquet.read_metadata(path).metadata or {})


def _csv_dialect(path: Path) -> dict[str, Any]:
    """Return how a CSV file is to be read, whose header may be a comment, and whose delimiter may be another one."""
    if path.suffix.lower() != ".csv":
        return {}
    comment, header = "", ""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if header := line.strip().removeprefix(_MARK):
                if not header.startswith("#"):
                    break
                comment = header.lstrip("# ")
    delimiter = max(",;\t|", key=header.count)
    how: dict[str, Any] = {"format": "ascii.csv", "comment": "#", "delimiter": delimiter, "fill_values": _MISSING}
    names = [name.strip() for name in comment.split(delimiter)]
    if re.match(r"[-+.\d]", header) and len(names) == header.count(delimiter) + 1 > 1:  # as numpy.savetxt writes it
        how |= {"format": "ascii.no_header", "names": names}
    return how


def _coordinate_system(path: Path) -> dict[str, str]:
    """Return system and equinox that a VOTable states."""
    for resource in votable.parse(path, verify="ignore").resources:
        for system in resource.coordinate_systems:
            kind = {"eq_FK4": "FK4", "eq_FK5": "FK5", "ICRS": "ICRS"}.get(system.system)
            if kind is not None:
                return {"RADESYS": kind, "EQUINOX": system.equinox or ""}
    return {}


def _pair(table: Table, where: str) -> tuple[list[str] | None, str]:
    """Return the names of the columns with the position, and its frame."""
    for names, frame in POSITION_NAMES.items():
        if found := _named(table, names, where):
            return found, frame
    return None, "icrs"


def _named(table: Table, names: tuple[str, ...], where: str) -> list[str] | None:
    """Return the columns of these names, as they are written in the table; None unless all exist."""
    found = []
    for name in names:
        same = [
            c
            for c in table.colnames
            if re.sub(r"\W+", "_", c.lower()).rstrip("_") == name and not isinstance(table[c], SkyCoord)
        ]
        if len(same) > 1 and name not in same:
            raise ValueError(f"catalogue{where} has columns {', '.join(same)}: which of them is {name} is not clear")
        if not same:
            return None
        found.append(name if name in same else same[0])
    return found


def _stated_frame(table: Table, where: str) -> Any:
    """Return the frame that a table states: by RADESYS and EQUINOX as in FITS, or by the COOSYS of a VOTable."""
    meta = {str(name).upper(): str(value).strip().upper() for name, value in table.meta.items()}
    system = meta.get("RADESYS") or meta.get("RADECSYS") or ""
    equinox = (meta.get("EQUINOX") or "").lstrip("JB")
    if system in ("", "ICRS", "FK5") and equinox in ("", "2000", "2000.0"):
        return "icrs"  # with which FK5 agrees within 0.03 arcsec
    try:
        frame = {"": FK5 if float(equinox or 2000) >= 1984 else FK4, "FK5": FK5, "FK4": FK4, "FK4-NO-E": FK4NoETerms}[
            system
        ]
        return frame(equinox=f"{'J' if frame is FK5 else 'B'}{float(equinox or (2000 if frame is FK5 else 1950))}")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"catalogue{where}: positions are in RADESYS={system!r}, EQUINOX={equinox!r}: must be ICRS, FK5 or FK4"
        ) from error


def _unstated_unit(table: Table, pair: list[str], where: str) -> u.UnitBase | None:
    """Return radians or degrees for ``coord_ra`` and ``coord_dec`` without a unit, as the pipelines write them."""
    if pair[0].lower() != "coord_ra" or any(getattr(table[name], "unit", None) is not None for name in pair):
        return None
    ra, dec = (np.abs(degrees(table[name], name, where=f"catalogue{where}: ")) for name in pair)
    unit = u.rad if np.nanmax(ra, initial=0) <= 2 * np.pi and np.nanmax(dec, initial=0) <= np.pi / 2 else u.deg
    log.warning("catalogue%s: %s and %s have no unit; taken as %s", where, *pair, unit.long_names[0] + "s")
    return unit


def _angles(column: Any, name: str, where: str, *, hours: bool, unit: u.UnitBase | None) -> np.ndarray:
    if column.ndim != 1:
        raise ValueError(f"catalogue{where}: column {name!r} has several values per object")
    return degrees(column, name, where=f"catalogue{where}: ", hours=hours, unit=unit)


def _pixels(column: Any, name: str, where: str) -> np.ndarray:
    values, missing, unit = plain_column(column)
    if unit.lower() not in ("", "pix", "pixel", "pixels"):
        raise ValueError(f"catalogue{where}: column {name!r} is in {unit!r}: must be pixels")
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"catalogue{where}: column {name!r} holds {values.dtype}: must be pixel positions")
    return np.where(missing, np.nan, values.astype(np.float64))
