"""Writing HDF5 files of cutouts, which are whole or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import h5py
import numpy as np

from skylib.bands import ZERO_POINT, canonical_band, is_standard, sort_bands, split_bands, wavelength_of
from skylib.checks import checked
from skylib.data.calibration import MAX_FLUX, unit_zero_point
from skylib.data.cutouts.file import CutoutFile
from skylib.data.cutouts.layouts import CLASS_NAMES, FORMAT, check_names, fixed, name_of, text, write_column
from skylib.data.cutouts.stated import checked_number
from skylib.data.description import PIXEL_SCALE
from skylib.data.plain import as_label, degrees, has_text, plain_column, positions
from skylib.files import replaced, row_sums


@checked
def write_cutouts(
    path: str | Path,
    flux: np.ndarray,
    *,
    ra: np.ndarray | None = None,
    dec: np.ndarray | None = None,
    bands: str | Sequence[str],
    weight: np.ndarray | None = None,
    pixel_scale: float | u.Quantity = PIXEL_SCALE,
    zero_point: float | u.Quantity = ZERO_POINT,
    provenance: str = "",
    **columns: np.ndarray,
) -> CutoutFile:
    """Write cutouts and labels; the file takes its name only when it is complete.

    Parameters
    ----------
    path : path
    flux : ndarray, shape (n, C, S, S)
        In units of AB magnitude `zero_point`, unless it is a Quantity; NaN = no data, as is what a masked array masks.
    ra, dec : ndarray, shape (n,), optional
        Degrees ICRS, or angles of any unit; NaN without them.
    bands : str or sequence of str
        Of the planes of `flux`, in any order.
    weight : ndarray, shape (n, C, S, S), optional
        Inverse variance of each pixel.
    pixel_scale : float
        Arcsec.
    zero_point : float
        AB magnitude of one unit of `flux`. `CutoutFile.flux` always gives counts at zero-point 27.
    provenance : str
        Where the images come from.
    **columns : ndarray, shape (n,)
        Labels. Masked values become NaN, -1 for a class, empty for text; of integers too large for that, and of truth
        values, see `CutoutFile.column`.

    Raises
    ------
    ValueError
        If shapes do not match, or values are no fluxes, positions or weights; the message says which.
    OSError
        If the file cannot be written.
    """
    given = split_bands(bands) if isinstance(bands, str) else [text(band) for band in bands]
    order = sort_bands(given)
    flux, unit = _numbers("flux", flux)
    pixel_scale, zero_point = checked_number("pixel_scale", pixel_scale), checked_number("zero_point", zero_point)
    if (stated := unit_zero_point(unit, order, name="unit of flux")) is not None:
        if zero_point != ZERO_POINT and abs(zero_point - stated) > 0.02:
            raise ValueError(f"zero_point={zero_point!r} is given, but the unit of flux, {unit}, says {stated:.2f}")
        zero_point = stated
    flux[~(np.abs(flux) < MAX_FLUX)] = np.nan
    if flux.ndim != 4 or flux.shape[1] != len(order) or flux.shape[2] != flux.shape[3] or not flux.shape[3]:
        raise ValueError(f"flux has shape {flux.shape}: must be (n, {len(order)}, S, S) for bands {' '.join(given)}")
    if weight is not None and np.shape(weight) != flux.shape:
        raise ValueError(f"weight has shape {np.shape(weight)}: must be that of flux, {flux.shape}")
    canonical = [canonical_band(band) for band in given]
    planes = [canonical.index(band) for band in order]
    attributes = {"pixel_scale": pixel_scale, "zero_point": zero_point, "provenance": provenance}
    ra, dec = (np.full(len(flux), np.nan) if angle is None else angle for angle in (ra, dec))
    place = dict(zip(("ra", "dec"), positions(degrees(ra, "ra", hours=True), degrees(dec, "dec")), strict=True))
    if weight is not None:
        weight, weight_unit = _numbers("weight", weight)
        if (weight < 0).any() or (weight_unit and not (u.Unit(weight_unit) * u.Unit(unit or 1) ** 2).is_unity()):
            raise ValueError(f"weight holds {weight.min():.3g} {weight_unit}: must be inverse variances, not negative")
        weight[~np.isfinite(weight)] = 0
    labels = prepare_columns({**place, **columns}, len(flux))
    with replaced(path) as partial:
        form = {"bands": order, "size": flux.shape[-1], "weight": weight is not None}
        create(partial, n=len(flux), columns=labels, attributes=attributes, **form)
        with h5py.File(partial, "r+") as file:
            put(file, "cutouts", slice(None), flux[:, planes])
            if weight is not None:
                put(file, "weight", slice(None), weight[:, planes])
    return CutoutFile(path)


@checked
def copy_cutouts(cutouts: CutoutFile, path: str | Path) -> CutoutFile:
    """Write cutouts of any layout, unit or scale as a file of our own, with all their labels; block by block."""
    columns = {name: cutouts.column(name) for name in cutouts.columns}
    if "class" in columns and columns["class"].dtype.kind == "i":  # its names go along
        columns["class"] = np.array([*cutouts.class_names(), ""])[columns["class"].clip(-1)]
    labels = prepare_columns({"ra": cutouts.ra, "dec": cutouts.dec, **columns}, len(cutouts))
    for name in columns:
        about = cutouts.about(name)
        labels[name][1].update({key: about[key] for key in ("unit", "missing", "names") if key in about})
    attributes = {"pixel_scale": cutouts.pixel_scale, "zero_point": ZERO_POINT, "survey": cutouts.survey}
    attributes |= {"provenance": f"copied from {cutouts.path.name}", "simulated": cutouts.simulated}
    form: dict[str, Any] = {"bands": cutouts.bands, "size": cutouts.size, "weight": cutouts.has_weight}
    with replaced(path) as partial:
        create(partial, n=len(cutouts), columns=labels, attributes=attributes, **form)
        with h5py.File(partial, "r+") as file:
            for start in range(0, len(cutouts), 1024):
                rows = slice(start, min(start + 1024, len(cutouts)))
                put(file, "cutouts", rows, cutouts.flux(rows))
                if cutouts.has_weight:
                    put(file, "weight", rows, cutouts.weight(rows))
    return CutoutFile(path)


def prepare_columns(columns: Mapping[str, Any], n: int) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return labels as HDF5 can hold them, each with the attributes that say what the values mean.

    Raises
    ------
    ValueError
        If a column has another length than n, a name that is taken, or values that cannot be kept.
    """
    if reserved := {"cutouts", "weight", "progress", "checksum"} & set(columns):
        raise ValueError(
            f"a column cannot be named {', '.join(sorted(reserved))}, which names what the file holds of the pixels: "
            "rename it, or leave it out"
        )
    check_names(columns)
    return {name: _as_column(name, values, n) for name, values in columns.items()}


