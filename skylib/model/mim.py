"""Masked image modelling [1]_ [2]_ around a Vision Transformer.

References
----------
.. [1] He et al. 2022, "Masked autoencoders are scalable vision learners", arXiv:2111.06377 (`mae`).
.. [2] Xie et al. 2022, "SimMIM: a simple framework for masked image modeling", arXiv:2111.09886 (`simmim`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skylib.checks import checked
from skylib.config import ModelConfig
from skylib.device import seeded_init
from skylib.model.encoder import ImageEncoder
from skylib.model.patches import (
    Patches,
    check_mask,
    count_visible,
    mask_to_pixels,
    mean_error,
    patchify,
    random_band_mask,
    random_token_mask,
    random_whole_bands,
    standardise,
    uniform_draws,
    unpatchify,
)
from skylib.model.stretch import unstretch
from skylib.model.terms import FluxHead
from skylib.model.vit import Decoder, initialise


class MIMOutput(NamedTuple):
    """What a masked image model returns in training."""

    loss: Tensor  # scalar, over hidden pixels that have data, and the weighted error of the fluxes
    prediction: Tensor  # (B, N, C, P), stretched, and standardised with norm_pix; 0 where `mae` has nothing to predict
    mask: Tensor  # bool (B, C, N), True where hidden
    n_pixels: Tensor  # scalar: how many pixels, or how much weight, the loss is the mean over
    parts: dict[str, Tensor]  # terms of the loss without their weights, scalar: pixels, flux


class MaskedImageModel(ImageEncoder):
    """An encoder that learns by reconstructing hidden patches. Flux goes in and comes out in counts.

    Parameters
    ----------
    config : ModelConfig
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.objective == "mae":
            self.decoder: Any = Decoder(
                encoder_width=config.width,
                patch_dim=config.patch_dim,
                n_patches=config.n_patches,
                width=config.decoder_width,
                depth=config.decoder_depth,
            )
        else:
            self.hidden = nn.Parameter(torch.zeros_like(self.no_data))  # learned stand-in for hidden pixels
            nn.init.normal_(self.hidden, std=0.02)
            self.decoder = nn.Linear(config.width, config.patch_dim)
            initialise(self.decoder)
        # Last, so that all else begins with the same weights whether they are there or not.
        self.flux_head = FluxHead(config) if config.flux_weight else None

    def forward(
        self,
        flux: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        ra: Tensor | None = None,
        dec: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MIMOutput:
        """Hide patches, reconstruct them, and compare.

        Parameters
        ----------
        flux : Tensor of float32, shape (B, C, S, S)
            Counts; NaN = no data.
        mask : Tensor of bool, shape (B, N) or, for `simmim`, (B, C, N), optional
            True where hidden; drawn as the configuration says if not given.
        weight : Tensor of float32, shape (B, C, S, S), optional
            Of each pixel in the loss, such as an inverse variance; what is not finite, or not positive, is left out.
        ra, dec : Tensor, shape (B,), optional
            Degrees; used only with ``ra_dec=True``.
        generator : torch.Generator, optional
            For the mask.

        Returns
        -------
        MIMOutput
        """
        mask, n_visible = self._pick_mask(mask, flux, generator)
        return self.compare(flux, mask, n_visible=n_visible, weight=weight, ra=ra, dec=dec)

    def draw_mask(
        self, batch: int, *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Draw a mask as the configuration says: bool (B, C, N), True where hidden."""
        c, n_bands = self.config, len(self.config.bands)
        draw = uniform_draws(generator, device)
        if c.objective == "simmim":
            return random_band_mask(draw, batch, n_bands, c.n_patches, c.max_mask_ratio)
        dropped = random_token_mask(draw, batch, c.n_patches, c.n_visible)[:, None].expand(-1, n_bands, -1)
        return dropped | random_whole_bands(draw, batch, n_bands, c.hide_bands)[..., None] if c.hide_bands else dropped

    def compare(
        self,
        flux: Tensor,
        mask: Tensor,
        *,
        n_visible: int | None = None,
        weight: Tensor | None = None,
        ra: Tensor | None = None,
        dec: Tensor | None = None,
    ) -> MIMOutput:
        """Same as `forward`, but a mask from `draw_mask` is not checked, so that nothing waits for the device."""
        c = self.config
        n_visible = c.n_visible if n_visible is None else n_visible
        patches = self._patches(flux)
        encoded, order = self._encode(patches, mask, n_visible, self._sky(ra, dec))
        prediction = self._decode(encoded, order, n_visible)
        pixels, _, _ = standardise(patches, c.norm_pix)
        use = (mask.transpose(1, 2)[..., None] & patches.valid).to(torch.float32)
        if weight is not None:
            use = use * patchify(weight.nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0.0), c.patch_size)
        loss, n_pixels = mean_error(prediction, pixels, use, kind=c.loss)
        parts = {"pixels": loss}
        if self.flux_head is not None:
            # Each image counts by the weight of its hidden pixels, so that the parts of a batch sum to the whole.
            share = use.sum(dim=(1, 2, 3)) / torch.where(n_pixels > 0, n_pixels, 1.0)  # (B,)
            summary = encoded[:, self.encoder.n_prefix :].mean(dim=1)
            parts["flux"] = share @ self.flux_head(summary, flux, self.sky_sigma)
            loss = loss + c.flux_weight * parts["flux"]
        return MIMOutput(loss, prediction, mask, n_pixels, parts)

    @torch.no_grad()
    def reconstruct(
        self,
        flux: Tensor,
        *,
        mask: Tensor | None = None,
        ra: Tensor | None = None,
        dec: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fill the hidden patches in, in counts.

        With `norm_pix` the model predicts standardised pixels, so the mean and scale of each hidden patch are
        taken from the true pixels: the picture shows the structure that was learnt, not the level.

        Returns
        -------
        reconstruction : Tensor of float32, shape (B, C, S, S)
            Visible pixels are kept as they are.
        mask : Tensor of bool, shape (B, C, S, S)
            True where hidden.
        """
        c = self.config
        mask, n_visible = self._pick_mask(mask, flux, generator)
        patches = self._patches(flux)
        encoded, order = self._encode(patches, mask, n_visible, self._sky(ra, dec))
        prediction = self._decode(encoded, order, n_visible).float()
        _, mean, scale = standardise(patches, c.norm_pix)
        filled = unstretch(unpatchify(prediction * scale + mean, c.patch_size), self.sky_sigma, kind=c.stretch)
        hidden = mask_to_pixels(mask, c.patch_size)
        return torch.where(hidden, filled, flux), hidden

    def _pick_mask(self, mask: Tensor | None, flux: Tensor, generator: torch.Generator | None) -> tuple[Tensor, int]:
        """Return a mask (B, C, N), a user's or a new one, and how many patches of each sample stay visible to `mae`."""
        c = self.config
        if mask is None:
            return self.draw_mask(len(flux), generator=generator, device=flux.device), c.n_visible
        mask = check_mask(mask, batch=len(flux), n_bands=len(c.bands), n_patches=c.n_patches)
        return mask, count_visible(mask, bands_alike=not c.hide_bands) if c.objective == "mae" else c.n_patches

    def _encode(self, patches: Patches, mask: Tensor, n_visible: int, sky: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return prefix and patch tokens (of `mae` the visible), and the order of patches, visible first, (B, N)."""
        order = mask.all(dim=1).to(torch.uint8).argsort(dim=1, stable=True)
        if self.config.objective == "mae":
            shown = self._fill(patches, mask if self.config.hide_bands else None)
            return self.encoder(shown, keep=order[:, :n_visible], sky=sky), order
        hidden = self.hidden.expand_as(patches.pixels).flatten(2)
        hides = mask.transpose(1, 2)[..., None].expand_as(patches.pixels).flatten(2)
        return self.encoder(torch.where(hides, hidden, self._fill(patches)), sky=sky), order

    def _decode(self, encoded: Tensor, order: Tensor, n_visible: int) -> Tensor:
        """Return the prediction, (B, N, C, P)."""
        c, n_prefix = self.config, self.encoder.n_prefix
        shape = (*order.shape, len(c.bands), c.patch_size**2)
        prefix, tokens = encoded[:, :n_prefix], encoded[:, n_prefix:]
        if c.objective != "mae":
            return self.decoder(tokens).view(shape)
        # Where bands are hidden, visible patches have something to predict as well.
        n_last = c.n_patches if c.hide_bands else c.n_patches - n_visible
        pixels = self.decoder(prefix, tokens, order, n_last=n_last)
        places = order[:, c.n_patches - n_last :, None].expand_as(pixels)
        return pixels.new_zeros(*order.shape, pixels.shape[2]).scatter(1, places, pixels).view(shape)


@checked
def build_model(config: ModelConfig, *, seed: int = 0) -> MaskedImageModel:
    """Build a model with fresh weights that follow from `seed`.

    Examples
    --------
    >>> model = build_model(ModelConfig(size="nano", image_size=32, decoder_width=64, decoder_depth=1))
    >>> model.embed(torch.zeros(2, 5, 32, 32)).shape
    torch.Size([2, 128])
    """
    with seeded_init(seed):
        return MaskedImageModel(config)
