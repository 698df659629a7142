"""Flat batches, already on the device, from tiles or from files of cutouts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skylib.augment import random_orientation, random_turns, turn
from skylib.bands import measure_sky_noise
from skylib.cutouts import CutoutFile
from skylib.runtime import keyed_generator, pick_device
from skylib.tiles import Tile, TilePaths, read_tile

log = logging.getLogger(__name__)

_ORDER, _AUGMENT, _CROP = range(3)  # what a random draw is for: part of its key
RESIDENT_BYTES = 2 * 2**30  # images that take less than this are kept in memory


class Batch(NamedTuple):
    """Images and what is known of them, on one device."""

    flux: Tensor  # float32 (B, C, S, S), counts, NaN = no data
    ra: Tensor  # float64 (B,), degrees
    dec: Tensor  # float64 (B,)
    columns: dict[str, Tensor]  # each (B,)
    weight: Tensor | None = None  # float32 (B, C, S, S), inverse variance in counts**-2


class CutoutLoader:
    """Batches of a file of cutouts, in one pass.

    Every draw follows from the seed and the place in the run, so the state to save is two integers, and a restored
    loader goes on with the very batch that would have come. Images that take less than 2 GiB are read once and kept.

    Parameters
    ----------
    cutouts : CutoutFile
    batch_size : int
    rows : array of int, optional
        Use only these rows.
    size : int, optional
        Crop the cutouts to this side, around their centre.
    bands : sequence of str, optional
        Bands to give, by name, in this order; one that the file lacks is all NaN.
    columns : sequence of str
        Numeric labels to carry along.
    shuffle : bool
        Another order in each pass; the rest that does not fill a batch is left out.
    augment : bool
        Turn and mirror each image at random.
    device : optional
    seed : int
    rank, world_size : int
        Of several processes, each is given its part of every batch; together they see what one alone would.
    """

    def __init__(
        self, cutouts: CutoutFile, *, batch_size: int, rows: np.ndarray | None = None, size: int | None = None,
        bands: Sequence[str] | None = None, columns: Sequence[str] = (), shuffle: bool = True, augment: bool = False,
        device: str | torch.device | None = None, seed: int = 0, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        rows = np.arange(len(cutouts)) if rows is None else np.asarray(rows)
        self.cutouts, self.batch_size, self.shuffle, self.augment = cutouts, batch_size, shuffle, augment
        self.rows, self.device, self.seed = rows, pick_device(device), seed
        self.rank, self.world_size = rank, world_size
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(f"batch_size={batch_size}: cannot be divided among {world_size} processes, rank {rank}")
        self.size = cutouts.size if size is None else size
        self.bands = tuple(bands or cutouts.bands)
        self.columns = {name: cutouts.column(name) for name in columns}
        if not 0 < self.size <= cutouts.size:
            raise ValueError(f"size={size}: {cutouts.path} holds cutouts of {cutouts.size} pixels")
        if shuffle and not 1 <= batch_size <= len(self.rows):
            raise ValueError(
                f"batch_size={batch_size}: must be 1 to {len(self.rows)}, the number of cutouts to draw from"
            )
        self._planes = [cutouts.bands.index(band) if band in cutouts.bands else -1 for band in self.bands]
        if max(self._planes) < 0:
            raise ValueError(f"{cutouts.path} holds bands {' '.join(cutouts.bands)}, none of {' '.join(self.bands)}")
        self._epoch = self._next = 0
        self._kept: np.ndarray | None = None  # the images of `rows`, in their order

    def __len__(self) -> int:
        full, rest = divmod(len(self.rows), self.batch_size)
        return full if self.shuffle else full + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(len(self.rows))
        if self.shuffle:
            generator = keyed_generator(self.seed, _ORDER, self._epoch)
            order = torch.randperm(len(order), generator=generator).numpy()
        if self._kept is None and len(self.rows) * len(self.cutouts.bands) * self.cutouts.size**2 * 4 < RESIDENT_BYTES:
            self._kept = np.ascontiguousarray(self.flux(self.rows))
        while self._next < len(self):
            number, self._next = self._next, self._next + 1
            yield self._batch(order[number * self.batch_size : (number + 1) * self.batch_size], number)
        self._epoch, self._next = self._epoch + 1, 0

    def flux(self, rows: np.ndarray) -> np.ndarray:
        """Return the images of these rows of the file as the batches hold them, (n, C, S, S), before augmentation."""
        flux = self.cutouts.flux(rows)
        start = self.cutouts.size // 2 - self.size // 2
        flux = flux[:, :, start : start + self.size, start : start + self.size]
        if self._planes != list(range(flux.shape[1])):
            flux = np.concatenate([flux, np.full_like(flux[:, :1], np.nan)], axis=1)[:, self._planes]
        return flux

    def sky_noise(self) -> np.ndarray:
        """Measure the sky noise (C,) on up to 500 cutouts."""
        return measure_sky_noise(self.flux(self.rows[:: max(1, len(self.rows) // 500)]))

    def shard(self, rank: int, world_size: int) -> CutoutLoader:
        """Return a loader of the same batches that gives process `rank` its part of each."""
        if world_size == 1:
            return self
        if self.batch_size % world_size:
            raise ValueError(f"batch_size={self.batch_size}: cannot be divided among {world_size} processes")
        part = copy(self)
        part.rank, part.world_size = rank, world_size
        return part

    def state_dict(self) -> dict[str, int]:
        """Return where the loader stands: pass and batch."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another loader stood."""
        self._epoch, self._next = state["epoch"], state["next"]

    def _batch(self, chosen: np.ndarray, number: int) -> Batch:
        whole, n = len(chosen), -(-len(chosen) // self.world_size)
        mine = slice(self.rank * n, (self.rank + 1) * n)
        rows = self.rows[chosen[mine]]
        images = self.flux(rows) if self._kept is None else self._kept[chosen[mine]]
        flux = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        if self.augment:
            draw = random_turns(whole, generator=keyed_generator(self.seed, _AUGMENT, self._epoch, number))
            flux = turn(flux, draw[:, mine])

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values[rows])).to(self.device)

        return Batch(
            flux, column(self.cutouts.ra), column(self.cutouts.dec),
            {name: column(values) for name, values in self.columns.items()},
        )  # fmt: skip


