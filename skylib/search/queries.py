"""What one searches for: images that become vectors of a model, and objects of a catalogue by position or name."""

from __future__ import annotations

import re

import astropy.units as u
import numpy as np
import torch
from astropy.coordinates import SkyCoord

from skylib.checks import checked
from skylib.data.augment import orientations
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.data.plain import filled
from skylib.model.embed import encode_batches, has_data
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel


@checked
def target_vectors(
    model: MaskedImageModel,
    flux: np.ndarray,
    *,
    augment: bool = False,
    pool: str = "mean",
    layer: int = -1,
    ra: np.ndarray | None = None,
    dec: np.ndarray | None = None,
) -> np.ndarray:
    """Embed images of targets, on request in all eight rotations and flips, for a search that ignores orientation.

    Parameters
    ----------
    model : MaskedImageModel
    flux : ndarray of float32, shape (t, C, S, S)
        In the bands of the model and of its size, counts.
    augment : bool
        All eight orientations of each image.
    pool, layer
        As in `embed`.
    ra, dec : ndarray of float, shape (t,), optional
        Degrees; used only by a model with ``ra_dec=True``, for which they are unknown otherwise.

    Returns
    -------
    ndarray of float32, shape (t, D), or (8 t, D) with `augment`

    Raises
    ------
    ValueError
        If an image has no pixel of data.
    """
    if pool == "tokens":
        raise ValueError("pool='tokens' gives no single vector per image; use embed_tokens")
    device = model.sky_sigma.device
    images = torch.from_numpy(np.asarray(filled(flux), dtype=np.float32)).to(device)
    shapes = [tuple(images.shape), *(np.shape(place) for place in (ra, dec) if place is not None)]
    if images.ndim != 4 or not len(images) or set(shapes[1:]) - {(len(images),)}:
        raise ValueError(f"flux, ra and dec have shapes {shapes}: must be (t, C, S, S) and (t,)")
    if len(empty := np.flatnonzero(~has_data(images).cpu().numpy())):
        raise ValueError(f"targets: image {empty[0]} has no pixel of data (all are NaN or zero)")
    unknown = np.full(len(images), np.nan)
    place = [torch.from_numpy(np.asarray(unknown if v is None else v, dtype=np.float64)).to(device) for v in (ra, dec)]
    if augment:
        images = torch.stack(list(orientations(images)), dim=1).flatten(0, 1)
        place = [x.repeat_interleave(8, dim=0) for x in place]
    batches = zip(*(x.split(256) for x in (images, *place)), strict=True)
    return encode_batches(model, batches, n=len(images), pools=(pool,), layers=(layer,))[layer, pool]


