"""Which tile holds which object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from astropy.table import Table

from skylib.data.grids import centre_and_corners, pixel_position, sky_position
from skylib.data.plain import as_label
from skylib.data.sky import separation
from skylib.data.tiles import TilePaths, read_wcs


class Places(NamedTuple):
    """Where objects lie."""

    tile: np.ndarray  # int64 (n,): number of the tile; -1 for none
    rows: np.ndarray  # float64 (n,): position in that tile, pixels
    cols: np.ndarray
    unknown: np.ndarray  # bool (n,): no position is known
    by_pixel: bool  # positions were given as pixels


def assign_tiles(
    tiles: Sequence[TilePaths],
    table: Table,
    *,
    size: int,
    edge: str,
    on_unreadable: Callable[[int, OSError | ValueError], None],
) -> Places:
    """Find the tile in which each object is farthest from the edge.

    Parameters
    ----------
    tiles : sequence of TilePaths
    table : Table
        From `read_catalogue`: with ``ra`` and ``dec`` (deg, ICRS), or ``x``, ``y`` and, of several tiles, ``tile``.
    size : int
        Side of the cutouts, pixels.
    edge : {"pad", "drop"}
        Whether cutouts may reach over the edge of a tile.
    on_unreadable : callable
        Given the number of a tile whose header cannot be read, and the error; the tile holds nothing if it returns.

    Returns
    -------
    Places

    Raises
    ------
    ValueError
        If a tile has no sky coordinates, but the objects have; the message names its file.
    """
    n, by_pixel = len(table), "ra" not in table.colnames
    first, second = (np.asarray(table[name], float) for name in (("x", "y") if by_pixel else ("ra", "dec")))
    unknown = ~(np.isfinite(first) & np.isfinite(second))
    places = Places(np.full(n, -1), np.full(n, np.nan), np.full(n, np.nan), unknown, by_pixel)
    if by_pixel and len(tiles) > 1 and "tile" not in table.colnames:
        raise ValueError(
            f"positions are pixels (x, y), and there are {len(tiles)} tiles: a column 'tile' must name them"
        )
    names = (
        np.char.strip(as_label("tile", table["tile"])[0].astype(str)) if by_pixel and "tile" in table.colnames else None
    )
    held = [paths.name for paths in tiles]
    if names is not None and len(names) and not np.isin(names, held).any():
        raise ValueError(f"the catalogue's column 'tile' holds {str(names[0])!r}; the tiles are {', '.join(held[:5])}")
    best = np.full(n, -np.inf)
    for t, paths in enumerate(tiles):
        try:
            wcs, (height, width) = read_wcs(paths)
            if wcs is None and not by_pixel:
                raise ValueError(f"{paths.first}: no sky coordinates in the header; give the objects as pixels x, y")
            if by_pixel:
                near = np.flatnonzero(~unknown if names is None else ~unknown & (names == paths.name))
                y, x = second[near], first[near]
            else:  # a gnomonic projection repeats itself on the far side of the sky: only nearby objects can be inside
                ra0, dec0 = sky_position(wcs, *centre_and_corners((height, width)))
                radius = 1.1 * separation(ra0[1:], dec0[1:], ra0[0], dec0[0]).max()
                near = np.flatnonzero(~unknown & (separation(first, second, ra0[0], dec0[0]) < radius))
                y, x = pixel_position(wcs, first[near], second[near]) if len(near) else (near, near)
        except (OSError, ValueError) as error:
            on_unreadable(t, error)
            continue
        depth = np.minimum(np.minimum(y + 0.5, height - 0.5 - y), np.minimum(x + 0.5, width - 0.5 - x))
        better = (depth > best[near]) & (depth >= (size / 2 if edge == "drop" else 0))
        chosen = near[better]
        places.tile[chosen], best[chosen] = t, depth[better]
        places.rows[chosen], places.cols[chosen] = y[better], x[better]
    return places


def common_bands(tiles: Sequence[TilePaths]) -> tuple[str, ...]:
    """Return the bands of tiles, or raise ValueError unless all hold the same, in one order."""
    if not tiles:
        raise ValueError("no tiles given")
    bands = tuple(tiles[0].paths)
    for tile in tiles:
        if tuple(tile.paths) != bands:
            raise ValueError(f"tile {tile.name} holds bands {tuple(tile.paths)}, the first tile {bands}")
    return bands


def describe_centre(paths: TilePaths) -> str:
    """Return where the centre of a tile lies, or how large it is, as text."""
    wcs, (height, width) = read_wcs(paths)
    if wcs is None:
        return f"has {height} rows and {width} columns"
    ra, dec = sky_position(wcs, (height - 1) / 2, (width - 1) / 2)
    return f"is centred at ra {float(ra):.4f}, dec {float(dec):.4f}"
