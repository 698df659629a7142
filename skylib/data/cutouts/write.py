"""Writing HDF5 files of cutouts that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skylib.bands import ZERO_POINT, sort_bands
from skylib.data.cutouts.file import CutoutFile
from skylib.data.cutouts.layouts import CLASS_NAMES, text
from skylib.data.surveys import PIXEL_SCALE


def write_cutouts(
    path: str | Path,
    flux: np.ndarray,
    *,
    ra: np.ndarray,
    dec: np.ndarray,
    bands: str | Sequence[str],
    weight: np.ndarray | None = None,
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
    weight : ndarray, shape (n, C, S, S), optional
        Inverse variance of each pixel.
    **columns : ndarray, shape (n,)
        Labels.

    Raises
    ------
    ValueError
        If shapes do not match.
    OSError
        If the file cannot be written.
    """
    path, flux, given = Path(path), np.asarray(flux, dtype=np.float32), list(bands)
    order = sort_bands(given)
    if flux.ndim != 4 or flux.shape[1] != len(order) or flux.shape[2] != flux.shape[3]:
        raise ValueError(f"flux has shape {flux.shape}: must be (n, {len(order)}, S, S) for bands {' '.join(given)}")
    if weight is not None and np.shape(weight) != flux.shape:
        raise ValueError(f"weight has shape {np.shape(weight)}: must be that of flux, {flux.shape}")
    canonical = [sort_bands([band])[0] for band in given]
    planes = [canonical.index(band) for band in order]
    partial = path.with_name(path.name + ".partial")
    create(
        partial, n=len(flux), bands=order, size=flux.shape[-1], weight=weight is not None,
        columns={"ra": ra, "dec": dec, **columns},
        attributes={"pixel_scale": pixel_scale, "zero_point": zero_point, "provenance": provenance},
    )  # fmt: skip
    try:
        with h5py.File(partial, "r+") as file:
            file["cutouts"][:] = flux[:, planes]
            if weight is not None:
                file["weight"][:] = np.asarray(weight, dtype=np.float32)[:, planes]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return CutoutFile(path)


def create(
    path: Path, *, n: int, bands: Sequence[str], size: int, columns: Mapping[str, Any], attributes: Mapping[str, Any],
    weight: bool = False,
) -> None:  # fmt: skip
    """Write a file with all but the pixels, for which there is room in one piece, at a place that `mapped` finds.

    A kill while pixels are written that way cannot harm the file, since HDF5 has done its part.

    Raises
    ------
    ValueError
        If a column has another length than n, or names an unknown class.
    OSError
        If the file cannot be written.
    """
    if reserved := {"cutouts", "weight"} & set(columns):
        raise ValueError(f"{path}: a column cannot be named {', '.join(sorted(reserved))}, which names pixels: rename it, or leave it out")  # fmt: skip
    columns = {name: _as_column(name, values, n) for name, values in columns.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(path, "w")
    except OSError as error:
        raise OSError(f"{path.parent / path.name.removesuffix('.partial')}: cannot be written: {error}") from error
    with file:
        file.attrs.update({"bands": list(bands), **attributes})
        for name in ("cutouts", "weight") if weight else ("cutouts",):
            room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            room.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((n, len(bands), size, size))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=room)
        for name, values in columns.items():
            text_type = h5py.string_dtype() if values.dtype.kind == "O" else None
            file.create_dataset(name, data=values, dtype=text_type)
            if name == "class":
                file[name].attrs["names"] = list(CLASS_NAMES)


def mapped(path: Path, name: str = "cutouts") -> np.ndarray:
    """Return the pixels of a file from `create`, mapped into memory for writing."""
    with h5py.File(path, "r") as file:
        offset, shape = file[name].id.get_offset(), file[name].shape
    return np.memmap(path, "<f4", "r+", offset, shape)


class PixelWriter:
    """Writes images one by one into a file from `create`; several threads can.

    Plain writes are several times faster than a mapping, whose new pages the system makes one at a time.
    """

    def __init__(self, path: Path, name: str = "cutouts") -> None:
        with h5py.File(path, "r") as file:
            self._offset, self._shape = file[name].id.get_offset(), file[name].shape[1:]
        self._bytes = 4 * int(np.prod(self._shape))
        self._file = os.open(path, os.O_WRONLY)

    def write(self, index: int, image: np.ndarray) -> None:
        """Write an image (C, S, S) of float32 to its place."""
        data = np.ascontiguousarray(image, dtype="<f4")
        if os.pwrite(self._file, data.data, self._offset + index * self._bytes) != self._bytes:
            raise OSError("the disk is full")

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def keep_rows(path: Path, out: Path, rows: np.ndarray) -> None:
    """Copy some rows of a file to another."""
    with h5py.File(path, "r") as file:
        columns = {
            name: data.asstr()[:][rows] if data.dtype.kind == "O" else data[:][rows]
            for name, data in file.items()
            if name not in ("cutouts", "weight")
        }
        attributes = {name: value for name, value in file.attrs.items() if name != "bands"}
        bands, size = [text(band) for band in file.attrs["bands"]], file["cutouts"].shape[-1]
        pixels = [name for name in ("cutouts", "weight") if name in file]
    create(out, n=len(rows), bands=bands, size=size, columns=columns, attributes=attributes, weight="weight" in pixels)
    for name in pixels:
        source, target = mapped(path, name), mapped(out, name)
        for start in range(0, len(rows), 1024):
            target[start : start + 1024] = source[rows[start : start + 1024]]


def _as_column(name: str, values: Any, n: int) -> np.ndarray:
    """Return a label as HDF5 can hold it; what a catalogue masks is NaN, -1 for a class, empty for text."""
    dtype = getattr(values, "dtype", np.asarray(values).dtype)
    if hasattr(values, "filled"):
        if dtype.kind in "iu" and np.any(values.mask):
            values = values.astype(np.int64 if name == "class" else np.float64)
        values = values.filled({"f": np.nan, "i": -1, "u": 0, "b": False}.get(values.dtype.kind, ""))
    values = np.asarray(values)
    if values.shape != (n,):
        raise ValueError(f"column {name!r} has shape {values.shape}: must be ({n},)")
    if values.dtype.kind in "OSU":
        texts = [text(value) for value in values]
        if name != "class":
            return np.array(texts, dtype=object)
        if unknown := set(texts) - {*CLASS_NAMES, ""}:
            raise ValueError(f"column 'class' holds {sorted(unknown)}: names are {', '.join(CLASS_NAMES)}")
        values = np.array([CLASS_NAMES.index(word) if word else -1 for word in texts])
    return values.astype(values.dtype.newbyteorder("="))
