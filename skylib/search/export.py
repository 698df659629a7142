"""Lists of objects taken home: catalogues, DS9 regions, HATS catalogues, and links to surveys."""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import astropy.units as u
import numpy as np
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyWarning
from astropy_healpix import HEALPix

from skylib.checks import checked, free_name
from skylib.data.cutouts import CutoutFile, slice_cutout, write_cutouts
from skylib.data.cutouts.catalogue import read_catalogue
from skylib.data.plain import as_label
from skylib.data.tiles import TilePaths, read_tile, tile_pixel_scale
from skylib.files import replaced
from skylib.model.embeddings import Embeddings
from skylib.model.parts import open_parts, part_files

log = logging.getLogger(__name__)

FORMATS = {"csv": "ascii.csv", "vot": "votable", "fits": "fits", "reg": None}  # suffix: astropy's name


@checked
def write_objects(table: Table, stem: str | Path, *, radius: float = 3.0) -> list[Path]:
    """Write a table of objects as CSV, VOTable, FITS and DS9 regions.

    Parameters
    ----------
    table : Table
        With ``ra`` and ``dec`` in degrees ICRS.
    stem : path
        Without suffix: ``folder/name`` gives ``folder/name.csv``, ``.vot``, ``.fits`` and ``.reg``.
    radius : float
        Of the circles in the region file, arcsec.

    Returns
    -------
    list of Path

    Raises
    ------
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> [path.suffix for path in skylib.write_objects(skylib.search(embeddings, [12], k=5), "candidates")]
    ['.csv', '.vot', '.fits', '.reg']
    """
    table = _exportable(table)
    paths = []
    for suffix, form in FORMATS.items():
        path = Path(stem).with_name(f"{Path(stem).name}.{suffix}")
        with replaced(path) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # of names that other software may not like
            if form is None:
                partial.write_text(ds9_regions(table, radius=radius))
            else:
                table.write(partial, format=form, overwrite=True)
        paths.append(path)
    return paths


def _exportable(table: Table) -> Table:
    """Return a copy whose columns all formats can hold, with the same values.

    Raises
    ------
    ValueError
        If a column cannot be written; the message names it.
    """
    held = list(getattr(table, "colnames", getattr(table, "keys", tuple)()))
    if lacking := [name for name in ("ra", "dec") if name not in held]:
        raise ValueError(f"the table has no column {lacking[0]!r}; columns: {', '.join(map(str, held))}")
    table = Table(read_catalogue(table))  # quantities as columns
    table.meta.clear()  # FITS has no place for it
    table["ra"].unit = table["dec"].unit = "deg"
    for name in table.colnames:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= 60):
            raise ValueError(f"column {name!r}: FITS takes names of 1 to 60 ASCII characters; rename or leave it out")
        if not isinstance(table[name], Column) or table[name].ndim != 1:
            raise ValueError(f"column {name!r} is not one number or text per object: leave it out of the export")
        kind, size = table[name].dtype.kind, table[name].dtype.itemsize
        if kind == "f" and size not in (4, 8):
            table[name] = table[name].astype(np.float32 if size == 2 else np.float64)
        elif kind in "iu" and (kind, size) not in (("i", 2), ("i", 4), ("i", 8), ("u", 1)):
            big = kind == "u" and size == 8 and len(table) and int(table[name].max()) > np.iinfo(np.int64).max
            table[name] = table[name].astype(str if big else np.int64)
        elif kind in "OSU":
            table[name] = as_label(name, table[name])[0]
        if np.ma.is_masked(table[name]) and table[name].dtype.kind in "biu":
            table[name] = table[name].astype(np.int64)  # FITS has no missing truth values
            table[name].fill_value = np.iinfo(np.int64).min  # which stands for a missing one there
        if table[name].dtype.kind == "U":
            table[name] = np.ma.filled(table[name], "")
            if strange := [text for text in map(str, table[name]) if not text.isascii()]:
                raise ValueError(f"column {name!r} holds {strange[0]!r}: FITS has ASCII text only; leave it out")
        elif table[name].dtype.kind not in "fiub":
            raise ValueError(f"column {name!r} holds {table[name].dtype}: it cannot be exported; leave it out")
    return table


def ds9_regions(table: Table, *, radius: float = 3.0) -> str:
    """Return DS9 regions: a circle (arcsec) around each object, with its index as the label."""
    names = table["index"] if "index" in table.colnames else np.arange(len(table))
    words = [re.sub(r"[{}\s]+", " ", str(name)) for name in names]
    circles = [
        f'circle({ra:.7f},{dec:.7f},{radius:g}") # text={{{name}}}'
        for ra, dec, name in zip(table["ra"], table["dec"], words, strict=True)
        if np.isfinite(ra) and np.isfinite(dec)
    ]
    return "\n".join(["# Region file format: DS9 version 4.1", "icrs", *circles]) + "\n"


def sky_links(ra: float, dec: float) -> dict[str, str]:
    """Return where to look at a position (degrees ICRS): HSC map, Legacy Survey viewer, SIMBAD.

    Examples
    --------
    >>> sky_links(150.0, 2.2)["Legacy viewer"]
    'https://www.legacysurvey.org/viewer?ra=150.000000&dec=2.200000&layer=hsc-dr3&zoom=16'
    """
    view = {"view": {"a": round(np.deg2rad(ra), 9), "d": round(np.deg2rad(dec), 9), "fovy": 0.0003, "roll": 0}}
    return {
        "HSC map": f"https://hscmap.mtk.nao.ac.jp/hscMap4/app/#/?_={quote(json.dumps(view, separators=(',', ':')))}",
        "Legacy viewer": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=hsc-dr3&zoom=16",
        "SIMBAD": f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}{quote(f'{dec:+.6f}')}"
        "&CooFrame=ICRS&Radius=10&Radius.unit=arcsec",
    }


