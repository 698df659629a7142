"""What one searches for: images of objects, which become vectors of a model."""

from __future__ import annotations

import numpy as np
import torch

from skylib.data.augment import turn
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.model.mim import MaskedImageModel


def target_vectors(
    model: MaskedImageModel, flux: np.ndarray, *, augment: bool = False, pool: str = "mean", layer: int = -1,
    ra: np.ndarray | None = None, dec: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
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
    """
    device = model.sky_sigma.device
    images = torch.from_numpy(np.asarray(flux, dtype=np.float32)).to(device)
    unknown = np.full(len(images), np.nan)
    place = [torch.from_numpy(np.asarray(unknown if v is None else v, dtype=np.float64)).to(device) for v in (ra, dec)]
    if augment:
        turns = torch.cartesian_prod(*[torch.tensor([False, True])] * 3).T  # all eight, (3, 8)
        turns = turns.repeat(1, len(images))
        images, *place = (x.repeat_interleave(8, dim=0) for x in (images, *place))
        images = turn(images, turns)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = zip(*(x.split(256) for x in (images, *place)), strict=True)
            vectors = [model.embed(x, pool=pool, ra=a, dec=d, layer=layer).float().cpu() for x, a, d in parts]
            return torch.cat(vectors).numpy()
    finally:
        model.train(was_training)


def query_arrays(model: MaskedImageModel, targets: np.ndarray | CutoutFile) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return images in the model's bands and size (t, C, S, S), or vectors (t, D), and the positions if the model uses them.

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
    targets = np.asarray(targets, dtype=np.float32)
    if targets.ndim not in (2, 4) or not len(targets):
        raise ValueError(f"targets of shape {targets.shape}: must be images (t, C, S, S), or vectors (t, D)")
    return targets, {}
