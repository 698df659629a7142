"""How the tokens of an image become one vector: the table of poolings for everything that embeds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def central_patches(n_patches: int, reach: int = 1) -> list[int]:
    """Return the numbers of the patches up to `reach` from the centre of the grid.

    Examples
    --------
    >>> central_patches(16), central_patches(9), len(central_patches(64, reach=2))
    ([5, 6, 9, 10], [4], 16)
    """
    side, lines = _middle(n_patches, reach)
    return [row * side + col for row in range(side)[lines] for col in range(side)[lines]]


def _middle(n_patches: int, reach: int) -> tuple[int, slice]:
    """Return the side of the grid, and which of its rows and columns are up to `reach` from its centre."""
    side = round(n_patches**0.5)
    middle, odd = divmod(side, 2)
    return side, slice(max(0, middle - reach + odd), middle + reach)


def _central(patches: Tensor, reach: int = 1) -> Tensor:
    side, lines = _middle(patches.shape[1], reach)  # an index by a list would make a GPU wait for the list
    return patches.unflatten(1, (side, side))[:, lines, lines].flatten(1, 2)


# From patch tokens (B, N, D) and the cls token (B, D) to (B, D'). "central" are the four patches around the centre (one
# where the grid is odd), "central16" the sixteen (nine); "central_flat", four tokens side by side, is the published
# recipe's.
POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda patches, cls: patches.mean(dim=1),
    "max": lambda patches, cls: patches.amax(dim=1),
    "cls": lambda patches, cls: cls,
    "central": lambda patches, cls: _central(patches).mean(dim=1),
    "central16": lambda patches, cls: _central(patches, 2).mean(dim=1),
    "central_flat": lambda patches, cls: _central(patches).flatten(1),
    "mean_central": lambda patches, cls: torch.cat([patches.mean(dim=1), _central(patches).mean(dim=1)], dim=1),
    "tokens": lambda patches, cls: patches,  # no pooling: (B, N, D)
}
