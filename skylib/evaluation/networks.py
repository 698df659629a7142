"""What is trained on labels: heads on the tokens of an encoder, whole networks, and how outputs compare with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skylib.model.mim import MaskedImageModel

QUERIES = 32  # of an attentive head, with 8 features each at least


class Head(nn.Module):
    """From tokens (B, N, D) to (B, n_out): the mean of some, or attention, then a linear layer.

    Attention is efficient probing [1]_: many learned queries weigh the tokens as they are, without a projection of
    keys, and each gathers a slice of its own of the values.

    Parameters
    ----------
    width, n_out : int
        D and the number of outputs.
    attentive : bool
    patches : list of int, optional
        Which tokens the mean goes over; all by default.
    moments : (Tensor, Tensor), each of shape (D,), optional
        Mean and standard deviation by which tokens are standardised first.

    References
    ----------
    .. [1] Psomas et al. 2025, "Attention, please! Revisiting attentive probing", arXiv:2506.10178.
    """

    def __init__(
        self,
        width: int,
        n_out: int,
        *,
        attentive: bool,
        patches: list[int] | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.patches: Tensor | None
        self.register_buffer("patches", None if patches is None else torch.tensor(patches), persistent=False)
        self.mean: Tensor
        self.scale: Tensor
        for name, value in zip(("mean", "scale"), moments or (torch.zeros(width), torch.ones(width)), strict=True):
            self.register_buffer(name, value.clone())
        n_queries = max(n for n in range(1, min(QUERIES, max(1, width // 8)) + 1) if width % n == 0)
        self.queries = nn.Parameter(torch.randn(n_queries, width) * 0.02) if attentive else None
        self.values = nn.Linear(width, width) if attentive else None
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, n_out)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to outputs (B, n_out)."""
        tokens = (tokens.float() - self.mean) / self.scale
        if self.queries is not None and self.values is not None:
            weight = (tokens @ self.queries.T / tokens.shape[2] ** 0.5).softmax(dim=1)  # (B, N, M)
            values = self.values(tokens).unflatten(2, (len(self.queries), -1))  # (B, N, M, D / M)
            pooled = torch.einsum("bnm,bnmd->bmd", weight.to(values.dtype), values).flatten(1)
        else:
            pooled = (tokens if self.patches is None else tokens[:, self.patches]).mean(dim=1)
        return self.linear(self.norm(pooled))


class EncoderWithHead(nn.Module):
    """A whole network from flux to outputs, for fine-tuning and supervised training."""

    def __init__(self, model: MaskedImageModel, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, flux: Tensor) -> Tensor:
        """Map flux (B, C, S, S) to outputs (B, n_out); the position on the sky counts as unknown."""
        unknown = flux.new_full((len(flux),), torch.nan) if self.model.config.ra_dec else None
        return self.head(self.model.tokens(flux, ra=unknown, dec=unknown))


def parameter_groups(network: nn.Module, learning_rate: float, *, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the parameters to train and their learning rates.

    The rate shrinks by `layer_decay` with each block of an encoder away from the head.
    """
    if not isinstance(network, EncoderWithHead):
        return [{"params": list(network.parameters()), "lr": learning_rate}]
    encoder = network.model.encoder
    depth = len(encoder.blocks)
    head = [*network.head.parameters(), *encoder.norm.parameters()]
    groups: list[dict[str, Any]] = [{"params": head, "lr": learning_rate}]
    for i, block in enumerate(encoder.blocks):
        groups.append({"params": list(block.parameters()), "lr": learning_rate * layer_decay ** (depth - i)})
    later = {id(p) for group in groups for p in group["params"]}  # all else of the encoder comes before its blocks
    first = [network.model.no_data, *(p for p in encoder.parameters() if id(p) not in later)]
    return [*groups, {"params": first, "lr": learning_rate * layer_decay ** (depth + 1)}]


@dataclass(frozen=True)
class Goal:
    """How outputs are compared with labels: cross-entropy over classes, or squared error of the standardised value."""

    classes: np.ndarray | None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return 1 if self.classes is None else len(self.classes)

    def encode(self, values: np.ndarray) -> Tensor:
        """Return labels as the loss wants them: numbers of classes, or standardised values, (n,)."""
        if self.classes is not None:
            return torch.from_numpy(np.searchsorted(self.classes, values))
        return torch.from_numpy(((values - self.mean) / self.scale).astype(np.float32))

    def loss(self, output: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        """Return the weighted mean over objects: outputs (B, n_out), encoded labels and weights (B,)."""
        output = output.float()
        if self.classes is not None:
            each = F.cross_entropy(output, wanted, reduction="none")
        else:
            each = (output[:, 0] - wanted).square()
        return (weight * each).sum() / weight.sum().clamp(min=1e-12)

    def decode(self, output: Tensor) -> np.ndarray:
        """Return the predicted classes or values, (n,)."""
        found = output.numpy()
        return found[:, 0] * self.scale + self.mean if self.classes is None else self.classes[found.argmax(axis=1)]


def sample_weights(weight: np.ndarray, values: np.ndarray, *, balance: bool) -> Tensor:
    """Return how much each training object counts: its own weight, and, with `balance`, every class the same."""
    weight = weight.copy()
    if balance:
        for c in np.unique(values):
            if (total := weight[values == c].sum()) > 0:
                weight[values == c] /= total
        weight *= len(weight) / weight.sum()
    return torch.from_numpy(weight).float()
