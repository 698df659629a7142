"""Exact search for look-alikes among embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from astropy.table import Table

from skylib.config import check_choice
from skylib.embed import Embeddings

Metric = Literal["cosine", "mse", "mae"]
Combine = Literal["min", "mean", "max"]


def search(
    embeddings: Embeddings,
    targets: int | Sequence[int] | np.ndarray,
    *,
    k: int = 100,
    metric: Metric = "cosine",
    weights: Literal["inverse_variance"] | None = None,
    standardize: bool = True,
    combine: Combine = "min",
    exclude_targets: bool = True,
) -> Table:
    """Rank all objects by their distance to one or more targets.

    Parameters
    ----------
    embeddings : Embeddings
        The objects to search.
    targets : int, sequence of int, or ndarray of float, shape (t, D)
        Row numbers of `embeddings`, or vectors of the same model.
    k : int
        How many to return; fewer if there are no more.
    metric : {"cosine", "mse", "mae"}
        Cosine distance, mean squared or mean absolute difference of the features.
    weights : {"inverse_variance", None}
        Weigh each feature by 1 / (variance over the targets + variance over all objects / number of targets), which
        is defined for a single target too (equal weights then, after standardisation).
    standardize : bool
        Bring each feature to mean 0 and variance 1 over all objects searched.
    combine : {"min", "mean", "max"}
        Distance to several targets: to the nearest, on average, or to the farthest.
    exclude_targets : bool
        Leave targets given as row numbers out of the answer.

    Returns
    -------
    Table
        Columns rank, index (row of `embeddings`), score (distance, small is alike), ra, dec, and the labels; ties
        are ordered by index.

    Raises
    ------
    ValueError
        If an option is unknown, or the targets are out of range or of another width.
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("combine", combine, get_args(Combine))
    check_choice("weights", weights, ("inverse_variance", None))
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    rows, wanted = _target_vectors(embeddings, targets)
    x = embeddings.vectors.astype(np.float32)
    if standardize:
        mean, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        scale[scale == 0] = 1.0  # a constant feature says nothing; any scale will do
        x, wanted = ((x - mean) / scale).astype(np.float32), ((wanted - mean) / scale).astype(np.float32)
    if weights is not None:
        variance = wanted.var(axis=0) + x.var(axis=0) / len(wanted)
        weight = 1 / np.where(variance > 0, variance, np.inf)
        weight = np.sqrt(weight / weight.mean()) if metric != "mae" else weight / weight.mean()
        x, wanted = (x * weight).astype(np.float32), (wanted * weight).astype(np.float32)
    distance = getattr(np, combine)(np.stack([_distance(x, target, metric) for target in wanted]), axis=0)
    if exclude_targets and len(rows):
        distance[rows] = np.inf
    order = np.lexsort((np.arange(len(distance)), distance))
    order = order[np.isfinite(distance[order])][:k]
    labels = {name: values[order] for name, values in embeddings.columns.items()}
    columns = {"rank": np.arange(len(order)), "index": order, "score": distance[order]}
    return Table({**columns, "ra": embeddings.ra[order], "dec": embeddings.dec[order], **labels})


def _target_vectors(embeddings: Embeddings, targets: int | Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers (empty for given vectors) and vectors of the targets."""
    wanted = np.atleast_1d(np.asarray(targets))
    if wanted.size == 0:
        raise ValueError("no targets given")
    if wanted.dtype.kind in "iu":
        if wanted.ndim != 1 or wanted.min() < 0 or wanted.max() >= len(embeddings):
            raise ValueError(f"targets {wanted.tolist()}: row numbers must be 0 to {len(embeddings) - 1}")
        return wanted, embeddings.vectors[wanted]
    wanted = np.atleast_2d(wanted)
    if wanted.ndim != 2 or wanted.shape[1] != embeddings.vectors.shape[1]:
        raise ValueError(f"targets of shape {wanted.shape}: vectors must be (t, {embeddings.vectors.shape[1]})")
    return np.empty(0, dtype=int), wanted


def _distance(x: np.ndarray, target: np.ndarray, metric: str) -> np.ndarray:
    """Return the distance of each row of x (n, D) to one target (D,)."""
    if metric == "cosine":
        norm = np.linalg.norm(x, axis=1) * np.linalg.norm(target)
        return 1 - (x @ target) / np.where(norm > 0, norm, 1.0)
    difference = x - target
    return (difference**2).mean(axis=1) if metric == "mse" else np.abs(difference).mean(axis=1)
