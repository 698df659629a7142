"""Crops of a tile: where they may begin, and how they are taken on the device where the tile is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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


def crop(image: Tensor, top: np.ndarray, left: np.ndarray, *, out: Tensor) -> None:
    """Copy crops of an image (C, H, W), which begin at the given pixels, to `out` (n, C, S, S)."""
    if image.device.type == "cpu":
        _crop_one_by_one(image.numpy(), top, left, out.numpy())
    else:
        _crop_by_index(image, top, left, out)


def _crop_one_by_one(image: np.ndarray, top: np.ndarray, left: np.ndarray, out: np.ndarray) -> None:
    """On a CPU a copy of rows of pixels, crop after crop, is five times faster than an index of each pixel."""
    size = out.shape[-1]
    for target, row, col in zip(out, top.tolist(), left.tolist(), strict=True):
        target[:] = image[:, row : row + size, col : col + size]


def _crop_by_index(image: Tensor, top: np.ndarray, left: np.ndarray, out: Tensor) -> None:
    """On a GPU one kernel copies all crops."""
    width, within = image.shape[-1], torch.arange(out.shape[-1], device=image.device)
    first = torch.from_numpy(top * width + left)
    if image.device.type == "cuda":
        first = first.pin_memory().to(image.device, non_blocking=True)
    index = first[:, None, None] + within[:, None] * width + within
    out.copy_(image.flatten(1)[:, index].transpose(0, 1))
