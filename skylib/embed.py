"""Embeddings: one vector an object, with its position and labels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.config import to_dict
from skylib.cutouts import CutoutFile
from skylib.loading import CutoutLoader
from skylib.mim import MaskedImageModel
from skylib.runtime import autocast


class Embeddings:
    """Vectors of objects, their positions and labels.

    Parameters
    ----------
    vectors : ndarray, shape (n, D)
        Kept as float32.
    ra, dec : ndarray, shape (n,)
        Degrees ICRS.
    columns : mapping of str to ndarray, shape (n,), optional
        Labels.
    meta : mapping, optional
        What made them; anything that JSON can hold.

    Raises
    ------
    ValueError
        If lengths differ.

    Examples
    --------
    >>> e = Embeddings(np.eye(3), ra=np.arange(3.0), dec=np.zeros(3), columns={"class": np.array([0, 1, 2])})
    >>> len(e), e.vectors.dtype, e[e.column("class") > 0].ra
    (3, dtype('float32'), array([1., 2.]))
    """

    def __init__(
        self, vectors: np.ndarray, *, ra: np.ndarray, dec: np.ndarray,
        columns: Mapping[str, np.ndarray] | None = None, meta: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.vectors = np.asarray(vectors, dtype=np.float32)
        if self.vectors.ndim != 2:
            raise ValueError(f"vectors have shape {self.vectors.shape}: must be (n, D)")
        self.ra, self.dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
        self.columns = {name: np.asarray(values) for name, values in (columns or {}).items()}
        self.meta = dict(meta or {})
        for name, values in {"ra": self.ra, "dec": self.dec, **self.columns}.items():
            if values.shape != (len(self),):
                raise ValueError(f"column {name!r} has shape {values.shape}: must be ({len(self)},), one a vector")

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} x {self.vectors.shape[1]}; columns: {', '.join(self.columns) or 'none'})"

    def __getitem__(self, rows: slice | np.ndarray) -> Embeddings:
        """Return some of the objects, by a slice, row numbers or a boolean mask."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Embeddings(self.vectors[rows], ra=self.ra[rows], dec=self.dec[rows], columns=columns, meta=self.meta)

    def column(self, name: str) -> np.ndarray:
        """Return one label, shape (n,).

        Raises
        ------
        KeyError
            If there is no such column; the message lists those there are.
        """
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; columns: {', '.join(self.columns) or 'none'}")
        return self.columns[name]

    def save(self, path: str | Path) -> None:
        """Write HDF5; the file takes its name only when it is complete."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(partial, "w") as file:
                file["vectors"], file["ra"], file["dec"] = self.vectors, self.ra, self.dec
                file.attrs["meta"] = json.dumps(self.meta)
                for name, values in self.columns.items():
                    text = values.dtype.kind in "OSU"
                    group = file.require_group("columns")
                    group.create_dataset(name, data=values.astype(object) if text else values, dtype=h5py.string_dtype() if text else None)  # fmt: skip
            os.replace(partial, path)
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If there is no such file, or it is truncated or of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file of embeddings")
        try:
            with h5py.File(path, "r") as file:
                columns = {
                    name: data.asstr()[:].astype(str) if data.dtype.kind == "O" else data[:]
                    for name, data in file.get("columns", {}).items()
                }
                meta = json.loads(file.attrs["meta"])
                return cls(file["vectors"][:], ra=file["ra"][:], dec=file["dec"][:], columns=columns, meta=meta)
        except (OSError, KeyError) as error:
            raise OSError(f"{path}: cannot be read as embeddings: {error}") from error

    def to_table(self) -> Table:
        """Return an astropy table: ra, dec, the labels, and ``vector`` (n, D)."""
        return Table({"ra": self.ra, "dec": self.dec, **self.columns, "vector": self.vectors}, meta=self.meta)


def embed(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    pool: str = "mean",
    layer: int = -1,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Embeddings:
    """Embed every cutout of a file, in its order.

    Parameters
    ----------
    model : MaskedImageModel
        Bands are matched by name; a band that the file lacks is taken as missing. Bigger cutouts are cropped at
        their centre.
    cutouts : CutoutFile
    pool : {"mean", "cls", "max", "central"}
    layer : int
        After which block; the last by default.
    batch_size : int
    precision : {"fp32", "bf16"}

    Returns
    -------
    Embeddings
        With all one-dimensional columns of the file.
    """
    if pool == "tokens":
        raise ValueError("pool='tokens' gives no single vector an object; use embed_tokens")
    vectors = _run(model, cutouts, None, pool, layer, batch_size, precision)
    meta = {
        "model": to_dict(model.config), "cutouts": str(cutouts.path), "pool": pool, "layer": layer,
    }  # fmt: skip
    columns = {name: cutouts.column(name) for name in cutouts.columns}
    return Embeddings(vectors, ra=cutouts.ra, dec=cutouts.dec, columns=columns, meta=meta)


def embed_tokens(
    model: MaskedImageModel, cutouts: CutoutFile, *, rows: np.ndarray, layer: int = -1, batch_size: int = 256
) -> np.ndarray:
    """Return the patch tokens of some cutouts, float32 (n, N, D)."""
    return _run(model, cutouts, rows, "tokens", layer, batch_size, "fp32")


def _run(
    model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray | None, pool: str, layer: int, batch_size: int,
    precision: str,
) -> np.ndarray:  # fmt: skip
    device = model.sky_sigma.device
    loader = CutoutLoader(
        cutouts, batch_size=batch_size, rows=rows, size=model.config.image_size, bands=model.config.bands,
        shuffle=False, device=device,
    )  # fmt: skip
    was_training = model.training
    model.eval()
    parts = []
    try:
        with torch.inference_mode(), autocast(device, precision):
            for batch in tqdm(loader, desc="embed", unit="batch", leave=False, disable=len(loader) < 20):
                parts.append(model.embed(batch.flux, pool=pool, ra=batch.ra, dec=batch.dec, layer=layer).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts).numpy()
