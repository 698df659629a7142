"""Where and how tensors are computed: device, precision, randomness that follows from a key, and what a CPU needs."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or else CUDA if there is one, or else the CPU."""
    try:
        if device is not None:
            return torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"device={device!r}: must be such as 'cpu' or 'cuda:0'") from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_precision(device: torch.device) -> str:
    """Return "bf16" where the device has instructions for it, and so computes about twice as fast; else "fp32"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    # Torch has no public question for this yet.
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(ask() for ask in asked if ask is not None) else "fp32"


def pick_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32" as asked for, or for "auto" the faster one on this device."""
    return fast_precision(device) if precision == "auto" else precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which matrix products run in `precision`: "bf16", "fp32" or "auto"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(precision, device) == "bf16")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Let float32 matrix products be exact ("highest"), or on CUDA use TF32 ("high"), within this context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keyed_generator(*key: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a generator whose numbers follow from the key alone, such as (seed, epoch, batch).

    With every draw keyed by its place in the run there is no random state to save, and a resumed run repeats it.

    Examples
    --------
    >>> bool((torch.rand(3, generator=keyed_generator(0, 7)) == torch.rand(3, generator=keyed_generator(0, 7))).all())
    True
    """
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(seed & np.uint64(2**63 - 1)))


def tensor_of(name: str, values: Tensor | np.ndarray) -> Tensor:
    """Return an array of numbers as a tensor, or raise ValueError, which names it."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}: must be numbers")
    return torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("="), order="C"))


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, and to a GPU without waiting for what that computes."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def ahead(
    items: Iterable[Any], read: Callable[[Any], Any] | None = None, *, depth: int = 2, threads: int = 1
) -> Iterator[Any]:
    """Give items one by one, in order, while threads make the next ones: reading and computing overlap.

    Parameters
    ----------
    items : iterable
        Without `read` its items are given, made in one thread.
    read : callable, optional
        Is given each item, in a thread; its results are given.
    depth : int
        How many are being made, or wait, while one is used.
    threads : int
        How many items are read at the same time; needs `read`.

    Examples
    --------
    >>> list(ahead(range(4))), list(ahead(range(4), str, threads=2))
    ([0, 1, 2, 3], ['0', '1', '2', '3'])
    """
    end: Any = object()
    source, waiting = iter(items), deque[Future[Any]]()
    threads_of_items = ThreadPoolExecutor(threads if read is not None else 1, thread_name_prefix="ahead")

    def begin() -> None:
        if read is None:
            waiting.append(threads_of_items.submit(next, source, end))
        elif (item := next(source, end)) is not end:
            waiting.append(threads_of_items.submit(read, item))

    try:
        for _ in range(max(1, depth)):
            begin()
        while waiting and (result := waiting.popleft().result()) is not end:
            begin()
            yield result
    finally:
        threads_of_items.shutdown(cancel_futures=True)


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Make parameter initialisation, which draws from torch's global state, follow from `seed`; restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# What follows makes a CPU fast. Each was measured; elsewhere nothing changes.

_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -4, -3, -1  # numbers of the settings of mallopt(3)
_keeping, _keepers = 0, threading.Lock()  # how many `kept_memory` are open


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Let memory that is freed stay with the process within this context, and give it back at its end.

    A step on a CPU frees what it allocated, and the next would get the same from the system again, page by page, each
    filled with zeros first: 5 to 20 % of its time. Does nothing for other devices, or where the C library is not glibc.
    """
    global _keeping
    if device.type != "cpu":
        yield
        return
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    with _keepers:
        _keeping += 1
        mallopt(_MMAP_MAX, 0)  # no block, however large, from the system and back to it
        mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        with _keepers:
            _keeping -= 1
            if _keeping == 0:  # what glibc reaches by itself, but not once any of these is set; in bytes
                mallopt(_MMAP_MAX, 65_536)
                mallopt(_MMAP_THRESHOLD, 32 << 20)
                mallopt(_TRIM_THRESHOLD, 64 << 20)
                trim(0)


@contextmanager
def kept_threads() -> Iterator[int]:
    """Give the number of threads that torch uses, and restore it afterwards.

    Numba, which may share torch's OpenMP, changes it. Torch would compute with as many threads as there are cores from
    then on, and its sums be rounded otherwise.
    """
    n = torch.get_num_threads()
    try:
        yield n
    finally:
        torch.set_num_threads(n)


CPU_PATCHES = 4096  # in a part of a batch: more at once are no faster, and take more memory
PLAIN_TOKENS = 512  # up to which plain products in bf16 are faster than the fused kernel, most in backward


def images_at_once(device: torch.device, n_patches: int) -> int | None:
    """Return how many images of so many patches are best computed at once; None for no limit."""
    return max(1, CPU_PATCHES // n_patches) if device.type == "cpu" else None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of queries (B, heads, M, d) to keys and values (B, heads, N, d)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= PLAIN_TOKENS:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return weights.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def without_infinities(x: Tensor) -> Tensor:
    """Turn infinite values into NaN; on a CPU by arithmetic, at a fraction of the cost of asking."""
    return x + (x - x) if x.device.type == "cpu" else torch.where(x.isfinite(), x, torch.nan)


def asinh(x: Tensor) -> Tensor:
    """Compute torch.asinh, which is not vectorised on a CPU, in operations that are; to 3e-7, below 1e38."""
    if x.device.type != "cpu" or x.requires_grad:
        return torch.asinh(x)
    a = x.abs().clamp_(max=1e38)
    slope = torch.hypot(a, a.new_ones(())).add_(1)
    return (a / slope).mul_(a).add_(a).log1p_().copysign_(x)


class PackedLinear(nn.Module):
    """A linear layer, with GELU if it has one, as one call of oneDNN on weights laid out for it; no gradients.

    Parameters
    ----------
    layer : nn.Linear
        With a bias; on the CPU. Where it has an attribute ``then = "gelu"``, that is computed as well.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # The operators that torch's own compiler uses; there are no public ones.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16(), None)
        self._bias = layer.bias.detach().bfloat16()
        self._then = getattr(layer, "then", "none")

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) of any precision to bf16 (..., D')."""
        x = x.to(torch.bfloat16)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._then, [], "none")


_NOT_PACKED = {"decoder", "flux_head"}  # what no embedding needs


def packed(model: M, *, precision: str) -> M:
    """Return a model as it computes fastest without gradients, for use in `autocast` with the same precision.

    On a CPU with instructions for bf16 that is a copy whose layers are packed, but for those that only a training
    needs; it shares all else with the model, and does not see later changes of its weights. Everywhere else it is the
    model itself.
    """
    device = next(model.parameters()).device
    able = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if device.type == "cpu" and pick_precision(precision, device) == fast_precision(device) == "bf16" and able:
        return cast(M, _pack(model))
    return model


def _pack(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    twin = copy(module)
    for own in ("_parameters", "_buffers", "_forward_hooks"):
        setattr(twin, own, copy(getattr(module, own)))
    twin._modules = {
        name: child if child is None or name in _NOT_PACKED else _pack(child) for name, child in module._modules.items()
    }
    return twin