def create(
    path: Path,
    *,
    n: int,
    bands: Sequence[str],
    size: int,
    columns: Mapping[str, tuple[np.ndarray, dict[str, Any]]],
    attributes: Mapping[str, Any],
    weight: bool = False,
) -> None:
    """Write a file with all but the pixels, for which there is room in one piece each.

    Writing pixels there later changes nothing of the structure of the file, so a kill at that time cannot harm it.
    """
    with h5py.File(path, "w", libver=FORMAT) as file:
        unit = f"counts at AB zero-point {attributes.get('zero_point', ZERO_POINT):g}"
        stated = {"bands": fixed(bands), "flux_unit": unit, **attributes}
        file.attrs.update({name: fixed(v) if isinstance(v, str) else v for name, v in stated.items()})
        if not all(is_standard(band) for band in bands):  # others are known here only because a survey said so
            file.attrs["wavelengths"] = [wavelength_of(band) for band in bands]
        for name in ("cutouts", "weight") if weight else ("cutouts",):
            room = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            room.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            room.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((n, len(bands), size, size))
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=room)
            file[f"checksum/{name}"] = np.zeros(n, "<u4")
        for name, (values, about) in columns.items():
            write_column(file, name, values, about)


def put(file: h5py.File, name: str, rows: slice, images: np.ndarray) -> None:
    """Write images (n, C, S, S), little-endian float32, to their place, and the checksum of each."""
    images = np.ascontiguousarray(images)
    file[name].write_direct(images, dest_sel=rows)
    sums = file[f"checksum/{name}"]
    sums.write_direct(row_sums(images, sums.dtype), dest_sel=rows)


def keep_rows(path: Path, out: Path, rows: np.ndarray) -> None:
    """Copy some rows of a file to another.

    Raises
    ------
    OSError
        If the checksum of an image is wrong.
    """
    with h5py.File(path, "r") as file:
        columns = {
            name_of(key, data): (data[:][rows], dict(data.attrs))
            for key, data in file.items()
            if isinstance(data, h5py.Dataset) and key not in ("cutouts", "weight")
        }
        attributes = {name: value for name, value in file.attrs.items() if name not in ("bands", "wavelengths")}
        bands, size = [text(band) for band in file.attrs["bands"]], file["cutouts"].shape[-1]
        create(
            out, n=len(rows), bands=bands, size=size, columns=columns, attributes=attributes, weight="weight" in file
        )
        with h5py.File(out, "r+") as new:
            for name in ("cutouts", "weight") if "weight" in file else ("cutouts",):
                for start in range(0, len(rows), 1024):
                    some = rows[start : start + 1024]
                    block = file[name][some[0] : some[-1] + 1]  # rows come in order
                    images, sums = block[some - some[0]], file[f"checksum/{name}"][:][some]
                    if (bad := some[row_sums(images, sums.dtype) != sums]).size:
                        raise OSError(f"{path}: the checksum of row {bad[0]} is wrong: delete the file to begin anew")
                    put(new, name, slice(start, start + len(some)), images)


def _numbers(name: str, values: Any) -> tuple[np.ndarray, str]:
    """Return pixels as a new array of float32, NaN where they are masked, and their unit."""
    array, missing, unit = plain_column(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}: must be numbers")
    with np.errstate(over="ignore"):
        pixels = array.astype(np.float32)
    pixels[missing] = np.nan
    return pixels, unit


def _as_column(name: str, values: Any, n: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a label as HDF5 can hold it, and attributes: its unit, class names, the value for missing ones."""
    array, about = as_label(name, values)
    if array.shape != (n,):
        raise ValueError(f"column {name!r} has shape {array.shape}: must be ({n},)")
    about = {key: fixed(value) if isinstance(value, str) else value for key, value in about.items()}
    if name == "class":
        about["names"] = fixed(CLASS_NAMES)
    if array.dtype.kind != "U":
        return array, about
    if name != "class":
        return fixed(array.tolist()), about
    given = np.char.strip(np.where(has_text(array), array, "")).tolist()
    words, names = [word.lower() for word in given], list(CLASS_NAMES)
    if not set(words) <= {*names, ""}:  # classes of the user's own
        words, names = given, sorted(set(given) - {""})
    return np.array([names.index(word) if word else -1 for word in words]), about | {"names": fixed(names)}
