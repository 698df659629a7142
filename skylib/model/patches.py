"""Patches: which are hidden (a mask is True where removed), and what a reconstruction is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def uniform_draws(generator: torch.Generator | None, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
    """Return what draws a tensor of some shape from U(0, 1) where the generator is, and brings it to the device."""
    where = device if generator is None else generator.device
    return lambda *shape: torch.rand(shape, generator=generator, device=where).to(device)


def random_token_mask(draw: Callable[..., Tensor], batch: int, n_patches: int, n_visible: int) -> Tensor:
    """Hide the same number of patches in each sample, all bands together (`mae`).

    Parameters
    ----------
    draw : callable
        From a shape to numbers between 0 and 1 (`uniform_draws`), here and below.

    Returns
    -------
    Tensor of bool, shape (B, N)
        Exactly ``N - n_visible`` True per row.
    """
    return draw(batch, n_patches).argsort(dim=1).argsort(dim=1) >= n_visible


def random_band_mask(draw: Callable[..., Tensor], batch: int, n_bands: int, n_patches: int, max_ratio: float) -> Tensor:
    """Hide different patches in each band (`simmim`); the share hidden is drawn from U(0, max_ratio) per sample.

    Returns
    -------
    Tensor of bool, shape (B, C, N)
    """
    ratio = draw(batch, 1, 1) * max_ratio
    return draw(batch, n_bands, n_patches) < ratio


def random_whole_bands(draw: Callable[..., Tensor], batch: int, n_bands: int, share: float) -> Tensor:
    """Hide 1 to C - 1 whole bands, each number and each band equally often, in a share of the samples.

    Returns
    -------
    Tensor of bool, shape (B, C)
    """
    chosen = draw(batch, 1) < share
    n_hidden = 1 + draw(batch, 1) * (n_bands - 1)
    rank = draw(batch, n_bands).argsort(dim=1).argsort(dim=1)
    return chosen & (rank < n_hidden.floor())


def check_mask(mask: Tensor, *, batch: int, n_bands: int, n_patches: int) -> Tensor:
    """Return a mask of patches, (B, N) or (B, C, N), as (B, C, N).

    Raises
    ------
    ValueError
        If it is no bool, or has another shape.
    """
    if mask.ndim == 2:
        mask = mask[:, None].expand(-1, n_bands, -1)
    if mask.dtype != torch.bool or mask.shape != (batch, n_bands, n_patches):
        raise ValueError(
            f"mask of {mask.dtype} and shape {tuple(mask.shape)}: must be bool, "
            f"({batch}, {n_patches}) or ({batch}, {n_bands}, {n_patches})"
        )
    return mask


def count_visible(mask: Tensor, *, bands_alike: bool) -> int:
    """Return how many patches of each sample a mask (B, C, N) leaves to `mae`, at least in one band.

    Raises
    ------
    ValueError
        If the number differs between samples, or the mask between bands where they must be alike.
    """
    if bands_alike and not bool((mask == mask[:, :1]).all()):
        raise ValueError("mask differs between bands: 'mae' drops whole tokens, unless hide_bands is above 0")
    visible = (~mask.all(dim=1)).sum(dim=1).unique()
    if len(visible) > 1:
        raise ValueError("mask hides different numbers of patches in different samples: 'mae' needs the same")
    return int(visible[0])


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)

    Returns
    -------
    Tensor, shape (B, N, C, P)
        N patches in row-major order of P = patch_size**2 pixels each.
    """
    b, c, h, w = images.shape
    p = patch_size
    images = images.reshape(b, c, h // p, p, w // p, p)
    return images.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // p) * (w // p), c, p * p)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Put patches (B, N, C, P) together to images (B, C, H, W): the inverse of `patchify` for square images.

    Examples
    --------
    >>> image = torch.arange(32.0).reshape(1, 2, 4, 4)
    >>> bool((unpatchify(patchify(image, 2), 2) == image).all())
    True
    """
    b, n, c, _ = patches.shape
    p, side = patch_size, round(n**0.5)
    patches = patches.reshape(b, side, side, c, p, p)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c, side * p, side * p)


def mask_to_pixels(mask: Tensor, patch_size: int) -> Tensor:
    """Turn a mask of patches, (B, C, N), into one of pixels, (B, C, H, W)."""
    return unpatchify(mask.transpose(1, 2)[..., None].expand(-1, -1, -1, patch_size**2), patch_size)


class Patches(NamedTuple):
    """Stretched pixels cut into patches, all (B, N, C, P)."""

    pixels: Tensor  # 0 where there is no data
    valid: Tensor  # bool


def cut(images: Tensor, patch_size: int) -> Patches:
    """Cut stretched images (B, C, S, S), with NaN where there is no data, into patches."""
    pixels = patchify(images, patch_size)
    valid = ~pixels.isnan()
    return Patches(torch.where(valid, pixels, 0.0), valid)


def standardise(patches: Patches, over: str | None) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Give each patch mean 0 and variance 1 over its valid pixels.

    Parameters
    ----------
    patches : Patches
    over : {"band", "patch", None}
        Each band of a patch on its own, all bands of a patch together, or not at all.

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
    scale = (variance + 1e-6).sqrt()
    unknown = torch.where(n > 1, 0.0, torch.nan)
    return deviation / scale, mean + unknown, scale


# Each is a name in `skylib.config.Loss`.
ERRORS: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "mse": torch.square}


def mean_error(prediction: Tensor, target: Tensor, use: Tensor, *, kind: str) -> tuple[Tensor, Tensor]:
    """Compare patches (B, N, C, P).

    Parameters
    ----------
    prediction, target : Tensor
    use : Tensor of float32
        Weight of each pixel; where it is 0 the gradient is exactly 0.
    kind : str
        A row of `ERRORS`.

    Returns
    -------
    error, weight : Tensor, scalar
        The weighted mean, 0 if there is nothing to compare, and the sum of the weights.
    """
    error = torch.where(use > 0, prediction.float() - target, 0.0)
    error = use * ERRORS[kind](error)
    weight = use.sum()
    return error.sum() / torch.where(weight > 0, weight, 1.0), weight
