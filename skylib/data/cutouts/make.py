"""Cutting images of objects out of tiles."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.bands import ZERO_POINT
from skylib.checks import checked, free_name
from skylib.data.cutouts.assign import Places, assign_tiles, common_bands, describe_centre
from skylib.data.cutouts.catalogue import describe_extent, is_label, read_catalogue
from skylib.data.cutouts.file import CutoutFile
from skylib.data.cutouts.resume import CutoutJob
from skylib.data.tiles import TilePaths, read_tile, tile_pixel_scale

log = logging.getLogger(__name__)

_BLOCK = 256  # cutouts written together


@checked
def make_cutouts(
    tiles: Sequence[TilePaths],
    catalogue: str | Path | Table,
    out: str | Path,
    *,
    size: int = 64,
    columns: str | Sequence[str] | None = None,
    bad_planes: Sequence[str | int] = (),
    variance: bool = False,
    align: bool | None = None,
    edge: Literal["pad", "drop"] = "pad",
    on_error: Literal["raise", "skip"] = "raise",
    workers: int | None = None,
) -> CutoutFile:
    """Cut an image out of the tiles around every object of a catalogue.

    Each tile is read once, several at a time. A call that was killed resumes with the tiles that are missing when it is
    made again; one whose file exists already, of the same tiles, objects and settings, returns it.

    Parameters
    ----------
    tiles : sequence of TilePaths
        From `find_tiles`. An object in several tiles is taken from the one where it is farthest from the edge.
    catalogue : path or Table
        Any format that astropy reads, with columns ``ra`` and ``dec`` (deg, ICRS) or their usual other names and units;
        or with ``x`` and ``y``, pixels from 0 at the centre of the first, and of several tiles the name of the
        ``tile``.
    out : path
        The new HDF5 file. The objects keep the catalogue's order; those without a position, outside all tiles, or
        without a single pixel of data, are dropped, with a warning that counts them.
    size : int
        Side in pixels. The object's pixel is ``[size // 2, size // 2]``.
    columns : sequence of str, optional
        Which to keep as labels; all with one number or text per object by default.
    bad_planes : sequence of str or int
        Mask planes whose pixels become NaN.
    variance : bool
        Also keep the inverse variance of each pixel (`CutoutFile.weight`).
    align : bool, optional
        As in `read_tile`.
    edge : {"pad", "drop"}
        What becomes of objects whose cutout reaches over the edge of the tile: NaN beyond it, or dropped.
    on_error : {"raise", "skip"}
        ``skip``: tiles that cannot be read are logged, and listed in the file's attribute ``skipped_tiles``; their
        objects are dropped and counted.
    workers : int, optional
        Tiles read at the same time, each of which must fit in memory; by default up to four, one per core.

    Returns
    -------
    CutoutFile
        Counts at zero-point 27, with the columns ``tile``, ``row``, ``col`` (pixels) and ``file`` (that of the tile's
        first band) beside the catalogue's own. Columns of the catalogue with these names are kept as
        ``catalogue_tile`` ….

    Raises
    ------
    ValueError
        If a column is missing, no object lies in the tiles or has data, or the tiles hold different bands.
    OSError
        If a file cannot be read, or `out` cannot be written.

    Examples
    --------
    >>> made = skylib.make_cutouts(tiles, sky.catalogue, "cutouts.h5", size=32)
    >>> made.flux([0, 1]).shape
    (2, 5, 32, 32)
    """
    columns = [columns] if isinstance(columns, str) else columns
    table = read_catalogue(catalogue, columns=columns or (), pixels=True)
    where = f" {catalogue}" if isinstance(catalogue, str | Path) else ""
    bands = common_bands(tiles)
    if isinstance(catalogue, str | Path) and Path(out).resolve() == Path(catalogue).resolve():
        raise ValueError(f"{out}: is the catalogue itself, which would be overwritten")
    unreadable: dict[int, str] = {}

    def skip(t: int, error: OSError | ValueError) -> None:
        if on_error == "raise":
            raise error
        log.warning("tile %s is skipped: %s", tiles[t].name, error)
        unreadable[t] = str(error)

    found = assign_tiles(tiles, table, size=size, edge=edge, on_unreadable=skip)
    if len(unreadable) == len(tiles):
        raise OSError(f"none of {len(tiles)} tiles can be read; the first: {next(iter(unreadable.values()))}")
    _report_outside(found, table, tiles, where, edge)
    kept = np.flatnonzero(found.tile >= 0)
    tile_of, rows, cols = found.tile[kept], found.rows[kept], found.cols[kept]
    labels, attributes = _describe(table[kept], columns, tiles, tile_of, rows, cols, where)
    used = np.unique(tile_of).tolist()
    stats = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for t in used for p in tiles[t].paths.values() if p]
    settings = {
        "files": stats,
        "bands": bands,
        "size": size,
        "bad_planes": list(bad_planes),
        "variance": variance,
        "align": align,
        "survey": repr(tiles[0].survey),
    }
    job = CutoutJob(Path(out), settings, labels)
    if job.is_finished() and not unreadable:
        log.info("%s: exists already, made of the same tiles and objects", out)
        job.remove()
        return CutoutFile(out)
    with job.open(len(kept), len(tiles), bands, size, attributes, weight=variance):

        def cut(t: int) -> None:
            """Write the cutouts of a tile."""
            tile = read_tile(tiles[t], bad_planes=bad_planes, variance=variance, align=align, sky=not found.by_pixel)
            images = [tile.flux] if tile.variance is None else [tile.flux, _inverse(tile.variance, tile.flux)]
            members = np.flatnonzero(tile_of == t)
            top, left = (np.round(v[members]).astype(int) - size // 2 for v in (rows, cols))
            for start in range(0, len(members), _BLOCK):
                part = slice(start, start + _BLOCK)
                corners = list(zip(top[part].tolist(), left[part].tolist(), strict=True))
                job.write(members[part], *(_windows(image, corners, size) for image in images))
            job.finish(t)

        todo = [t for t in used if not job.done[t]]
        if len(todo) < len(used):
            log.info("%s: resumes, with %d of %d tiles done", out, len(used) - len(todo), len(used))
        with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
            running = {pool.submit(cut, t): t for t in todo}
            try:
                for future in tqdm(as_completed(running), desc="cutouts", unit="tile", total=len(todo)):
                    try:
                        future.result()
                    except (OSError, ValueError) as error:
                        if not job.is_writable:
                            raise
                        skip(running[future], error)
            finally:
                pool.shutdown(cancel_futures=True)
        lost, empty = np.isin(tile_of, list(unreadable)), job.empty
    if lost.all():
        job.remove()
        raise OSError(f"none of {len(used)} tiles can be read; the first: {next(iter(unreadable.values()))}")
    for reason, which in (("lie in tiles that were skipped", lost), ("have no pixel of data", empty & ~lost)):
        if which.any():
            log.warning("%d of %d objects %s and are left out", which.sum(), len(which), reason)
    job.complete(~(lost | empty), [tiles[t].name for t in sorted(unreadable)])
    return CutoutFile(out)


def slice_cutout(image: np.ndarray, row: int, col: int, size: int) -> np.ndarray:
    """Return the (C, size, size) cutout with pixel (row, col) at its [size // 2, size // 2]; NaN beyond the edge.

    Examples
    --------
    >>> slice_cutout(np.arange(9.0).reshape(1, 3, 3), 0, 1, 2)
    array([[[nan, nan],
            [ 0.,  1.]]])
    """
    top, left = row - size // 2, col - size // 2
    if top >= 0 and left >= 0 and top + size <= image.shape[1] and left + size <= image.shape[2]:
        return image[:, top : top + size, left : left + size]
    window = np.full((image.shape[0], size, size), np.nan, dtype=image.dtype)
    r0, r1 = max(top, 0), min(top + size, image.shape[1])
    c0, c1 = max(left, 0), min(left + size, image.shape[2])
    if r0 < r1 and c0 < c1:
        window[:, r0 - top : r1 - top, c0 - left : c1 - left] = image[:, r0:r1, c0:c1]
    return window


def _windows(image: np.ndarray, corners: list[tuple[int, int]], size: int) -> np.ndarray:
    out = np.empty((len(corners), image.shape[0], size, size), dtype=np.float32)
    for window, (top, left) in zip(out, corners, strict=True):
        window[:] = slice_cutout(image, top + size // 2, left + size // 2, size)
    return out


def _inverse(variance: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Return 1 / variance, and 0 where there is no data or no variance."""
    good = np.isfinite(flux) & (variance > 0)
    return np.divide(1, variance, out=np.zeros_like(variance), where=good)


def _report_outside(found: Places, table: Table, tiles: Sequence[TilePaths], where: str, edge: str) -> None:
    """Say how many objects get no cutout, and why; raise where that is all of them."""
    inside, unknown = int((found.tile >= 0).sum()), int(found.unknown.sum())
    if not inside:
        raise ValueError(
            f"none of the {len(table)} objects of the catalogue{where} lies in the {len(tiles)} tiles: the catalogue "
            f"covers {describe_extent(table)}{f', {unknown} have no position' * bool(unknown)}; "
            f"tile {tiles[0].name} {describe_centre(tiles[0])}"
        )
    if unknown:
        log.warning("%d of %d objects have no position and are left out", unknown, len(table))
    if outside := len(table) - inside - unknown:
        at_edge = " or at their edge" if edge == "drop" else ""
        log.warning("%d of %d objects lie outside the tiles%s and are left out", outside, len(table), at_edge)


def _describe(
    table: Table,
    columns: Sequence[str] | None,
    tiles: Sequence[TilePaths],
    tile_of: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    where: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the labels of the objects, and the attributes of the file."""
    for name in columns or ():
        if not is_label(table[name]):
            raise ValueError(f"catalogue{where}: column {name!r} is not one number or text per object")
    labels = {name: table[name] for name in (columns or table.colnames) if is_label(table[name])}
    if dropped := [name for name in table.colnames if columns is None and name not in labels]:
        log.warning("columns %s are left out: they hold no single number or text per object", ", ".join(dropped))
    files = [str(tile.first) for tile in tiles]
    ours: dict[str, Any] = {"row": rows, "col": cols}
    ours |= {"tile": np.array([tiles[t].name for t in tile_of]), "file": np.array([files[t] for t in tile_of])}
    for name, values in ours.items():
        if name in labels and np.asarray(labels[name]).astype(str).tolist() != values.astype(str).tolist():
            labels[free_name(f"catalogue_{name}", labels)] = labels.pop(name)
    for name in ("ra", "dec"):
        labels[name] = table[name] if name in table.colnames else np.full(len(table), np.nan)
    attributes = {
        "pixel_scale": tile_pixel_scale(tiles[tile_of[0]]),
        "zero_point": ZERO_POINT,
        "survey": tiles[0].survey.name,
        "simulated": fits.getheader(tiles[tile_of[0]].first).get("ORIGIN") == "simulate_sky",
        "provenance": f"{len(tiles)} tiles, first {Path(files[0]).name}; catalogue{where or ' given as a table'}",
    }
    return {**labels, **ours}, attributes
