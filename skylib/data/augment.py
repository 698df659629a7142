"""Augmentation: random changes that keep the meaning of an image, drawn for each image, made on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from skylib.checks import check_fields, checked
from skylib.device import send


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is changed at random in each image.

    Parameters
    ----------
    flips : bool
        Rotations by 90 degrees and flips: all eight orientations, with equal chance.
    brightness : float
        Standard deviation of the logarithm of a factor on all bands of an image alike, so that colours stay.
    noise : float
        Noise added, in units of the sky noise of each band; the amount is drawn for each image from U(0, noise).
    band_dropout : float
        Chance of each band of an image to be taken as missing (NaN). One is always kept.

    Raises
    ------
    ValueError
        If a number is negative, or `band_dropout` is not below 1.

    Examples
    --------
    >>> loader = skylib.CutoutLoader(cutouts, batch_size=8, augment=skylib.Augmentation(noise=0.5, band_dropout=0.1))
    >>> next(iter(loader)).flux.shape
    torch.Size([8, 5, 32, 32])
    """

    flips: bool = True
    brightness: float = 0.0
    noise: float = 0.0
    band_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.band_dropout == 1:
            raise ValueError(f"band_dropout={self.band_dropout}: must be at least 0, and below 1")


NO_AUGMENTATION = Augmentation(flips=False)


class Draws(NamedTuple):
    """The random numbers for a batch, on the CPU; None for changes that are not used."""

    flips: Tensor | None  # bool (3, B): flip columns, flip rows, flip across the diagonal
    gain: Tensor | None  # (B,)
    noise: Tensor | None  # (B,), in units of the sky noise
    dropped: Tensor | None  # bool (B, C)

    def part(self, rows: slice) -> Draws:
        """Return the draws of some of the samples."""
        return Draws(
            None if self.flips is None else self.flips[:, rows],
            *(None if draw is None else draw[rows] for draw in self[1:]),
        )


def draw_changes(how: Augmentation, n: int, n_bands: int, *, generator: torch.Generator) -> Draws:
    """Draw the changes of each of `n` images."""
    dropped = None
    if how.band_dropout:
        dropped = torch.rand(n, n_bands, generator=generator) < how.band_dropout
        dropped[torch.arange(n), torch.randint(n_bands, (n,), generator=generator)] = False
    return Draws(
        flips=random_flips(n, generator=generator) if how.flips else None,
        gain=torch.exp(how.brightness * torch.randn(n, generator=generator)) if how.brightness else None,
        noise=how.noise * torch.rand(n, generator=generator) if how.noise else None,
        dropped=dropped,
    )


def change(
    flux: Tensor, draws: Draws, *, sky_sigma: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Apply the changes that were drawn.

    Parameters
    ----------
    flux : Tensor of float32, shape (B, C, S, S)
        Counts; NaN = no data, which stays.
    draws : Draws
    sky_sigma : Tensor of float32, shape (C,)
        Noise of the sky in counts, needed to add noise.
    generator : torch.Generator
        Of the device of `flux`, for the noise.

    Returns
    -------
    Tensor, shape (B, C, S, S)
    """
    if draws.flips is not None:
        flux = flip(flux, draws.flips)
    if draws.gain is not None:
        flux = flux * send(draws.gain, flux.device)[:, None, None, None]
    if draws.noise is not None:
        if sky_sigma is None:
            raise ValueError("noise is added in units of the sky noise: give sky_sigma")
        sigma = send(draws.noise, flux.device)[:, None] * sky_sigma.to(flux.device)
        flux = flux + sigma[:, :, None, None] * torch.randn(flux.shape, generator=generator, device=flux.device)
    if draws.dropped is not None:
        flux = flux.masked_fill(send(draws.dropped, flux.device)[:, :, None, None], torch.nan)
    return flux


@checked
def random_orientation(flux: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Rotate and flip each square image (B, C, S, S) at random: one of eight orientations, with equal chance.

    Examples
    --------
    >>> import torch
    >>> random_orientation(torch.zeros(4, 5, 32, 32)).shape
    torch.Size([4, 5, 32, 32])
    """
    return flip(flux, random_flips(len(flux), generator=generator))


def random_flips(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw for `n` images whether to flip columns, rows, and across the diagonal: bool (3, n)."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(2, (3, n), generator=generator, device=device).bool()


def flip(flux: Tensor, flips: Tensor) -> Tensor:
    """Flip square images (B, C, S, S) as `random_flips` drew, (3, B)."""
    draw = send(flips, flux.device)[:, :, None, None, None]
    flux = torch.where(draw[0], flux.flip(-1), flux)
    flux = torch.where(draw[1], flux.flip(-2), flux)
    return torch.where(~draw[2], flux, flux.transpose(-1, -2))  # in this order it lies in memory as `flux` does


def orientations(flux: Tensor) -> Iterator[Tensor]:
    """Give square images (B, C, S, S) in all eight rotations and flips, first as they are."""
    for draws in product((False, True), repeat=3):
        yield flip(flux, torch.tensor(draws)[:, None].expand(-1, len(flux)))
