"""A plain Vision Transformer encoder [1]_ on flat patches.

References
----------
.. [1] Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D)."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, d)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


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
        return 1 if self.sky is None else 2

    def forward(
        self, patches: Tensor, *, keep: Tensor | None = None, sky: Tensor | None = None, layer: int = -1
    ) -> Tensor:
        """Encode patches.

        Parameters
        ----------
        patches : Tensor of float32, shape (B, N, patch_dim)
        keep : Tensor of int64, shape (B, K), optional
            The patches to encode; dropped ones cost nothing.
        sky : Tensor of float32, shape (B, 3), optional
            Unit vectors on the sphere.
        layer : int
            After which block to stop, counted as in a list; the last is followed by the final norm.

        Returns
        -------
        Tensor, shape (B, n_prefix + K or N, width)
        """
        depth = len(self.blocks)
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
        for block in self.blocks[: layer % depth + 1]:
            x = block(x)
        return self.norm(x) if layer % depth == depth - 1 else x


def sincos_positions(n_patches: int, width: int) -> Tensor:
    """Return sine-cosine positions on a square grid, shape (1, N, width); half the width for rows, half for columns."""
    side = round(n_patches**0.5)
    frequency = 1.0 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, width / 4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    rows, cols = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, cols], dim=-1).reshape(1, n_patches, width).float()


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in all linear layers, as in MAE."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
