"""Labels, parts and inputs that several trainings share: subsets of labels, and frozen tokens that are kept."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skylib.config import to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.data.splits import TEST, TRAIN, VALIDATION, split_cutouts
from skylib.evaluation.probes import Task, labelled_parts
from skylib.model.checkpoint import fingerprint
from skylib.model.embed import embed_tokens
from skylib.model.features import moved
from skylib.model.mim import MaskedImageModel


class LabelledSet:
    """What all trainings on one target share: labels, parts, and inputs read once.

    Parameters
    ----------
    model, cutouts, target, task, split, weights, cache
        As in `train_head`.
    """

    def __init__(
        self, model: MaskedImageModel, cutouts: CutoutFile, target: str | np.ndarray, *, task: Task,
        split: str | np.ndarray | None, weights: str | np.ndarray | None = None, cache: str | Path | None = None,
    ) -> None:  # fmt: skip
        split = split_cutouts(cutouts, size=model.config.image_size) if split is None else split
        columns = {name: cutouts.column(name) for name in (target, split, weights) if isinstance(name, str)}
        self.values, self.rows = labelled_parts(columns, target, split, task)
        trust = np.ones(len(cutouts)) if weights is None else columns[weights] if isinstance(weights, str) else weights
        self.weights = np.asarray(trust, dtype=np.float64)
        mine = self.weights[self.rows[TRAIN]] if self.weights.shape == self.values.shape else np.array([np.nan])
        if not (np.isfinite(mine).all() and (mine >= 0).all() and mine.any()):
            raise ValueError(f"weights of shape {self.weights.shape}: must be {self.values.shape}, finite, not negative, not all 0")  # fmt: skip
        unknown = np.full(len(cutouts), np.nan)
        self.model, self.cutouts, self.target, self.task = model, moved(cutouts, ra=unknown, dec=unknown), target, task
        self.cache = None if cache is None else Path(cache)
        self.used = np.sort(np.concatenate(list(self.rows.values())))
        self._flux: np.ndarray | None = None
        self._tokens: np.ndarray | None = None
        self._moments: tuple[Tensor, Tensor] | None = None

    def key(self) -> str:
        """Return a short name for images, network, labels and parts: the same study, the same name."""
        digest = hashlib.sha256(self._inputs())
        labels = self.values.astype(float if self.values.dtype.kind in "biuf" else str)
        for part in (TRAIN, VALIDATION, TEST):
            rows = self.rows[part]
            digest.update(rows.tobytes() + labels[rows].tobytes() + self.weights[rows].tobytes())
        return digest.hexdigest()[:12]

    def flux(self, rows: np.ndarray) -> Tensor:
        """Return cutouts as the model wants them, float32 (n, C, S, S)."""
        if self._flux is None:
            c = self.model.config
            loader = CutoutLoader(self.cutouts, batch_size=1, shuffle=False, size=c.image_size, bands=c.bands)
            self._flux = loader.flux(self.used)
        return torch.from_numpy(self._flux[np.searchsorted(self.used, rows)])

    def tokens(self, rows: np.ndarray) -> Tensor:
        """Return frozen tokens, float16 (n, N, D); they are computed once."""
        if self._tokens is None:
            self._tokens = self._cached_tokens()
        return torch.from_numpy(self._tokens[np.searchsorted(self.used, rows)])

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (D,) of the frozen tokens of train."""
        if self._moments is None:
            width = self.model.config.width
            total, square, n = torch.zeros(width).double(), torch.zeros(width).double(), 0
            for start in range(0, len(self.rows[TRAIN]), 1024):
                part = self.tokens(self.rows[TRAIN][start : start + 1024]).double().flatten(0, 1)
                total, square, n = total + part.sum(0), square + part.square().sum(0), n + len(part)
            mean = total / n
            scale = (square / n - mean.square()).clamp(min=1e-12).sqrt()
            self._moments = mean.float(), scale.float()
        return self._moments

    def _inputs(self) -> bytes:
        """Return what tokens follow from, but for the rows: weights and settings of the network, and the file's state.

        The file is known by its size and time, not by its place: a copy that keeps its time is the same file.
        """
        file = self.cutouts.path.stat()
        state = [fingerprint(self.model), to_dict(self.model.config), file.st_size, file.st_mtime_ns]
        return json.dumps(state, sort_keys=True).encode()

    def _cached_tokens(self) -> np.ndarray:
        if self.cache is None:
            return embed_tokens(self.model, self.cutouts, rows=self.used).astype(np.float16)
        path = self.cache / f"tokens-{hashlib.sha256(self._inputs() + self.used.tobytes()).hexdigest()[:16]}.npy"
        if not path.is_file():
            tokens = embed_tokens(self.model, self.cutouts, rows=self.used).astype(np.float16)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial")  # others may write the same now
            try:
                with open(partial, "wb") as file:
                    np.save(file, tokens)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        return np.load(path, mmap_mode="r")


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
