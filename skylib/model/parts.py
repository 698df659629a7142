"""Embeddings of a whole survey: a folder of parts, one per cell of the sky, made by many tasks and opened as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix

from skylib.checks import check_range, checked
from skylib.config import difference
from skylib.data.cutouts import CutoutFile
from skylib.files import read_json, write_json
from skylib.model.checkpoint import fingerprint
from skylib.model.embed import embed
from skylib.model.embeddings import Embeddings, PartVectors
from skylib.model.mim import MaskedImageModel
from skylib.stopping import Interrupted, StopRequest

ABOUT = "parts.json"  # what the parts of a folder have in common


def part_files(folder: str | Path) -> list[Path]:
    """Return the files of a folder of parts, in order.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if not (paths := sorted(Path(folder).glob("Norder=*/Npix=*.h5"))):
        raise FileNotFoundError(f"{folder}: no parts of embeddings (Norder=*/Npix=*.h5)")
    return paths


@checked
def embed_parts(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    folder: str | Path,
    *,
    order: int = 5,
    shard: int = 0,
    n_shards: int = 1,
    half: bool = True,
    pool: str = "mean",
    layer: int = -1,
    all_orientations: bool = False,
    batch_size: int = 256,
    precision: str = "auto",
) -> list[Path]:
    """Embed the cutouts of a file into a folder of parts, one for each HEALPix cell (nested) that holds objects.

    Parts that exist are not made again, so a task that was stopped or killed resumes. Each part is written whole, as
    ``Norder=5/Npix=1234.h5``, with the column ``cutout``: the row in the file of cutouts. Objects without a position
    are in ``Npix=-1.h5``.

    Parameters
    ----------
    model : MaskedImageModel
    cutouts : CutoutFile
    folder : path
        One for each file of cutouts.
    order : int
        Of the cells: 3.4 square degrees for 5, and a quarter for each step up.
    shard, n_shards : int
        Make only each n-th part, beginning with this one.
    half : bool
        Keep vectors in half precision: half the disk, and nearly the same neighbours.
    pool, layer, all_orientations, batch_size, precision
        As in `embed`.

    Returns
    -------
    list of Path
        The parts of this shard.

    Raises
    ------
    ValueError
        If the folder holds parts of another model, file or setting, or `shard` is out of range.
    Interrupted
        If a signal or a file ``STOP`` in the folder asked to stop; finished parts are kept.

    Examples
    --------
    >>> paths = skylib.embed_parts(model, cutouts, "parts", order=10)
    >>> len(skylib.open_parts("parts")) == len(cutouts)
    True
    """
    folder = Path(folder)
    check_range("shard", shard, 0, n_shards - 1)
    about = {"n": len(cutouts), "order": order, "cutouts": cutouts.path.name, "model": fingerprint(model), "pool": pool}
    about |= {"layer": layer, "half": half, "all_orientations": all_orientations}
    before = {"all_orientations": False} | read_json(folder / ABOUT) if (folder / ABOUT).is_file() else about
    if changed := difference(before, about):
        raise ValueError(f"{folder}: holds parts made otherwise: {changed}; choose another folder")
    write_json(folder / ABOUT, about)
    placed = np.isfinite(cutouts.ra) & np.isfinite(cutouts.dec)
    cell = np.full(len(cutouts), -1)
    sky = HEALPix(nside=2**order, order="nested")
    cell[placed] = sky.lonlat_to_healpix(cutouts.ra[placed] * u.deg, cutouts.dec[placed] * u.deg)
    by_cell = np.argsort(cell, kind="stable")
    cells, first = np.unique(cell[by_cell], return_index=True)
    rows_of = dict(zip(cells, np.split(by_cell, first[1:]), strict=True))
    paths = {folder / f"Norder={order}" / f"Npix={number}.h5": rows_of[number] for number in cells[shard::n_shards]}
    how: dict[str, Any] = {"pool": pool, "layer": layer, "batch_size": batch_size, "precision": precision}
    how["all_orientations"] = all_orientations
    with StopRequest(folder) as stop:
        for path, rows in paths.items():
            if path.is_file():
                continue
            if (why := stop.why()) is not None:
                stop.done()
                raise Interrupted(f"stopped by {why}; finished parts are in {folder}; start again to resume")
            part = embed(model, cutouts, rows=rows, **how)
            part.columns["cutout"] = rows
            part.save(path, half=half)
    return list(paths)


@checked
def open_parts(folder: str | Path) -> Embeddings:
    """Open a folder of parts as one: positions and labels are read, vectors stay on disk until they are asked for.

    Raises
    ------
    ValueError
        If parts are missing.
    OSError
        If a part cannot be read.

    Examples
    --------
    >>> paths = skylib.embed_parts(model, cutouts, "parts", order=10)
    >>> skylib.open_parts("parts").vectors[:5].shape == (5, model.config.width)
    True
    """
    parts = [Embeddings.load(path, mapped=True) for path in part_files(folder)]
    wanted = read_json(Path(folder) / ABOUT, "n")["n"]
    if (n := sum(map(len, parts))) != wanted:
        raise ValueError(f"{folder}: {n} of {wanted} objects are embedded: run the missing tasks")
    ra, dec = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ra", "dec"))
    columns = {name: np.concatenate([part.column(name) for part in parts]) for name in parts[0].columns}
    vectors = PartVectors([array for part in parts for array in part.vectors.parts])
    return Embeddings(vectors, ra=ra, dec=dec, columns=columns, meta=parts[0].meta)
