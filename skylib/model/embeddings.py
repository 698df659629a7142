"""The vectors of many cutouts, with their positions and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.table import Table

from skylib.checks import checked, free_name
from skylib.data.cutouts.layouts import FORMAT, check_links, check_names, fixed, name_of, read_column, write_column
from skylib.data.plain import as_label, degrees, filled, positions, row_numbers
from skylib.files import replaced, row_sums


def _plain(value: Any) -> Any:
    """Return what JSON cannot hold as numbers or text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class PartVectors:
    """Vectors that stay in their files until some are asked for; rows are numbered through all files.

    Parameters
    ----------
    parts : list of ndarray, shape (n_i, D)
        Mapped from files (`mapped_vectors`), in the precision stored there.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts, self._ends = parts, np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), parts[0].shape[1])
        if widths := {part.shape[1] for part in parts} - {self.shape[1]}:
            raise ValueError(f"parts hold vectors of {self.shape[1]} and of {min(widths)} numbers: not of one model")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Read some rows, by a slice, row numbers, a boolean mask or one number, as float32."""
        wanted = np.arange(len(self))[rows]
        out = np.empty((wanted.size, self.shape[1]), dtype=np.float32)
        which = np.searchsorted(self._ends, wanted.ravel(), side="right")
        for number in np.unique(which):
            chosen = which == number
            out[chosen] = self.parts[number][wanted.ravel()[chosen] - self._ends[number]]  # counted from its end
        return out.reshape(*wanted.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts, dtype=dtype or self.dtype)


def mapped_vectors(path: str | Path) -> np.ndarray:
    """Return the vectors of a file that `Embeddings.save` wrote, mapped into memory, in the precision stored there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of embeddings")
    try:
        with h5py.File(path, "r") as file:
            check_links(file, Path(path))
            data = file["vectors"]
            if data.ndim != 2 or data.dtype.kind not in "fiub":
                raise ValueError(f"vectors of shape {data.shape} and type {data.dtype}: must be numbers (n, D)")
            offset = data.id.get_offset()
            if offset is None:  # empty, or not stored in one piece
                return data[:]
            return np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)
    except Exception as error:  # damage raises errors of many kinds in the layers below
        raise OSError(f"{path}: cannot be read as embeddings: {error}") from error


class Embeddings:
    """Vectors of objects, their positions and labels.

    Parameters
    ----------
    vectors : ndarray or PartVectors, shape (n, D)
        Kept as float32; `PartVectors` stay on disk.
    ra, dec : ndarray, shape (n,)
        Degrees ICRS, or angles of any unit.
    columns : mapping of str to ndarray, shape (n,), optional
        Labels; what is masked becomes NaN, -1 in a class, empty in text.
    meta : mapping, optional
        What made them; what JSON cannot hold is saved as text.

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

    @checked
    def __init__(
        self,
        vectors: np.ndarray | PartVectors,
        *,
        ra: np.ndarray,
        dec: np.ndarray,
        columns: Mapping[str, np.ndarray] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.vectors: Any = vectors
        if not isinstance(vectors, PartVectors):
            self.vectors = np.asarray(filled(vectors))
            if self.vectors.dtype.kind not in "fiub":
                raise ValueError(f"vectors hold {self.vectors.dtype}: must be numbers")
            self.vectors = self.vectors.astype(np.float32, copy=False)
        if self.vectors.ndim != 2 or not self.vectors.shape[1]:
            raise ValueError(f"vectors have shape {self.vectors.shape}: must be (n, D)")
        self.ra, self.dec = degrees(ra, "ra", hours=True), degrees(dec, "dec")
        self.columns = {name: as_label(name, values)[0] for name, values in (columns or {}).items()}
        self.meta = dict(meta or {})
        for name, values in {"ra": self.ra, "dec": self.dec, **self.columns}.items():
            if values.shape != (len(self),):
                raise ValueError(f"column {name!r} has shape {values.shape}: must be ({len(self)},), one per vector")
        self.ra, self.dec = positions(self.ra, self.dec)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} x {self.vectors.shape[1]}; columns: {', '.join(self.columns) or 'none'})"

    def __getitem__(self, rows: slice | np.ndarray) -> Embeddings:
        """Return some of the objects, by a slice, row numbers or a boolean mask."""
        rows = rows if isinstance(rows, slice) else row_numbers(rows, len(self), where="embeddings: ")
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Embeddings(self.vectors[rows], ra=self.ra[rows], dec=self.dec[rows], columns=columns, meta=self.meta)

    @property
    def finite(self) -> np.ndarray:
        """Which objects have a vector without NaN and infinity, bool (n,)."""
        parts = (self.vectors[start : start + 65_536] for start in range(0, len(self), 65_536))
        return np.concatenate([np.empty(0, bool), *(np.isfinite(part).all(axis=1) for part in parts)])

    @checked
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

    @checked
    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write HDF5; the file takes its name only when it is complete.

        With `half`, vectors are stored in half precision: half the disk, and nearly the same neighbours.
        """
        largest = float(np.abs(self.vectors[np.isfinite(self.vectors)]).max(initial=0)) if half else 0.0
        if largest > float(np.finfo(np.float16).max):
            raise ValueError(f"{path}: half precision ends at 65504, and the largest number is {largest:.4g}")
        check_names(self.columns)
        with replaced(path) as partial, h5py.File(partial, "w", libver=FORMAT) as file:
            vectors = self.vectors.astype("<f2" if half else "<f4", copy=False)
            file["vectors"], file["checksum/vectors"] = vectors, row_sums(vectors)
            file.attrs["meta"] = fixed(json.dumps(self.meta, default=_plain))
            for name, values in {"ra": self.ra, "dec": self.dec}.items():
                write_column(file, name, values)
            for name, values in self.columns.items():
                write_column(file.require_group("columns"), name, values)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, rows: slice = slice(None), mapped: bool = False) -> Embeddings:
        """Read what `save` wrote, all or some of the rows; if `mapped`, vectors stay on disk until they are asked for.

        Raises
        ------
        OSError
            If there is no such file, or it is truncated or of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file of embeddings")
        try:
            with h5py.File(path, "r") as file:
                check_links(file, Path(path))
                columns = {name_of(key, data): read_column(data, rows) for key, data in file.get("columns", {}).items()}
                vectors: Any = PartVectors([mapped_vectors(path)[rows]]) if mapped else file["vectors"][rows]
                sums = None if mapped else file.get("checksum/vectors")
                if sums is not None and (sums[rows] != row_sums(vectors, sums.dtype)).any():
                    raise OSError("the checksum of a vector is wrong: it was changed or damaged")
                ra, dec = read_column(file["ra"], rows), read_column(file["dec"], rows)
                return cls(vectors, ra=ra, dec=dec, columns=columns, meta=json.loads(file.attrs["meta"]))
        except Exception as error:  # damage raises errors of many kinds in the layers below
            raise OSError(f"{path}: cannot be read as embeddings: {error}") from error

    def to_table(self) -> Table:
        """Return an astropy table: ra, dec, the labels, and ``vector`` (n, D)."""
        columns: dict[str, Any] = {"ra": self.ra, "dec": self.dec, "vector": self.vectors}
        columns |= {free_name(name, columns): values for name, values in self.columns.items()}
        return Table({**columns, "vector": columns.pop("vector")}, meta=self.meta)
