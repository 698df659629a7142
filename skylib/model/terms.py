"""Terms of the training loss besides the pixels: fluxes, the latents of a teacher, and the agreement of two views.

Each image counts in a term by the weight of its hidden pixels, so that the sum over the parts of a batch is that of the
whole batch. The one exception is `sigreg`, which judges the distribution of the images that are computed together.

References
----------
.. [1] Baevski et al. 2022, "data2vec: a general framework for self-supervised learning", arXiv:2202.03555.
.. [2] Balestriero & LeCun 2025, "LeJEPA: provable and scalable self-supervised learning", arXiv:2511.08544.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skylib.config import ModelConfig
from skylib.device import keyed_generator
from skylib.model.vit import Encoder, GeluLinear, initialise

APERTURES = 3  # radii of 1/16, 1/8 and 1/4 of the image
SIGREG_SHARE = 0.02  # weight of `sigreg` relative to the agreement of the views
PROJECTED, SLICES = 128, 1024  # width of the projected views, and directions in which `sigreg` looks at them
TEACHER_MEMORY = 0.015  # fraction of the steps over which the teacher averages the weights


class FluxHead(nn.Module):
    """Predicts the fluxes of the whole image, in three apertures and all bands, from its visible tokens.

    What is predicted is arcsinh of the signal-to-noise ratio in the aperture, brought to a spread of about one. An aperture
    of which less than half has data is left out.
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
        fluxes, known = self.measure(flux, sky_sigma)
        error = torch.where(known, self.layers(summary).float().view(fluxes.shape) - fluxes, 0.0).square()
        return error.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)

    def measure(self, flux: Tensor, sky_sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fluxes in the apertures as they are predicted, and where they are known, both (B, C, 3)."""
        valid = flux.isfinite()
        flux = torch.where(valid, flux / sky_sigma[:, None, None], 0.0)
        total = torch.stack([(flux * one).sum(dim=(2, 3)) for one in self.inside], dim=2)
        n_pixels = torch.stack([(valid * one).sum(dim=(2, 3)) for one in self.inside], dim=2)
        known = n_pixels > 0.5 * self.inside.sum(dim=(1, 2))
        return (torch.asinh(total / n_pixels.clamp(min=1).sqrt()) - 3) / 2, known


class LatentTargets(nn.Module):
    """Predicts what a teacher, the moving average of the encoder, makes of the hidden patches when it sees all of them.

    Parameters
    ----------
    encoder : Encoder
        Of which the teacher begins as a copy.
    config : ModelConfig
    """

    def __init__(self, encoder: Encoder, config: ModelConfig) -> None:
        super().__init__()
        depth, n_layers = len(encoder.blocks), config.latent_layers
        self.layers = [depth * (i + 1) // n_layers - 1 for i in range(n_layers)]
        self.teacher = deepcopy(encoder).requires_grad_(False)
        self.head = nn.Linear(config.decoder_width, n_layers * config.width)
        initialise(self.head)
        self.ramp: Tensor
        self.register_buffer("ramp", torch.zeros(()))  # from 0 to 1 as the training goes

    def forward(self, decoded: Tensor, places: Tensor, filled: Tensor, sky: Tensor | None) -> Tensor:
        """Return the ramped smooth L1 error of each image, (B,).

        Parameters
        ----------
        decoded : Tensor, shape (B, M, decoder_width)
            Tokens of the decoder for the hidden patches ``places``, (B, M).
        filled : Tensor, shape (B, N, patch_dim)
            All patches, as the teacher sees them.
        """
        predicted = self.head(decoded).float().unflatten(2, (len(self.layers), -1))  # (B, M, L, D)
        with torch.no_grad():
            found = self.teacher.at_layers(filled, layers=self.layers, sky=sky)
            latents = torch.stack([x[:, self.teacher.n_prefix :] for x in found], dim=2).float()  # (B, N, L, D)
            latents = F.layer_norm(latents, latents.shape[3:])
            latents = latents.gather(1, places[..., None, None].expand_as(predicted))
        return self.ramp * F.smooth_l1_loss(predicted, latents, reduction="none").mean(dim=(1, 2, 3))

    @torch.no_grad()
    def follow(self, encoder: Encoder, step: int, steps: int) -> None:
        """Let the teacher follow the encoder after a step; the term ramps up between 20 and 40 % of the steps."""
        decay = min(1 - 1 / max(1.0, TEACHER_MEMORY * steps), (1 + step) / (10 + step))  # a short memory at first
        torch._foreach_lerp_(list(self.teacher.parameters()), list(encoder.parameters()), 1 - decay)
        self.ramp.fill_(min(1.0, max(0.0, 5 * step / steps - 1)))


class Consistency(nn.Module):
    """Asks that two views of an image give the same vector, and that vectors of all images are spread as a Gaussian."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(GeluLinear(width, 4 * width), nn.Linear(4 * width, PROJECTED))
        initialise(self)
        slices = torch.randn(PROJECTED, SLICES, generator=keyed_generator(0))
        self.slices: Tensor
        self.register_buffer("slices", F.normalize(slices, dim=0), persistent=False)

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared distance of the views of each image, (B,), and `sigreg` of both: from vectors (B, D)."""
        projected = [self.projector(x).float() for x in (one, two)]
        distance = ((projected[0] - projected[1]) / 2).square().mean(dim=1)
        spread = sum((sigreg(x, self.slices) for x in projected), torch.zeros((), device=one.device)) / 2
        return distance, spread


def sigreg(x: Tensor, slices: Tensor) -> Tensor:
    """Measure how far vectors are from a standard Gaussian, by the Epps-Pulley test along many directions [2]_.

    Parameters
    ----------
    x : Tensor of float32, shape (B, K)
    slices : Tensor of float32, shape (K, M)
        Unit vectors.

    Returns
    -------
    Tensor, scalar
        Mean over the directions. About 1 for vectors that are Gaussian; grows with B for others.

    Examples
    --------
    >>> x = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
    >>> bool(sigreg(x, torch.eye(4)) < 2), bool(sigreg(0.1 * x, torch.eye(4)) > 50)
    (True, True)
    """
    with torch.autocast(x.device.type, enabled=False):
        along = x @ slices  # (B, M)
        t = torch.linspace(0, 3, 17, device=x.device)
        gaussian = torch.exp(-t.square() / 2)
        angle = along[..., None] * t
        error = (angle.cos().mean(dim=0) - gaussian).square() + angle.sin().mean(dim=0).square()  # (M, 17)
        return len(x) * 2 * torch.trapezoid(error * gaussian, dx=3 / 16).mean()