class TileLoader:
    """An endless stream of crops at random places of FITS tiles.

    A few tiles are kept on the device at a time and every batch mixes them.

    Parameters
    ----------
    tiles : sequence of TilePaths
        From `find_tiles`.
    batch_size, size : int
    cutouts_per_tile : int
        Crops served from a tile before it is replaced.
    resident : int
        Tiles on the device at a time.
    bad_planes : sequence of str
        Mask planes whose pixels become NaN.
    augment : bool
    device : optional
    seed, rank, world_size : int
    on_error : {"raise", "skip"}
        ``skip``: unreadable tiles are logged and listed in `skipped`.
    """

    def __init__(
        self, tiles: Sequence[TilePaths], *, batch_size: int, size: int = 64, cutouts_per_tile: int = 1024,
        resident: int = 4, bad_planes: Sequence[str] = (), augment: bool = True,
        device: str | torch.device | None = None, seed: int = 0, rank: int = 0, world_size: int = 1,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:  # fmt: skip
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: one of 'raise', 'skip'")
        for name, value in {
            "batch_size": batch_size,
            "size": size,
            "resident": resident,
            "cutouts_per_tile": cutouts_per_tile,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self._all, self._cutouts_per_tile, self._most_resident = list(tiles), cutouts_per_tile, resident
        if not self._all:
            raise ValueError("no tiles given")
        self.bands = tuple(self._all[0].paths)
        self.batch_size, self.size, self.augment, self.on_error = batch_size, size, augment, on_error
        self.bad_planes, self.seed, self.device = tuple(bad_planes), seed, pick_device(device)
        self._next = 0
        self.skipped: dict[str, str] = {}
        self._take(rank, world_size)

    def shard(self, rank: int, world_size: int) -> TileLoader:
        """Return the stream of process `rank`: tiles of its own, and its part of the batch size."""
        if self.batch_size % world_size:
            raise ValueError(f"batch_size={self.batch_size}: cannot be divided among {world_size} processes")
        part = copy(self)
        part.batch_size, part.skipped = self.batch_size // world_size, {}
        part._take(rank, world_size)
        return part

    def _take(self, rank: int, world_size: int) -> None:
        self.rank, self.tiles = rank, self._all[rank::world_size]
        if not self.tiles:
            raise ValueError(f"{len(self._all)} tiles for {world_size} processes: process {rank} has none")
        self._resident = min(self._most_resident, len(self.tiles))
        self._batches_per_group = max(1, self._resident * self._cutouts_per_tile // self.batch_size)
        self._group: tuple[int, list[tuple[Tensor, Tile]]] = (-1, [])

    def __iter__(self) -> Iterator[Batch]:
        while True:
            number, self._next = self._next, self._next + 1
            yield self._batch(number)

    def sky_noise(self) -> np.ndarray:
        """Measure the sky noise (C,) on the first group of tiles."""
        noise = [measure_sky_noise(tile.flux) for _, tile in self._tiles(0)]
        return np.nanmedian(noise, axis=0)

    def state_dict(self) -> dict[str, int]:
        """Return where the stream stands."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another stream stood."""
        self._next = state["next"]

    def _tiles(self, group: int) -> list[tuple[Tensor, Tile]]:
        """Return the tiles of a group; each pass over all tiles has its own order."""
        if self._group[0] != group:
            groups_per_pass = -(-len(self.tiles) // self._resident)
            epoch, part = divmod(group, groups_per_pass)
            order = torch.randperm(len(self.tiles), generator=keyed_generator(self.seed, _ORDER, epoch, self.rank))
            chosen = order[part * self._resident : (part + 1) * self._resident].tolist()
            self._group = (-1, [])  # frees the memory of the group before
            tiles = [tile for index in chosen if (tile := self._read(self.tiles[index])) is not None]
            if not tiles:  # the whole group is bad: one good tile of the others will do
                others = (self._read(self.tiles[index]) for index in order)
                tiles = [tile for tile in others if tile is not None][:1]
            if not tiles:
                raise OSError(
                    f"none of {len(self.tiles)} tiles can be read; the first: {next(iter(self.skipped.values()))}"
                )
            self._group = (group, [(torch.from_numpy(tile.flux).to(self.device), tile) for tile in tiles])
        return self._group[1]

    def _read(self, paths: TilePaths) -> Tile | None:
        try:
            tile = read_tile(paths, bad_planes=self.bad_planes)
            if min(tile.flux.shape[1:]) < self.size:
                raise ValueError(f"tile {tile.name} of {tile.flux.shape[1:]} pixels is smaller than size={self.size}")
        except (OSError, ValueError) as error:
            if self.on_error == "raise":
                raise
            if paths.name not in self.skipped:
                log.warning("tile %s is skipped: %s", paths.name, error)
            self.skipped[paths.name] = str(error)
            return None
        return tile

    def _batch(self, number: int) -> Batch:
        tiles = self._tiles(number // self._batches_per_group)
        generator = keyed_generator(self.seed, _CROP, number, self.rank)
        which = torch.randint(len(tiles), (self.batch_size,), generator=generator)
        place = torch.rand(self.batch_size, 2, generator=generator, dtype=torch.float64)
        flux = torch.empty(self.batch_size, len(self.bands), self.size, self.size, device=self.device)
        position = np.empty((2, self.batch_size))
        within = torch.arange(self.size)
        for t, (image, tile) in enumerate(tiles):
            mine = (which == t).nonzero()[:, 0]
            top = (
                place[mine] * (torch.tensor(image.shape[1:]) - self.size + 1)
            ).long()  # (n, 2) first row, first column
            rows = (top[:, 0, None] + within)[:, :, None].to(self.device)
            cols = (top[:, 1, None] + within)[:, None, :].to(self.device)
            flux[mine.to(self.device)] = image[:, rows, cols].transpose(0, 1)
            centre = (top + self.size // 2).numpy()
            position[:, mine.numpy()] = tile.sky_at(centre[:, 0], centre[:, 1])
        if self.augment:
            flux = random_orientation(flux, generator=generator)
        ra, dec = torch.from_numpy(position).to(self.device)
        return Batch(flux, ra, dec, {})


Loader = CutoutLoader | TileLoader
