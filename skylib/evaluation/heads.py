"""Heads trained on labels: on frozen tokens, together with the pretrained encoder, or with a fresh one."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skylib.checks import check_choice
from skylib.config import LEARNING_RATES, Method, ProbeConfig
from skylib.data.augment import random_orientation
from skylib.data.cutouts import CutoutFile
from skylib.data.splits import TEST, TRAIN, VALIDATION
from skylib.device import autocast, kept_memory, keyed_generator, seeded_init
from skylib.evaluation.labelled import LabelledSet, nested_subset
from skylib.evaluation.probes import ProbeResult, Task, metric_for, on_test
from skylib.model.features import random_weights
from skylib.model.mim import MaskedImageModel
from skylib.model.pooling import central_patches
from skylib.training.optimise import cosine_schedule

_FROZEN = ("linear", "attentive")


def train_head(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str | np.ndarray,
    *,
    method: Method = "attentive",
    n_labels: int | None = None,
    seed: int = 0,
    config: ProbeConfig | None = None,
    task: Task = "classification",
    split: str | np.ndarray | None = None,
    weights: str | np.ndarray | None = None,
    cache: str | Path | None = None,
) -> ProbeResult:
    """Train a head on labels, choose on validation, and judge it on test.

    Parameters
    ----------
    model : MaskedImageModel
        Not changed. Positions on the sky are kept from it.
    cutouts : CutoutFile
    target : str or ndarray, shape (n,)
        As in `linear_probe`.
    method : {"linear", "attentive", "finetune", "supervised"}
        A linear layer on the mean of frozen tokens (of the central ones, by default); attention pooling over frozen
        tokens; both trained on together with the pretrained encoder, after the head alone (Kumar et al. 2022,
        arXiv:2202.10054); or the same architecture from fresh weights. The two that see pixels are shown them in
        random orientations; frozen tokens are computed once, and come as they are.
    n_labels : int, optional
        How many training labels to use; all by default. The subsets of one seed are nested and hold the classes in
        their proportion.
    seed : int
        Of the subset, the fresh weights and the order.
    config : ProbeConfig, optional
    task : {"classification", "regression"}
    split : str or ndarray of int, optional
        0 train, 1 validation, 2 test; `split_cutouts` by default, whose parts share no pixel.
    weights : str or ndarray, shape (n,), optional
        How much each training label counts in the loss, such as the trust in a noisy label.
    cache : path, optional
        Folder that keeps the frozen tokens for other runs.

    Returns
    -------
    ProbeResult
        Of the trial, and its evaluation, that was best on validation.
    """
    labelled = LabelledSet(model, cutouts, target, task=task, split=split, weights=weights, cache=cache)
    return train_on(labelled, method=method, n_labels=n_labels, seed=seed, config=config or ProbeConfig())


class Head(nn.Module):
    """From tokens (B, N, D) to (B, n_out): the mean of some, or attention with a learned query, then a linear layer.

    Parameters
    ----------
    width, n_out : int
        D and the number of outputs.
    attentive : bool
    heads : int
    patches : list of int, optional
        Which tokens the mean goes over; all by default.
    mean, scale : Tensor, shape (D,), optional
        By which tokens are standardised first.
    """

    def __init__(
        self, width: int, n_out: int, *, attentive: bool, heads: int = 4, patches: list[int] | None = None,
        mean: Tensor | None = None, scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = patches
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width) if mean is None else mean.clone())
        self.register_buffer("scale", torch.ones(width) if scale is None else scale.clone())
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02) if attentive else None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if attentive else None
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, n_out)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to outputs (B, n_out)."""
        tokens = (tokens.float() - self.mean) / self.scale
        if self.attention is not None and self.query is not None:
            query = self.query.expand(len(tokens), -1, -1)
            pooled = self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]
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


