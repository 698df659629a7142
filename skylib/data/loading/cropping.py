"""Crops of a tile: where they may begin, and how they are copied on the device where the tile is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from skylib.data.loading.batch import to_device

_CELL, _STEP = 16, 4  # pixels: crops begin in cells of which one pixel in steps has data at the centre of the crop


class Corners:
    """The first pixels that crops of a tile may have: those whose centre lies where there is data.

    Parameters
    ----------
    flux : ndarray, shape (C, H, W)
        NaN = no data. A pixel counts if it has data in one of the bands.
    size : int
        Side of the crops.

    Raises
    ------
    ValueError
        If the tile is smaller than `size`, or has no data.
    """

    def __init__(self, flux: np.ndarray, size: int) -> None:
        self.shape = flux.shape[1] - size + 1, flux.shape[2] - size + 1  # first rows and columns there are
        if min(self.shape) < 1:
            raise ValueError(f"{flux.shape[1:]} pixels: smaller than size={size}")
        middle = size // 2
        rows, cols = (slice(middle, middle + n, _STEP) for n in self.shape)
        good = np.isfinite(flux[:, rows, cols]).any(axis=0)
        per_cell = _CELL // _STEP
        good = np.pad(good, [(0, -n % per_cell) for n in good.shape])
        good = good.reshape(good.shape[0] // per_cell, per_cell, -1, per_cell).any(axis=(1, 3))
        heights, widths = (np.minimum(_CELL, n - np.arange(0, n, _CELL)) for n in self.shape)
        self._heights, self._widths = heights, widths
        self._cumulative = np.cumsum(good * heights[:, None] * widths)
        if not self._cumulative[-1]:
            raise ValueError(f"no pixel has data where a crop of {size} pixels can be centred")

    def at(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return first rows and columns for uniform random numbers (n, 3)."""
        cell = np.searchsorted(self._cumulative, place[:, 0] * self._cumulative[-1], side="right")
        row, col = np.divmod(cell, len(self._widths))
        top = row * _CELL + (place[:, 1] * self._heights[row]).astype(np.int64)
        left = col * _CELL + (place[:, 2] * self._widths[col]).astype(np.int64)
        return top, left


def make_relative_weight(variance: np.ndarray, flux: np.ndarray) -> None:
    """Turn variances (C, H, W), in place, into weights: the median of the band over each; 0 where there is no data."""
    for noise, image in zip(variance, flux, strict=True):
        good = np.isfinite(image) & (noise > 0)
        some = good[::8] if good[::8].any() else good
        typical = np.median(noise[:: 8 if some is not good else 1][some]) if some.any() else 1.0
        np.divide(typical, noise, out=noise, where=good)
        noise[~good] = 0


def crop(image: Tensor, top: np.ndarray, left: np.ndarray, *, flips: Tensor | None, out: Tensor) -> None:
    """Copy crops of an image (C, H, W), which begin at the given pixels, to `out` (n, C, S, S), flipped on the way.

    Parameters
    ----------
    image : Tensor
    top, left : ndarray of int64, shape (n,)
    flips : Tensor of bool, shape (3, n), or None
        As in `skylib.data.augment.flip`.
    out : Tensor
        On the device of `image`.
    """
    if image.device.type == "cpu":
        size, pixels = out.shape[-1], image.numpy()
        windows = (pixels[:, r : r + size, c : c + size] for r, c in zip(top.tolist(), left.tolist(), strict=True))
        _copy_one_by_one(windows, flips, out.numpy())
    else:
        _crop_by_index(image, top, left, flips, out)


def gather(images: np.ndarray, slots: np.ndarray, *, flips: Tensor | None, out: Tensor) -> None:
    """Copy images (n, C, S, S) in the order of `slots` to `out`, in the memory of the host, flipped on the way."""
    if flips is None:
        np.take(images, slots, axis=0, out=out.numpy(), mode="clip")  # "clip" makes no copy between
    else:
        _copy_one_by_one((images[slot] for slot in slots.tolist()), flips, out.numpy())


def _copy_one_by_one(images: Iterable[np.ndarray], flips: Tensor | None, out: np.ndarray) -> None:
    """On a CPU one copy after the other, mirrored as it is made, is five times faster than an index of each pixel."""
    if flips is None:
        for target, image in zip(out, images, strict=True):
            target[:] = image
        return
    forward, backward = slice(None), slice(None, None, -1)
    for target, image, cols, rows, diagonal in zip(out, images, *flips.tolist(), strict=True):
        if cols and not diagonal:
            image = np.ascontiguousarray(image)  # each pixel is then copied alone, faster so from the cache
        if rows or cols:
            image = image[:, backward if rows else forward, backward if cols else forward]
        target[:] = image.swapaxes(1, 2) if diagonal else image


def _crop_by_index(image: Tensor, top: np.ndarray, left: np.ndarray, flips: Tensor | None, out: Tensor) -> None:
    """On a GPU one kernel copies all crops."""
    width, size = image.shape[-1], out.shape[-1]
    first = to_device(top * width + left, image.device)
    row = torch.arange(size, device=image.device)[:, None].expand(size, size)
    col = row.T
    rows, cols = row.expand(len(first), -1, -1), col.expand(len(first), -1, -1)
    if flips is not None:  # where pixel (row, col) of the crop comes from: the mirrors undone, the last one first
        flip_cols, flip_rows, diagonal = to_device(flips.numpy(), image.device)[:, :, None, None]
        rows, cols = torch.where(diagonal, cols, rows), torch.where(diagonal, rows, cols)
        rows = torch.where(flip_rows, size - 1 - rows, rows)
        cols = torch.where(flip_cols, size - 1 - cols, cols)
    index = first[:, None, None] + rows * width + cols
    out.copy_(image.flatten(1)[:, index].transpose(0, 1))
