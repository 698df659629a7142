"""Where and how tensors are computed: device, precision, and randomness that follows from a key alone."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or else CUDA if there is one, or else the CPU."""
    if device is not None:
        return torch.device(device)
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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which matrix products run in `precision`, "bf16" or "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


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
            if _keeping == 0:  # what glibc comes to by itself, but no longer does once it was told anything; in bytes
                mallopt(_MMAP_MAX, 65_536)
                mallopt(_MMAP_THRESHOLD, 32 << 20)
                mallopt(_TRIM_THRESHOLD, 64 << 20)
                trim(0)


def ahead(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """Give the items one by one, while a thread makes the next ones: reading and computing overlap.

    Parameters
    ----------
    items : iterable
    depth : int
        How many may wait, finished.

    Examples
    --------
    >>> list(ahead(range(4)))
    [0, 1, 2, 3]
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    enough = threading.Event()

    def hand_over(last: bool, item: Any) -> bool:
        while not enough.is_set():
            try:
                ready.put((last, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over(False, item):
                    return
            hand_over(True, None)
        except BaseException as error:  # raised again where the items are used
            hand_over(True, error)

    worker = threading.Thread(target=work, daemon=True, name="ahead")
    worker.start()
    try:
        while True:
            last, item = ready.get()
            if last and item is not None:
                raise item
            if last:
                return
            yield item
    finally:
        enough.set()
        worker.join()


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Make parameter initialisation, which draws from torch's global state, follow from `seed`; restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
