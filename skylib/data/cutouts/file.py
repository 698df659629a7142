"""Reading HDF5 files of cutouts, whoever wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skylib.bands import ZERO_POINT, sort_bands
from skylib.data.cutouts.layouts import CLASS_NAMES, LAYOUTS, detect, find_columns, stated_bands, text
from skylib.data.surveys import PIXEL_SCALE

_GAP = 4  # rows between two that are asked for, up to which reading on is faster than a new start
Index = int | slice | Sequence[int] | np.ndarray


class CutoutFile:
    """Cutouts and their labels in an HDF5 file, read on demand.

    It can be used in several threads, after a fork, and be pickled. Whether HDF5 locks the file follows
    the variable ``HDF5_USE_FILE_LOCKING``.

    Parameters
    ----------
    path : path
    layout : str
        A key of `LAYOUTS`, or ``"auto"`` to tell it by what the file holds.
    bands : str or sequence of str, optional
        The order of the planes, for a file that does not state it.

    Attributes
    ----------
    bands : tuple of str
        In wavelength order, whatever the order in the file.
    ra, dec : ndarray of float64, shape (n,)
        Degrees ICRS; NaN where the file has none.
    shape : (int, int, int, int)
        (n, C, S, S).

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
        self._mapped: dict[str, np.ndarray] = {}
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of cutouts")
        if layout != "auto" and layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: one of 'auto', {', '.join(map(repr, LAYOUTS))}")
        with self._open() as file:
            self._layout = LAYOUTS[detect(file, self.path) if layout == "auto" else layout]
            if self._layout.flux not in file or file[self._layout.flux].ndim != 4:
                raise ValueError(
                    f"{self.path}: no dataset {self._layout.flux!r} of shape (n, C, S, S); it holds {', '.join(file)}"
                )
            self.shape: tuple[int, int, int, int] = file[self._layout.flux].shape
            order = list(bands) if bands is not None else stated_bands(file, self._layout, self.path)
            if order is None:
                raise ValueError(
                    f"{self.path}: the file does not say which bands it holds; give bands='…' in its order"
                )
            if len(order) != self.shape[1]:
                raise ValueError(f"{self.path}: {len(order)} bands {order} stated for {self.shape[1]} planes")
            self.bands = sort_bands(order)
            planes = [sort_bands([band])[0] for band in order]
            self._planes = [planes.index(band) for band in self.bands]
            self.pixel_scale = float(file.attrs.get("pixel_scale", PIXEL_SCALE))
            self.zero_point = float(file.attrs.get("zero_point", ZERO_POINT))
            self._columns = find_columns(file, self._layout, len(self), self.path)
            weight = self._layout.weight
            self.has_weight = weight is not None and weight in file and file[weight].ndim == 4
            self._places = {key: _place(file[key]) for key in self._layout.images if key in file}
        self.ra, self.dec = self._position(self._layout.ra), self._position(self._layout.dec)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"CutoutFile({str(self.path)!r}: {len(self)} cutouts, bands {' '.join(self.bands)}, {self.size} pixels)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_mapped": {}}

    @property
    def size(self) -> int:
        """Side of a cutout in pixels, S."""
        return self.shape[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels, without the positions."""
        return tuple(name for name in self._columns if name not in (self._layout.ra, self._layout.dec))

    def column(self, name: str) -> np.ndarray:
        """Return one label of all objects, shape (n,); text as str.

        Raises
        ------
        KeyError
            If there is no such column; the message lists those there are.
        """
        if name not in self._columns:
            raise KeyError(f"{self.path}: no column {name!r}; columns: {', '.join(self._columns)}")
        key, part = self._columns[name]
        with self._open() as file:
            values = file[key][:] if part is None else file[key][:, part]
        return np.array([text(v) for v in values], dtype=str) if values.dtype.kind in "OS" else values

    def class_names(self, name: str = "class") -> tuple[str, ...]:
        """Return what the integers of a class column stand for: as the file says, or else the numbers.

        Galaxy, qso and star are what those of ``class`` mean where the file does not say.
        """
        values = self.column(name)
        with self._open() as file:
            names = file[self._columns[name][0]].attrs.get("names", CLASS_NAMES if name == "class" else None)
        return tuple(
            map(str, range(int(np.max(values, initial=-1, where=values >= 0)) + 1))
            if names is None
            else map(text, names)
        )

    def flux(self, index: Index = slice(None), *, size: int | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Return cutouts in the order asked for.

        Parameters
        ----------
        index : int, slice, or array of int or bool
        size : int, optional
            Only the central `size` x `size` pixels.
        out : ndarray of float32, shape (n, C, S, S), optional
            Memory to read into.

        Returns
        -------
        ndarray of float32, shape (n, C, S, S)
            Bands in the order of `bands`; NaN = no data.

        Raises
        ------
        IndexError
            If a row is out of range.
        ValueError
            If `size` is larger than the cutouts.
        """
        flux = self._read(self._layout.flux, index, size, out)
        if self._layout.good is not None and self._layout.good in self._places:
            flux[~self._read(self._layout.good, index, size)] = np.nan
        return flux

    def weight(self, index: Index = slice(None), *, size: int | None = None) -> np.ndarray:
        """Return the inverse variances of pixels, as `flux` returns the pixels.

        Raises
        ------
        KeyError
            If the file has none; `has_weight` tells.
        """
        if not self.has_weight or self._layout.weight is None:
            raise KeyError(f"{self.path}: holds no inverse variances")
        return self._read(self._layout.weight, index, size)

    def _read(self, key: str, index: Index, size: int | None, out: np.ndarray | None = None) -> np.ndarray:
        data, window = self._source(key), self._window(size)
        if isinstance(index, slice):
            images = data[(index, slice(None), *window)]
            images = images.copy() if isinstance(data, np.ndarray) else images  # not a view of the file
        else:
            rows = self._rows(index)
            if isinstance(data, np.ndarray):
                if out is not None and size in (None, self.size) and data.dtype == out.dtype and self._in_order():
                    return np.take(data, rows, axis=0, out=out, mode="clip")  # "clip" makes no copy between
                images = data[(slice(None), slice(None), *window)][rows]
            elif not len(rows):
                images = data[(slice(0, 0), slice(None), *window)]
            else:
                unique, inverse = np.unique(rows, return_inverse=True)
                runs = np.split(unique, np.flatnonzero(np.diff(unique) > _GAP) + 1)
                images = np.concatenate([data[(slice(r[0], r[-1] + 1), slice(None), *window)][r - r[0]] for r in runs])
                images = images[inverse]
        if not self._in_order():
            images = images[:, self._planes]
        images = np.asarray(images, dtype=bool if key == self._layout.good else np.float32)
        if out is None:
            return images
        out[:] = images
        return out

    def _in_order(self) -> bool:
        return self._planes == list(range(len(self._planes)))

    def _rows(self, index: int | Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.atleast_1d(np.asarray(index))
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            wrong = rows.max() if rows.max() >= len(self) else rows.min()
            raise IndexError(f"{self.path}: row {wrong} of {len(self)} cutouts")
        return rows % len(self)

    def _window(self, size: int | None) -> tuple[slice, slice]:
        if size is None:
            return slice(None), slice(None)
        if not 0 < size <= self.size:
            raise ValueError(f"size={size}: {self.path} holds cutouts of {self.size} pixels")
        start = self.size // 2 - size // 2
        return slice(start, start + size), slice(start, start + size)

    def _source(self, key: str) -> np.ndarray | h5py.Dataset:
        """Return images to index: mapped into memory where they lie in one piece, else through HDF5."""
        place = self._places[key]
        if place is None:
            return self._file()[key]
        if key not in self._mapped:
            offset, shape, dtype = place
            self._mapped[key] = np.memmap(self.path, dtype, "r", offset, shape).view(np.ndarray)
        return self._mapped[key]

    def _position(self, name: str) -> np.ndarray:
        if name not in self._columns:
            return np.full(len(self), np.nan)
        return np.asarray(self.column(name), dtype=np.float64)

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            hint = "truncated or another format"
            if "lock" in str(error):
                hint = "locked; where the disk knows no locks, set HDF5_USE_FILE_LOCKING=FALSE"
            raise OSError(f"{self.path}: cannot be read as HDF5 ({hint}?): {error}") from error
        with file:
            yield file

    def _file(self) -> h5py.File:
        """Return a handle of this very process, kept open for images in chunks: it would not survive a fork."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1]


def _place(data: h5py.Dataset) -> tuple[int, tuple[int, ...], np.dtype] | None:
    """Return where in the file the numbers lie, if in one piece and as they are."""
    offset = data.id.get_offset() if data.chunks is None and data.external is None and not data.is_virtual else None
    if offset is None or data.size == 0 or data.dtype.kind not in "fiub":
        return None
    return offset, data.shape, data.dtype
