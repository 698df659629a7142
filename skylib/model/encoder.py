"""The encoder of images of the sky: flux in, tokens and vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skylib.checks import check_choice
from skylib.config import VIT_SIZES, ModelConfig
from skylib.model.patches import Patches, cut
from skylib.model.pooling import POOLS
from skylib.model.stretch import stretch
from skylib.model.vit import Encoder, sky_vector


class ImageEncoder(nn.Module):
    """A ViT with what it needs to take flux in counts: a stretch, and a learned stand-in for pixels without data.

    Parameters
    ----------
    config : ModelConfig

    Attributes
    ----------
    sky_sigma : Tensor of float32, shape (C,)
        Noise of the sky in counts for the stretch; set from the training data, kept with the weights.
    origin : dict
        Where the weights come from, if they were loaded: checkpoint, step and settings of the training.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.origin: dict[str, Any] = {}
        width, depth, heads = VIT_SIZES[config.size]
        self.encoder = Encoder(
            patch_dim=config.patch_dim,
            n_patches=config.n_patches,
            width=width,
            depth=depth,
            heads=heads,
            sky_position=config.ra_dec,
        )
        self.no_data = nn.Parameter(torch.zeros(1, 1, len(config.bands), config.patch_size**2))
        self.sky_sigma: Tensor
        self.register_buffer("sky_sigma", torch.ones(len(config.bands)))

    def set_sky_noise(self, sigma: Tensor) -> None:
        """Set the noise of the sky (C,), in counts, by which `asinh` stretches."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32)
        if sigma.shape != self.sky_sigma.shape or not bool((sigma > 0).all()):
            raise ValueError(f"sky noise {sigma.tolist()}: must be {len(self.sky_sigma)} positive numbers")
        self.sky_sigma.copy_(sigma)

    def encode(
        self,
        flux: Tensor,
        *,
        pools: Sequence[str] = ("mean",),
        layers: Sequence[int] = (-1,),
        ra: Tensor | None = None,
        dec: Tensor | None = None,
    ) -> dict[tuple[int, str], Tensor]:
        """Encode whole images once, for several layers and poolings.

        Parameters
        ----------
        flux : Tensor of float32, shape (B, C, S, S)
        pools : sequence of str
            Rows of `skylib.model.pooling.POOLS`.
        layers : sequence of int
            After which blocks, counted as in a list.

        Returns
        -------
        dict of (layer, pool) to Tensor, shape (B, D)
        """
        for pool in pools:
            check_choice("pool", pool, tuple(POOLS))
        found = self.encoder.at_layers(self._fill(self._patches(flux)), layers=layers, sky=self._sky(ra, dec))
        n = self.encoder.n_prefix
        return {
            (at, pool): POOLS[pool](x[:, n:], x[:, 0]) for at, x in zip(layers, found, strict=True) for pool in pools
        }

    def embed(
        self, flux: Tensor, *, pool: str = "mean", ra: Tensor | None = None, dec: Tensor | None = None, layer: int = -1
    ) -> Tensor:
        """Encode whole images into one vector each, (B, D), as `encode` does."""
        return self.encode(flux, pools=(pool,), layers=(layer,), ra=ra, dec=dec)[layer, pool]

    def tokens(self, flux: Tensor, *, ra: Tensor | None = None, dec: Tensor | None = None, layer: int = -1) -> Tensor:
        """Encode whole images into patch tokens, (B, N, D)."""
        return self.embed(flux, pool="tokens", ra=ra, dec=dec, layer=layer)

    def _patches(self, flux: Tensor) -> Patches:
        c = self.config
        expected = (len(c.bands), c.image_size, c.image_size)
        if tuple(flux.shape[1:]) != expected:
            shape, bands = ", ".join(map(str, expected)), " ".join(c.bands)
            raise ValueError(f"flux has shape {tuple(flux.shape)}: must be (B, {shape}) for bands {bands}")
        return cut(stretch(flux, self.sky_sigma, kind=c.stretch), c.patch_size)

    def _fill(self, patches: Patches, hidden: Tensor | None = None) -> Tensor:
        """Return flat patches (B, N, C * P), learned values where there is no data or a mask (B, C, N) hides it."""
        shown = patches.valid if hidden is None else patches.valid & ~hidden.transpose(1, 2)[..., None]
        return torch.where(shown, patches.pixels, self.no_data).flatten(2)

    def _sky(self, ra: Tensor | None, dec: Tensor | None) -> Tensor | None:
        return sky_vector(ra, dec) if self.config.ra_dec else None
