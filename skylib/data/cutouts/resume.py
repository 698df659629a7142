"""A file of cutouts in the making: which tiles are done is kept in the file itself, so that a kill loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import numpy as np

from skylib.data.cutouts.layouts import fixed, text
from skylib.data.cutouts.write import create, keep_rows, prepare_columns, put
from skylib.files import replaced, sync, unwritable


class CutoutJob:
    """All but the pixels is in the partial file from the start; they are written tile by tile, then the tile is marked.

    Parameters
    ----------
    out : path
        The file to be.
    settings : dict
        What it is made of; with the labels it decides whether a partial file is resumed.
    labels : mapping
        Columns of the objects.
    """

    def __init__(self, out: Path, settings: dict[str, Any], labels: Mapping[str, Any]) -> None:
        self.out, self.partial = out, out.with_name(f"{out.name}.partial")
        n = len(labels["ra"])
        try:
            self._columns = prepare_columns(labels, n)
        except ValueError as error:
            raise ValueError(f"{out}: {error}") from error
        digest = hashlib.sha256(json.dumps(settings, default=str).encode())
        for name, (values, about) in self._columns.items():
            digest.update(f"{name} {about}".encode())
            digest.update(f"{values.dtype}".encode() + values.tobytes())
        self._key = digest.hexdigest()
        self._lock = Lock()
        self.is_writable = True
        self.done, self.empty = np.zeros(0, bool), np.zeros(n, bool)

    def is_finished(self) -> bool:
        """Whether the whole file exists, of the same settings and objects, and without a skipped tile."""
        try:
            with h5py.File(self.out, "r") as file:
                return text(file.attrs.get("made_of")) == self._key and not len(file.attrs["skipped_tiles"])
        except (OSError, KeyError):
            return False

    @contextmanager
    def open(
        self, n: int, n_tiles: int, bands: Sequence[str], size: int, attributes: Mapping[str, Any], *, weight: bool
    ) -> Iterator[None]:
        """Resume the partial file, or start a new one, and keep it open for writing."""
        try:
            if not self._resumes():
                about = {**attributes, "made_of": self._key, **_left_out(0, [])}
                form: dict[str, Any] = {"bands": bands, "size": size, "columns": self._columns, "weight": weight}
                with replaced(self.partial) as begun:  # its structure is whole from the first moment
                    create(begun, n=n, attributes=about, **form)
                    with h5py.File(begun, "r+") as file:
                        file["progress/done"], file["progress/empty"] = np.zeros(n_tiles, "u1"), np.zeros(n, "u1")
            self._file = h5py.File(self.partial, "r+")
        except (OSError, RuntimeError) as error:
            raise unwritable(self.out, error) from error
        with self._file:
            self.done, self.empty = (self._file[f"progress/{name}"][:].astype(bool) for name in ("done", "empty"))
            yield

    def write(self, index: np.ndarray, *images: np.ndarray) -> None:
        """Write images (n, C, S, S) of the objects `index`, in ascending order; fluxes first, then weights."""
        runs = np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) > 1) + 1)
        with self._writing():
            for name, block in zip(("cutouts", "weight"), images, strict=False):
                for run in runs:
                    put(self._file, name, slice(index[run[0]], index[run[-1]] + 1), block[run[0] : run[-1] + 1])
            self.empty[index] = ~np.isfinite(images[0]).reshape(len(index), -1).any(axis=1)

    def finish(self, tile: int) -> None:
        """Mark a tile as done, once its pixels are on the disk."""
        with self._writing():
            self._flush()
            self.done[tile] = True
            self._file["progress/empty"][:] = self.empty.astype("u1")
            self._file["progress/done"][tile] = 1
            self._flush()

    def complete(self, keep: np.ndarray, skipped: Sequence[str]) -> None:
        """Leave out the rows not to be kept, and give the file its name."""
        if not keep.any():
            self.remove()
            raise ValueError(f"none of the {len(keep)} objects has a pixel of data")
        if keep.all() and not skipped:  # nothing is to be changed, so a kill finds the file whole here or there
            os.replace(self.partial, self.out)
            return
        with replaced(self.out) as whole:
            keep_rows(self.partial, whole, np.flatnonzero(keep))
            with h5py.File(whole, "r+") as file:
                file.attrs.update(_left_out(int((~keep).sum()), skipped))
        self.remove()

    def remove(self) -> None:
        """Delete the partial file."""
        self.partial.unlink(missing_ok=True)

    def _resumes(self) -> bool:
        try:
            with h5py.File(self.partial, "r") as file:
                return text(file.attrs.get("made_of")) == self._key and "progress/done" in file
        except OSError as error:
            if "unable to lock" in str(error):
                raise OSError(f"another process writes it, or a lock was left behind: {error}") from error
            return False
        except Exception:  # damage raises errors of many kinds
            return False

    def _flush(self) -> None:
        self._file.flush()
        sync(self.partial)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, RuntimeError) as error:
                self.is_writable = False
                raise unwritable(self.out, error) from error


def _left_out(n: int, skipped: Sequence[str]) -> dict[str, Any]:
    return {"n_left_out": n, "skipped_tiles": fixed(skipped)}
