"""Heads trained on labels: on frozen tokens, together with the pretrained encoder, or with a fresh one."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skylib.checks import checked
from skylib.config import LEARNING_RATES, Method, ProbeConfig, to_dict
from skylib.data.augment import random_orientation
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.data.plain import filled
from skylib.data.splits import TEST, TRAIN, VALIDATION, split_cutouts
from skylib.device import autocast, kept_memory, keyed_generator, seeded_init, send
from skylib.evaluation.baselines import moved, random_weights
from skylib.evaluation.labels import Task, nested_subset, select_labels
from skylib.evaluation.metrics import metric_for
from skylib.evaluation.networks import EncoderWithHead, Goal, Head, parameter_groups, sample_weights
from skylib.evaluation.probes import ProbeResult, on_test
from skylib.model.checkpoint import fingerprint
from skylib.model.embed import embed_tokens
from skylib.model.mim import MaskedImageModel
from skylib.model.pooling import central_patches
from skylib.training.optimise import cosine_schedule

log = logging.getLogger(__name__)

_FROZEN = ("linear", "attentive")
_LONGEST, _MEMORY = 12, 0.99  # supervised training: times the length that is asked for, at most; decay of the average


@checked
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
        arXiv:2202.10054); or the same from fresh weights of the same architecture, at a constant rate until the score
        of the averaged weights on validation stops rising. The two that see pixels are shown them in random
        orientations; frozen tokens are computed once, and come as they are.
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

    Returns
    -------
    ProbeResult
        Of the trial, and its evaluation, that was best on validation.
    """
    data = LabelledCutouts(model, cutouts, target, task=task, split=split, weights=weights)
    return train_on(data, method=method, n_labels=n_labels, seed=seed, config=config or ProbeConfig())


