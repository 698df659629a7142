"""Tiles seen through overlapping windows: which there are, what they hold, and their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skylib.data.photometry import measure_sky_noise, signal_to_noise
from skylib.data.tiles import Tile, TilePaths, read_tile
from skylib.device import ahead, send
from skylib.files import replaced
from skylib.model.embed import encode_batches
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.search.filters import open_range

Range = tuple[float | None, float | None]
REFERENCE_TILES, REFERENCE_WINDOWS = 16, 4096  # to which the standardisation is fitted


def window_corners(length: int, size: int, stride: int) -> np.ndarray:
    """Return the first pixels of windows that cover a line; the last one ends with it.

    Examples
    --------
    >>> window_corners(100, 32, 19)
    array([ 0, 19, 38, 57, 68])
    """
    if length < size:
        raise ValueError(f"a tile of {length} pixels is smaller than a window of {size}")
    return np.unique([*range(0, length - size, stride), length - size])


@dataclass(frozen=True, kw_only=True)
class WindowScan:
    """How windows of a tile become vectors.

    Parameters
    ----------
    model : MaskedImageModel
        Windows have its image size.
    stride : int
        Pixels from one window to the next.
    pool, layer
        As in `embed`.
    min_data : float
        Windows where a smaller fraction of the pixels is known, in the best band, are left out.
    batch_size : int
    precision : {"fp32", "bf16"}
    """

    model: MaskedImageModel
    stride: int
    pool: str = "mean"
    layer: int = -1
    min_data: float = 0.5
    batch_size: int = 256
    precision: str = "fp32"

    def corners(self, tile: Tile) -> np.ndarray:
        """Return first row and column of all windows, int (n, 2)."""
        size = self.model.config.image_size
        rows, cols = (window_corners(length, size, self.stride) for length in tile.flux.shape[1:])
        return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)

    def embed(
        self, tile: Tile, corners: np.ndarray, snr_range: Range | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, of the windows with enough data and signal: their numbers, S/N, and vectors (n, D).

        Only those are embedded: the rest of the sky, most of it, costs little.
        """
        device, size = self.model.sky_sigma.device, self.model.config.image_size
        image, sigma = (torch.from_numpy(values).to(device) for values in self._model_bands(tile))
        low, high = open_range(snr_range or (None, None))
        within = torch.arange(size, device=device)

        def cut(some: np.ndarray) -> Tensor:
            first = send(torch.from_numpy(some), device)
            rows, cols = (first[:, 0, None] + within)[:, :, None], (first[:, 1, None] + within)[:, None, :]
            return image[:, rows, cols].transpose(0, 1)

        chosen, snr = [torch.empty(0, dtype=torch.bool, device=device)], [torch.empty(0, device=device)]
        for start in range(0, len(corners), self.batch_size):
            flux = cut(corners[start : start + self.batch_size])
            chosen.append(flux.isfinite().float().mean(dim=(2, 3)).amax(dim=1) >= self.min_data)
            snr.append(signal_to_noise(flux, sigma, reach=self.stride // 2 + 1))  # a place is near one window's centre
            if snr_range is not None:
                chosen[-1] &= (snr[-1] >= low) & (snr[-1] <= high)
        kept = np.flatnonzero(torch.cat(chosen).cpu().numpy())
        parts = (corners[kept[start : start + self.batch_size]] for start in range(0, len(kept), self.batch_size))
        places = ((part, self._places(tile, part)) for part in parts)
        batches = ((cut(part), place[0], place[1]) for part, place in places)
        how: dict[str, Any] = {"pools": (self.pool,), "layers": (self.layer,), "precision": self.precision}
        vectors = encode_batches(self.model, batches, n=len(kept), **how)
        none = np.empty((0, self.model.config.width), dtype=np.float32)
        return kept, torch.cat(snr).cpu().numpy()[kept], vectors.get((self.layer, self.pool), none)

    def _model_bands(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (C, H, W) and the sky noise (C,) in the model's bands; NaN and 1 where a band is missing."""
        bands = self.model.config.bands
        if not set(bands) & set(tile.bands):
            raise ValueError(f"tile {tile.name} holds bands {' '.join(tile.bands)}, the model knows {' '.join(bands)}")
        image = np.full((len(bands), *tile.flux.shape[1:]), np.nan, dtype=np.float32)
        sigma = np.ones(len(bands), dtype=np.float32)
        for i, noise in enumerate(measure_sky_noise(tile.flux)):
            if tile.bands[i] in bands:
                at = bands.index(tile.bands[i])
                image[at], sigma[at] = tile.flux[i], noise if np.isfinite(noise) else 1.0
        return image, sigma

    def _places(self, tile: Tile, corners: np.ndarray) -> Sequence[Tensor | None]:
        """Return ra and dec of the windows' centre pixels, for a model that takes them."""
        if not self.model.config.ra_dec:
            return None, None
        place = tile.sky_at(*(corners + self.model.config.image_size // 2).T)
        return [send(torch.from_numpy(values), self.model.sky_sigma.device) for values in place]


def read_tiles(
    tiles: Iterable[TilePaths], *, bad_planes: Sequence[str] = (), on_error: str = "raise"
) -> Iterator[Tile | Exception]:
    """Yield tiles, or with ``on_error="skip"`` the reason why one cannot be read."""
    for paths in tiles:
        try:
            yield read_tile(paths, bad_planes=tuple(bad_planes))
        except (OSError, ValueError) as error:
            if on_error == "raise":
                raise
            yield error


def shared_reference(scan: WindowScan, tiles: Sequence[TilePaths], folder: Path, **reading: Any) -> Embeddings:
    """Embed windows spread evenly over some of all tiles; the first shard to do so keeps them for all."""
    path = folder / "reference.h5"
    if path.is_file():
        return Embeddings.load(path)
    chosen = [tiles[t] for t in np.unique(np.linspace(0, len(tiles) - 1, REFERENCE_TILES).astype(int))]
    parts = []
    for tile in ahead(read_tiles(chosen, **reading), depth=1):
        if isinstance(tile, Tile):
            corners = scan.corners(tile)
            some = np.linspace(0, len(corners) - 1, min(len(corners), REFERENCE_WINDOWS // len(chosen))).astype(int)
            parts.append(scan.embed(tile, corners[np.unique(some)])[2])
    if not sum(map(len, parts)):
        raise ValueError(f"none of {len(chosen)} tiles has a window with data: there is nothing to search")
    vectors = np.concatenate(parts)
    with replaced(path, first=True) as own:  # all shards use that of the fastest
        Embeddings(vectors, ra=np.zeros(len(vectors)), dec=np.zeros(len(vectors))).save(own)
    return Embeddings.load(path)
