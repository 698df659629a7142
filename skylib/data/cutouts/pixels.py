"""Images in an HDF5 file: mapped into memory where they lie in one piece, else read through HDF5."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skylib.files import row_sums

_ALL = slice(None), slice(None)
_CACHED_BYTES = 2**19  # copied and compared together
_GAP = 4  # rows between two that are asked for, up to which reading on is faster than a new start


class StoredImages:
    """A dataset of images (n, C, S, S), which can be used in several threads, after a fork, and be pickled.

    Parameters
    ----------
    path : Path
    data : h5py.Dataset
        In that very file.
    planes : list of int
        In which order to give the planes.

    Raises
    ------
    ValueError
        If the file holds checksums, but not one for each image.
    """

    def __init__(self, path: Path, data: h5py.Dataset, planes: list[int]) -> None:
        self.path, self.key, self.shape, self.dtype = path, data.name, data.shape, data.dtype
        self._planes = None if planes == list(range(len(planes))) else planes
        plain = data.chunks is None and data.size > 0 and data.dtype.kind in "fiub"
        self._offset: int | None = data.id.get_offset() if plain else None
        filters = data.id.get_create_plist()
        used = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
        self._lacking = [number for number in used if not h5py.h5z.filter_avail(number)]
        sums = data.file.get(f"checksum{data.name}")
        if sums is not None and (sums.shape != data.shape[:1] or sums.dtype not in (np.uint32, np.uint64)):
            raise ValueError(f"the checksums of {data.name!r} have shape {sums.shape} and type {sums.dtype}")
        self._sums: np.ndarray | None = None if sums is None else sums[:]
        self._unchecked = np.ones(len(data), bool)  # an image is compared when it is read for the first time
        self._mapped: np.ndarray | None = None
        self._handle: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_mapped": None}

    def read(
        self,
        rows: slice | np.ndarray,
        *,
        size: int | None = None,
        out: np.ndarray | None = None,
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """Return some images, (n, C, S, S), in a new array or in `out`.

        Parameters
        ----------
        rows : slice or ndarray of int64
            Not negative.
        size : int, optional
            Only the central `size` x `size` pixels.
        out : ndarray, optional
        dtype : dtype
            Of the result.

        Raises
        ------
        ValueError
            If `size` is larger than the images, or `out` of another shape.
        OSError
            If they cannot be read or decoded; the message names the file.
        """
        window = self._window(size)
        shape = (len(self._unchecked[rows]), self.shape[1], *(len(range(self.shape[-1])[part]) for part in window))
        if out is not None and np.shape(out) != shape:
            raise ValueError(f"out has shape {np.shape(out)}: must be {shape}")
        try:
            data = self._source()
            if self._sums is not None and self._unchecked[rows].any():
                out = np.empty(shape, dtype) if out is None else out
                return self._read_checked(data, rows, window, out, self._sums)
            if out is not None and not isinstance(rows, slice) and self._copies(data, window, out):
                return np.take(data, rows, axis=0, out=out, mode="clip")  # "clip" makes no copy between
            images = _pick(data, rows, window)
        except (OSError, RuntimeError, ValueError) as error:
            lacking = ", ".join(map(str, self._lacking))
            hint = f" (HDF5 filter {lacking} is not installed; the package hdf5plugin has most)" if lacking else ""
            raise OSError(f"{self.path}: the pixels of {self.key!r} cannot be decoded{hint}: {error}") from error
        images = np.asarray(images if self._planes is None else images[:, self._planes], dtype=dtype)
        if out is None:
            return images
        out[:] = images
        return out

    def _read_checked(
        self,
        data: np.ndarray | h5py.Dataset,
        rows: slice | np.ndarray,
        window: tuple[slice, slice],
        out: np.ndarray,
        sums: np.ndarray,
    ) -> np.ndarray:
        """Read images, and compare the checksum of each while it is in the cache of a core."""
        rows = np.arange(len(sums))[rows] if isinstance(rows, slice) else rows
        at_once = max(1, len(rows))
        if isinstance(data, np.ndarray):
            at_once = max(1, _CACHED_BYTES // (data.itemsize * int(np.prod(self.shape[1:]))))
        direct, found = self._copies(data, window, out), np.empty(len(rows), sums.dtype)
        for start in range(0, len(rows), at_once):
            some, part = rows[start : start + at_once], out[start : start + at_once]
            images = np.take(data, some, axis=0, out=part, mode="clip") if direct else _pick(data, some, _ALL)
            found[start : start + at_once] = row_sums(images, sums.dtype)
            if not direct:
                part[:] = images[(slice(None), slice(None) if self._planes is None else self._planes, *window)]
        if (bad := rows[found != sums[rows]]).size:
            raise OSError(f"the checksum of row {bad[0]} is wrong: it was changed or damaged")
        self._unchecked[rows] = False
        return out

    def _copies(self, data: np.ndarray | h5py.Dataset, window: tuple[slice, slice], out: np.ndarray) -> bool:
        """Return whether images are given as they are stored, and so can be copied in one step."""
        whole = window == _ALL and self._planes is None
        return whole and isinstance(data, np.ndarray) and data.dtype == out.dtype

    def _window(self, size: int | None) -> tuple[slice, slice]:
        if size in (None, self.shape[-1]):
            return _ALL
        if not 0 < size <= self.shape[-1]:
            raise ValueError(f"size={size}: {self.path} holds cutouts of {self.shape[-1]} pixels")
        start = self.shape[-1] // 2 - size // 2
        return slice(start, start + size), slice(start, start + size)

    def _source(self) -> np.ndarray | h5py.Dataset:
        if self._offset is not None:
            if self._mapped is None:
                self._mapped = np.memmap(self.path, self.dtype, "r", self._offset, self.shape).view(np.ndarray)
            return self._mapped
        if self._handle is None or self._handle[0] != os.getpid():  # a handle does not survive a fork
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        data = self._handle[1][self.key]
        if data.shape != self.shape:
            raise ValueError(f"they have shape {data.shape}, and had {self.shape} when the file was opened")
        return data


def _pick(data: np.ndarray | h5py.Dataset, rows: slice | np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """Return some rows as a new array; of a chunked file in runs of rows that lie close together."""
    if isinstance(rows, slice):
        images = data[(rows, slice(None), *window)]
        return images.copy() if isinstance(data, np.ndarray) else images  # not a view of the file
    if isinstance(data, np.ndarray):
        return data[(slice(None), slice(None), *window)][rows]
    if not len(rows):
        return data[(slice(0, 0), slice(None), *window)]
    unique, inverse = np.unique(rows, return_inverse=True)
    runs = np.split(unique, np.flatnonzero(np.diff(unique) > _GAP) + 1)
    images = np.concatenate([data[(slice(r[0], r[-1] + 1), slice(None), *window)][r - r[0]] for r in runs])
    return images[inverse]
