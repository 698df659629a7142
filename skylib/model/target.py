"""What a reconstruction is compared with: patches that know where they have data, standardised, and the mean error."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from skylib.model.patches import patchify


class Patches(NamedTuple):
    """Stretched pixels cut into patches, all (B, N, C, P)."""

    pixels: Tensor  # 0 where there is no data
    valid: Tensor  # bool


def cut(images: Tensor, patch_size: int) -> Patches:
    """Cut stretched images (B, C, S, S), with NaN where there is no data, into patches."""
    pixels = patchify(images, patch_size)
    valid = ~pixels.isnan()
    return Patches(torch.where(valid, pixels, 0.0), valid)


def standardise(
    patches: Patches, over: str | None, *, noise: Tensor | float = 1.0
) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Give each patch mean 0 and variance 1 over its valid pixels.

    Parameters
    ----------
    patches : Patches
    over : {"band", "patch", "noise", None}
        Each band of a patch on its own, all bands of a patch together, or not at all. ``noise`` is each band on its own,
        with the variance of the noise added to that of the pixels: empty sky then stays small beside a galaxy.
    noise : Tensor, shape (C, 1), or float
        Variance of the noise of the stretched pixels.

    Returns
    -------
    target : Tensor, shape (B, N, C, P)
    mean, scale : Tensor or float
        That undo it, ``target * scale + mean``; NaN where a patch has too few valid pixels to know them.
    """
    if over is None:
        return patches.pixels, 0.0, 1.0
    dims = (2, 3) if over == "patch" else (3,)
    n = patches.valid.sum(dim=dims, keepdim=True)
    mean = patches.pixels.sum(dim=dims, keepdim=True) / n.clamp(min=1)
    deviation = torch.where(patches.valid, patches.pixels - mean, 0.0)
    variance = deviation.square().sum(dim=dims, keepdim=True) / (n - 1).clamp(min=1)
    scale = (variance + (noise if over == "noise" else 1e-6)).sqrt()
    unknown = torch.where(n > 1, 0.0, torch.nan)
    return deviation / scale, mean + unknown, scale


def mean_error(prediction: Tensor, target: Tensor, use: Tensor, *, kind: str) -> tuple[Tensor, Tensor]:
    """Compare patches (B, N, C, P).

    Parameters
    ----------
    prediction, target : Tensor
    use : Tensor of float32
        Weight of each pixel; where it is 0 the gradient is exactly 0.
    kind : {"l1", "mse"}

    Returns
    -------
    error, weight : Tensor, scalar
        The weighted mean, 0 if there is nothing to compare, and the sum of the weights.
    """
    error = torch.where(use > 0, prediction.float() - target, 0.0)
    error = use * (error.abs() if kind == "l1" else error.square())
    weight = use.sum()
    return error.sum() / torch.where(weight > 0, weight, 1.0), weight
