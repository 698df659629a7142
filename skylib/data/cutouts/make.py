"""Cutting images of objects out of tiles."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.bands import ZERO_POINT
from skylib.data.cutouts.catalogue import assign_tiles, describe_centre, describe_extent, read_catalogue
from skylib.data.cutouts.file import CutoutFile
from skylib.data.cutouts.write import PixelWriter, create, keep_rows
from skylib.data.tiles import TilePaths, read_tile, read_wcs

log = logging.getLogger(__name__)


def make_cutouts(
    tiles: Sequence[TilePaths],
    catalogue: str | Path | Table,
    out: str | Path,
    *,
    size: int = 64,
    columns: Sequence[str] | None = None,
    bad_planes: Sequence[str] = (),
    variance: bool = False,
    edge: Literal["pad", "drop"] = "pad",
    on_error: Literal["raise", "skip"] = "raise",
    workers: int | None = None,
) -> CutoutFile:
    """Cut an image out of the tiles around every object of a catalogue.

    Each tile is read once, several at a time. A call that was killed goes on with the tiles that are missing when it is
    made again; one whose file is there already, of the same tiles, objects and settings, returns it.

    Parameters
    ----------
    tiles : sequence of TilePaths
        From `find_tiles`. An object in several tiles is taken from the one where it is farthest from the edge.
    catalogue : path or Table
        Any format that astropy reads, with columns ``ra`` and ``dec`` (deg, ICRS).
    out : path
        The new HDF5 file. The objects keep the catalogue's order; those outside all tiles, and those without a single
        pixel of data, are dropped, with a warning that counts them.
    size : int
        Side in pixels. The object's pixel is ``[size // 2, size // 2]``.
    columns : sequence of str, optional
        Which to keep as labels; all one-dimensional ones by default.
    bad_planes : sequence of str
        Mask planes whose pixels become NaN.
    variance : bool
        Also keep the inverse variance of each pixel (`CutoutFile.weight`).
    edge : {"pad", "drop"}
        What becomes of objects whose cutout reaches over the edge of the tile: NaN beyond it, or dropped.
    on_error : {"raise", "skip"}
        ``skip``: tiles that cannot be read are logged, and listed in the file's attribute ``skipped_tiles``; their
        objects are dropped and counted.
    workers : int, optional
        Tiles read at the same time, each of which must fit in memory; by default up to four, one a core.

    Returns
    -------
    CutoutFile
        With the columns ``tile``, ``row``, ``col`` (pixels) and ``file`` (that of the tile's first band) beside the
        catalogue's own.

    Raises
    ------
    ValueError
        If a column is missing, no object lies in the tiles or has data, or the tiles hold different bands.
    OSError
        If a file cannot be read, or `out` cannot be written.
    """
    table = read_catalogue(catalogue, columns=columns or ())
    where = "" if isinstance(catalogue, Table) else f" {catalogue}"
    if not tiles:
        raise ValueError("no tiles given")
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: one of 'raise', 'skip'")
    bands = tuple(tiles[0].paths)
    for tile in tiles:
        if tuple(tile.paths) != bands:
            raise ValueError(f"tile {tile.name} holds bands {tuple(tile.paths)}, the first tile {bands}")
    position = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
    unreadable: dict[int, str] = {}

    def skip(t: int, error: OSError | ValueError) -> None:
        if on_error == "raise":
            raise error
        log.warning("tile %s is skipped: %s", tiles[t].name, error)
        unreadable[t] = str(error)

    tile_of, rows, cols = assign_tiles(tiles, *position, size=size, edge=edge, on_unreadable=skip)
    if len(unreadable) == len(tiles):
        raise OSError(f"none of {len(tiles)} tiles can be read; the first: {next(iter(unreadable.values()))}")
    kept = np.flatnonzero(tile_of >= 0)
    if not len(kept):
        raise ValueError(
            f"none of the {len(table)} objects of the catalogue{where} lies in the {len(tiles)} tiles: "
            f"the catalogue covers {describe_extent(table)}; tile {tiles[0].name} is centred at "
            f"{describe_centre(tiles[0])}"
        )
    if len(kept) < len(table):
        log.warning("%d of %d objects lie outside the tiles%s and are left out", len(table) - len(kept), len(table),
                    " or at their edge" if edge == "drop" else "")  # fmt: skip
    table, tile_of, rows, cols = table[kept], tile_of[kept], rows[kept], cols[kept]
    labels = {name: table[name] for name in (columns or table.colnames) if table[name].ndim == 1}
    files = [str(next(path for path in tile.paths.values() if path is not None)) for tile in tiles]
    labels |= {"ra": table["ra"], "dec": table["dec"], "row": rows, "col": cols}
    labels |= {"tile": np.array([tiles[t].name for t in tile_of]), "file": np.array([files[t] for t in tile_of])}
    wcs, _ = read_wcs(tiles[tile_of[0]])
    attributes = {
        "pixel_scale": float(np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600), "zero_point": ZERO_POINT,
        "provenance": f"{len(tiles)} tiles, first {Path(files[0]).name}; catalogue{where or ' given as a table'}",
    }  # fmt: skip
    used = np.unique(tile_of).tolist()
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for t in used for path in tiles[t].paths.values() if path]  # fmt: skip
    settings = {"files": stats, "bands": bands, "size": size, "bad_planes": list(bad_planes), "variance": variance}
    job = _Job(Path(out), settings, labels)
    if job.is_finished() and not unreadable:
        log.info("%s: is there already, made of the same tiles and objects", out)
        job.remove()
        return CutoutFile(out)
    if not job.resumes:
        job.remove()
        create(job.partial, n=len(kept), bands=bands, size=size, columns=labels, attributes=attributes, weight=variance)
        job.begin()
    writers = [PixelWriter(job.partial, name) for name in (("cutouts", "weight") if variance else ("cutouts",))]

    def cut(t: int) -> list[int]:
        """Write the cutouts of a tile; return the numbers of those without data."""
        tile = read_tile(tiles[t], bad_planes=bad_planes, variance=variance)
        images = [tile.flux] if tile.variance is None else [tile.flux, _inverse(tile.variance, tile.flux)]
        mine = np.flatnonzero(tile_of == t)
        corners = [(np.round(v[mine]).astype(int) - size // 2).tolist() for v in (rows, cols)]
        empty = []
        for index, top, left in zip(mine.tolist(), *corners, strict=True):
            windows = [slice_window(image, top, left, size) for image in images]
            for writer, window in zip(writers, windows, strict=True):
                writer.write(index, window)
            if not (np.isfinite(windows[0][:, size // 2, size // 2]).any() or np.isfinite(windows[0]).any()):
                empty.append(index)
        for writer in writers:
            writer.sync()  # before the journal says so
        return empty

    todo = [t for t in used if t not in job.done]
    if job.done:
        log.info("%s: goes on, with %d of %d tiles done", out, len(job.done), len(used))
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        running = {pool.submit(cut, t): t for t in todo}
        try:
            for future in tqdm(as_completed(running), desc="cutouts", unit="tile", total=len(todo)):
                t = running[future]
                try:
                    job.finish(t, future.result())
                except (OSError, ValueError) as error:
                    skip(t, error)
        finally:
            pool.shutdown(cancel_futures=True)
            for writer in writers:
                writer.close()
    lost = np.isin(tile_of, list(unreadable))
    if lost.all():
        job.remove()
        raise OSError(f"none of {len(used)} tiles can be read; the first: {next(iter(unreadable.values()))}")
    empty = np.isin(np.arange(len(tile_of)), [index for indices in job.done.values() for index in indices])
    for reason, which in (("lie in tiles that were skipped", lost), ("have no pixel of data", empty)):
        if which.any():
            log.warning("%d of %d objects %s and are left out", which.sum(), len(which), reason)
    return job.complete(~(lost | empty), [tiles[t].name for t in sorted(unreadable)])


class _Job:
    """A file in the making: all but the pixels is there from the start; a journal beside it has a line a tile done."""

    def __init__(self, out: Path, settings: dict[str, Any], labels: Mapping[str, Any]) -> None:
        self.out = out
        self.partial, self.journal, self.kept = (out.with_name(out.name + end) for end in (".partial", ".journal", ".kept"))  # fmt: skip
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, values in labels.items():
            digest.update(name.encode())
            array = np.asarray(values)
            digest.update("\0".join(map(str, array)).encode() if array.dtype.hasobject else array.tobytes())
        self._key = digest.hexdigest()
        self.done: dict[int, list[int]] = {}  # tile: which of its objects have no data
        lines = self.journal.read_text().split("\n")[:-1] if self.journal.exists() and self.partial.exists() else []
        self.resumes = bool(lines) and lines[0] == self._key
        if self.resumes:
            self.done = dict(map(json.loads, lines[1:]))

    def begin(self) -> None:
        self.journal.write_text(self._key + "\n")

    def is_finished(self) -> bool:
        """Whether the whole file is there, of the same settings and objects, and without a skipped tile."""
        try:
            with h5py.File(self.out, "r") as file:
                return file.attrs.get("made_of") == self._key and not len(file.attrs["skipped_tiles"])
        except OSError:
            return False

    def finish(self, tile: int, empty: list[int]) -> None:
        self.done[tile] = empty
        with open(self.journal, "a") as file:
            file.write(json.dumps([tile, empty]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def complete(self, keep: np.ndarray, skipped: Sequence[str]) -> CutoutFile:
        """Leave out the rows not to be kept, give the file its name, and return it."""
        if not keep.any():
            self.remove()
            raise ValueError(f"none of the {len(keep)} objects has a pixel of data")
        whole = self.partial
        if not keep.all():
            whole = self.kept
            keep_rows(self.partial, whole, np.flatnonzero(keep))
        with h5py.File(whole, "r+") as file:
            file.attrs["skipped_tiles"] = np.array(skipped, dtype=h5py.string_dtype())
            file.attrs["n_left_out"], file.attrs["made_of"] = int((~keep).sum()), self._key
        with open(whole, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(whole, self.out)
        self.remove()
        return CutoutFile(self.out)

    def remove(self) -> None:
        for path in (self.journal, self.partial, self.kept):
            path.unlink(missing_ok=True)


def slice_cutout(image: np.ndarray, row: int, col: int, size: int) -> np.ndarray:
    """Return the (C, size, size) cutout with pixel (row, col) at its [size // 2, size // 2]; NaN beyond the edge.

    Examples
    --------
    >>> slice_cutout(np.arange(9.0).reshape(1, 3, 3), 0, 1, 2)
    array([[[nan, nan],
            [ 0.,  1.]]])
    """
    return slice_window(image, row - size // 2, col - size // 2, size)


def slice_window(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Return the (C, size, size) window that begins at pixel (top, left): a view, or with NaN beyond the edge."""
    if top >= 0 and left >= 0 and top + size <= image.shape[1] and left + size <= image.shape[2]:
        return image[:, top : top + size, left : left + size]
    window = np.full((image.shape[0], size, size), np.nan, dtype=image.dtype)
    r0, r1 = max(top, 0), min(top + size, image.shape[1])
    c0, c1 = max(left, 0), min(left + size, image.shape[2])
    if r0 < r1 and c0 < c1:
        window[:, r0 - top : r1 - top, c0 - left : c1 - left] = image[:, r0:r1, c0:c1]
    return window


def _inverse(variance: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Return 1 / variance, and 0 where there is no data or no variance."""
    good = np.isfinite(flux) & (variance > 0)
    return np.divide(1, variance, out=np.zeros_like(variance), where=good)
