"""Reading HDF5 files of cutouts, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skylib.bands import ZERO_POINT, canonical_band, is_band, register_band, sort_bands, split_bands
from skylib.checks import checked
from skylib.data.calibration import FILLERS, MAX_FLUX
from skylib.data.cutouts.layouts import (
    CLASS_NAMES,
    LAYOUTS,
    check_links,
    detect,
    find_columns,
    read_column,
    stated_bands,
    text,
)
from skylib.data.cutouts.pixels import StoredImages
from skylib.data.cutouts.stated import number_of, unit_of, zero_point_of_unit
from skylib.data.description import Survey
from skylib.data.plain import degrees, positions, row_numbers
from skylib.data.surveys import get_survey

_MAX_CLASSES = 10_000
Index = int | slice | Sequence[int] | np.ndarray


class CutoutFile:
    """Cutouts and their labels in an HDF5 file, read on demand.

    It can be used in several threads, after a fork, and be pickled; ``HDF5_USE_FILE_LOCKING`` decides on locks.

    Parameters
    ----------
    path : path
    layout : str
        A key of `LAYOUTS`, or ``"auto"`` to tell it by what the file holds.
    bands : str or sequence of str, optional
        The order of the planes, for a file that does not state it.
    zero_point, pixel_scale : float, optional
        AB magnitude of one unit of flux in the file, and arcsec per pixel, for a file that does not state them.
    survey : str, path or Survey, optional
        Where they come from otherwise, such as ``"sdss"`` (`get_survey`); by default HSC coadds, 27 and 0.168.

    Attributes
    ----------
    bands : tuple of str
        In wavelength order, whatever the order in the file.
    ra, dec : ndarray of float64, shape (n,)
        Degrees ICRS; NaN where the file has none.
    shape : (int, int, int, int)
        (n, C, S, S).
    simulated : bool
        Whether they were cut from a sky of `simulate_sky`.
    zero_point : float
        Of the flux that is returned: 27, whatever the unit in the file, whose own is `file_zero_point`.
    survey : str
        Where the images come from, if the file says so, else empty.

    Raises
    ------
    OSError
        If there is no such file, or it is truncated or no HDF5.
    ValueError
        If its layout or its bands are not known, the lengths of its columns differ, the images are not square, or it
        refers to other files; the message names it.
    """

    zero_point = ZERO_POINT

    @checked
    def __init__(
        self,
        path: str | Path,
        *,
        layout: str = "auto",
        bands: str | Sequence[str] | None = None,
        zero_point: float | None = None,
        pixel_scale: float | None = None,
        survey: str | Path | Survey | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file of cutouts")
        if layout != "auto" and layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: one of 'auto', {', '.join(map(repr, LAYOUTS))}")
        with self._open() as file:
            check_links(file, self.path)
            self._layout = LAYOUTS[detect(file, self.path) if layout == "auto" else layout]
            images = file.get(self._layout.flux)
            if not isinstance(images, h5py.Dataset) or images.ndim != 4 or images.dtype.kind not in "fiub":
                names = ", ".join(list(file)[:20])
                raise ValueError(f"no dataset {self._layout.flux!r} of numbers of shape (n, C, S, S); it holds {names}")
            self.shape: tuple[int, int, int, int] = images.shape
            if self.shape[2] != self.shape[3] or 0 in self.shape[1:]:
                raise ValueError(f"cutouts of {self.shape[2]} x {self.shape[3]} pixels: must be square")
            stated = stated_bands(file, self._layout, self.path)
            if (order := stated if bands is None else bands) is None:
                raise ValueError("the file does not say which bands it holds; give bands='…' in its order")
            if len(order := split_bands(order) if isinstance(order, str) else list(order)) != self.shape[1]:
                raise ValueError(f"{len(order)} bands {order} stated for {self.shape[1]} planes")
            for band, wavelength in zip(order, np.atleast_1d(file.attrs.get("wavelengths", [])), strict=False):
                if not is_band(band):  # a band of another survey, known where the file was made
                    register_band(band, float(wavelength))
            self.bands = sort_bands(order)
            planes = [canonical_band(band) for band in order]
            if "bands" in file.attrs and stated is not None and planes != [canonical_band(band) for band in stated]:
                raise ValueError(f"bands={' '.join(order)} is given, but the file states {' '.join(stated)}")
            own = get_survey(survey or "hsc")
            self.pixel_scale = number_of(images, "pixel_scale", pixel_scale, own.pixel_scale)
            self.simulated = bool(file.attrs.get("simulated", False))
            of_unit = zero_point_of_unit(images, self.bands, self.pixel_scale, survey, zero_point)
            default = own.zero_point if of_unit is None else of_unit
            self.file_zero_point = number_of(images, "zero_point", zero_point, default)
            self._is_checked = "checksum" in file  # and so written here, without infinite pixels
            apart = ZERO_POINT - self.file_zero_point
            self._scale = np.float32(1 if abs(apart) < 1e-4 else 10 ** (0.4 * apart))
            self.survey = text(file.attrs.get("survey", "" if survey is None else own.name))
            self._columns = find_columns(file, self._layout, len(self), self.path)
            held = {key: file.get(key) for key in self._layout.images}
            stored = {key: data for key, data in held.items() if isinstance(data, h5py.Dataset) and data.ndim == 4}
            for key, data in stored.items():
                if data.shape != self.shape:
                    raise ValueError(f"{key!r} has shape {data.shape}, the images {self.shape}")
            self.has_weight = self._layout.weight in stored
            places = [planes.index(band) for band in self.bands]
            self._images = {key: StoredImages(self.path, data, places) for key, data in stored.items()}
        self.ra, self.dec = positions(*map(self._position, (self._layout.ra, self._layout.dec)), where=f"{self.path}: ")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"CutoutFile({str(self.path)!r}: {len(self)} cutouts, bands {' '.join(self.bands)}, {self.size} pixels)"

    @property
    def size(self) -> int:
        """Side of a cutout in pixels, S."""
        return self.shape[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the labels, without the positions."""
        return tuple(name for name in self._columns if name not in (self._layout.ra, self._layout.dec))

    @checked
    def column(self, name: str) -> np.ndarray:
        """Return one label of all objects, shape (n,); text as str.

        What the catalogue masked is NaN, -1 in a class, empty in text; integers above 2^53 that have masked ones among
        them stay integers, and `missing_value` says which one stands for those.

        Raises
        ------
        KeyError
            If there is no such column; the message lists those there are.
        """
        if name not in self._columns:
            raise KeyError(f"{self.path}: no column {name!r}; columns: {', '.join(self._columns)}")
        key, part = self._columns[name]
        with self._open() as file:
            return read_column(file[key], slice(None) if part is None else np.s_[:, part])

    def missing_value(self, name: str) -> int | None:
        """Return the integer that stands for masked values of a column, or None where none does."""
        return int(value) if isinstance(value := self.about(name).get("missing"), np.integer) else None

    @checked
    def about(self, name: str) -> dict[str, Any]:
        """Return what the file states of a column: ``unit``, class ``names``, ``missing`` (see `missing_value`)."""
        with self._open() as file:
            return dict(file[self._columns[name][0]].attrs) if name in self._columns else {}

    def class_names(self, name: str = "class") -> tuple[str, ...]:
        """Return what the integers of a class column stand for: as the file says, or else the numbers.

        Galaxy, qso and star are what 0, 1 and 2 of ``class`` mean where the file does not say.
        """
        values, names = self.column(name), self.about(name).get("names", CLASS_NAMES if name == "class" else [])
        most = max((int(x) for x in np.unique(values) if values.dtype.kind != "U" and 0 <= x < np.inf), default=-1)
        if most >= _MAX_CLASSES:
            raise ValueError(f"{self.path}: column {name!r} holds {most}: classes are 0 to {_MAX_CLASSES - 1}")
        return tuple(map(text, (*(names := np.atleast_1d(names)), *range(len(names), most + 1))))

    @checked
    def flux(
        self, index: Index = slice(None), *, size: int | None = None, pad: bool = False, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return cutouts in the order asked for.

        Parameters
        ----------
        index : int, slice, or array of int or bool
        size : int, optional
            Only the central `size` x `size` pixels.
        pad : bool
            Let `size` be larger than the cutouts: NaN around them.
        out : ndarray of float32, shape (n, C, S, S), optional
            Memory to read into.

        Returns
        -------
        ndarray of float32, shape (n, C, S, S)
            Counts at zero-point 27; bands in the order of `bands`; NaN = no data, also in a band that is -99,
            -999, -9999 or -32768 everywhere, or zero while another is not.

        Raises
        ------
        IndexError
            If a row is out of range, or a mask has another length than there are cutouts.
        ValueError
            If `size` is larger than the cutouts, without `pad`.
        OSError
            If the pixels cannot be read or decoded.
        """
        if pad and size is not None and size > self.size:
            inner = self.flux(index)
            flux = np.empty((*inner.shape[:2], size, size), np.float32) if out is None else out
            flux[:] = np.nan
            start = size // 2 - self.size // 2
            flux[:, :, start : start + self.size, start : start + self.size] = inner
            return flux
        flux = self._read(self._layout.flux, index, size=size, out=out)
        if self._layout.good is not None and self._layout.good in self._images:
            flux[~self._read(self._layout.good, index, size=size, dtype=bool)] = np.nan
        if not self._is_checked:
            flux[np.abs(flux) >= MAX_FLUX] = np.nan
        first = flux[:, :, 0, 0]
        if (maybe := np.isin(first, (0.0, *FILLERS))).any():
            empty = np.zeros(maybe.shape, bool)
            empty[maybe] = (flux[maybe] == flux[maybe][:, :1, :1]).all(axis=(-2, -1))
            blank = (empty & (first == 0)).all(axis=1, keepdims=True)  # images of zeros stay as they are
            flux[empty & ~blank] = np.nan
        if self._scale != 1:
            flux *= self._scale
        return flux

    @checked
    def weight(self, index: Index = slice(None), *, size: int | None = None) -> np.ndarray:
        """Return the inverse variances of pixels, as `flux` returns the pixels.

        Raises
        ------
        KeyError
            If the file has none; see `has_weight`.
        """
        if not self.has_weight or self._layout.weight is None:
            raise KeyError(f"{self.path}: holds no inverse variances")
        weight = self._read(self._layout.weight, index, size=size)
        return weight if self._scale == 1 else weight / self._scale**2

    def row_numbers(self, index: Index) -> np.ndarray:
        """Return the rows, int64, that numbers (from the end if negative), a slice, or a mask stand for.

        Raises
        ------
        IndexError
            If a row is out of range, or a mask has another length than there are cutouts.
        """
        return row_numbers(index, len(self), where=f"{self.path}: ")

    def _read(self, key: str, index: Index, *, size: int | None = None, **how: Any) -> np.ndarray:
        return self._images[key].read(index if isinstance(index, slice) else self.row_numbers(index), size=size, **how)

    def _position(self, name: str) -> np.ndarray:
        if name not in self._columns:
            return np.full(len(self), np.nan)
        unit = unit_of(self.about(name))
        return degrees(self.column(name), name, where=f"{self.path}: ", hours=name == self._layout.ra, unit=unit)

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            hint = "truncated or another format"
            if "unable to lock" in str(error):
                hint = "locked; where the disk knows no locks, set HDF5_USE_FILE_LOCKING=FALSE"
            raise OSError(f"{self.path}: cannot be read as HDF5 ({hint}?): {error}") from error
        with file:
            try:
                yield file
            except ValueError as error:
                named = str(error).startswith(str(self.path))
                raise error if named else ValueError(f"{self.path}: {error}") from error
            except Exception as error:  # damage raises errors of many kinds in the layers below
                raise OSError(f"{self.path}: damaged, or not as expected: {type(error).__name__}: {error}") from error
