"""An endless stream of crops from FITS tiles."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from astropy.wcs import WCS
from torch import Tensor

from skylib.checks import check_range, checked
from skylib.data.augment import NO_AUGMENTATION, Augmentation, change, draw_changes
from skylib.data.cutouts.assign import common_bands
from skylib.data.grids import sky_position
from skylib.data.loading.batch import Batch, Buffers, check_share, check_state, to_device
from skylib.data.loading.cropping import Corners, crop, make_relative_weight
from skylib.data.photometry import measure_sky_noise
from skylib.data.tiles import TilePaths, read_tile
from skylib.device import ahead, keyed_generator, pick_device

log = logging.getLogger(__name__)

_UPLOAD = Lock()
_ORDER, _AUGMENT, _CROP, _NOISE = 0, 1, 2, 3  # what a random draw is for: part of its key


@dataclass(frozen=True)
class _Resident:
    """A tile on the device, and where crops of it may begin."""

    flux: Tensor  # (C, H, W)
    weight: Tensor | None  # (C, H, W)
    wcs: WCS | None
    corners: Corners


class TileLoader:
    """An endless stream of crops at random places of FITS tiles.

    Several tiles are on the device at a time, and every batch mixes them. Threads read the next ones ahead; after each
    `cutouts_per_tile` crops a new one replaces the oldest. A tile of 4200 x 4200 pixels holds about 4,300 crops of
    64 x 64 that do not overlap: where the disk is slower than the GPU, larger values of `cutouts_per_tile` help.

    Crops are centred on pixels that have data, wherever in the tile these are.

    Parameters
    ----------
    tiles : sequence of TilePaths
        From `find_tiles`. Their order is random, and new in each pass.
    batch_size, size : int
    cutouts_per_tile : int
    resident : int
        Tiles on the device at a time. Where there are no more, all are read once and stay.
    readers : int
        Threads, each of which holds one more tile in the memory of the host.
    bad_planes : sequence of str
        Mask planes whose pixels become NaN.
    variance : bool
        Also give the inverse variance of each pixel, in units of the median of tile and band, as `Batch.weight`.
    augment : bool or Augmentation
        True: rotate and flip each crop at random.
    device : optional
        CUDA if there is one, by default.
    seed, rank, world_size : int
        Of several processes, each has tiles of its own and `batch_size` crops of its own.
    on_error : {"raise", "skip"}
        ``skip``: tiles that cannot be read, are smaller than `size` or hold no data are logged, listed in `skipped`
        with the reason, and not tried again.
    align : bool, optional
        As in `read_tile`.

    Raises
    ------
    ValueError
        If a number is out of range, there are no tiles, or their bands differ.
    OSError
        While iterating: if a tile cannot be read (``"raise"``), or none can (``"skip"``).

    Examples
    --------
    >>> loader = skylib.TileLoader(tiles, batch_size=8, size=32, cutouts_per_tile=16)
    >>> next(iter(loader)).flux.shape
    torch.Size([8, 5, 32, 32])
    """

    @checked
    def __init__(
        self,
        tiles: Sequence[TilePaths],
        *,
        batch_size: int,
        size: int = 64,
        cutouts_per_tile: int = 1024,
        resident: int = 4,
        readers: int = 2,
        bad_planes: Sequence[str | int] = (),
        variance: bool = False,
        augment: bool | Augmentation = True,
        device: str | torch.device | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
        align: bool | None = None,
    ) -> None:
        check_range("rank", rank, 0, world_size - 1)
        self.tiles, self.bands = list(tiles), common_bands(tiles)
        self.batch_size, self.size, self.cutouts_per_tile, self.readers = batch_size, size, cutouts_per_tile, readers
        self.bad_planes, self.variance, self.on_error, self.align = tuple(bad_planes), variance, on_error, align
        self.augment = Augmentation() if augment is True else augment or NO_AUGMENTATION
        self.seed, self.device, self.rank, self.world_size = seed, pick_device(device), rank, world_size
        self.resident = min(resident, len(self.tiles))
        self._next = 0
        self.skipped: dict[str, str] = {}
        self._buffers, self._batches = Buffers(), Buffers()
        self._sky_sigma: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        """Hold no tile: they are read when they are needed."""
        self._pool: deque[_Resident] = deque()
        self._served = 0  # how many tiles have entered the pool since the start of the run
        self._reading: Generator[_Resident] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": deque(), "_served": 0, "_reading": None, "_stream": None}

    def __iter__(self) -> Iterator[Batch]:
        while True:
            number, self._next = self._next, self._next + 1
            yield self._batch(number)

    @checked
    def shard(self, rank: int, world_size: int) -> TileLoader:
        """Return the stream of process `rank`: tiles of its own, and its part of the batch size."""
        check_share(self.batch_size, rank, world_size)
        if world_size == 1:
            return self
        part = copy(self)
        part.batch_size, part.skipped = self.batch_size // world_size, dict(self.skipped)
        part.rank, part.world_size = rank, world_size
        part._forget()
        return part

    def sky_noise(self) -> np.ndarray:
        """Measure the sky noise (C,) on the tiles at hand."""
        self._fill(self._next)
        return np.nanmedian([measure_sky_noise(tile.flux[:, ::8].cpu().numpy()) for tile in self._pool], axis=0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream: the batch, tiles that cannot be read, and the noise for `augment`."""
        sigma = None if self._sky_sigma is None else self._sky_sigma.tolist()
        return {"next": self._next, "skipped": dict(self.skipped), "sky_sigma": sigma}

    @checked
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position of another stream."""
        check_state(state, "next")
        self._next, self.skipped = state["next"], dict(state.get("skipped", {}))
        sigma = state.get("sky_sigma")
        self._sky_sigma = None if sigma is None else torch.tensor(sigma, device=self.device)
        self._forget()

    def _sequence(self) -> Iterator[int]:
        """Give the numbers of this process's tiles without end: all tiles in each pass, dealt out to the processes."""
        n, epoch = len(self.tiles), 0
        while True:
            order = torch.randperm(n, generator=keyed_generator(self.seed, _ORDER, epoch))
            yield from order[(self.rank - epoch * n) % self.world_size :: self.world_size].tolist()
            epoch += 1

    def _good_sequence(self, start: int) -> Iterator[int]:
        """Give the sequence from its `start`-th tile on, bad tiles not counted.

        What was in the pool at some batch so follows from the number of the batch and the bad tiles alone: a tile
        found bad now is left out where it would have come, and was in no pool before.
        """
        counted = 0
        for index in self._sequence():
            if self.tiles[index].name not in self.skipped:
                if counted >= start:
                    yield index
                counted += 1

    def _usable(self, start: int) -> Generator[_Resident]:
        """Give tiles in their order, from the `start`-th on, while threads read the next ones."""

        def read(index: int) -> tuple[str, _Resident | OSError | ValueError]:
            paths = self.tiles[index]
            try:
                return paths.name, self._read(paths)
            except (OSError, ValueError) as error:
                return paths.name, error

        for name, found in ahead(self._good_sequence(start), read, depth=self.readers, threads=self.readers):
            if isinstance(found, _Resident):
                yield found
                continue
            if self.on_error == "raise":
                raise found
            if name not in self.skipped:
                log.warning("tile %s is skipped: %s", name, found)
            self.skipped[name] = str(found)
            if len(self.skipped) == len(self.tiles):
                first = next(iter(self.skipped.values()))
                raise OSError(f"none of {len(self.tiles)} tiles can be used; the first: {first}")

    def _read(self, paths: TilePaths) -> _Resident:
        def allocate(shape: tuple[int, int, int]) -> np.ndarray:
            return self._buffers.take(shape, self.device).numpy()

        tile = read_tile(paths, bad_planes=self.bad_planes, variance=self.variance, align=self.align, allocate=allocate)
        try:
            corners = Corners(tile.flux, self.size)
        except ValueError as error:
            raise ValueError(f"tile {tile.name}: {error}") from None
        weight = None
        if tile.variance is not None:
            make_relative_weight(tile.variance, tile.flux)
            weight = self._upload(tile.variance)
        return _Resident(self._upload(tile.flux), weight, tile.wcs, corners)

    def _upload(self, plane: np.ndarray) -> Tensor:
        """Copy a tile to the device, in parallel with the computation there."""
        host = torch.from_numpy(plane)
        if self.device.type != "cuda":
            return host
        with _UPLOAD:
            if self._stream is None:  # one for all tiles: the memory of one is then free for the next
                self._stream = torch.cuda.Stream(self.device)
        stream = self._stream
        with torch.cuda.stream(stream):
            copied = host.to(self.device, non_blocking=True)
        copied.record_stream(torch.cuda.default_stream(self.device))
        stream.synchronize()  # in the thread that reads; the memory of the host is free again
        return copied

    def _fill(self, number: int) -> None:
        """Have in the pool the tiles of a batch."""
        if self._process != os.getpid():  # after a fork the threads are gone
            self._forget()
        replaced = number * self.batch_size // self.cutouts_per_tile if self.resident < len(self.tiles) else 0
        if self._reading is None:
            self._reading, self._served = self._usable(replaced), replaced
        while self._served < replaced + self.resident:
            try:
                tile = next(self._reading)
            except BaseException:
                self._forget()  # another try reads it again
                raise
            self._served += 1
            if len(self._pool) == self.resident:
                self._pool.popleft()
            self._pool.append(tile)
        if self.resident == len(self.tiles):
            self._reading.close()

    def _batch(self, number: int) -> Batch:
        self._fill(number)
        n, shape = self.batch_size, (self.batch_size, len(self.bands), self.size, self.size)
        draws = draw_changes(
            self.augment, n, len(self.bands), generator=keyed_generator(self.seed, _AUGMENT, number, self.rank)
        )
        place = torch.rand(n, 3, generator=keyed_generator(self.seed, _CROP, number, self.rank), dtype=torch.float64)
        flux, position = self._batches.take_on(self.device, shape), np.full((2, n), np.nan)
        weight = self._batches.take_on(self.device, shape) if self.variance else None
        for t, tile in enumerate(self._pool):
            part = slice(t, None, len(self._pool))
            top, left = tile.corners.at(place[part].numpy())
            flips = None if draws.flips is None else draws.flips[:, part]
            crop(tile.flux, top, left, flips=flips, out=flux[part])
            if weight is not None and tile.weight is not None:
                crop(tile.weight, top, left, flips=flips, out=weight[part])
            if tile.wcs is not None:
                position[:, part] = sky_position(tile.wcs, top + self.size // 2, left + self.size // 2)
        noise = None
        if draws.noise is not None:
            if self._sky_sigma is None:
                self._sky_sigma = torch.from_numpy(self.sky_noise()).float().to(self.device)
            noise = keyed_generator(self.seed, _NOISE, number, self.rank, device=self.device)
        flux = change(flux, draws._replace(flips=None), sky_sigma=self._sky_sigma, generator=noise)
        ra, dec = to_device(position, self.device)
        return Batch(flux, ra, dec, {}, weight)
