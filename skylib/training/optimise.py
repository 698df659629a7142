"""A step: from a batch to gradients, in parts, in several processes, compiled; and from gradients to weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from skylib.config import PretrainConfig
from skylib.data.loading import Batch
from skylib.device import autocast, images_at_once
from skylib.model.mim import MaskedImageModel
from skylib.training.distributed import World

GRAPH_PARAMETERS = 150_000_000  # of a model: below, a GPU may compute faster than kernels can be launched one by one
_TRIALS = 3  # calls in which a compiled step shows that it works: it is compiled, recorded, and replayed


def learning_rate_at(step: int, config: PretrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then as `PretrainConfig.schedule` says.

    Examples
    --------
    >>> config = PretrainConfig(steps=12, warmup_steps=2, learning_rate=1.0)
    >>> [learning_rate_at(step, config) for step in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    >>> config = PretrainConfig(steps=12, warmup_steps=2, learning_rate=1.0, schedule="wsd", cooldown=0.5)
    >>> [learning_rate_at(step, config) for step in (0, 2, 6, 9, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    c = config
    warmup = c.steps // 20 if c.warmup_steps is None else c.warmup_steps
    if c.schedule == "cosine" or step < warmup:
        return cosine_schedule(step, steps=c.steps, warmup=warmup, peak=c.learning_rate, final=c.final_learning_rate)
    height = min(1.0, max(0.0, c.steps - step) / max(1.0, c.cooldown * c.steps))
    return c.final_learning_rate + (c.learning_rate - c.final_learning_rate) * height


def cosine_schedule(step: int, *, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Return the learning rate: linear warm-up to `peak`, then half a cosine down to `final`.

    Examples
    --------
    >>> [cosine_schedule(s, steps=12, warmup=2, peak=1.0) for s in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimiser:
    """AdamW on the weights of a model. Nothing here waits for the device, except `bad_steps`.

    A step whose gradient is not finite leaves weights, moments and averages as they were.

    Parameters
    ----------
    model : MaskedImageModel
        On its device.
    config : PretrainConfig

    Attributes
    ----------
    average : MaskedImageModel or None
        With the exponential moving average of the weights, if `config.ema` asks for one.
    """

    def __init__(self, model: MaskedImageModel, config: PretrainConfig) -> None:
        self.config = config
        self._trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        # Weight matrices decay, all else does not.
        matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
        ids = {id(weight) for weight in matrices}
        rest = [p for p in self.parameters if id(p) not in ids]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.average = deepcopy(model).eval().requires_grad_(False) if config.ema else None
        # Steps that were skipped: in a row now, longest row since the last look, in all.
        self._bad = torch.zeros(3, device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, step: int, n_pixels: Tensor, *, processes: int = 1) -> Tensor:
        """Change the weights by gradients of a *sum* over pixels.

        Parameters
        ----------
        step : int
            Number of the step, for the schedule.
        n_pixels : Tensor, scalar
            How many pixels the sum went over, in all processes together.
        processes : int
            Over which the gradients were averaged.

        Returns
        -------
        Tensor, scalar
            Norm of the mean gradient, before clipping.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        scale = processes / n_pixels.clamp(min=1e-12)
        norm = torch.stack(torch._foreach_norm(gradients)).norm() * scale
        bad = (~norm.isfinite()).float()
        limit = self.config.clip_grad or float("inf")
        shrink = (limit / (norm + 1e-6)).clamp(max=1.0)
        # As torch.amp.GradScaler does it: the fused kernel divides by `grad_scale`, and does nothing at `found_inf`.
        self.adamw.grad_scale = 1 / (scale * shrink)  # type: ignore[attr-defined]
        self.adamw.found_inf = bad  # type: ignore[attr-defined]
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate_at(step, self.config)
        self.adamw.step()
        self.adamw.zero_grad()
        row = (self._bad[0] + 1) * bad
        self._bad = torch.stack([row, torch.maximum(self._bad[1], row), self._bad[2] + bad])
        if self.average is not None:
            decay = min(self.config.ema, (1 + step) / (10 + step))  # a short memory at first
            averages: list[Tensor] = [self.average.get_parameter(name) for name in self._trained]
            # On a skipped step the share is 0; a tensor, so that nothing waits for the device.
            share = (1 - decay) * (1 - bad)
            torch._foreach_add_(averages, torch._foreach_mul(torch._foreach_sub(self.parameters, averages), share))
        return norm

    def bad_steps(self) -> tuple[int, int]:
        """Return the longest row of skipped steps since the last look, and their number in all."""
        _, longest, total = self._bad.tolist()
        self._bad[1] = self._bad[0]
        return int(longest), int(total)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        state = {"adamw": self.adamw.state_dict(), "bad": self._bad.cpu()}
        return state if self.average is None else {**state, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another optimiser, with the settings of this one.

        An average that it did not keep begins from the weights as they are.
        """
        settings = [{name: group[name] for name in ("weight_decay", "betas")} for group in self.adamw.param_groups]
        self.adamw.load_state_dict(state["adamw"])
        for group, setting in zip(self.adamw.param_groups, settings, strict=True):
            group.update(setting)
        self._bad = state["bad"].to(self._bad.device)
        if self.average is not None and "average" in state:
            self.average.load_state_dict(state["average"])


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

    The batch is computed in `PretrainConfig.accumulate` parts; on a CPU in more, if these are large. It is compiled on
    its first batch if `PretrainConfig.compile` says so, and for a small model on one GPU recorded as a CUDA graph,
    which is started as a whole; where that fails it runs as it is, with a warning that says why.

    Parameters
    ----------
    model : MaskedImageModel
        On its device.
    config : PretrainConfig
    world : World

    Attributes
    ----------
    graph : bool
        Whether it is recorded, or will be at the first batch.
    """

    def __init__(self, model: MaskedImageModel, config: PretrainConfig, world: World) -> None:
        self._model, self._world = model, world
        self._parts, self._precision = config.accumulate, config.precision
        self._at_once = images_at_once(world.device, model.config.n_patches)
        self._loss: Any = SummedLoss(model)
        if world.size > 1:
            self._loss = DistributedDataParallel(self._loss, broadcast_buffers=False)
        self._run: Callable[..., Any] = self._loss
        compile = config.compile if config.compile is not None else world.device.type == "cuda"
        small = sum(p.numel() for p in model.parameters()) < GRAPH_PARAMETERS
        self.graph = compile and small and world.device.type == "cuda" and world.size == config.accumulate == 1
        self._trials = _TRIALS if compile else 0
        if compile:
            self._run = torch.compile(self._loss, dynamic=False, mode="reduce-overhead" if self.graph else None)

    def __call__(self, batch: Batch, mask: Tensor) -> Tensor:
        """Return the error, summed over pixels, and their number or weight: (2,), of this process."""
        while self._trials:
            self._trials -= 1
            try:
                return self._backward(batch, mask)
            except Exception as error:  # whatever compilers, drivers and their versions come up with
                reason = " ".join(str(error).split())[:400]
                what = "recorded as a CUDA graph" if self.graph else "compiled"
                warnings.warn(f"training is not {what}, and slower: {type(error).__name__}: {reason}", stacklevel=3)
                self._run = torch.compile(self._loss, dynamic=False) if self.graph else self._loss
                self._trials, self.graph = _TRIALS if self.graph else 0, False
                self._model.zero_grad()
        return self._backward(batch, mask)

    def _backward(self, batch: Batch, mask: Tensor) -> Tensor:
        n = len(batch.flux)
        size = min(self._at_once or n, -(-n // self._parts))
        size = -(-n // -(-n // size))  # parts as even as can be
        fields = (batch.flux, mask, batch.weight, batch.ra, batch.dec)
        cut = [repeat(None) if field is None else field.split(size) for field in fields]
        sums = torch.zeros(2, device=self._world.device)
        if self.graph:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step returned may be overwritten
        for start, part in zip(range(0, n, size), zip(*cut, strict=False), strict=True):
            # The gradient of a part stays with this process: the last part brings them all together.
            wait = self._world.size > 1 and start + size < n
            with self._loss.no_sync() if wait else nullcontext():
                with autocast(self._world.device, self._precision):
                    error, n_pixels = self._run(*part)
                error.backward()
            sums += torch.stack([error.detach(), n_pixels])
        return sums
