"""The term of the training loss beside the pixels: fluxes of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skylib.config import ModelConfig
from skylib.model.vit import GeluLinear, initialise

APERTURES = 3  # radii of 1/16, 1/8 and 1/4 of the image


class FluxHead(nn.Module):
    """Predicts the fluxes of the whole image, in three apertures and all bands, from its visible tokens.

    What is predicted is arcsinh of the signal-to-noise ratio in the aperture, brought to a spread of about one. An
    aperture of which less than half has data is left out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, image_size = config.width, config.image_size
        self.layers = nn.Sequential(GeluLinear(width, 2 * width), nn.Linear(2 * width, len(config.bands) * APERTURES))
        initialise(self)
        from_centre = (torch.arange(image_size) - (image_size - 1) / 2).square()
        radii = torch.tensor([image_size / 16, image_size / 8, image_size / 4])
        inside = (from_centre[:, None] + from_centre) <= radii[:, None, None].square()
        self.inside: Tensor
        self.register_buffer("inside", inside.float(), persistent=False)

    def forward(self, summary: Tensor, flux: Tensor, sky_sigma: Tensor) -> Tensor:
        """Return the mean squared error of each image, (B,): from vectors (B, D) and counts (B, C, S, S)."""
        fluxes, measured = self.measure(flux, sky_sigma)
        error = torch.where(measured, self.layers(summary).float().view(fluxes.shape) - fluxes, 0.0).square()
        return error.sum(dim=(1, 2)) / measured.sum(dim=(1, 2)).clamp(min=1)

    def measure(self, flux: Tensor, sky_sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fluxes in the apertures, scaled as predicted, and where they can be measured, both (B, C, 3)."""
        valid = flux.isfinite()
        flux = torch.where(valid, flux / sky_sigma[:, None, None], 0.0)
        total = torch.stack([(flux * one).sum(dim=(2, 3)) for one in self.inside], dim=2)
        n_pixels = torch.stack([(valid * one).sum(dim=(2, 3)) for one in self.inside], dim=2)
        measured = n_pixels > 0.5 * self.inside.sum(dim=(1, 2))
        return (torch.asinh(total / n_pixels.clamp(min=1).sqrt()) - 3) / 2, measured
