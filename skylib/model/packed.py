"""Inference in bf16 on a CPU: linear layers whose weights already lie as its matrix instructions read them."""

from __future__ import annotations

from copy import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from skylib.device import fast_precision
from skylib.model.vit import GeluLinear

TRAINING_ONLY = {"decoder", "flux_head", "latent", "consistency"}

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer, with GELU if it has one, as a single call of oneDNN; no gradients.

    Parameters
    ----------
    layer : nn.Linear
        With a bias; on the CPU.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # The operators that torch's own compiler uses; there are no public ones.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16(), None)
        self._bias = layer.bias.detach().bfloat16()
        self._then = "gelu" if isinstance(layer, GeluLinear) else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) of any precision to bf16 (..., D')."""
        x = x.to(torch.bfloat16)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._then, [], "none")


def packed(model: M, *, precision: str) -> M:
    """Return a model as it computes fastest without gradients, for use in `autocast` with the same precision.

    On a CPU with instructions for bf16 that is a copy whose layers, but for those of a decoder, are packed; it shares all
    else with the model, and does not see later changes of its weights. Everywhere else it is the model itself.
    """
    device = next(model.parameters()).device
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if device.type == "cpu" and precision == fast_precision(device) == "bf16" and there:
        return cast(M, _pack(model))
    return model


def _pack(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module)
    twin = copy(module)
    for own in ("_parameters", "_buffers", "_forward_hooks"):
        setattr(twin, own, copy(getattr(module, own)))
    twin._modules = {
        name: child if child is None or name in TRAINING_ONLY else _pack(child)
        for name, child in module._modules.items()
    }
    return twin