def query_arrays(model: MaskedImageModel, targets: np.ndarray | CutoutFile) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return images in the model's bands and size (t, C, S, S), or vectors (t, D); and the positions a model needs.

    Raises
    ------
    ValueError
        If the arrays are neither.
    """
    c = model.config
    if isinstance(targets, CutoutFile):
        loader = CutoutLoader(targets, batch_size=1, size=c.image_size, bands=c.bands, shuffle=False, device="cpu")
        flux = loader.flux(np.arange(len(targets)))
        return flux, {"ra": targets.ra, "dec": targets.dec} if c.ra_dec else {}
    targets = np.asarray(filled(targets), dtype=np.float32)
    if targets.ndim not in (2, 4) or not len(targets):
        raise ValueError(f"targets of shape {targets.shape}: must be images (t, C, S, S), or vectors (t, D)")
    return targets, {}


@checked
def find_object(objects: Embeddings | CutoutFile, text: str, *, radius: float = 60.0) -> tuple[int, str]:
    """Find an object of a catalogue by what a person types.

    Parameters
    ----------
    objects : Embeddings or CutoutFile
    text : str
        ``#12`` (a row), an ``object_id``, a text that only one object has in a column (such as its name), or a
        position: ``150.1 2.2`` in degrees, or ``10:00:24.0 +02:12:00``.
    radius : float
        How far from a position the object may lie, arcsec.

    Returns
    -------
    row : int
    how : str
        How it was found, such as ``"1.2 arcsec from 150.1 2.2"``.

    Raises
    ------
    ValueError
        If no object, or more than one, is meant.

    Examples
    --------
    >>> e = Embeddings(np.eye(2), ra=[150.0, 150.1], dec=[2.0, 2.2], columns={"name": np.array(["M1", "M2"])})
    >>> find_object(e, "m2"), find_object(e, "150.1 2.2")
    ((1, 'name M2'), (1, '0.0 arcsec from 150.1 2.2'))
    """
    text = text.strip()
    if number := re.fullmatch(r"(?:#|row )\s*(\d+)", text):
        if int(number[1]) >= len(objects):
            raise ValueError(f"{text}: rows are 0 to {len(objects) - 1}")
        return int(number[1]), f"row {number[1]}"
    for name in sorted(objects.columns, key=lambda name: name != "object_id"):
        values = objects.column(name)
        if name != "object_id" and values.dtype.kind not in "OSU":
            continue
        rows = np.flatnonzero(np.char.lower(values.astype(str)) == text.lower())
        if len(rows) == 1:
            return int(rows[0]), f"{name} {values[rows[0]]}"
        if len(rows):
            raise ValueError(f"{len(rows)} objects have {name} = {text!r}: give a row (#12), object_id or position")
    place = _position(text)
    if place is None:
        raise ValueError(
            f"{text!r}: no object_id or name, and no position; write #12 for a row, or '150.1 2.2' or "
            "'10:00:24 +02:12:00' for a position"
        )
    separation = SkyCoord(objects.ra, objects.dec, unit="deg").separation(place).arcsec
    if not np.isfinite(separation).any():
        raise ValueError(f"{text}: no object has a known position")
    row = int(np.nanargmin(separation))
    if separation[row] > radius:
        nearest = f"the nearest is #{row} at {separation[row]:.4g} arcsec"
        raise ValueError(f"{text}: no object within {radius:g} arcsec; {nearest}")
    return row, f"{separation[row]:.1f} arcsec from {text}"


def _position(text: str) -> SkyCoord | None:
    """Read right ascension and declination, in degrees or sexagesimal; None if the text is neither."""
    parts = text.replace(",", " ").split()
    try:
        if len(parts) == 2 and ":" not in text and "h" not in text:
            return SkyCoord(float(parts[0]), float(parts[1]), unit=u.deg)
        return SkyCoord(text, unit=(u.hourangle, u.deg)) if len(parts) >= 2 or "h" in text else None
    except (ValueError, TypeError, u.UnitsError):
        return None


def query_vectors(query: np.ndarray, embeddings: Embeddings, model: MaskedImageModel | None) -> np.ndarray:
    """Return vectors comparable with some embeddings, from vectors (t, D) or images (t, C, S, S).

    Raises
    ------
    ValueError
        If vectors have another width or are not finite, or images are given without a model.
    """
    if query.ndim == 4:
        if model is None:
            raise ValueError("an image as the query needs the model that made the embeddings: give model=…")
        meta, averaged = embeddings.meta, bool(embeddings.meta.get("all_orientations"))
        how = {"pool": meta.get("pool", "mean"), "layer": meta.get("layer", -1)}
        vectors = target_vectors(model, query, augment=averaged, **how)
        return vectors.reshape(len(query), -1, vectors.shape[1]).mean(axis=1)
    width = embeddings.vectors.shape[1]
    if query.ndim != 2 or query.shape[1] != width:
        raise ValueError(f"query of shape {query.shape[1:]}: must be a vector ({width},) or an image")
    if not np.isfinite(query).all():
        raise ValueError("query: the vector is not finite")
    return query.astype(np.float32)
