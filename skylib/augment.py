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
    device = flux.device if generator is None else generator.device
    draw = torch.randint(2, (3, len(flux), 1, 1, 1), generator=generator, device=device).to(flux.device, torch.bool)
    flux = torch.where(draw[0], flux.flip(-1), flux)
    flux = torch.where(draw[1], flux.flip(-2), flux)
    return torch.where(draw[2], flux.transpose(-1, -2), flux)
