"""Training, validation and test parts that do not share sky."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy_healpix import HEALPix

from skylib.checks import checked
from skylib.data.cutouts import CutoutFile
from skylib.data.plain import as_label, degrees, positions
from skylib.data.sky import near_any

log = logging.getLogger(__name__)

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, -1
_NSIDES = [2**order for order in range(30)]
PART_NAMES = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "testing": 2, "unused": -1}


@checked
def sky_split(
    ra: np.ndarray,
    dec: np.ndarray,
    *,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    cell: int | np.ndarray = 8192,
    guard: float = 0.0,
) -> np.ndarray:
    """Split objects by whole cells of the sky.

    The part of a HEALPix cell follows from its number and the seed alone, so an object keeps its part when a
    catalogue grows, and two catalogues of one field agree.

    Parameters
    ----------
    ra, dec : ndarray of float, shape (n,)
        Degrees ICRS.
    fractions : (float, float, float)
        Of the cells; they sum to 1.
    seed : int
    cell : int or ndarray, shape (n,)
        The ``nside`` of HEALPix cells, a power of two, or for each object the name of its cell, such as its tile.
        8192: cells of 26 arcsec, which suits a field of a few arcmin; for a wide survey larger cells, such as 512
        (7 arcmin), have fewer borders. Named cells are put in an order drawn from their names and the seed, and
        dealt to the parts by `fractions` of the objects, at least one cell each.
    guard : float
        Arcsec. Training objects closer than this to a validation or test object, and validation objects closer to
        a test object, are left out. With cutouts of S pixels, ``S * pixel_scale * sqrt(2)`` is always enough for
        no pixel to be shared.

    Returns
    -------
    ndarray of int64, shape (n,)
        0 train, 1 validation, 2 test, -1 left out by the guard.

    Raises
    ------
    ValueError
        If a position is not finite, the fractions do not sum to 1, or a part with a fraction above zero is empty.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> split = sky_split(rng.uniform(150, 151, 5000), rng.uniform(2, 3, 5000))
    >>> (np.bincount(split) / 5000).round(1)
    array([0.6, 0.2, 0.2])
    """
    ra, dec = positions(degrees(ra, "ra", hours=True), degrees(dec, "dec"))
    if len(fractions) != 3 or min(fractions) < 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(f"fractions={tuple(fractions)}: must be three numbers that sum to 1")
    if isinstance(cell, np.ndarray):
        if cell.shape != ra.shape:
            raise ValueError(f"cell has shape {cell.shape}: must be {ra.shape}, the name of the cell of each object")
        split, kind = _deal(cell, fractions, seed), "named cells"
    else:
        _check_finite(ra, dec)
        split, kind = _draw(ra, dec, fractions, seed, cell), f"sky cells (nside={cell})"
    counts = np.bincount(split, minlength=3)
    if any(fraction > 0 and count == 0 for fraction, count in zip(fractions, counts, strict=True)):
        raise ValueError(
            f"{len(ra)} objects in few {kind} give parts of {counts.tolist()}: "
            f"use smaller cells (a larger nside), more of them, or another seed"
        )
    return apply_guard(split, ra, dec, guard=guard) if guard > 0 else split


@checked
def split_cutouts(
    cutouts: CutoutFile,
    *,
    use: np.ndarray | None = None,
    column: str = "split",
    size: int | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    cell: int | str = 8192,
) -> np.ndarray:
    """Return the split that a file brings, or else one on the sky whose parts share no pixel.

    Parameters
    ----------
    cutouts : CutoutFile
    use : ndarray of bool, shape (n,), optional
        Which objects take part; the others are -1 and need no guard.
    column : str
        Where the file would keep its own split: 0, 1, 2, or train, validation, test. It is honoured as it is; if its
        parts share pixels, a warning says how many objects do.
    size : int, optional
        Side in pixels of what the network sees; that of the cutouts by default.
    fractions, seed
        As in `sky_split`.
    cell : int or str
        An ``nside``; the name of a column, such as ``"tile"``; or ``"tile=1-1,1"``, whose objects are the test part
        while the others are split by sky cells.

    Returns
    -------
    ndarray of int64, shape (n,)
        0 train, 1 validation, 2 test, -1 unused.

    Raises
    ------
    ValueError
        If no object has that value, or `sky_split` cannot make the parts.
    """
    use = np.isin(np.arange(len(cutouts)), cutouts.row_numbers(slice(None) if use is None else use))
    guard = (size or cutouts.size) * cutouts.pixel_scale * np.sqrt(2)
    has_place = np.isfinite(cutouts.ra) & np.isfinite(cutouts.dec)
    if column in cutouts.columns:
        split = np.where(use, read_parts(cutouts.column(column), f"{cutouts.path}: column {column!r}"), UNUSED)
        placed = np.where(has_place, split, UNUSED)
        sharing = int((apply_guard(placed, cutouts.ra, cutouts.dec, guard=guard) != placed).sum())
        if sharing:
            log.warning("%s: %d objects may share pixels with a later part of its own split", cutouts.path, sharing)
        return split
    split, rest = np.full(len(cutouts), UNUSED), use
    if isinstance(cell, str) and "=" in cell:
        name, test = cell.split("=", 1)
        values = cutouts.column(name).astype(str)
        if test not in values[use]:
            raise ValueError(
                f"{cutouts.path}: no object with {name}={test!r}; values: {', '.join(np.unique(values)[:20])}"
            )
        split[use & (values == test)], rest, cell = TEST, use & (values != test), 8192
        fractions = (fractions[0] / sum(fractions[:2]), fractions[1] / sum(fractions[:2]), 0)
    cells = cutouts.column(cell)[rest] if isinstance(cell, str) else cell
    has_place = has_place[rest].any()
    if not has_place:  # images without a place on the sky
        by = f"column {cell!r}" if isinstance(cell, str) else "objects, at random"
        log.warning("%s: no positions; split by %s: parts may share pixels of the sky", cutouts.path, by)
        cells = cells if isinstance(cells, np.ndarray) else np.arange(int(rest.sum()))
    split[rest] = sky_split(cutouts.ra[rest], cutouts.dec[rest], fractions=fractions, seed=seed, cell=cells)
    return apply_guard(split, cutouts.ra, cutouts.dec, guard=float(guard)) if has_place else split


def apply_guard(split: np.ndarray, ra: np.ndarray, dec: np.ndarray, *, guard: float) -> np.ndarray:
    """Return a split without the objects of train and validation closer than `guard` arcsec to a later part."""
    guarded = split.copy()
    used = split >= 0
    _check_finite(ra[used], dec[used])
    for part in (TRAIN, VALIDATION):
        members, later = np.flatnonzero(split == part), np.flatnonzero(split > part)
        if len(members) and len(later):
            near = near_any(ra[members], dec[members], ra[later], dec[later], radius=guard)
            guarded[members[near]] = UNUSED
    return guarded


def sky_folds(ra: np.ndarray, dec: np.ndarray, *, n_folds: int = 5, seed: int = 0, cell: int = 8192) -> np.ndarray:
    """Return the fold, 0 to ``n_folds - 1``, of each object, by HEALPix cells, or at random if none has a position."""
    if not (np.isfinite(ra) & np.isfinite(dec)).any():
        return np.random.default_rng(seed).permutation(len(ra)) % n_folds
    _check_finite(ra, dec)
    cells, inverse = np.unique(_cells(ra, dec, cell), return_inverse=True)
    return np.random.default_rng(seed).permutation(len(cells))[inverse] % n_folds


def sky_halves(ra: np.ndarray, dec: np.ndarray, *, seed: int = 0, cell: int = 8192) -> tuple[np.ndarray, str]:
    """Draw two halves, by whole HEALPix cells where there are two, or else object by object.

    Returns
    -------
    half : ndarray of int64, shape (n,)
        0 or 1.
    by : {"sky cells", "objects"}
        Objects, if a position is not finite, or all lie in one cell.
    """
    if np.isfinite(ra).all() and np.isfinite(dec).all():
        half = sky_folds(ra, dec, n_folds=2, seed=seed, cell=cell)
        if len(np.unique(half)) == 2:
            return half, "sky cells"
    return np.random.default_rng(seed).permutation(len(ra)) % 2, "objects"


def _draw(ra: np.ndarray, dec: np.ndarray, fractions: Sequence[float], seed: int, nside: int) -> np.ndarray:
    """Draw the part of each HEALPix cell from its number."""
    unique, inverse = np.unique(_cells(ra, dec, nside), return_inverse=True)
    draw = np.array([np.random.default_rng([seed, cell]).random() for cell in unique])
    return np.searchsorted(np.cumsum(fractions)[:2], draw, side="right")[inverse]


def _deal(cell: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Deal named cells to the parts, so that each part has its share of the objects, and one cell at least."""
    names, inverse, counts = np.unique(cell, return_inverse=True, return_counts=True)
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed} {names[i]}".encode()).digest())
    wanted = [part for part, fraction in enumerate(fractions) if fraction > 0]
    share, part_of = np.zeros(3), np.zeros(len(names), dtype=np.int64)
    for i in order:  # to the part that is farthest below its share
        lack = [(share[part] == 0, fractions[part] - share[part]) for part in wanted]
        part = wanted[max(range(len(wanted)), key=lack.__getitem__)]
        part_of[i] = part
        share[part] += counts[i] / counts.sum()
    return part_of[inverse]


