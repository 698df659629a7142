"""Forward and backward of one batch: in parts, in several processes, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skylib.config import PretrainConfig
from skylib.data.loading import Batch
from skylib.device import autocast
from skylib.model.mim import MaskedImageModel
from skylib.training.distributed import World

CPU_PATCHES = 4096  # in a part: on a CPU more at once are no faster, and take more memory
GRAPH_PARAMETERS = 150_000_000  # of a model: below, a GPU may compute faster than it can be told kernel by kernel
_TRIALS = 3  # calls in which a compiled step shows that it works: it is compiled, recorded, and replayed


class SummedLoss(nn.Module):
    """What is compiled, and averaged over processes: a batch and its mask in; the summed error and its weight out."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, flux: Tensor, mask: Tensor, weight: Tensor | None, ra: Tensor | None, dec: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return summed error and number of pixels, both scalar."""
        out = self.model.compare(flux, mask, weight=weight, ra=ra, dec=dec)
        return out.loss * out.n_pixels, out.n_pixels


class Step:
    """Adds the gradient of a batch to the parameters of a model, and never waits for the device.

    The batch is computed in `PretrainConfig.accumulate` parts; on a CPU in more, if these are large. It is compiled on its
    first batch if `PretrainConfig.compile` says so, and for a small model on one GPU recorded as a CUDA graph, which is
    started as a whole; where that fails it runs as it is, with a warning that says why.

    Parameters
    ----------
    model : MaskedImageModel
        On its device.
    config : PretrainConfig
    world : World
    """

    def __init__(self, model: MaskedImageModel, config: PretrainConfig, world: World) -> None:
        self._model, self._world = model, world
        self._parts, self._precision = config.accumulate, config.precision
        self._most = max(1, CPU_PATCHES // model.config.n_patches) if world.device.type == "cpu" else None  # images
        self._loss: nn.Module = SummedLoss(model)
        if world.size > 1:
            self._loss = DistributedDataParallel(self._loss, broadcast_buffers=False)
        self._run: Callable[..., Any] = self._loss
        compile = config.compile if config.compile is not None else world.device.type == "cuda"
        small = sum(p.numel() for p in model.parameters()) < GRAPH_PARAMETERS
        self._graph = compile and small and world.device.type == "cuda" and world.size == config.accumulate == 1
        self._trials = _TRIALS if compile else 0
        if compile:
            self._run = torch.compile(self._loss, dynamic=False, mode="reduce-overhead" if self._graph else None)

    def __call__(self, batch: Batch, mask: Tensor) -> Tensor:
        """Return the error, summed over pixels, and their number or weight: (2,), of this process."""
        while self._trials:
            self._trials -= 1
            try:
                return self._backward(batch, mask)
            except Exception as error:  # whatever compilers, drivers and their versions come up with
                reason = " ".join(str(error).split())[:400]
                what = "recorded as a CUDA graph" if self._graph else "compiled"
                warnings.warn(f"training is not {what}, and slower: {type(error).__name__}: {reason}", stacklevel=3)
                self._run = torch.compile(self._loss, dynamic=False) if self._graph else self._loss
                self._trials, self._graph = _TRIALS if self._graph else 0, False
                self._model.zero_grad()
        return self._backward(batch, mask)

    def _backward(self, batch: Batch, mask: Tensor) -> Tensor:
        fields = (batch.flux, mask, batch.weight, batch.ra, batch.dec)
        size, count = self._part_size(len(batch.flux))
        cut = [[None] * count if field is None else field.split(size) for field in fields]
        sums = torch.zeros(2, device=self._world.device)
        if self._graph:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        for number, part in enumerate(zip(*cut, strict=True), 1):
            last = number == count
            with nullcontext() if last else self._no_sync():
                with autocast(self._world.device, self._precision):
                    error, n_pixels = self._run(*part)
                error.backward()
            sums += torch.stack([error.detach(), n_pixels])
        return sums

    def _part_size(self, n: int) -> tuple[int, int]:
        """Return how many of `n` images make a part, and how many parts there are."""
        parts = max(self._parts, 1 if self._most is None else -(-n // self._most))
        size = -(-n // parts)
        return size, -(-n // size)

    def _no_sync(self) -> AbstractContextManager[None]:
        """Keep the gradient of a part to this process: the last part brings them all together."""
        return self._loss.no_sync() if isinstance(self._loss, DistributedDataParallel) else nullcontext()