class LabelledCutouts:
    """What all trainings on one target share: labels, weights, and images and frozen tokens, which are made once.

    Parameters
    ----------
    model, cutouts, target, task, split, weights
        As in `train_head`.
    """

    def __init__(
        self,
        model: MaskedImageModel,
        cutouts: CutoutFile,
        target: str | np.ndarray,
        *,
        task: Task,
        split: str | np.ndarray | None,
        weights: str | np.ndarray | None = None,
    ) -> None:
        split = split_cutouts(cutouts, size=model.config.image_size) if split is None else split
        self.labels = select_labels(cutouts.column, target, split, task)
        given = cutouts.column(weights) if isinstance(weights, str) else weights
        self.weights = np.ones(len(cutouts)) if given is None else np.asarray(filled(given), dtype=np.float64)
        shape, train = self.labels.values.shape, self.labels.rows[TRAIN]
        used = self.weights[train] if self.weights.shape == shape else np.array([np.nan])
        if not (np.isfinite(used).all() and (used >= 0).all() and used.any()):
            raise ValueError(f"weights of shape {self.weights.shape}: must be {shape}, finite, not negative, not all 0")
        nowhere = np.full(len(cutouts), np.nan)
        self.model, self.cutouts = model, moved(cutouts, ra=nowhere, dec=nowhere)
        self._inputs: dict[bool, Tensor] = {}
        self._tokens_of = self.labels.used

    def seen_by(self, model: MaskedImageModel, rows: np.ndarray) -> LabelledCutouts:
        """Return the same labels and images with another network of the same shape, and its tokens of some rows."""
        other = copy(self)
        other.model, other._tokens_of = model, rows
        other._inputs = {kind: x for kind, x in self._inputs.items() if not kind}
        other.__dict__.pop("moments", None)
        return other

    def key(self) -> str:
        """Return a short name for images, network, labels and parts: the same study, the same name.

        The file is known by its size and time, not by its place: a copy that keeps its time is the same file.
        """
        file, labels = self.cutouts.path.stat(), self.labels
        state = [fingerprint(self.model), to_dict(self.model.config), file.st_size, file.st_mtime_ns]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
        values = labels.values.astype(float if labels.values.dtype.kind in "biuf" else str)
        for rows in labels.rows.values():
            digest.update(rows.tobytes() + values[rows].tobytes() + self.weights[rows].tobytes())
        return digest.hexdigest()[:12]

    def inputs(self, rows: np.ndarray, *, frozen: bool) -> Tensor:
        """Return frozen tokens, float16 (n, N, D), or cutouts as the model wants them, float32 (n, C, S, S)."""
        held = self._tokens_of if frozen else self.labels.used
        if frozen not in self._inputs:
            if frozen:
                made = embed_tokens(self.model, self.cutouts, rows=held).astype(np.float16)
            else:
                c = self.model.config
                loader = CutoutLoader(self.cutouts, batch_size=1, shuffle=False, size=c.image_size, bands=c.bands)
                made = loader.flux(held)
            self._inputs[frozen] = torch.from_numpy(made)
        return self._inputs[frozen][torch.from_numpy(np.searchsorted(held, rows))]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) of the frozen tokens of train, of up to 2,000 images."""
        rows = np.intersect1d(self.labels.rows[TRAIN], self._tokens_of)
        tokens = self.inputs(rows[:: -(-len(rows) // 2000)], frozen=True).float().flatten(0, 1)
        return tokens.mean(dim=0), tokens.std(dim=0).clamp(min=1e-6)


@dataclass(frozen=True)
class _Fitted:
    """A trained network, and what it scored on validation."""

    network: nn.Module
    score: float
    negative_loss: float
    settings: dict[str, Any]


def train_on(
    data: LabelledCutouts, *, method: Method, n_labels: int | None, seed: int, config: ProbeConfig
) -> ProbeResult:
    """Do as `train_head`, on labels and inputs that other trainings share."""
    labels, train = data.labels, data.labels.rows[TRAIN]
    n_labels = len(train) if n_labels is None else n_labels
    if not 1 <= n_labels <= len(train):
        raise ValueError(f"n_labels={n_labels}: the training part has 1 to {len(train)} labels")
    train = train[nested_subset(labels.of(TRAIN), n_labels, task=labels.task, seed=seed)]
    if labels.task == "classification":
        goal = Goal(np.unique(labels.of(TRAIN)))
    else:
        goal = Goal(None, float(labels.values[train].mean()), float(labels.values[train].std()) or 1.0)
    rate = LEARNING_RATES[method] if config.learning_rate is None else config.learning_rate
    # From nothing, a training ends by itself: the longest is enough.
    lengths = config.length_factors if method != "supervised" else (max(config.length_factors),)
    if method == "supervised":
        data = data.seen_by(random_weights(data.model, seed=seed), np.union1d(train, labels.rows[VALIDATION]))
    trials: list[_Fitted] = []
    with kept_memory(data.model.sky_sigma.device):
        for length, factor in itertools.product(lengths, config.rate_factors):
            epochs, min_steps = (max(1, round(n * length)) for n in (config.epochs, config.min_steps))
            scaled = replace(config, learning_rate=rate * factor, epochs=epochs, min_steps=min_steps)
            trials.append(_trial(data, method, goal, train, seed, scaled))
    best = max(trials, key=lambda one: (one.score, one.negative_loss))
    output = _outputs(best.network, data, labels.rows[TEST], method in _FROZEN, config)
    settings = {"method": method, "n_labels": n_labels, "validation": best.score, **best.settings}
    settings["trials"] = [{**t.settings, "validation": t.score} for t in trials]
    if goal.classes is not None:
        settings |= {"probability": output.softmax(dim=1).numpy(), "classes": goal.classes}
    return on_test(goal.decode(output), labels, seed=seed, **settings)


def _trial(data: LabelledCutouts, method: Method, goal: Goal, train: np.ndarray, seed: int, c: ProbeConfig) -> _Fitted:
    """Build a network and train it by one setting."""
    patches = central_patches(data.model.config.n_patches) if c.pool == "central" else None
    width, attentive = data.model.config.width, method != "linear"
    with seeded_init(seed):
        head = Head(width, goal.n_out, attentive=attentive, patches=patches, moments=data.moments)
    if method not in _FROZEN:  # the head alone, first
        _fit(data, head, "attentive", goal, train, seed, replace(c, learning_rate=LEARNING_RATES["attentive"]))
    network = head if method in _FROZEN else EncoderWithHead(deepcopy(data.model), head)
    return _fit(data, network, method, goal, train, seed, c)


def _fit(
    data: LabelledCutouts,
    network: nn.Module,
    method: Method,
    goal: Goal,
    train: np.ndarray,
    seed: int,
    config: ProbeConfig,
) -> _Fitted:
    """Train a network in place; it ends with the weights that were best on validation."""
    device, frozen, from_nothing = data.model.sky_sigma.device, method in _FROZEN, method == "supervised"
    metric, score_name = metric_for(data.labels.task, data.labels.name)
    validation, truth, values = data.labels.rows[VALIDATION], data.labels.of(VALIDATION), data.labels.values[train]
    x, y = data.inputs(train, frozen=frozen), goal.encode(values)
    weight = sample_weights(data.weights[train], values, balance=config.balance and goal.classes is not None)
    network.to(device)
    average = deepcopy(network) if from_nothing else network  # what is judged and kept

    def judge(step: int) -> tuple[float, float]:
        """Return score and negative loss on validation: the loss decides between equal scores."""
        output = _outputs(average, data, validation, frozen, config)
        loss = goal.loss(output, goal.encode(truth), torch.ones(len(truth)))
        score = metric(goal.decode(output), truth)[score_name]
        log.debug("%s, %d labels, step %d: %.4f on validation", method, len(train), step, score)
        return score, -float(loss)

    learning_rate = config.learning_rate or LEARNING_RATES[method]
    groups = parameter_groups(network, learning_rate, layer_decay=config.layer_decay if method == "finetune" else 1.0)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    batch = min(config.batch_size, len(train))
    asked = max(config.min_steps, config.epochs * -(-len(train) // batch))
    times, final = (_LONGEST, 1.0) if from_nothing else (1, 0.0)
    height = partial(cosine_schedule, steps=asked * times, warmup=asked * times // 10, peak=1.0, final=final)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, height)
    evaluate_at = set(np.linspace(0, asked * times, config.evaluations * times + 1).round().astype(int)[1:].tolist())
    kept, stale, order = deepcopy(network.state_dict()), 0, torch.empty(0, dtype=torch.long)
    best = (-np.inf, -np.inf) if frozen else judge(0)  # what the head alone can do is there already
    highest = np.array(best)
    network.train()
    for step in range(asked * times):
        generator = keyed_generator(seed, step)
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(train), generator=generator)])
        rows, order = order[:batch], order[batch:]
        inputs, wanted, counts = (send(part[rows], device) for part in (x, y, weight))
        if not frozen:
            inputs = random_orientation(inputs, generator=generator)
        with autocast(device, config.precision):
            loss = goal.loss(network(inputs), wanted, counts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if from_nothing:
            share = 1 - min(_MEMORY, (1 + step) / (10 + step))  # a short memory at first
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)
        if step + 1 in evaluate_at:
            found = judge(step + 1)
            stale = stale + 1 if (found <= highest).all() else 0  # the loss may fall long before the score rises
            highest = np.maximum(highest, found)
            if found > best:
                kept, best = deepcopy(average.state_dict()), found
            if stale >= config.patience:
                break
    network.load_state_dict(kept)
    return _Fitted(network, *best, {"learning_rate": learning_rate, "epochs": config.epochs, "steps": step + 1})


def _outputs(network: nn.Module, data: LabelledCutouts, rows: np.ndarray, frozen: bool, config: ProbeConfig) -> Tensor:
    """Return what a network gives for some rows, float32 (n, n_out), on the CPU."""
    device = data.model.sky_sigma.device
    network.eval()
    with torch.inference_mode(), autocast(device, config.precision):
        blocks = (rows[i : i + 256] for i in range(0, len(rows), 256))
        parts = [network(send(data.inputs(block, frozen=frozen), device)).float().cpu() for block in blocks]
    network.train()
    return torch.cat(parts)
