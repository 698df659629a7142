"""What HDF5 files of cutouts look like: ours, and those of others."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from skylib.files import crc32

FORMAT = "v108"  # of HDF5 files: a checksum on all of their structure
CLASS_NAMES = ("galaxy", "qso", "star")
_MAX_DATASETS = 10_000
_HEAP = b"GCOL\1"  # how a heap begins
_SEARCHED = 2**20  # bytes of a dataset up to which it is searched for heaps as well
_SLASH = "\N{DIVISION SLASH}"  # stands for "/", which parts groups in HDF5


@dataclass(frozen=True)
class Layout:
    """Where an HDF5 file keeps what.

    Attributes
    ----------
    flux : str
        Dataset of images, (n, C, S, S).
    ra, dec : str
        Datasets of positions, deg.
    weight : str, optional
        Dataset of inverse variances, shaped as the images.
    good : str, optional
        Dataset of bool, shaped as the images, False where a pixel is not to be used.
    bands : tuple of str, optional
        The order of the planes, where the file itself does not state it.
    band_names : str, optional
        Dataset (n, C) that names the bands of each object.
    rename : dict
        Our names of columns on the left, the file's on the right.
    """

    flux: str
    ra: str = "ra"
    dec: str = "dec"
    weight: str | None = None
    good: str | None = None
    bands: tuple[str, ...] | None = None
    band_names: str | None = None
    rename: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> set[str]:
        """The datasets that hold no columns."""
        return {name for name in (self.flux, self.weight, self.good, self.band_names) if name}


LAYOUTS = {
    "skylib": Layout("cutouts", weight="weight"),
    # github.com/teaghan/sky_embeddings; class is 0 galaxy, 1 qso, 2 star, as here.
    "sky_embeddings": Layout("cutouts", rename={"z_spec": "zspec"}),
    # Do et al. 2024, arXiv:2410.00271: 5x64x64_training_with_morphology.hdf5 and its sisters.
    "galaxiesml": Layout("image", bands=("g", "r", "i", "z", "y"), rename={"z_spec": "specz_redshift"}),
    # The Multimodal Universe, arXiv:2412.02527: hsc/pdr3_dud_22.5/healpix=…/001-of-001.hdf5.
    "multimodal_universe": Layout("image_array", weight="image_ivar", good="image_mask", band_names="image_band"),
}


def detect(file: h5py.File, path: Path) -> str:
    """Return the name of the layout that a file has.

    Raises
    ------
    ValueError
        If it is none of those known.
    """
    if "image_array" in file and "image_band" in file:
        return "multimodal_universe"
    if "image" in file and "specz_redshift" in file:
        return "galaxiesml"
    if "cutouts" in file:
        return "skylib" if "bands" in file.attrs else "sky_embeddings"
    raise ValueError(
        f"{path}: unknown layout; it holds {', '.join(list(file)[:20]) or 'nothing'}, known layouts are "
        f"{', '.join(LAYOUTS)}; write_cutouts makes one from arrays"
    )


def check_links(file: h5py.Group, path: Path) -> None:
    """Refuse what leads out of the file, or claims more than the file can hold.

    Raises
    ------
    ValueError
        The message names the file and the dataset.
    """
    if len(file) > _MAX_DATASETS:
        raise ValueError(f"{path}: {len(file)} datasets; at most {_MAX_DATASETS} are read")
    limit = 1000 * path.stat().st_size + 2**26
    for group in ("checksum", "columns"):
        if isinstance(inner := file.get(group), h5py.Group):
            check_links(inner, path)
    for key in file:
        link = file.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(
                f"{path}: {key!r} is a link into another file, {link.filename!r}, and links are not followed"
            )
        try:
            data = file[key]
        except (KeyError, RuntimeError):
            target = f" to {link.path!r}" if isinstance(link, h5py.SoftLink) else ""
            raise ValueError(f"{path}: {key!r} is a link{target} that leads nowhere") from None
        if data.file.id != file.id and Path(data.file.filename) != path:
            raise ValueError(
                f"{path}: {key!r} leads into another file, {data.file.filename!r}, and links are not followed"
            )
        if not isinstance(data, h5py.Dataset):
            continue
        if h5py.check_ref_dtype(data.dtype):
            raise ValueError(f"{path}: {key!r} holds references, which are not followed")
        if data.external or data.is_virtual:
            raise ValueError(f"{path}: the numbers of {key!r} are in other files, which are not read")
        if data.shape is None or data.nbytes > limit:
            raise ValueError(f"{path}: {key!r} claims a shape of {data.shape}, more than the file can hold")
    if file.name == "/":
        _check_heaps(file, path)


def _check_heaps(file: h5py.Group, path: Path) -> None:
    """Refuse a damaged heap, where HDF5 keeps texts of any length, in which the library itself would loop for ever."""
    pixels: list[tuple[int, int]] = []  # where no heap is
    for data in file.values():
        if not isinstance(data, h5py.Dataset) or data.nbytes < _SEARCHED:
            continue
        if data.chunks is not None:
            data.id.chunk_iter(lambda chunk: pixels.append((chunk.byte_offset, chunk.byte_offset + chunk.size)))
        elif (start := data.id.get_offset()) is not None:
            pixels.append((start, start + data.id.get_storage_size()))
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heap = 0
        for start, end in [*sorted(pixels), (len(content), len(content))]:
            while (heap := content.find(_HEAP, heap, start)) >= 0:
                (size,) = struct.unpack_from("<Q", content, heap + 8)
                last, at = min(heap + size, len(content)) - 16, heap + 16
                while at <= last:
                    number, length = struct.unpack_from("<H6xQ", content, at)
                    if number == length == 0:
                        raise ValueError(f"{path}: damaged: the texts at byte {at} have no end")
                    at += length if number == 0 else 16 + -(-length // 8) * 8
                heap += 16
            heap = end


def stated_bands(file: h5py.File, layout: Layout, path: Path) -> list[str] | None:
    """Return the bands of the planes in the file's order, or None where it does not state them.

    Raises
    ------
    ValueError
        If the order differs between objects.
    """
    if "bands" in file.attrs:
        stated = file.attrs["bands"]
        if isinstance(stated, str | bytes) or np.ndim(stated) != 1:
            raise ValueError(f"{path}: the attribute bands is {stated!r}: must be a list of names")
        return [text(band) for band in stated]
    if layout.band_names is not None:
        orders = np.unique(file[layout.band_names][:], axis=0)
        if len(orders) != 1:
            raise ValueError(f"{path}: {layout.band_names} names {len(orders)} different orders of bands: must be one")
        return [text(band) for band in orders[0]]
    return list(layout.bands) if layout.bands is not None else None


def find_columns(file: h5py.File, layout: Layout, n: int, path: Path) -> dict[str, tuple[str, int | None]]:
    """Return where the columns are: our name -> (dataset, which of its columns, or None for all of it).

    A dataset (n, k) of vectors, such as a position, gives k columns ``name_0``, ``name_1``, ….

    Raises
    ------
    ValueError
        If a column has another number of rows than there are cutouts.
    """
    ours = {theirs: name for name, theirs in layout.rename.items()}
    for name in (layout.ra, layout.dec):
        same = [key for key in file if key.lower() == name.lower()]
        if name not in file and len(same) == 1:
            ours[same[0]] = name
    columns: dict[str, tuple[str, int | None]] = {}
    for key, data in file.items():
        if key in layout.images or not isinstance(data, h5py.Dataset) or data.ndim not in (1, 2):
            continue
        if data.dtype.kind not in "fiubS" and not h5py.check_string_dtype(data.dtype):
            continue  # no label: compound, or of several values
        name = ours.get(key, name_of(key, data))
        if len(data) != n:
            raise ValueError(f"{path}: column {name!r} has {len(data)} rows for {n} cutouts")
        if data.ndim == 1 or data.shape[1] == 1:
            columns[name] = (key, None if data.ndim == 1 else 0)
        else:
            columns |= {f"{name}_{i}": (key, i) for i in range(min(data.shape[1], _MAX_DATASETS))}
    return columns


def read_column(data: h5py.Dataset, rows: Any = slice(None)) -> np.ndarray:
    """Read a column, or some of its rows; text comes as str.

    Raises
    ------
    OSError
        If all is read, and is not what `write_column` wrote.
    """
    values = data[rows]
    if values.shape == data.shape and data.attrs.get("crc32", crc := crc32(values.tobytes())) != crc:
        raise OSError(f"the checksum of {data.name!r} (its attribute crc32) is wrong: it was changed or damaged")
    if values.dtype.kind == "S" and "crc32" not in data.attrs:  # of others, perhaps padded with spaces
        values = np.char.rstrip(values)
    if values.dtype.kind in "OS":
        return np.array([text(v) for v in values.flat], dtype=str).reshape(values.shape)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def write_column(
    group: h5py.Group, name: str, values: np.ndarray, about: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write a column with attributes; text takes one length, since HDF5 can hang on a damaged file of texts of any."""
    if values.dtype.kind in "OU":
        values = fixed([str(value) for value in values])
    data = group.create_dataset(key_of(name), data=values)
    data.attrs.update({**about, "crc32": crc32(np.ascontiguousarray(values).tobytes())})
    if key_of(name) != name:
        data.attrs["name"] = fixed(name)


def fixed(texts: str | Sequence[str]) -> np.ndarray:
    """Return text, or texts of one length, in UTF-8."""
    encoded = [text.encode() for text in ([texts] if isinstance(texts, str) else texts)]
    array = np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")
    return array[0] if isinstance(texts, str) else array


def key_of(name: str) -> str:
    """Return the name of the dataset that holds a column, whose own name may contain what HDF5 does not allow.

    Examples
    --------
    >>> "/" in key_of("B/T")
    False
    """
    return {".": "_dot", "..": "_dots"}.get(name, name.replace("/", _SLASH).replace("\0", ""))


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError unless columns of these names can be kept side by side."""
    keys = [key_of(name) for name in names]
    if len(set(keys)) < len(keys) or "" in keys:
        raise ValueError(f"columns have names that cannot be distinguished: {', '.join(map(repr, names))}")


def name_of(key: str, data: h5py.Dataset) -> str:
    """Return the name of the column that a dataset holds."""
    return text(name) if isinstance(name := data.attrs.get("name"), str | bytes) else key


def text(value: Any) -> str:
    """Return text that HDF5 or FITS gave as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