def _cells(ra: np.ndarray, dec: np.ndarray, nside: int) -> np.ndarray:
    if isinstance(nside, bool) or nside not in _NSIDES:
        raise ValueError(f"cell={nside!r}: an nside of HEALPix is a power of two, such as 8192")
    return HEALPix(nside=nside, order="nested").lonlat_to_healpix(ra * u.deg, dec * u.deg)


def _check_finite(ra: np.ndarray, dec: np.ndarray) -> None:
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()):
        bad = int((~(np.isfinite(ra) & np.isfinite(dec))).sum())
        raise ValueError(f"{bad} of {len(ra)} positions are not finite: these objects cannot be split on the sky")


def read_parts(values: np.ndarray, where: str) -> np.ndarray:
    """Turn numbers or names of parts into numbers."""
    if values.dtype.kind == "U":
        parts = {**PART_NAMES, "": UNUSED}
        if unknown := sorted({str(v) for v in np.unique(values) if v.strip().lower() not in parts}):
            raise ValueError(f"{where} holds {unknown[:3]}: must be one of {', '.join(PART_NAMES)}")
        return np.array([parts[v.strip().lower()] for v in values], dtype=np.int64)
    values = np.where(np.isnan(values), UNUSED, values) if values.dtype.kind == "f" else values
    unknown_numbers = sorted(set(np.unique(values).tolist()) - {-1, 0, 1, 2})
    if unknown_numbers or values.dtype.kind == "b":
        raise ValueError(f"{where} holds {unknown_numbers[:3] or 'bool'}: must be 0 train, 1 validation, 2 test, or -1")
    return values.astype(np.int64)


@checked
def progress_split(split: np.ndarray) -> np.ndarray:
    """Return the split for probes during training, which must not see the test part (n,).

    Every fifth training object chooses the settings of the probe, the other ones fit it, and validation reports.

    Examples
    --------
    >>> progress_split(np.array([0, 0, 0, 0, 0, 1, 2, -1])).tolist()
    [1, 0, 0, 0, 0, 2, -1, -1]
    """
    split = read_parts(as_label("split", split)[0], "split")
    chooses = np.arange(len(split)) % 5 == 0
    return np.select([split == VALIDATION, split == TRAIN], [TEST, np.where(chooses, VALIDATION, TRAIN)], UNUSED)
