"""A plain Vision Transformer [1]_ on flat patches: encoder and light decoder.

References
----------
.. [1] Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skylib.device import attend


class GeluLinear(nn.Linear):
    """A linear layer and the GELU after it: one thing, so that they can be computed as one."""

    then = "gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D')."""
        return F.gelu(super().forward(x))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = GeluLinear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, *, n_last: int | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D), or to only the last, (B, n_last, D), at their share of the cost."""
        normed = self.norm1(x)
        if n_last is None:
            q, k, v = split_heads(self.qkv(normed), self.heads, parts=3)
        else:
            _, n, d = x.shape
            x, asked = x[:, n - n_last :], normed[:, n - n_last :]
            weight, bias = self.qkv.weight, self.qkv.bias
            (q,) = split_heads(F.linear(asked, weight[:d], bias[:d]), self.heads, parts=1)
            k, v = split_heads(F.linear(normed, weight[d:], bias[d:]), self.heads, parts=2)
        x = x + self.proj(attend(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.fc2(self.fc1(self.norm2(x)))


def split_heads(x: Tensor, heads: int, *, parts: int) -> tuple[Tensor, ...]:
    """Cut tokens (B, N, parts * D) into as many tensors (B, heads, N, D / heads), such as queries, keys and values."""
    # In this order their gradients come together without another copy.
    return tuple(part.transpose(1, 2) for part in x.unflatten(2, (parts, heads, -1)).unbind(2))


class Encoder(nn.Module):
    """A cls token, patch tokens with fixed sine-cosine positions, and a stack of blocks.

    Parameters
    ----------
    patch_dim : int
        Values in a patch, over all bands.
    n_patches, width, depth, heads : int
    sky_position : bool
        Also take a token with the position on the sky.
    """

    def __init__(
        self, *, patch_dim: int, n_patches: int, width: int, depth: int, heads: int, sky_position: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(patch_dim, width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.sky = nn.Linear(3, width) if sky_position else None
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(n_patches, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        initialise(self)
        nn.init.normal_(self.cls, std=0.02)

    @property
    def n_prefix(self) -> int:
        """Number of tokens before the patch tokens: cls, and the position on the sky."""
        return 1 + (self.sky is not None)

    def forward(self, patches: Tensor, *, keep: Tensor | None = None, sky: Tensor | None = None) -> Tensor:
        """Encode patches.

        Parameters
        ----------
        patches : Tensor of float32, shape (B, N, patch_dim)
        keep : Tensor of int64, shape (B, K), optional
            The patches to encode; dropped ones cost nothing.
        sky : Tensor of float32, shape (B, 3), optional
            Unit vectors on the sphere.

        Returns
        -------
        Tensor, shape (B, n_prefix + K or N, width)
        """
        return self.at_layers(patches, layers=(-1,), keep=keep, sky=sky)[0]

    def at_layers(
        self, patches: Tensor, *, layers: Sequence[int], keep: Tensor | None = None, sky: Tensor | None = None
    ) -> list[Tensor]:
        """Encode patches as `forward` does, and return the tokens after each of several blocks, counted as in a list.

        The last block is followed by the final norm.
        """
        depth = len(self.blocks)
        for layer in layers:
            if not -depth <= layer < depth:
                raise ValueError(f"layer={layer}: must be {-depth} to {depth - 1}")
        positions = self.positions.expand(len(patches), -1, -1)
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
            positions = positions.gather(1, keep[..., None].expand(-1, -1, positions.shape[-1]))
        prefix = [self.cls.expand(len(patches), -1, -1)]
        if self.sky is not None:
            if sky is None:
                raise ValueError("this model was built with ra_dec=True: give ra and dec")
            prefix.append(self.sky(sky)[:, None])
        x = torch.cat([*prefix, self.embed(patches) + positions], dim=1)
        after = []
        for block in self.blocks[: max(layer % depth for layer in layers) + 1]:
            x = block(x)
            after.append(x)
        return [self.norm(x) if layer % depth == depth - 1 else after[layer % depth] for layer in layers]


class Decoder(nn.Module):
    """The light transformer that turns visible tokens and a mask token into pixels (`mae`).

    Parameters
    ----------
    encoder_width, patch_dim, n_patches : int
        Of the encoder.
    width, depth : int
        Heads are 32 wide.
    """

    def __init__(self, *, encoder_width: int, patch_dim: int, n_patches: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(n_patches, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_dim)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, prefix: Tensor, visible: Tensor, order: Tensor, *, n_last: int) -> Tensor:
        """Decode the last `n_last` patches; to the last block the others are only keys and values.

        Parameters
        ----------
        prefix : Tensor, shape (B, n_prefix, D)
        visible : Tensor, shape (B, K, D)
            Encoded patches ``order[:, :K]``.
        order : Tensor of int64, shape (B, N)
            Patch numbers, visible ones first.

        Returns
        -------
        Tensor, shape (B, n_last, patch_dim)
            Of the patches ``order[:, N - n_last:]``.
        """
        n_hidden = order.shape[1] - visible.shape[1]
        prefix, visible = self.embed(prefix), self.embed(visible)
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), n_hidden, -1)
        positions = self.positions.expand(len(order), -1, -1)
        positions = positions.gather(1, order[..., None].expand(-1, -1, positions.shape[-1]))
        x = torch.cat([prefix, torch.cat([visible, hidden], dim=1) + positions], dim=1)
        *blocks, final = self.blocks
        for block in blocks:
            x = block(x)
        return self.head(self.norm(final(x, n_last=n_last)))


def sincos_positions(n_patches: int, width: int) -> Tensor:
    """Return sine-cosine positions on a square grid, shape (1, N, width); half the width for rows, half for columns."""
    side = round(n_patches**0.5)
    frequency = 1.0 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, width / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    rows, cols = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, cols], dim=-1).reshape(1, n_patches, width).float()


def sky_vector(ra: Tensor | None, dec: Tensor | None) -> Tensor | None:
    """Return unit vectors (B, 3) for positions in degrees; zeros where a position is not known."""
    if ra is None or dec is None:
        return None
    ra, dec = torch.deg2rad(ra), torch.deg2rad(dec)
    vector = torch.stack([dec.cos() * ra.cos(), dec.cos() * ra.sin(), dec.sin()], dim=-1)
    return vector.nan_to_num(0.0).float()


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in all linear layers, as in MAE."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
