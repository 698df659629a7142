"""How flux is stretched for a network, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from skylib.checks import check_choice
from skylib.device import asinh, without_infinities


def stretch(flux: Tensor, sky_sigma: Tensor, *, kind: str = "asinh") -> Tensor:
    """Compress the dynamic range of flux for a network. NaN stays NaN, and infinite flux becomes NaN.

    Parameters
    ----------
    flux : Tensor of float32, shape (B, C, H, W)
        Counts.
    sky_sigma : Tensor of float32, shape (C,)
        Noise of the sky in each band, in counts.
    kind : {"asinh", "linear"}
        ``asinh``: arcsinh(flux / sky_sigma), linear in the noise and logarithmic above it. ``linear``: flux as it
        is, clipped below -3 (the published recipe, whose pixel mean of 0 and standard deviation of 1 change nothing).

    Raises
    ------
    ValueError
        If `kind` is unknown.
    """
    check_choice("stretch", kind, ("asinh", "linear"))
    if kind == "asinh":
        return asinh(without_infinities(flux / sky_sigma[:, None, None]))
    return without_infinities(flux).clamp(min=-3.0)


def unstretch(stretched: Tensor, sky_sigma: Tensor, *, kind: str = "asinh") -> Tensor:
    """Undo `stretch`: from network units back to counts."""
    return torch.sinh(stretched) * sky_sigma[:, None, None] if kind == "asinh" else stretched
