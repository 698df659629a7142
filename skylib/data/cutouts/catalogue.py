"""Catalogues of objects, and which tile holds which object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import Table

from skylib.data.tiles import TilePaths, read_wcs


def read_catalogue(catalogue: str | Path | Table, *, columns: Sequence[str] = ()) -> Table:
    """Read a table of objects in any format that astropy knows: FITS, VOTable, CSV, ECSV, Parquet, ….

    Parameters
    ----------
    catalogue : path or Table
        With ``ra`` and ``dec``, in any case of letters; in degrees, or in the unit that the column states.
    columns : sequence of str
        Others that must be there.

    Returns
    -------
    Table
        With ``ra`` and ``dec`` in degrees.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If it cannot be read.
    ValueError
        If a column is missing.
    """
    if isinstance(catalogue, Table):
        table, where = catalogue.copy(copy_data=False), ""
    else:
        where = f" {catalogue}"
        if not Path(catalogue).is_file():
            raise FileNotFoundError(f"{catalogue}: no such catalogue")
        try:
            table = Table.read(catalogue)
        except Exception as error:  # each format raises its own
            raise OSError(f"{catalogue}: cannot be read as a catalogue: {error}") from error
    for name in ("ra", "dec"):
        found = [column for column in table.colnames if column.lower() == name]
        if name not in table.colnames and len(found) == 1:
            table.rename_column(found[0], name)
    for name in ("ra", "dec", *columns):
        if name not in table.colnames:
            raise ValueError(f"catalogue{where} has no column {name!r}; columns: {', '.join(table.colnames)}")
    for name in ("ra", "dec"):
        if table[name].unit is not None and table[name].unit != u.deg:
            table[name] = table[name].to(u.deg)
    return table


def assign_tiles(
    tiles: Sequence[TilePaths], ra: np.ndarray, dec: np.ndarray, *, size: int, edge: str,
    on_unreadable: Callable[[int, OSError], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Find the tile in which each object is farthest from the edge.

    Parameters
    ----------
    tiles : sequence of TilePaths
    ra, dec : ndarray of float64, shape (n,)
        Degrees ICRS.
    size : int
        Side of the cutouts, pixels.
    edge : {"pad", "drop"}
        Whether cutouts may reach over the edge of a tile.
    on_unreadable : callable
        Given the number of a tile whose header cannot be read, and the error; the tile holds nothing if it returns.

    Returns
    -------
    tile_of : ndarray of int64, shape (n,)
        Number of the tile; -1 for none.
    rows, cols : ndarray of float64, shape (n,)
        Position in that tile, in pixels.
    """
    if edge not in ("pad", "drop"):
        raise ValueError(f"edge={edge!r}: one of 'pad', 'drop'")
    tile_of = np.full(len(ra), -1)
    best = np.full(len(ra), -np.inf)
    rows, cols = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    for t, paths in enumerate(tiles):
        try:
            wcs, (height, width) = read_wcs(paths)
        except OSError as error:
            on_unreadable(t, error)
            continue
        # A gnomonic projection repeats itself on the far side of the sky: only nearby objects can be in the tile.
        (ra0, corner_ra), (dec0, corner_dec) = wcs.all_pix2world([width / 2, 0], [height / 2, 0], 0)
        radius = 1.1 * _separation(corner_ra, corner_dec, ra0, dec0)
        near = np.flatnonzero(_separation(ra, dec, ra0, dec0) < radius)
        if not len(near):
            continue
        x, y = wcs.all_world2pix(ra[near], dec[near], 0)
        depth = np.minimum(np.minimum(y + 0.5, height - 0.5 - y), np.minimum(x + 0.5, width - 0.5 - x))
        better = (depth > best[near]) & (depth >= (size / 2 if edge == "drop" else 0))
        chosen = near[better]
        tile_of[chosen], best[chosen] = t, depth[better]
        rows[chosen], cols[chosen] = y[better], x[better]
    return tile_of, rows, cols


def describe_extent(table: Table) -> str:
    """Return which part of the sky a catalogue covers, as text."""
    ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    return f"ra {np.nanmin(ra):.4f} to {np.nanmax(ra):.4f}, dec {np.nanmin(dec):.4f} to {np.nanmax(dec):.4f}"


def describe_centre(paths: TilePaths) -> str:
    """Return where the centre of a tile lies, as text."""
    wcs, (height, width) = read_wcs(paths)
    ra, dec = wcs.all_pix2world(width / 2, height / 2, 0)
    return f"ra {float(ra):.4f}, dec {float(dec):.4f}"


def _separation(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Return the angle (deg) between positions in degrees."""
    ra, dec, ra0, dec0 = np.deg2rad(ra), np.deg2rad(dec), np.deg2rad(ra0), np.deg2rad(dec0)
    haversine = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(haversine.clip(0, 1))))
