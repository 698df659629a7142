"""Changes to an image that leave its meaning: made on the device, drawn for each sample on its own."""

from __future__ import annotations

import torch
from torch import Tensor


def random_orientation(flux: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Give each square image one of the eight turns and mirrors, with equal chance.

    Parameters
    ----------
    flux : Tensor, shape (B, C, S, S)
    generator : torch.Generator, optional

    Returns
    -------
    Tensor, shape (B, C, S, S)
    """
    return turn(flux, random_turns(len(flux), generator=generator))


def random_turns(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw for `n` images whether to mirror columns, rows, and the diagonal: bool (3, n)."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(2, (3, n), generator=generator, device=device).bool()


def turn(flux: Tensor, turns: Tensor) -> Tensor:
    """Mirror square images (B, C, S, S) as `random_turns` drew, (3, B)."""
    draw = turns.to(flux.device)[:, :, None, None, None]
    flux = torch.where(draw[0], flux.flip(-1), flux)
    flux = torch.where(draw[1], flux.flip(-2), flux)
    return torch.where(draw[2], flux.transpose(-1, -2), flux)
