"""Cutouts around objects: slicing them from tiles, and the HDF5 file that keeps them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.bands import PIXEL_SCALE, ZERO_POINT, sort_bands
from skylib.tiles import TilePaths, read_tile, read_wcs

log = logging.getLogger(__name__)

CLASS_NAMES = ("galaxy", "qso", "star")


@dataclass(frozen=True)
class Layout:
    """Where an HDF5 file keeps what: our names on the left, the file's on the right."""

    flux: str
    ra: str = "ra"
    dec: str = "dec"
    bands: tuple[str, ...] | None = None  # the order of the planes, where the file itself does not state it
    rename: dict[str, str] = field(default_factory=dict)


LAYOUTS = {
    "skylib": Layout("cutouts"),
    "sky_embeddings": Layout("cutouts", rename={"z_spec": "zspec"}),
    "galaxiesml": Layout("image", bands=("g", "r", "i", "z", "y"), rename={"z_spec": "specz_redshift"}),
}


class CutoutFile:
    """Cutouts and their labels in an HDF5 file, read on demand.

    Parameters
    ----------
    path : path
    layout : str
        A key of `LAYOUTS`, or ``"auto"`` to tell it by what the file holds.
    bands : str or sequence of str, optional
        The order of the planes, for a file that does not state it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If the file is truncated or no HDF5.
    ValueError
        If its layout or its bands are not known, or the lengths of its columns differ.
    """

    def __init__(self, path: str | Path, *, layout: str = "auto", bands: str | Sequence[str] | None = None) -> None:
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of cutouts")
        if layout != "auto" and layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: one of 'auto', {', '.join(map(repr, LAYOUTS))}")
        with self._open() as file:
            self._layout = LAYOUTS[_detect(file, self.path) if layout == "auto" else layout]
            if self._layout.flux not in file or file[self._layout.flux].ndim != 4:
                raise ValueError(
                    f"{self.path}: no dataset {self._layout.flux!r} of shape (n, C, S, S); it holds {', '.join(file)}"
                )
            self.shape: tuple[int, int, int, int] = file[self._layout.flux].shape
            stated = [_text(b) for b in file.attrs["bands"]] if "bands" in file.attrs else self._layout.bands
            if bands is None and stated is None:
                raise ValueError(
                    f"{self.path}: the file does not say which bands it holds; give bands='…' in its order"
                )
            order = [*bands] if bands is not None else list(stated or ())
            if len(order) != self.shape[1]:
                raise ValueError(f"{self.path}: {len(order)} bands {order} stated for {self.shape[1]} planes")
            self.bands = sort_bands(order)
            planes = [sort_bands([band])[0] for band in order]
            self._planes = [planes.index(band) for band in self.bands]
            self.pixel_scale = float(file.attrs.get("pixel_scale", PIXEL_SCALE))
            self.zero_point = float(file.attrs.get("zero_point", ZERO_POINT))
            there = {theirs: ours for ours, theirs in self._layout.rename.items()}
            self._columns = {there.get(key, key): key for key in file if file[key].ndim == 1}
            for ours, key in self._columns.items():
                if len(file[key]) != len(self):
                    raise ValueError(f"{self.path}: column {ours!r} has {len(file[key])} rows for {len(self)} cutouts")
        self.ra = self._position(self._layout.ra)
        self.dec = self._position(self._layout.dec)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"CutoutFile({str(self.path)!r}: {len(self)} cutouts, bands {' '.join(self.bands)}, {self.size} pixels)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    @property
    def size(self) -> int:
        """Side of a cutout in pixels, S."""
        return self.shape[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels, without the positions."""
        return tuple(name for name in self._columns if name not in ("ra", "dec"))

    def column(self, name: str) -> np.ndarray:
        """Return one label of all objects, shape (n,); text as str.

        Raises
        ------
        KeyError
            If there is no such column; the message lists those there are.
        """
        if name not in self._columns:
            raise KeyError(f"{self.path}: no column {name!r}; columns: {', '.join(self._columns)}")
        values = self._file()[self._columns[name]][:]
        return np.array([_text(v) for v in values], dtype=str) if values.dtype.kind in "OS" else values

    def class_names(self, name: str = "class") -> tuple[str, ...]:
        """Return what the integers of a class column stand for."""
        self.column(name)
        names = self._file()[self._columns[name]].attrs.get("names", CLASS_NAMES)
        return tuple(_text(n) for n in names)

    def flux(self, index: int | slice | Sequence[int] | np.ndarray = slice(None)) -> np.ndarray:
        """Return cutouts in the order asked for.

        Parameters
        ----------
        index : int, slice, or array of int or bool

        Returns
        -------
        ndarray of float32, shape (n, C, S, S)
            Bands in the order of `bands`; NaN = no data.
        """
        data = self._file()[self._layout.flux]
        if isinstance(index, slice):
            flux = data[index]
        else:
            rows = np.atleast_1d(np.asarray(index))
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
                raise IndexError(f"{self.path}: row {rows.max()} of {len(self)} cutouts")
            unique, inverse = np.unique(rows % len(self), return_inverse=True)
            if len(unique) and (unique[-1] - unique[0] + 1) <= 4 * len(unique):  # dense: one contiguous read is faster
                flux = data[unique[0] : unique[-1] + 1][unique - unique[0]][inverse]
            else:
                flux = data[unique][inverse] if len(unique) else data[:0]
        flux = np.asarray(flux, dtype=np.float32)
        return flux if self._planes == sorted(self._planes) else flux[:, self._planes]

    def _position(self, key: str) -> np.ndarray:
        if key not in self._columns:
            return np.full(len(self), np.nan)
        return np.asarray(self._file()[self._columns[key]][:], dtype=np.float64)

    @contextmanager
    def _open(self) -> Any:
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise OSError(f"{self.path}: cannot be read as HDF5 (truncated or another format?): {error}") from error
        with file:
            yield file

    def _file(self) -> h5py.File:
        """Return a handle of this very process: HDF5 handles do not survive a fork."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1]


def write_cutouts(
    path: str | Path,
    flux: np.ndarray,
    *,
    ra: np.ndarray,
    dec: np.ndarray,
    bands: str | Sequence[str],
    pixel_scale: float = PIXEL_SCALE,
    zero_point: float = ZERO_POINT,
    provenance: str = "",
    **columns: np.ndarray,
) -> CutoutFile:
    """Write cutouts and labels; the file takes its name only when it is complete.

    Parameters
    ----------
    path : path
    flux : ndarray, shape (n, C, S, S)
    ra, dec : ndarray, shape (n,)
        Degrees ICRS.
    bands : str or sequence of str
        Of the planes of `flux`, in any order.
    **columns : ndarray, shape (n,)
        Labels.

    Raises
    ------
    ValueError
        If shapes do not match.
    """
    flux = np.asarray(flux, dtype=np.float32)
    given = list(bands)
    order = sort_bands(given)
    if flux.ndim != 4 or flux.shape[1] != len(order) or flux.shape[2] != flux.shape[3]:
        raise ValueError(f"flux has shape {flux.shape}: must be (n, {len(order)}, S, S) for bands {' '.join(given)}")
    planes = [sort_bands([band])[0] for band in given]
    attributes = {"pixel_scale": pixel_scale, "zero_point": zero_point, "provenance": provenance}
    with _new_file(path, len(flux), order, flux.shape[-1], {"ra": ra, "dec": dec, **columns}, attributes) as file:
        file["cutouts"][:] = flux[:, [planes.index(band) for band in order]]
    return CutoutFile(path)


def make_cutouts(
    tiles: Sequence[TilePaths],
    catalogue: str | Path | Table,
    out: str | Path,
    *,
    size: int = 64,
    columns: Sequence[str] | None = None,
    bad_planes: Sequence[str] = (),
    edge: Literal["pad", "drop"] = "pad",
) -> CutoutFile:
    """Cut an image out of the tiles around every object of a catalogue.

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
    edge : {"pad", "drop"}
        What becomes of objects whose cutout reaches over the edge of the tile: NaN beyond it, or dropped.

    Returns
    -------
    CutoutFile
        With the columns ``tile``, ``row``, ``col`` (provenance, pixels) beside the catalogue's own.

    Raises
    ------
    ValueError
        If a column is missing, no object lies in the tiles or has data, or the tiles hold different bands.
    OSError
        If a file cannot be read, or `out` cannot be written.
    """
    table = _read_catalogue(catalogue)
    for name in ("ra", "dec", *(columns or ())):
        if name not in table.colnames:
            raise ValueError(
                f"catalogue{_where(catalogue)} has no column {name!r}; columns: {', '.join(table.colnames)}"
            )
    if not tiles:
        raise ValueError("no tiles given")
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1 pixel")
    tile_of, rows, cols = _assign(tiles, np.asarray(table["ra"], float), np.asarray(table["dec"], float), size, edge)
    kept = np.flatnonzero(tile_of >= 0)
    if not len(kept):
        raise ValueError(
            f"none of the {len(table)} objects of the catalogue{_where(catalogue)} lies in the {len(tiles)} tiles: "
            f"the catalogue covers {_extent(table['ra'], table['dec'])}; tile {tiles[0].name} is centred at "
            f"{_centre(tiles[0])}"
        )
    if len(kept) < len(table):
        log.warning("%d of %d objects lie outside the tiles%s and are left out", len(table) - len(kept), len(table),
                    " or at their edge" if edge == "drop" else "")  # fmt: skip
    table, tile_of, rows, cols = table[kept], tile_of[kept], rows[kept], cols[kept]
    labels = {name: table[name] for name in (columns or table.colnames) if table[name].ndim == 1}
    labels |= {"ra": table["ra"], "dec": table["dec"], "row": rows, "col": cols}
    labels["tile"] = np.array([tiles[t].name for t in tile_of])
    bands = tuple(tiles[0].paths)
    wcs, _ = read_wcs(tiles[0])
    attributes = {
        "pixel_scale": float(np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600),
        "zero_point": ZERO_POINT,
        "provenance": f"{len(tiles)} tiles, first {next(p.name for p in tiles[0].paths.values() if p)}",
    }
    empty = np.zeros(len(kept), bool)
    with _new_file(out, len(kept), bands, size, labels, attributes) as file:
        for t in tqdm(np.unique(tile_of), desc="cutouts", unit="tile"):
            tile = read_tile(tiles[t], bad_planes=bad_planes)
            if tile.bands != bands:
                raise ValueError(f"tile {tile.name} holds bands {tile.bands}, the first tile {bands}")
            mine = np.flatnonzero(tile_of == t)
            for index, row, col in zip(mine, np.round(rows[mine]), np.round(cols[mine]), strict=True):
                cutout = slice_cutout(tile.flux, int(row), int(col), size)
                file["cutouts"][index], empty[index] = cutout, not np.isfinite(cutout).any()
        if empty.all():
            raise ValueError(f"none of the {len(empty)} objects has a pixel of data")
        if empty.any():
            log.warning("%d of %d objects have no pixel of data and are left out", empty.sum(), len(empty))
            _keep_rows(file, np.flatnonzero(~empty))
    return CutoutFile(out)


def _keep_rows(file: h5py.File, rows: np.ndarray, *, block: int = 1024) -> None:
    """Leave only these rows, given in ascending order, in the cutouts and all columns of a new file."""
    cutouts = file["cutouts"]
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        cutouts[start : start + len(part)] = cutouts[part]
    cutouts.resize(len(rows), axis=0)
    for name in [name for name in file if name != "cutouts"]:
        values, dtype, attributes = file[name][()][rows], file[name].dtype, dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values, dtype=dtype).attrs.update(attributes)


