"""Tiles seen through overlapping windows: which there are, what they hold, and their vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from skylib.data.photometry import measure_sky_noise, signal_to_noise
from skylib.data.tiles import Tile, TilePaths, read_tile
from skylib.device import autocast
from skylib.model.mim import MaskedImageModel
from skylib.model.packed import packed
from skylib.search.filters import open_range


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
        Windows with a smaller part of their pixels known, in the best band, are left out.
    batch_size : int
    precision : {"fp32", "bf16"}
    """

    def __init__(
        self, model: MaskedImageModel, *, stride: int, pool: str = "mean", layer: int = -1, min_data: float = 0.5,
        batch_size: int = 256, precision: str = "fp32",
    ) -> None:  # fmt: skip
        self.model, self.size, self.stride = model, model.config.image_size, stride
        self._pool, self._layer, self._min_data = pool, layer, min_data
        self._batch_size, self._precision = batch_size, precision

    def corners(self, tile: Tile) -> np.ndarray:
        """Return first row and column of all windows, int (n, 2)."""
        rows, cols = (window_corners(length, self.size, self.stride) for length in tile.flux.shape[1:])
        return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)

    def batches(
        self, tile: Tile, corners: np.ndarray, snr_range: tuple[float | None, float | None] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Yield, of the windows with enough data and signal: their numbers, S/N, and vectors (n, D).

        Only those are embedded: the rest of the sky, most of it, costs little.
        """
        bands, device = self.model.config.bands, self.model.sky_sigma.device
        if not set(bands) & set(tile.bands):
            raise ValueError(f"tile {tile.name} holds bands {' '.join(tile.bands)}, the model knows {' '.join(bands)}")
        image = torch.from_numpy(tile.flux).to(device)
        empty = torch.full_like(image[0], torch.nan)
        image = torch.stack([image[tile.bands.index(b)] if b in tile.bands else empty for b in bands])
        noise = dict(zip(tile.bands, measure_sky_noise(tile.flux), strict=True))
        sigma = torch.tensor([float(noise.get(band, np.nan)) for band in bands], device=device).nan_to_num(1.0)
        low, high = open_range(snr_range or (None, None))
        within = torch.arange(self.size, device=device)
        was_training = self.model.training
        self.model.eval()
        try:
            quick = packed(self.model, precision=self._precision)
            for start in range(0, len(corners), self._batch_size):
                first = torch.from_numpy(corners[start : start + self._batch_size]).to(device)
                rows, cols = (first[:, 0, None] + within)[:, :, None], (first[:, 1, None] + within)[:, None, :]
                flux = image[:, rows, cols].transpose(0, 1)
                chosen = flux.isfinite().float().mean(dim=(2, 3)).amax(dim=1) >= self._min_data
                snr = signal_to_noise(flux, sigma, reach=self.stride // 2 + 1)  # each place is near one window's centre
                if snr_range is not None:
                    chosen &= (snr >= low) & (snr <= high)
                if bool(chosen.any()):
                    numbers = start + np.flatnonzero(chosen.cpu().numpy())
                    places = self._places(tile, corners[numbers])
                    with torch.inference_mode(), autocast(device, self._precision):
                        vectors = quick.embed(flux[chosen], pool=self._pool, layer=self._layer, **places).float()
                    yield numbers, snr[chosen].cpu().numpy(), vectors
        finally:
            self.model.train(was_training)

    def _places(self, tile: Tile, corners: np.ndarray) -> dict[str, Tensor]:
        """Return ra and dec of the windows' centre pixels, for a model that takes them."""
        if not self.model.config.ra_dec:
            return {}
        place = tile.sky_at(*(corners + self.size // 2).T)
        device = self.model.sky_sigma.device
        return {name: torch.from_numpy(values).to(device) for name, values in zip(("ra", "dec"), place, strict=True)}


def read_ahead(tiles: Sequence[TilePaths], bad_planes: tuple[str, ...], on_error: str) -> Iterator[Tile | Exception]:
    """Yield tiles, or with ``skip`` the reason why one cannot be read; the next is read while one is at work."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading = [reader.submit(read_tile, tile, bad_planes=bad_planes) for tile in tiles[:1]]
        for number in range(len(tiles)):
            current = reading.pop()
            if number + 1 < len(tiles):
                reading.append(reader.submit(read_tile, tiles[number + 1], bad_planes=bad_planes))
            try:
                tile: Tile | Exception = current.result()
            except (OSError, ValueError) as error:
                if on_error == "raise":
                    raise
                tile = error
            yield tile
