"""A batch, and the memory that batches are made in."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skylib.checks import check_range, check_values
from skylib.device import send


class Batch(NamedTuple):
    """Images and what is known of them, on one device.

    Examples
    --------
    >>> batch = next(iter(skylib.CutoutLoader(cutouts, batch_size=8, columns=["class"])))
    >>> batch.flux.shape, batch.columns["class"].shape
    (torch.Size([8, 5, 32, 32]), torch.Size([8]))
    """

    flux: Tensor  # float32 (B, C, S, S), counts, NaN = no data
    ra: Tensor  # float64 (B,), degrees
    dec: Tensor  # float64 (B,)
    columns: dict[str, Tensor]  # each (B,)
    weight: Tensor | None = None  # float32 (B, C, S, S), inverse variance, about 1 in each band; 0 = no data


class Window(NamedTuple):
    """Images of some batches in a row, in memory: of the host, or of a GPU that holds all images."""

    flux: np.ndarray | Tensor
    weight: np.ndarray | Tensor | None
    slots: np.ndarray  # where the images of the batches are, batch after batch


class Buffers:
    """Memory for batches, used again when nobody holds the batch any more: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_free": []}

    def take(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return an uninitialised float32 tensor on the host, pinned if the device is a GPU."""
        if device.type == "cuda":  # torch keeps pinned memory for itself, until copies from it have ended
            return torch.empty(shape, pin_memory=True)
        size = math.prod(shape)
        try:  # several threads take from it
            base = self._free.pop()
        except IndexError:
            base = np.empty(size, dtype=np.float32)
        if base.size < size:
            base = np.empty(size, dtype=np.float32)
        view = base[:size].reshape(shape)  # lives as long as the tensor made of it
        weakref.finalize(view, self._free.append, base).atexit = False
        return torch.from_numpy(view)

    def take_on(self, device: torch.device, shape: tuple[int, ...]) -> Tensor:
        """Return an uninitialised float32 tensor on the device."""
        return torch.empty(shape, device=device) if device.type == "cuda" else self.take(shape, device)


def check_share(batch_size: int, rank: int, world_size: int) -> None:
    """Raise ValueError unless a batch can be divided among `world_size` processes, of which `rank` is one."""
    if batch_size % world_size:
        raise ValueError(f"batch_size={batch_size}: cannot be divided among {world_size} processes (world_size)")
    check_range("rank", rank, 0, world_size - 1)


def check_state(state: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError unless the state of a loader holds whole numbers of these names."""
    check_values({name: state.get(name) for name in names}, dict.fromkeys(names, int), where="state: ")


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device, without waiting for it."""
    return send(torch.from_numpy(np.ascontiguousarray(values)), device)