@dataclass(frozen=True)
class _Goal:
    """How outputs are compared with labels: cross-entropy over classes, or squared error of the standardised value."""

    classes: np.ndarray | None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def n_out(self) -> int:
        return 1 if self.classes is None else len(self.classes)

    def encode(self, values: np.ndarray) -> Tensor:
        if self.classes is not None:
            return torch.from_numpy(np.searchsorted(self.classes, values))
        return torch.from_numpy(((values - self.mean) / self.scale).astype(np.float32))

    def loss(self, output: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
        output = output.float()
        if self.classes is not None:
            each = F.cross_entropy(output, wanted, reduction="none")
        else:
            each = (output[:, 0] - wanted).square()
        return (weight * each).sum() / weight.sum().clamp(min=1e-12)

    def decode(self, output: Tensor) -> np.ndarray:
        found = output.numpy()
        return found[:, 0] * self.scale + self.mean if self.classes is None else self.classes[found.argmax(axis=1)]


@dataclass(frozen=True)
class _Fitted:
    """A trained network, and what it scored on validation."""

    network: nn.Module
    score: float
    loss: float
    settings: dict[str, Any]


def train_on(
    labelled: LabelledSet, *, method: Method, n_labels: int | None, seed: int, config: ProbeConfig
) -> ProbeResult:
    """Do as `train_head`, on labels and inputs that other trainings share."""
    check_choice("method", method, get_args(Method))
    values, train = labelled.values, labelled.rows[TRAIN]
    n_labels = len(train) if n_labels is None else n_labels
    if not 1 <= n_labels <= len(train):
        raise ValueError(f"n_labels={n_labels}: the training part has 1 to {len(train)} labels")
    train = train[nested_subset(values[train], n_labels, task=labelled.task, seed=seed)]
    if labelled.task == "classification":
        goal = _Goal(np.unique(values[labelled.rows[TRAIN]]))
    else:
        goal = _Goal(None, float(values[train].mean()), float(values[train].std()) or 1.0)
    rate = LEARNING_RATES[method] if config.learning_rate is None else config.learning_rate
    with kept_memory(labelled.model.sky_sigma.device):
        trials = [
            _trial(labelled, method, goal, train, seed, _scaled(config, learning_rate=rate * r, length=length))
            for length, r in itertools.product(config.length_factors, config.rate_factors)
        ]
    best = max(trials, key=lambda one: (one.score, -one.loss))
    test, (metric, _) = labelled.rows[TEST], metric_for(labelled.task, labelled.target)
    output = _outputs(best.network, labelled, test, method in _FROZEN, config)
    known = {} if goal.classes is None else {"probability": output.softmax(dim=1).numpy(), "classes": goal.classes}
    return on_test(
        goal.decode(output), values[test], test, metric, seed=seed, method=method, n_labels=n_labels,
        validation=best.score, trials=[{**t.settings, "validation": t.score} for t in trials], **known, **best.settings,
    )  # fmt: skip


def _scaled(config: ProbeConfig, *, learning_rate: float, length: float) -> ProbeConfig:
    epochs, min_steps = (max(1, round(n * length)) for n in (config.epochs, config.min_steps))
    return replace(config, learning_rate=learning_rate, epochs=epochs, min_steps=min_steps)


def _trial(labelled: LabelledSet, method: Method, goal: _Goal, train: np.ndarray, seed: int, c: ProbeConfig) -> _Fitted:
    """Build a network and train it by one setting."""
    patches = central_patches(labelled.model.config.n_patches) if c.pool == "central" else None
    moments = (None, None) if method == "supervised" else labelled.moments()
    with seeded_init(seed):
        head = Head(labelled.model.config.width, goal.n_out, attentive=method != "linear", patches=patches,
                    mean=moments[0], scale=moments[1])  # fmt: skip
    if method in _FROZEN:
        return _fit(labelled, head, method, goal, train, seed, c)
    if method == "supervised":
        return _fit(labelled, EncoderWithHead(random_weights(labelled.model, seed=seed), head), method, goal, train, seed, c)  # fmt: skip
    _fit(labelled, head, "attentive", goal, train, seed, replace(c, learning_rate=LEARNING_RATES["attentive"]))
    return _fit(labelled, EncoderWithHead(deepcopy(labelled.model), head), method, goal, train, seed, c)


def _fit(
    labelled: LabelledSet,
    network: nn.Module,
    method: Method,
    goal: _Goal,
    train: np.ndarray,
    seed: int,
    config: ProbeConfig,
) -> _Fitted:
    """Train a network in place; it ends with the weights that were best on validation."""
    values, device, frozen = labelled.values, labelled.model.sky_sigma.device, method in _FROZEN
    metric, score_name = metric_for(labelled.task, labelled.target)
    validation = labelled.rows[VALIDATION]
    x, y = (labelled.tokens if frozen else labelled.flux)(train), goal.encode(values[train])
    weight = _sample_weights(labelled, goal, train, balance=config.balance)
    everyone = torch.ones(len(validation))
    network.to(device)

    def judge() -> tuple[float, float]:
        output = _outputs(network, labelled, validation, frozen, config)
        loss = goal.loss(output, goal.encode(values[validation]), everyone)
        return metric(goal.decode(output), values[validation])[score_name], float(loss)

    learning_rate = config.learning_rate or LEARNING_RATES[method]
    optimizer = torch.optim.AdamW(_groups(network, method, learning_rate, config), weight_decay=config.weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batch = min(config.batch_size, len(train))
    steps = max(config.min_steps, config.epochs * -(-len(train) // batch))
    evaluate_at = {round(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    kept, best, stale, order = deepcopy(network.state_dict()), (-np.inf, np.inf), 0, torch.empty(0, dtype=torch.long)
    if method == "finetune":  # what the head alone can do is there already
        best = judge()
    network.train()
    for step in range(steps):
        generator = keyed_generator(seed, step)
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(train), generator=generator)])
        rows, order = order[:batch], order[batch:]
        inputs, wanted = x[rows].to(device), y[rows].to(device)
        if not frozen:
            inputs = random_orientation(inputs, generator=generator)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = cosine_schedule(step, steps=steps, warmup=steps // 10, peak=peak)
        with autocast(device, config.precision):
            loss = goal.loss(network(inputs), wanted, weight[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step + 1 in evaluate_at:
            score, validation_loss = judge()
            if (score, -validation_loss) > (best[0], -best[1]):  # the loss decides between equal scores
                kept, best, stale = deepcopy(network.state_dict()), (score, validation_loss), 0
            elif (stale := stale + 1) >= config.patience:
                break
    network.load_state_dict(kept)
    return _Fitted(network, *best, {"learning_rate": learning_rate, "epochs": config.epochs, "steps": step + 1})


def _outputs(network: nn.Module, labelled: LabelledSet, rows: np.ndarray, frozen: bool, config: ProbeConfig) -> Tensor:
    """Return what a network says of some rows, float32 (n, n_out), on the CPU."""
    device, read = labelled.model.sky_sigma.device, labelled.tokens if frozen else labelled.flux
    network.eval()
    with torch.inference_mode(), autocast(device, config.precision):
        parts = [network(read(rows[i : i + 256]).to(device)).float().cpu() for i in range(0, len(rows), 256)]
    network.train()
    return torch.cat(parts)


def _sample_weights(labelled: LabelledSet, goal: _Goal, train: np.ndarray, *, balance: bool) -> Tensor:
    """Return how much each training object counts: its own weight, and, with `balance`, every class the same."""
    weight = labelled.weights[train].copy()
    if goal.classes is not None and balance:
        for c in np.unique(labelled.values[train]):
            mine = labelled.values[train] == c
            if weight[mine].any():
                weight[mine] /= weight[mine].sum()
        weight *= len(train) / weight.sum()
    return torch.from_numpy(weight).float()


def _groups(network: nn.Module, method: Method, learning_rate: float, config: ProbeConfig) -> list[dict[str, Any]]:
    """Return the parameters to train; in fine-tuning, blocks far from the head learn more slowly."""
    if not isinstance(network, EncoderWithHead):
        return [{"params": list(network.parameters()), "lr": learning_rate}]
    encoder = network.model.encoder
    decay = config.layer_decay if method == "finetune" else 1.0
    depth = len(encoder.blocks)
    groups: list[dict[str, Any]] = [
        {"params": [*network.head.parameters(), *encoder.norm.parameters()], "lr": learning_rate}
    ]
    groups += [
        {"params": list(block.parameters()), "lr": learning_rate * decay ** (depth - i)}
        for i, block in enumerate(encoder.blocks)
    ]
    later = {id(p) for group in groups for p in group["params"]}  # all else of the encoder comes before its blocks
    first = [network.model.no_data, *(p for p in encoder.parameters() if id(p) not in later)]
    return [*groups, {"params": first, "lr": learning_rate * decay ** (depth + 1)}]
