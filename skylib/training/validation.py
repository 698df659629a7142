"""What is measured while a model trains: the loss on held-out images, and what probes read from the embeddings."""

from __future__ import annotations

import torch

from skylib.data.loading import CutoutLoader
from skylib.device import autocast, keyed_generator
from skylib.model.mim import MaskedImageModel

_VALIDATE = 1  # what a mask is for: part of its key


@torch.no_grad()
def validation_loss(model: MaskedImageModel, loader: CutoutLoader, *, precision: str, seed: int) -> float:
    """Return the error of the pixels over one pass of a loader; the masks are the same each time.

    Other terms of the loss, some of which grow by design as a training goes on, are not in it.
    """
    device = model.sky_sigma.device
    total = torch.zeros(2, device=device)  # summed error, pixels
    for number, batch in enumerate(loader):
        generator = keyed_generator(seed, _VALIDATE, number, device=device)
        with autocast(device, precision):
            out = model(batch.flux, weight=batch.weight, ra=batch.ra, dec=batch.dec, generator=generator)
        total += torch.stack([out.parts["pixels"] * out.n_pixels, out.n_pixels])
    error, n_pixels = total.tolist()
    return error / n_pixels if n_pixels else float("nan")
