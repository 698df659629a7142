"""How flux is stretched for a network, and back."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if kind == "asinh":
        return _asinh(_finite(flux / sky_sigma[:, None, None]))
    if kind == "linear":
        return _finite(flux).clamp(min=-3.0)
    raise ValueError(f"unknown stretch {kind!r}: one of 'asinh', 'linear'")


def unstretch(stretched: Tensor, sky_sigma: Tensor, *, kind: str = "asinh") -> Tensor:
    """Undo `stretch`: from network units back to counts."""
    if kind == "asinh":
        return torch.sinh(stretched) * sky_sigma[:, None, None]
    if kind == "linear":
        return stretched
    raise ValueError(f"unknown stretch {kind!r}: one of 'asinh', 'linear'")


def _finite(x: Tensor) -> Tensor:
    """Turn infinite values into NaN; on a CPU by arithmetic, at a fraction of the cost of asking."""
    return x + (x - x) if x.device.type == "cpu" else torch.where(x.isfinite(), x, torch.nan)


def _asinh(x: Tensor) -> Tensor:
    """Compute torch.asinh, which is not vectorised on a CPU, in operations that are; to 3e-7, below 1e38."""
    if x.device.type != "cpu" or x.requires_grad:
        return torch.asinh(x)
    a = x.abs().clamp_(max=1e38)
    slope = torch.hypot(a, a.new_ones(())).add_(1)
    return (a / slope).mul_(a).add_(a).log1p_().copysign_(x)
