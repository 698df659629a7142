"""Features brought to mean 0 and variance 1, or made uncorrelated, over objects that are read once, block by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skylib.checks import check_choice
from skylib.data.plain import filled
from skylib.device import tensor_of

CACHED = 4096  # vectors standardised at a time: what a processor's cache holds


def as_vectors(name: str, values: Any, width: int, *, finite: bool = True) -> Tensor:
    """Return vectors (t, D) as a tensor; a single one (D,) is one row.

    Raises
    ------
    ValueError
        If they have another width, are no numbers, or are not finite though they should; the message names them.
    """
    held = values if isinstance(values, Tensor) else np.atleast_2d(np.asarray(filled(values)))
    of_floats = held.is_floating_point() if isinstance(held, Tensor) else held.dtype.kind == "f"
    if held.ndim != 2 or held.shape[1] != width or not of_floats:
        raise ValueError(f"{name} of shape {tuple(held.shape)} and type {held.dtype}: vectors must be (t, {width})")
    vectors = tensor_of(name, held)
    if finite and not bool(vectors.isfinite().all()):
        raise ValueError(f"{name}: a vector is not finite")
    return vectors


class Standardiser:
    """What brings vectors to a common scale, in float64.

    Parameters
    ----------
    blocks : iterable of Tensor, shape (n_i, D)
        All vectors, each finite.
    how : bool or "whiten"
        Mean 0 and variance 1 of each feature, nothing, or also features that are uncorrelated.

    Attributes
    ----------
    variance : Tensor of float64, shape (D,)
        Of each feature afterwards.

    Raises
    ------
    ValueError
        If there is no vector.
    """

    def __init__(self, blocks: Iterable[Tensor], how: bool | str = True) -> None:
        check_choice("standardize", how, (True, False, "whiten"))
        n, first, second, origin = 0, torch.zeros(1), torch.zeros(1), None
        for block in blocks:
            for part in block.split(CACHED):
                if not len(part):
                    continue
                if origin is None:
                    origin = part[0].double()
                    first = torch.zeros_like(origin)
                    second = torch.zeros(len(first), *([len(first)] if how == "whiten" else [])).to(first)
                x = part.to(torch.float64, copy=True).sub_(origin)  # sums about a value among them lose few digits
                n, first = n + len(x), first + x.sum(dim=0)
                second += x.T @ x if how == "whiten" else x.square_().sum(dim=0)
        if origin is None:
            raise ValueError("no finite vector")
        shift = first / n
        self._mean, self._matrix, self._how = origin + shift, torch.ones_like(shift), how
        if how == "whiten":
            values, directions = torch.linalg.eigh(second / n - torch.outer(shift, shift))
            floor = values.clamp(min=float(values.max()) * 1e-6 or 1.0)  # directions without variance are noise
            self._matrix, self.variance = directions / floor.sqrt(), values.clamp(min=0) / floor
            return
        self.variance = (second / n - shift.square()).clamp(min=0)
        if how:
            varies = self.variance > 0  # a constant feature says nothing; any scale will do
            self._matrix, self.variance = torch.where(varies, self.variance, 1.0).sqrt(), varies.double()

    def __call__(self, x: Tensor) -> Tensor:
        """Return standardised vectors (…, D): float32, computed in float64."""
        if self._how is False:
            return x.float()
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for part, to in zip(x.split(CACHED), out.split(CACHED), strict=True):
            part = part.to(torch.float64, copy=True).sub_(self._mean)
            to.copy_(part @ self._matrix if self._matrix.ndim == 2 else part.div_(self._matrix))
        return out
