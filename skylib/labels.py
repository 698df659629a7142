"""What a few labels are worth: heads on frozen, fine-tuned or fresh encoders, against the number of labels."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from skylib.augment import random_orientation
from skylib.config import LEARNING_RATES, Method, ProbeConfig, check_choice
from skylib.cutouts import CutoutFile
from skylib.embed import embed_tokens
from skylib.loading import CutoutLoader
from skylib.mim import MaskedImageModel, build_model, central_patches
from skylib.optimise import cosine_schedule
from skylib.probes import ProbeResult, Task, labelled_parts, metric_for, on_test
from skylib.runtime import autocast, keyed_generator, seeded_init
from skylib.splits import TEST, TRAIN, VALIDATION, sky_split

log = logging.getLogger(__name__)

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
) -> ProbeResult:
    """Train a head on labels, and judge it on test.

    Parameters
    ----------
    model : MaskedImageModel
        Not changed.
    cutouts : CutoutFile
    target : str or ndarray, shape (n,)
        As in `linear_probe`.
    method : {"linear", "attentive", "finetune", "supervised"}
        A linear layer on the mean of frozen tokens (of the central ones, by default); attention pooling over frozen
        tokens; both trained on together with the pretrained encoder, after the head alone (Kumar et al. 2022,
        arXiv:2202.10054); or the same architecture from fresh weights.
    n_labels : int, optional
        How many training labels to use; all by default. The subsets of one seed are nested and hold the classes in
        their proportion.
    seed : int
        Of the subset, the fresh weights and the order.
    config : ProbeConfig, optional
    task : {"classification", "regression"}
    split : str or ndarray of int, optional
        0 train, 1 validation, 2 test; `sky_split` of the positions by default.

    Returns
    -------
    ProbeResult
        The weights are those of the best evaluation on validation.
    """
    return _train(_Study(model, cutouts, target, task, split), method, n_labels, seed, config or ProbeConfig())


def label_efficiency(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str,
    *,
    methods: Sequence[Method] = ("supervised", "finetune", "attentive"),
    n_labels: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    run_dir: str | Path,
    config: ProbeConfig | None = None,
    task: Task = "classification",
    split: str | np.ndarray | None = None,
) -> pd.DataFrame:
    """Train every method with every number of labels and every seed.

    Rows are written to ``label_efficiency.csv`` in the run folder as they come; a call after a kill goes on with
    those that are missing.

    Parameters
    ----------
    model, cutouts, target, config, task, split
        As in `train_head`.
    methods, n_labels, seeds : sequences
        Every combination is a row.
    run_dir : path

    Returns
    -------
    DataFrame
        One row a training: target, model, method, n_labels, seed, seconds, and the metrics on test.
    """
    study, config = _Study(model, cutouts, target, task, split), config or ProbeConfig()
    available = len(study.rows[TRAIN])
    if too_many := [n for n in n_labels if not 1 <= n <= available]:
        raise ValueError(f"n_labels={too_many}: the training part has 1 to {available} labels")
    for method in methods:
        check_choice("method", method, get_args(Method))
    path = Path(run_dir) / "label_efficiency.csv"
    done = pd.read_csv(path, dtype={"model": str}) if path.is_file() else pd.DataFrame()
    setting = {"target": target, "model": fingerprint(model)}
    wanted = [(method, n, seed) for n in n_labels for method in methods for seed in seeds]

    def rows_of(method: Method, n: int, seed: int) -> pd.Series:
        row = pd.Series({**setting, "method": method, "n_labels": n, "seed": seed})
        return (done[list(row.index)] == row).all(axis=1)

    missing = [one for one in wanted if done.empty or not rows_of(*one).any()]
    for method, n, seed in tqdm(missing, desc="label efficiency", unit="run"):
        start = time.perf_counter()
        result = _train(study, method, n, seed, config)
        row = {**setting, "method": method, "n_labels": n, "seed": seed}
        row |= {"seconds": round(time.perf_counter() - start, 2), **result.metrics}
        done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        done.to_csv(partial := path.with_name(path.name + ".partial"), index=False)
        os.replace(partial, path)
    return done[np.any([rows_of(*one) for one in wanted], axis=0)].reset_index(drop=True)


def nested_subset(labels: np.ndarray, n: int, *, task: str, seed: int) -> np.ndarray:
    """Return the positions of `n` labels; a larger subset of the same seed holds the smaller one.

    Classes keep their proportion, and each has a member as soon as `n` allows.

    Examples
    --------
    >>> labels = np.array([0] * 90 + [1] * 10)
    >>> rows = nested_subset(labels, 20, task="classification", seed=0)
    >>> np.bincount(labels[rows])
    array([18,  2])
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    if task == "regression":
        return order[:n]
    place = np.empty(len(labels))
    for c in np.unique(labels):
        members = order[labels[order] == c]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")[:n]