def slice_cutout(image: np.ndarray, row: int, col: int, size: int) -> np.ndarray:
    """Return the (C, size, size) cutout with pixel (row, col) at its [size // 2, size // 2]; NaN beyond the edge.

    Examples
    --------
    >>> slice_cutout(np.arange(9.0).reshape(1, 3, 3), 0, 1, 2)
    array([[[nan, nan],
            [ 0.,  1.]]])
    """
    cutout = np.full((image.shape[0], size, size), np.nan, dtype=image.dtype)
    top, left = row - size // 2, col - size // 2
    r0, r1 = max(top, 0), min(top + size, image.shape[1])
    c0, c1 = max(left, 0), min(left + size, image.shape[2])
    if r0 < r1 and c0 < c1:
        cutout[:, r0 - top : r1 - top, c0 - left : c1 - left] = image[:, r0:r1, c0:c1]
    return cutout


def _assign(
    tiles: Sequence[TilePaths], ra: np.ndarray, dec: np.ndarray, size: int, edge: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each object the number of its tile (-1: none) and its row and column there."""
    if edge not in ("pad", "drop"):
        raise ValueError(f"edge={edge!r}: one of 'pad', 'drop'")
    tile_of = np.full(len(ra), -1)
    best = np.full(len(ra), -np.inf)
    rows, cols = np.full(len(ra), np.nan), np.full(len(ra), np.nan)
    for t, paths in enumerate(tiles):
        wcs, (height, width) = read_wcs(paths)
        # A gnomonic projection repeats itself on the far side of the sky: only nearby objects can be in the tile.
        centre_ra, centre_dec = wcs.all_pix2world(width / 2, height / 2, 0)
        near = np.flatnonzero(_separation(ra, dec, float(centre_ra), float(centre_dec)) < 10)
        if not len(near):
            continue
        x, y = wcs.all_world2pix(ra[near], dec[near], 0)
        depth = np.minimum(np.minimum(y + 0.5, height - 0.5 - y), np.minimum(x + 0.5, width - 0.5 - x))
        better = (depth > best[near]) & (depth >= (size / 2 if edge == "drop" else 0))
        chosen = near[better]
        tile_of[chosen], best[chosen] = t, depth[better]
        rows[chosen], cols[chosen] = y[better], x[better]
    return tile_of, rows, cols


def _separation(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> np.ndarray:
    """Return the angle (deg) between positions in degrees."""
    ra, dec, ra0, dec0 = np.deg2rad(ra), np.deg2rad(dec), np.deg2rad(ra0), np.deg2rad(dec0)
    haversine = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(haversine.clip(0, 1))))


@contextmanager
def _new_file(
    path: str | Path, n: int, bands: Sequence[str], size: int, columns: dict[str, Any], attributes: dict[str, Any]
) -> Any:
    """Yield a new HDF5 file with an empty dataset of cutouts; it takes its final name only when all went well."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(partial, "w")
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    try:
        with file:
            file.attrs.update({"bands": list(bands), **attributes})
            chunk = max(1, min(n, 2**20 // (4 * len(bands) * size**2)))  # about 1 MiB
            shape = (len(bands), size, size)
            file.create_dataset("cutouts", (n, *shape), "f4", chunks=(chunk, *shape), maxshape=(None, *shape))
            for name, values in columns.items():
                _write_column(file, name, values, n)
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_column(file: h5py.File, name: str, values: Any, n: int) -> None:
    values = np.asarray(values.filled(np.nan) if hasattr(values, "filled") and values.dtype.kind == "f" else values)
    if values.shape != (n,):
        raise ValueError(f"column {name!r} has shape {values.shape}: must be ({n},)")
    if values.dtype.kind in "OSU":
        texts = [_text(value) for value in values]
        if name == "class":
            if unknown := set(texts) - set(CLASS_NAMES):
                raise ValueError(f"column 'class' holds {sorted(unknown)}: names are {', '.join(CLASS_NAMES)}")
            values = np.array([CLASS_NAMES.index(text) for text in texts])
        else:
            file.create_dataset(name, data=texts, dtype=h5py.string_dtype())
            return
    file.create_dataset(name, data=values.astype(values.dtype.newbyteorder("=")))
    if name == "class":
        file[name].attrs["names"] = list(CLASS_NAMES)


def _read_catalogue(catalogue: str | Path | Table) -> Table:
    if isinstance(catalogue, Table):
        return catalogue
    if not Path(catalogue).is_file():
        raise FileNotFoundError(f"{catalogue}: no such catalogue")
    try:
        table = Table.read(catalogue)
    except Exception as error:  # each format raises its own
        raise OSError(f"{catalogue}: cannot be read as a catalogue: {error}") from error
    return table


def _where(catalogue: str | Path | Table) -> str:
    return "" if isinstance(catalogue, Table) else f" {catalogue}"


def _extent(ra: Any, dec: Any) -> str:
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    return f"ra {np.nanmin(ra):.4f} to {np.nanmax(ra):.4f}, dec {np.nanmin(dec):.4f} to {np.nanmax(dec):.4f}"


def _centre(paths: TilePaths) -> str:
    wcs, (height, width) = read_wcs(paths)
    ra, dec = wcs.all_pix2world(width / 2, height / 2, 0)
    return f"ra {float(ra):.4f}, dec {float(dec):.4f}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _detect(file: h5py.File, path: Path) -> str:
    if "image" in file and "specz_redshift" in file:
        return "galaxiesml"
    if "cutouts" in file:
        return "skylib" if "bands" in file.attrs else "sky_embeddings"
    raise ValueError(
        f"{path}: unknown layout; it holds {', '.join(file) or 'nothing'}, known layouts are {', '.join(LAYOUTS)}"
    )
