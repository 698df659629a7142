"""What a linear model can be given of an image: vectors of an encoder at any layer and pooling, pixels, magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from skylib.checks import check_choice
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import Batch, CutoutLoader
from skylib.device import autocast, kept_memory
from skylib.model.mim import MaskedImageModel, build_model
from skylib.model.packed import packed
from skylib.model.pooling import POOLS
from skylib.model.stretch import stretch

# (layer, pool): vectors (n, D)
Features = dict[tuple[int, str], np.ndarray]


def encode(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    rows: np.ndarray,
    pools: Sequence[str] = ("mean", "central"),
    layers: Sequence[int] = (-1,),
    drop_bands: Sequence[str] = (),
    batch_size: int = 256,
    precision: str = "fp32",
) -> Features:
    """Embed some cutouts at several layers and poolings, in one pass.

    Parameters
    ----------
    model : MaskedImageModel
    cutouts : CutoutFile
    rows : ndarray of int, shape (n,)
    pools : sequence of str
        Of `skylib.model.pooling.POOLS`.
    layers : sequence of int
        After which blocks, counted as in a list.
    drop_bands : sequence of str
        Bands taken away: NaN in every cutout.

    Returns
    -------
    dict of (layer, pool) to ndarray of float32, shape (n, D)
    """
    for pool in pools:
        check_choice("pool", pool, tuple(POOLS))
    depth = len(model.encoder.blocks)
    for layer in layers:
        check_choice("layer", layer, tuple(range(-depth, depth)))
    for band in drop_bands:
        check_choice("drop_bands", band, model.config.bands)
    dropped = [model.config.bands.index(band) for band in drop_bands]
    parts: dict[tuple[int, str], list[Tensor]] = {(layer, pool): [] for layer in layers for pool in pools}
    was_training, n_prefix, device = model.training, model.encoder.n_prefix, model.sky_sigma.device
    model.eval()
    try:
        quick = packed(model, precision=precision)
        with torch.inference_mode(), autocast(device, precision), kept_memory(device), _watched(quick) as seen:
            for batch in _batches(model, cutouts, rows, batch_size):
                batch.flux[:, dropped] = torch.nan
                seen.clear()
                last = quick.features(batch.flux, ra=batch.ra, dec=batch.dec)
                for layer in layers:
                    x = last if layer % depth == depth - 1 else seen[layer % depth]
                    for pool in pools:
                        parts[layer, pool].append(POOLS[pool](x[:, n_prefix:], x[:, 0]).float().cpu())
    finally:
        model.train(was_training)
    return {key: torch.cat(part).numpy() for key, part in parts.items()}


def moved(cutouts: CutoutFile, *, ra: np.ndarray, dec: np.ndarray) -> CutoutFile:
    """Return the same images with other positions; NaN where a position is to count as unknown."""
    elsewhere = copy(cutouts)
    elsewhere.ra, elsewhere.dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    return elsewhere


def random_weights(model: MaskedImageModel, *, seed: int = 0) -> MaskedImageModel:
    """Return the same architecture with fresh weights, and the same stretch: what the architecture gives for nothing."""
    fresh = build_model(model.config, seed=seed).to(model.sky_sigma.device)
    fresh.set_sky_noise(model.sky_sigma)
    return fresh


def pixel_pca(
    model: MaskedImageModel, cutouts: CutoutFile, *, rows: np.ndarray, train: np.ndarray, n_components: int = 64,
    most: int = 20_000, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Project the pixels that the model would see on their principal components.

    Parameters
    ----------
    model : MaskedImageModel
        Whose size, bands and sky noise are taken; its weights are not.
    rows, train : ndarray of int
        Which cutouts, and those the components are fitted to (at most `most` of them, drawn by `seed`).

    Returns
    -------
    ndarray of float32, shape (len(rows), n_components)
        Fewer components where there are fewer training cutouts or pixels.
    """
    if len(train) > most:
        train = np.sort(np.random.default_rng(seed).choice(train, most, replace=False))
    fitted = np.concatenate(list(_pixels(model, cutouts, train)))
    pca = PCA(min(n_components, *fitted.shape), random_state=seed).fit(fitted)
    return np.concatenate([pca.transform(part) for part in _pixels(model, cutouts, rows)]).astype(np.float32)


def _batches(model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray, batch_size: int) -> Iterator[Batch]:
    c = model.config
    yield from CutoutLoader(
        cutouts, batch_size=batch_size, rows=rows, size=c.image_size, bands=c.bands, shuffle=False,
        device=model.sky_sigma.device,
    )  # fmt: skip


def _pixels(model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield stretched pixels (b, C * S * S), 0 where there is no data."""
    for batch in _batches(model, cutouts, rows, 1024):
        pixels = stretch(batch.flux, model.sky_sigma, kind="asinh").nan_to_num(0.0, posinf=0.0, neginf=0.0)
        yield pixels.flatten(1).cpu().numpy()


@contextmanager
def _watched(model: MaskedImageModel) -> Iterator[list[Tensor]]:
    """Collect what each block gives in a forward pass."""
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in model.encoder.blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
