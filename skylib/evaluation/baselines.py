"""Baselines that need no pretraining: an encoder with random weights, and principal components of the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.model.mim import MaskedImageModel, build_model
from skylib.model.stretch import stretch

MOST_FITTED = 20_000


def moved(cutouts: CutoutFile, *, ra: np.ndarray, dec: np.ndarray) -> CutoutFile:
    """Return the same images with other positions; NaN where a position is to count as unknown."""
    elsewhere = copy(cutouts)
    elsewhere.ra, elsewhere.dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    return elsewhere


def random_weights(model: MaskedImageModel, *, seed: int = 0) -> MaskedImageModel:
    """Return the same architecture and stretch with fresh weights: what the architecture gives without pretraining."""
    fresh = build_model(model.config, seed=seed).to(model.sky_sigma.device)
    fresh.set_sky_noise(model.sky_sigma)
    return fresh


def pixel_pca(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    rows: np.ndarray,
    train: np.ndarray,
    n_components: int = 64,
    seed: int = 0,
) -> np.ndarray:
    """Project the pixels that the model would see on their principal components.

    Parameters
    ----------
    model : MaskedImageModel
        Whose size, bands and sky noise are taken; its weights are not.
    rows, train : ndarray of int
        Which cutouts, and those the components are fitted to (at most 20,000 of them, drawn by `seed`).

    Returns
    -------
    ndarray of float32, shape (len(rows), n_components)
        Fewer components where there are fewer training cutouts or pixels.
    """
    if len(train) > MOST_FITTED:
        train = np.sort(np.random.default_rng(seed).choice(train, MOST_FITTED, replace=False))
    fitted = np.concatenate(list(_pixels(model, cutouts, train)))
    pca = PCA(min(n_components, *fitted.shape), random_state=seed).fit(fitted)
    return np.concatenate([pca.transform(part) for part in _pixels(model, cutouts, rows)]).astype(np.float32)


def _pixels(model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield stretched pixels (b, C * S * S), 0 where there is no data."""
    c, device = model.config, model.sky_sigma.device
    how: dict[str, Any] = {"batch_size": 1024, "size": c.image_size, "bands": c.bands}
    for batch in CutoutLoader(cutouts, rows=rows, shuffle=False, device=device, **how):
        pixels = stretch(batch.flux, model.sky_sigma, kind="asinh").nan_to_num(0.0, posinf=0.0, neginf=0.0)
        yield pixels.flatten(1).cpu().numpy()