@checked
def hit_cutouts(hits: Table, tiles: Sequence[TilePaths], out: str | Path, *, size: int = 64) -> CutoutFile:
    """Save the images of hits, cut from the tiles where they were found, with all their columns.

    Parameters
    ----------
    hits : Table
        From `search_tiles`.
    tiles : sequence of TilePaths
    out : path
        The new HDF5 file, in the order of the hits.
    size : int
        Side in pixels.

    Examples
    --------
    >>> hits = skylib.search(embeddings, [12], k=5)
    >>> skylib.hit_cutouts(hits, tiles, "hits.h5", size=32).flux().shape
    (5, 5, 32, 32)
    """
    hits = read_catalogue(hits, columns=("tile", "row", "col"))
    by_name = {tile.name: tile for tile in tiles}
    tile_of = as_label("tile", hits["tile"])[0]
    if unknown := sorted(set(map(str, tile_of)) - set(by_name)):
        raise ValueError(f"hits lie in tiles that were not given: {', '.join(unknown[:5])}")
    if not len(hits):
        raise ValueError("no hits: there is nothing to save")
    centre = np.stack([as_label(name, hits[name])[0].astype(np.float64) for name in ("row", "col")], axis=1)
    if len(bad := np.flatnonzero(~np.isfinite(centre).all(axis=1))):
        raise ValueError(f"hits: row and col of hit {bad[0]} are {centre[bad[0]].tolist()}: must be pixels")
    bands, pixels = tuple(tiles[0].paths), np.round(centre).astype(int)
    flux = np.empty((len(hits), len(bands), size, size), dtype=np.float32)
    for name in dict.fromkeys(map(str, tile_of)):
        image = read_tile(by_name[name]).flux
        for i in np.flatnonzero(tile_of.astype(str) == name):
            flux[i] = slice_cutout(image, int(pixels[i, 0]), int(pixels[i, 1]), size)
    taken = set(inspect.signature(write_cutouts).parameters) - {"ra", "dec"}
    columns: dict[str, Any] = {free_name(name, taken): hits[name] for name in hits.colnames}
    about: dict[str, Any] = {"provenance": f"hits of a search through {len(tiles)} tiles", "bands": bands}
    return write_cutouts(out, flux, pixel_scale=tile_pixel_scale(by_name[str(tile_of[0])]), **about, **columns)


@checked
@checked
def write_hats(folder: str | Path, out: str | Path, *, vectors: bool = True) -> Path:
    """Write a folder of parts as a HATS catalogue [1]_, Parquet files by HEALPix cell, which LSDB opens.

    Each part becomes ``dataset/Norder=5/Dir=0/Npix=1234.parquet``, its objects in the order of ``_healpix_29``, with
    their labels and ``vector``, a list of float32.

    Parameters
    ----------
    folder : path
        From `embed_parts`.
    out : path
        The new folder; its name is that of the catalogue. Files that exist there are written again.
    vectors : bool
        False: positions and labels only.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ValueError
        If parts are missing, or no object has a position.
    OSError
        If a part cannot be read, or a file not be written.

    References
    ----------
    .. [1] Hierarchical Adaptive Tiling Scheme, IVOA Note, https://www.ivoa.net/documents/Notes/HATS/

    Examples
    --------
    >>> paths = skylib.embed_parts(model, cutouts, "parts", order=10)
    >>> sorted(path.name for path in skylib.write_hats("parts", "sky_hats").iterdir())
    ['dataset', 'hats.properties', 'partition_info.csv']
    """
    import pyarrow as pa  # late: only this needs it here
    from pyarrow import parquet

    out, n = Path(out), len(open_parts(folder))  # which says what is missing
    sky, cells, n_written, schema = HEALPix(nside=2**29, order="nested"), [], 0, None
    for path in part_files(folder):
        order, cell = (int(name.partition("=")[2]) for name in (path.parent.name, path.stem))
        if cell < 0:
            continue
        part = Embeddings.load(path)
        index = sky.lonlat_to_healpix(part.ra * u.deg, part.dec * u.deg)
        by_place = np.argsort(index, kind="stable")
        columns: dict[str, Any] = {"_healpix_29": index, "ra": part.ra, "dec": part.dec}
        columns |= {free_name(name, (*columns, "vector")): values for name, values in part.columns.items()}
        fields = {name: pa.array(values[by_place]) for name, values in columns.items()}
        if vectors:
            numbers = pa.array(part.vectors[by_place].ravel())
            fields["vector"] = pa.FixedSizeListArray.from_arrays(numbers, part.vectors.shape[1])
        table = pa.table(fields)
        schema = table.schema
        target = out / "dataset" / f"Norder={order}" / f"Dir={cell // 10_000 * 10_000}" / f"Npix={cell}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as partial:
            parquet.write_table(table, partial)
        cells.append(f"{order},{cell}\n")
        n_written += len(table)
    if schema is None:
        raise ValueError(f"{folder}: no object has a position")
    if n_written < n:
        log.warning("%s: %d of %d objects have no position, and are left out", out, n - n_written, n)
    with replaced(out / "dataset" / "_common_metadata") as partial:
        parquet.write_metadata(schema, partial)
    with replaced(out / "partition_info.csv") as partial:
        partial.write_text("Norder,Npix\n" + "".join(cells))
    about = {"obs_collection": out.name, "dataproduct_type": "object", "hats_nrows": n_written, "hats_version": "v0.1"}
    about |= {
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": 29,
    }
    with replaced(out / "hats.properties") as partial:  # last: with it, the catalogue is whole
        partial.write_text("".join(f"{name}={value}\n" for name, value in about.items()))
    return out