def fingerprint(model: nn.Module) -> str:
    """Return a short name for the weights: the same weights, the same name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:12]


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
    """

    def __init__(
        self, width: int, n_out: int, *, attentive: bool, heads: int = 4, patches: list[int] | None = None
    ) -> None:
        super().__init__()
        self.patches = patches
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02) if attentive else None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if attentive else None
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, n_out)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D) to outputs (B, n_out)."""
        if self.attention is not None and self.query is not None:
            query = self.query.expand(len(tokens), -1, -1)
            pooled = self.attention(query, tokens, tokens, need_weights=False)[0][:, 0]
        else:
            pooled = (tokens if self.patches is None else tokens[:, self.patches]).mean(dim=1)
        return self.linear(self.norm(pooled))


class EncoderWithHead(nn.Module):
    """A whole network from flux to outputs, for fine-tuning and supervised training.

    Parameters
    ----------
    model : MaskedImageModel
    head : Head
    mean, scale : Tensor, shape (D,)
        Tokens are standardised by them, as the head knows them from its training alone.
    """

    def __init__(self, model: MaskedImageModel, head: Head, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, flux: Tensor) -> Tensor:
        """Map flux (B, C, S, S) to outputs (B, n_out)."""
        zero = flux.new_zeros(len(flux)) if self.model.config.ra_dec else None
        return self.head((self.model.tokens(flux, ra=zero, dec=zero) - self.mean) / self.scale)


class _Study:
    """What all trainings on one target share: labels, parts, and inputs read once."""

    def __init__(
        self, model: MaskedImageModel, cutouts: CutoutFile, target: str | np.ndarray, task: Task,
        split: str | np.ndarray | None,
    ) -> None:  # fmt: skip
        split = sky_split(cutouts.ra, cutouts.dec) if split is None else split
        columns = {name: cutouts.column(name) for name in (target, split) if isinstance(name, str)}
        self.model, self.cutouts, self.target, self.task = model, cutouts, target, task
        self.values, self.rows = labelled_parts(columns, target, split, task)
        self.used = np.sort(np.concatenate(list(self.rows.values())))
        self.device = model.sky_sigma.device
        self._inputs: dict[bool, Tensor] = {}
        self.mean, self.scale = torch.zeros(model.config.width), torch.ones(model.config.width)  # of frozen tokens

    def inputs(self, rows: np.ndarray, *, frozen: bool) -> Tensor:
        """Return tokens (frozen) or flux of these rows; both are computed once, and kept on the CPU."""
        if frozen not in self._inputs:
            if frozen:
                tokens = torch.from_numpy(embed_tokens(self.model, self.cutouts, rows=self.used))
                train = torch.from_numpy(np.searchsorted(self.used, self.rows[TRAIN]))
                scale, self.mean = torch.std_mean(tokens[train], dim=(0, 1))  # of train alone
                self.scale = scale.clamp(min=1e-6)
                self._inputs[True] = (tokens - self.mean) / self.scale
            else:
                c = self.model.config
                loader = CutoutLoader(self.cutouts, batch_size=1, shuffle=False, size=c.image_size, bands=c.bands)
                self._inputs[False] = torch.from_numpy(loader.flux(self.used))
        return self._inputs[frozen][torch.from_numpy(np.searchsorted(self.used, rows))]


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

    def loss(self, output: Tensor, wanted: Tensor) -> Tensor:
        output = output.float()
        return F.cross_entropy(output, wanted) if self.classes is not None else F.mse_loss(output[:, 0], wanted)

    def decode(self, output: np.ndarray) -> np.ndarray:
        return output[:, 0] * self.scale + self.mean if self.classes is None else self.classes[output.argmax(axis=1)]


def _train(study: _Study, method: Method, n_labels: int | None, seed: int, config: ProbeConfig) -> ProbeResult:
    check_choice("method", method, get_args(Method))
    values, train = study.values, study.rows[TRAIN]
    n_labels = len(train) if n_labels is None else n_labels
    if not 1 <= n_labels <= len(train):
        raise ValueError(f"n_labels={n_labels}: the training part has 1 to {len(train)} labels")
    train = train[nested_subset(values[train], n_labels, task=study.task, seed=seed)]
    if study.task == "classification":
        goal = _Goal(np.unique(values[study.rows[TRAIN]]))
    else:
        goal = _Goal(None, float(values[train].mean()), float(values[train].std()) or 1.0)
    head = _head(study, method, goal.n_out, seed, config)
    if method in _FROZEN:
        fitted = _fit(study, head, method, goal, train, seed, config)
    elif method == "finetune":
        _fit(study, head, "attentive", goal, train, seed, config)
        network = EncoderWithHead(deepcopy(study.model), head, study.mean, study.scale)
        fitted = _fit(study, network, method, goal, train, seed, config)
    else:
        encoder = build_model(study.model.config, seed=seed)
        encoder.set_sky_noise(study.model.sky_sigma.cpu())
        network = EncoderWithHead(encoder, head, torch.zeros_like(study.mean), torch.ones_like(study.scale))
        fitted = _fit(study, network, method, goal, train, seed, config)
    predict, settings = fitted
    test = study.rows[TEST]
    metric, _ = metric_for(study.task, study.target)
    return on_test(predict(test), values[test], test, metric, seed=seed, method=method, n_labels=n_labels, **settings)


def _head(study: _Study, method: Method, n_out: int, seed: int, config: ProbeConfig) -> Head:
    c = study.model.config
    patches = central_patches(c.n_patches) if config.pool == "central" else None
    with seeded_init(seed):
        return Head(c.width, n_out, attentive=method != "linear", patches=patches)


def _fit(
    study: _Study, network: nn.Module, method: Method, goal: _Goal, train: np.ndarray, seed: int, config: ProbeConfig
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Train a network in place, and return what predicts the values of rows, and what was set and found."""
    values, device, frozen = study.values, study.device, method in _FROZEN
    metric, score_name = metric_for(study.task, study.target)
    validation = study.rows[VALIDATION]
    x, y = study.inputs(train, frozen=frozen), goal.encode(values[train])
    network.to(device)

    def predict(rows: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.inference_mode(), autocast(device, config.precision):
            inputs = study.inputs(rows, frozen=frozen).split(256)
            outputs = [network(part.to(device)).float().cpu() for part in inputs]
        network.train()
        return goal.decode(torch.cat(outputs).numpy())

    learning_rate = LEARNING_RATES[method] if config.learning_rate is None else config.learning_rate
    optimizer = torch.optim.AdamW(_groups(network, method, learning_rate, config), weight_decay=config.weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batch = min(config.batch_size, len(train))
    steps = max(config.min_steps, config.epochs * -(-len(train) // batch))
    evaluate_at = {round(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    best, best_score, stale, order = deepcopy(network.state_dict()), -np.inf, 0, torch.empty(0, dtype=torch.long)
    if method == "finetune":  # what the head alone can do is there already
        best_score = metric(predict(validation), values[validation])[score_name]
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
            loss = goal.loss(network(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step + 1 in evaluate_at:
            score = metric(predict(validation), values[validation])[score_name]
            if score > best_score:
                best, best_score, stale = deepcopy(network.state_dict()), score, 0
            elif (stale := stale + 1) >= config.patience:
                break
    network.load_state_dict(best)
    return predict, {"validation": best_score, "learning_rate": learning_rate, "steps": steps}


def _groups(network: nn.Module, method: Method, learning_rate: float, config: ProbeConfig) -> list[dict[str, Any]]:
    """Return the parameters to train; in fine-tuning, blocks far from the head learn more slowly."""
    if not isinstance(network, EncoderWithHead):
        return [{"params": list(network.parameters()), "lr": learning_rate}]
    encoder = network.model.encoder
    decay = config.layer_decay if method == "finetune" else 1.0
    depth = len(encoder.blocks)
    groups = [{"params": [*network.head.parameters(), *encoder.norm.parameters()], "lr": learning_rate}]
    groups += [
        {"params": list(block.parameters()), "lr": learning_rate * decay ** (depth - i)}
        for i, block in enumerate(encoder.blocks)
    ]
    first = [encoder.cls, network.model.no_data, *encoder.embed.parameters()]
    return [*groups, {"params": first, "lr": learning_rate * decay ** (depth + 1)}]
