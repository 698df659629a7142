"""Batches from HDF5 files of cutouts of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skylib.bands import named_bands
from skylib.checks import checked
from skylib.data.augment import NO_AUGMENTATION, Augmentation, change, draw_changes, flip
from skylib.data.cutouts import CutoutFile
from skylib.data.loading.batch import Batch, Buffers, Window, check_share, check_state, to_device
from skylib.data.loading.cropping import gather
from skylib.data.photometry import measure_sky_noise
from skylib.data.plain import numbers_of
from skylib.device import ahead, keyed_generator, pick_device

_ORDER, _AUGMENT, _NOISE = 0, 1, 3  # what a random draw is for: part of its key
_BLOCK_BYTES = 4 * 2**20  # read in one piece
_LEAST_WINDOW_BYTES = 64 * 2**20


class CutoutLoader:
    """Batches of a file of cutouts, in one pass.

    Every draw follows from the seed and the place in the run, so the state to save is small, and a restored loader
    resumes with the very batch that would have come.

    Images that fit in `memory` are read once and kept. Larger files are read in blocks, in a random order of blocks,
    and as many as half of `memory` holds are shuffled together, while a thread reads the next ones into the other half.

    Parameters
    ----------
    cutouts : CutoutFile
    batch_size : int
    rows : array of int or bool, optional
        Use only these rows; a mask has one value per cutout.
    size : int, optional
        Crop the cutouts to this side, around their centre.
    bands : str or sequence of str, optional
        Bands to give, by name, in this order; one that the file lacks is all NaN.
    columns : sequence of str
        Numeric labels to carry along.
    shuffle : bool
        Another order in each pass; the rest that does not fill a batch is left out. If not: the order of `rows`.
    augment : bool or Augmentation
        True: rotate and flip each image at random.
    weight : bool
        Also give the inverse variances that the file holds, in units of the median of their band.
    device : optional
        CUDA if there is one, by default.
    seed : int
    rank, world_size : int
        Of several processes, each is given its part of every batch; together they see what one alone would, but for
        the noise of an `Augmentation`.
    memory : int
        Bytes.
    pad : bool
        Let `size` be larger than the cutouts: NaN around them.

    Raises
    ------
    ValueError
        If the batch size, the crop or the bands do not fit the file.
    KeyError
        If a column, or the inverse variances, are not in the file.

    Examples
    --------
    >>> loader = skylib.CutoutLoader(cutouts, batch_size=8, rows=np.flatnonzero(split == 0))
    >>> next(iter(loader)).flux.shape
    torch.Size([8, 5, 32, 32])
    """

    @checked
    def __init__(
        self,
        cutouts: CutoutFile,
        *,
        batch_size: int,
        rows: np.ndarray | None = None,
        size: int | None = None,
        bands: str | Sequence[str] | None = None,
        columns: Sequence[str] = (),
        shuffle: bool = True,
        augment: bool | Augmentation = False,
        weight: bool = False,
        device: str | torch.device | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        memory: int = 2 * 2**30,
        pad: bool = False,
    ) -> None:
        rows = cutouts.row_numbers(slice(None) if rows is None else rows)
        self.cutouts, self.batch_size, self.shuffle = cutouts, batch_size, shuffle
        self.augment = Augmentation() if augment is True else augment or NO_AUGMENTATION
        self.rows, self.device, self.seed, self.memory = rows, pick_device(device), seed, memory
        self.rank, self.world_size = rank, world_size
        check_share(batch_size, rank, world_size)
        self.size, self.pad = cutouts.size if size is None else size, pad
        self.bands = cutouts.bands if bands is None else named_bands(bands)
        self.columns = {name: numbers_of(cutouts, name) for name in columns}
        if self.size > cutouts.size and not pad:
            raise ValueError(f"size={size}: {cutouts.path} holds cutouts of {cutouts.size} pixels")
        if shuffle and batch_size > len(rows):
            raise ValueError(f"batch_size={batch_size}: must be 1 to {len(rows)}, the number of cutouts to draw from")
        self._planes = [cutouts.bands.index(band) if band in cutouts.bands else -1 for band in self.bands]
        if max(self._planes) < 0:
            raise ValueError(f"{cutouts.path} holds bands {' '.join(cutouts.bands)}, none of {' '.join(self.bands)}")
        self._image_bytes = 4 * len(self.bands) * self.size**2 * (1 + weight)
        self._resident = len(self.rows) * self._image_bytes <= memory
        # Batches that are read together: all of them, or as many as half of the memory holds.
        window = max(memory // 2, _LEAST_WINDOW_BYTES) // (batch_size * self._image_bytes)
        self._window = max(1, len(self) if self._resident else min(window, len(self)))
        self._typical_weight = self._median_weight() if weight else None
        self._epoch = self._next = 0
        self._kept: Window | None = None
        self._buffers, self._windows = Buffers(), Buffers()
        self._sky_sigma: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size if self.shuffle else -(-len(self.rows) // self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        for first, images in self._windows_of(order):
            numbers = range(self._next, min(first + self._window, len(self)))
            make = partial(self._batch, images, order, first)
            # A GPU gets its next work from this thread, and would get it late if this also gathered images.
            beside = self.device.type == "cuda" and not isinstance(images.flux, Tensor)
            made = ahead(numbers, make, depth=1) if beside else map(make, numbers)
            for number, batch in zip(numbers, made, strict=True):
                self._next = number + 1
                yield batch
        self._epoch, self._next = self._epoch + 1, 0

    def _windows_of(self, order: np.ndarray) -> Iterator[tuple[int, Window]]:
        """Give the first batch and the images of windows of the file, while a thread reads the next; or of all."""
        if self._resident:
            self._kept = self._kept or self._on_device(self._read(np.arange(len(self.rows))))
            yield 0, self._kept
            return

        def read(first: int) -> Window:
            numbers = range(first, min(first + self._window, len(self)))
            return self._read(np.concatenate([self._share(order, number) for number in numbers]))

        firsts = range(self._next // self._window * self._window, len(self), self._window)
        yield from zip(firsts, ahead(firsts, read, depth=1), strict=True)

    @checked
    def flux(self, rows: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the images of these rows of the file as the batches hold them, (n, C, S, S), before augmentation.

        With `out` they are read into this memory.
        """
        if out is not None and self._planes == list(range(len(self.cutouts.bands))):
            return self.cutouts.flux(rows, size=self.size, pad=self.pad, out=out)
        images = self._by_band(self.cutouts.flux(rows, size=self.size, pad=self.pad), np.nan)
        if out is not None:
            out[:] = images
        return images

    def sky_noise(self) -> np.ndarray:
        """Measure the sky noise (C,) on up to 500 cutouts."""
        return measure_sky_noise(self.flux(self.rows[:: max(1, len(self.rows) // 500)]))

    @checked
    def shard(self, rank: int, world_size: int) -> CutoutLoader:
        """Return a loader of the same batches that gives process `rank` its part of each."""
        check_share(self.batch_size, rank, world_size)
        if world_size == 1:
            return self
        part = copy(self)
        part.rank, part.world_size = rank, world_size
        return part

    def state_dict(self) -> dict[str, int]:
        """Return the position of the loader, pass and batch, and what the order depends on."""
        return {"epoch": self._epoch, "next": self._next, "window": self._window}

    @checked
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the position of another loader.

        Raises
        ------
        ValueError
            If it is none, or that one shuffled other parts of the file together: some images would be seen twice.
        """
        check_state(state, "epoch", "next")
        if state.get("window", self._window) != self._window and state["next"] > 0:
            raise ValueError(
                f"{self.cutouts.path}: the pass was begun with {state['window']} batches shuffled together, here it "
                f"would be {self._window}; give the same memory, batch_size and rows"
            )
        self._epoch, self._next = state["epoch"], state["next"]

    def _order(self) -> np.ndarray:
        """Return the order of this pass, as positions in `rows`."""
        n = len(self.rows)
        if not self.shuffle:
            return np.arange(n)
        generator = keyed_generator(self.seed, _ORDER, self._epoch)
        if self._resident:
            return torch.randperm(n, generator=generator).numpy()
        block = max(1, _BLOCK_BYTES // self._image_bytes)
        blocks = torch.randperm(-(-n // block), generator=generator).tolist()
        sorted_rows = np.argsort(self.rows, kind="stable")
        order = np.concatenate([sorted_rows[b * block : (b + 1) * block] for b in blocks])
        for start in range(0, n, self._window * self.batch_size):
            part = order[start : start + self._window * self.batch_size]
            part[:] = part[torch.randperm(len(part), generator=generator).numpy()]
        return order

    def _share(self, order: np.ndarray, number: int) -> np.ndarray:
        """Return this process's part of a batch, as positions in `rows`."""
        whole = order[number * self.batch_size : (number + 1) * self.batch_size]
        return whole[self._part(len(whole))]

    def _part(self, whole: int) -> slice:
        """Return which of the images of a batch are this process's."""
        n = -(-whole // self.world_size)
        return slice(self.rank * n, (self.rank + 1) * n)

    def _read(self, positions: np.ndarray) -> Window:
        rows = self.rows[positions]
        by_row = np.argsort(rows, kind="stable")
        slots = np.argsort(by_row)
        memory = self._windows.take((len(rows), len(self.cutouts.bands), self.size, self.size), torch.device("cpu"))
        flux = self.cutouts.flux(rows[by_row], size=self.size, pad=self.pad, out=memory.numpy())
        flux, weight = self._by_band(flux, np.nan), None
        if self._typical_weight is not None:
            weight = self._by_band(self.cutouts.weight(rows[by_row], size=self.size), 0) / self._typical_weight
            weight = np.where(np.isfinite(weight) & np.isfinite(flux), weight, np.float32(0))
        return Window(flux, weight, slots)

    def _on_device(self, window: Window) -> Window:
        """Bring images to a GPU, if there is room for them in a quarter of what is free."""
        images = [window.flux] if window.weight is None else [window.flux, window.weight]
        if self.device.type != "cuda" or 4 * sum(x.nbytes for x in images) > torch.cuda.mem_get_info(self.device)[0]:
            return window
        flux, *weight = (torch.as_tensor(x).to(self.device) for x in images)
        return window._replace(flux=flux, weight=weight[0] if weight else None)

    def _by_band(self, images: np.ndarray, missing: float) -> np.ndarray:
        """Bring the planes of the file into the order of `bands`."""
        if self._planes == list(range(images.shape[1])):
            return images
        return np.concatenate([images, np.full_like(images[:, :1], missing)], axis=1)[:, self._planes]

    def _median_weight(self) -> np.ndarray:
        rows = self.rows[:: max(1, len(self.rows) // 500)]
        weight = self._by_band(self.cutouts.weight(rows, size=self.size), np.nan)
        weight = np.where(weight > 0, weight, np.nan).transpose(1, 0, 2, 3).reshape(len(self.bands), -1)
        typical = np.array([np.nanmedian(w) if np.isfinite(w).any() else 1.0 for w in weight], dtype=np.float32)
        return typical[:, None, None]

    def _batch(self, images: Window, order: np.ndarray, first: int, number: int) -> Batch:
        positions, start = self._share(order, number), (number - first) * (self.batch_size // self.world_size)
        slots = images.slots[positions] if self._resident else images.slots[start : start + len(positions)]
        whole = min(self.batch_size, len(self.rows) - number * self.batch_size)
        generator = keyed_generator(self.seed, _AUGMENT, self._epoch, number)
        draws = draw_changes(self.augment, whole, len(self.bands), generator=generator).part(self._part(whole))
        noise = None
        if draws.noise is not None:
            if self._sky_sigma is None:
                self._sky_sigma = torch.from_numpy(self.sky_noise()).float().to(self.device)
            noise = keyed_generator(self.seed, _NOISE, self._epoch, number, self.rank, device=self.device)
        flux = self._take(images.flux, slots, draws.flips)
        flux = change(flux, draws._replace(flips=None), sky_sigma=self._sky_sigma, generator=noise)
        weight = None if images.weight is None else self._take(images.weight, slots, draws.flips)
        ra, dec = (to_device(x[self.rows[positions]], self.device) for x in (self.cutouts.ra, self.cutouts.dec))
        columns = {name: to_device(x[self.rows[positions]], self.device) for name, x in self.columns.items()}
        return Batch(flux, ra, dec, columns, weight)

    def _take(self, images: np.ndarray | Tensor, slots: np.ndarray, flips: Tensor | None) -> Tensor:
        """Gather images into one tensor on the device, flipped there or on the way."""
        on_gpu = self.device.type == "cuda"
        if isinstance(images, Tensor):
            out = images.index_select(0, to_device(slots, images.device))
        else:
            out = self._buffers.take((len(slots), *images.shape[1:]), self.device)
            gather(images, slots, flips=None if on_gpu else flips, out=out)
            out = out.to(self.device, non_blocking=True) if on_gpu else out
        return flip(out, flips) if on_gpu and flips is not None else out
