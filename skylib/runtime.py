"""Where and how tensors are computed: device, precision, and randomness that follows from a key alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for, or else CUDA if there is one, or else the CPU."""
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Make parameter initialisation, which draws from torch's global state, follow from `seed`; restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
