"""Exact nearest neighbours by blocked products on any device: what search, maps and anomaly ranking share.

Distances are first computed in float32, block by block, as a *lower bound*: the value minus the most that rounding can
have added. The best of them are then computed again in float64, each row on its own, so that the answer depends neither
on the block size nor on the device. Where the bound cannot exclude that a row was missed, more rows are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor

from skylib.checks import check_choice

Metric = Literal["cosine", "mse", "mae"]
Combine = Literal["min", "mean", "max"]

ROUNDING = 2.0**-24  # of float32
_CACHED = 1024  # vectors that a CPU's cache can hold
_GROUP = 64  # of how many values the smallest is taken first, to find the smallest of all


def nearest(
    vectors: Tensor, queries: Tensor, *, k: int, metric: Metric = "cosine", weight: Tensor | None = None,
    combine: Combine | None = None, keep: Tensor | None = None, ties: Tensor | None = None,
    squares: Tensor | None = None, precise: Callable[[Tensor], Tensor] | None = None, block: int = 65536,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Find the objects nearest to each query, or to all queries together.

    Parameters
    ----------
    vectors : Tensor of float32, shape (n, D), or (n, N, D) for objects of N tokens each
        Where they lie decides the device.
    queries : Tensor, shape (q, D)
    k : int
        How many; at most n.
    metric : {"cosine", "mse", "mae"}
        Cosine distance, mean squared or mean absolute difference of the features.
    weight : Tensor, shape (D,), optional
        Of each feature; with ``cosine`` both vectors are scaled by its square root.
    combine : {"min", "mean", "max"}, optional
        Distance to several queries: to the nearest, on average, or to the farthest; tokens of an object are combined
        likewise. Without it, each query has an answer of its own, and `vectors` must be (n, D).
    keep : Tensor of bool, shape (n,), optional
        False for rows that cannot be an answer.
    ties : Tensor of int64, shape (n,), optional
        Of equal distances, the row with the lowest number here comes first; by default the lowest row.
    squares : Tensor of float32, shape (n,) or (n, N), optional
        The squared norms of the vectors, if known (they are used without a weight).
    precise : callable, optional
        Returns the vectors of given rows in float64, where `vectors` holds them rounded.
    block : int
        Rows compared at a time; it changes memory and speed, not the answer.

    Returns
    -------
    distance : Tensor of float32, shape (q, k) or, with `combine`, (1, k)
        In ascending order; infinite where fewer than k rows may be an answer.
    rows : Tensor of int64, of the same shape

    Examples
    --------
    >>> distance, rows = nearest(torch.eye(4), torch.eye(4)[:1], k=3, metric="mse")
    >>> distance.tolist(), rows.tolist()
    ([[0.0, 0.5, 0.5]], [[0, 1, 2]])
    """
    check_choice("metric", metric, get_args(Metric))
    if combine is not None:
        check_choice("combine", combine, get_args(Combine))
    n, width = len(vectors), vectors.shape[-1]
    block = max(1, block // vectors[0, ..., 0].numel())
    k = min(k, n)
    exact = queries.to(vectors.device, torch.float64)
    weight = None if weight is None else weight.to(vectors.device, torch.float64)
    precise = precise or (lambda rows: vectors[rows].double())
    slack = (width + 64) * ROUNDING
    n_groups = len(exact) if combine is None else 1
    distance = torch.empty(n_groups, k, device=vectors.device)
    rows = torch.empty(n_groups, k, dtype=torch.int64, device=vectors.device)
    todo, n_candidates = torch.arange(n_groups, device=vectors.device), k + 32
    while len(todo):
        n_candidates = min(n_candidates, n)
        asked = exact[todo] if combine is None else exact
        with full_precision():
            bound, found = _candidates(
                vectors, asked.float(), n_candidates, metric, weight, combine, keep, squares, block, slack
            )
        value = _exact(precise, found, asked, metric, weight, combine, vectors[0].numel())
        value = torch.where(bound.isfinite(), value, torch.inf)
        # By distance, then by tie: two sorts, the less important first, the other stable.
        order = (found if ties is None else ties[found]).argsort(dim=1)
        value, found, last = value.gather(1, order), found.gather(1, order), bound.amax(dim=1)
        order = value.argsort(dim=1, stable=True)[:, :k]
        distance[todo], rows[todo] = value.gather(1, order), found.gather(1, order)
        if n_candidates == n:
            break
        # A row that was not computed again lies at `last` or beyond; only strictly beyond is it out of question.
        missed = (distance[todo, -1] >= last) & last.isfinite()
        todo, n_candidates = todo[missed], 4 * n_candidates
    return distance, rows


def smallest(values: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return the m smallest values of each row (q, n), and where they are, in no order.

    Each of them lies in one of the m groups with the smallest minima, so that few values have to be sorted.
    """
    n_groups = values.shape[1] // _GROUP
    if n_groups < 2 * m:
        best = values.topk(min(m, values.shape[1]), dim=1, largest=False, sorted=False)
        return best.values, best.indices
    even = values[:, : n_groups * _GROUP].view(len(values), _GROUP, n_groups)  # group g: g, g + n_groups, …
    groups = even.amin(dim=1).topk(m, dim=1, largest=False, sorted=False).indices  # (q, m)
    inside = groups[:, None, :] + n_groups * torch.arange(_GROUP, device=values.device)[None, :, None]
    rest = torch.arange(n_groups * _GROUP, values.shape[1], device=values.device).expand(len(values), -1)
    where = torch.cat([inside.flatten(1), rest], dim=1)
    best = values.gather(1, where).topk(m, dim=1, largest=False, sorted=False)
    return best.values, where.gather(1, best.indices)


def pool(distance: Tensor, combine: str, dim: int) -> Tensor:
    """Combine distances along an axis."""
    if combine == "mean":
        return distance.mean(dim=dim)
    return distance.amin(dim=dim) if combine == "min" else distance.amax(dim=dim)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep matrix products in true float32, whatever a training loop set: bounds and ranks rest on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _candidates(
    vectors: Tensor, queries: Tensor, m: int, metric: str, weight: Tensor | None, combine: str | None,
    keep: Tensor | None, squares: Tensor | None, block: int, slack: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the m lowest lower bounds of the distance and their rows, (q or 1, m). Nothing waits for the device."""
    scale = None if weight is None else (weight if metric == "mae" else weight.sqrt()).float()
    scaled = queries if scale is None else queries * scale
    norms = scaled.square().sum(dim=1)
    if scale is not None and metric != "mae":
        squares, scaled = None, scaled * scale  # the weight once for each of the two vectors
    if metric == "cosine":
        scaled = scaled / norms.sqrt().clamp(min=1e-30)[:, None]
    best: list[Tensor] = []
    where: list[Tensor] = []
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        flat = part.flatten(0, -2)
        if metric == "mae":
            value = torch.cat([torch.cdist(scaled, _times(x, scale), p=1.0) for x in flat.split(_CACHED)], dim=1)
            value = value.mul_((1 - slack) / flat.shape[1])
        else:
            if squares is not None:
                square = squares[start : start + block].flatten()
            else:
                square = torch.cat([_times(x, scale).square().sum(dim=1) for x in flat.split(_CACHED)])
            value = _products(scaled, flat)
            if metric == "cosine":
                value = value.mul_(-square.sqrt().clamp_(min=1e-30).reciprocal_()).add_(1 - 2 * slack)
            else:
                value = value.mul_(-2).add_(square * (1 - 2 * slack)).add_((norms * (1 - 2 * slack))[:, None])
                value = value.div_(flat.shape[1])
        if part.ndim == 3:
            value = pool(value.view(len(queries), len(part), -1), str(combine), 2)
        if combine is not None:
            value = pool(value, combine, 0)[None]
        if keep is not None:
            value.masked_fill_(~keep[start : start + block], torch.inf)
        low, at = smallest(value, m)
        best.append(low)
        where.append(at + start)
        if sum(b.shape[1] for b in best) > 4 * m or start + block >= len(vectors):
            low, at = smallest(torch.cat(best, dim=1), m)
            best, where = [low], [torch.cat(where, dim=1).gather(1, at)]
    return best[0], where[0]


def _products(queries: Tensor, x: Tensor) -> Tensor:
    """Return queries (q, D) times vectors (n, D), as (q, n)."""
    even = len(x) // _CACHED * _CACHED
    if len(queries) > 2 or x.device.type != "cpu" or not even:
        return queries @ x.T
    # With one query a CPU is bound by memory, and its BLAS reads it faster in pieces.
    pieces = x[:even].view(-1, _CACHED, x.shape[1])
    head = torch.bmm(pieces, queries.T.expand(len(pieces), -1, -1)).permute(2, 0, 1).reshape(len(queries), even)
    return torch.cat([head, queries @ x[even:].T], dim=1)


def _times(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def _exact(
    precise: Callable[[Tensor], Tensor], rows: Tensor, queries: Tensor, metric: str, weight: Tensor | None,
    combine: str | None, size: int,
) -> Tensor:  # fmt: skip
    """Return the distance of the rows (q or 1, m) in float64, rounded to float32; each depends on its own row alone."""
    scale = 1.0 if weight is None else (weight if metric == "mae" else weight.sqrt())
    queries = queries * scale
    limit = 2**20  # numbers at a time: larger ones are slower, on memory never used before
    if combine is None:
        each = max(1, limit // (size * rows.shape[1]))
        parts = [
            _distance(precise(rows[i : i + each]) * scale, queries[i : i + each, None], metric)
            for i in range(0, len(rows), each)
        ]
        return torch.cat(parts).float()
    each = max(1, limit // (size * len(queries)))
    parts = [
        _combined(precise(rows[0, i : i + each]) * scale, queries, metric, combine)
        for i in range(0, rows.shape[1], each)
    ]
    return torch.cat(parts)[None].float()


def distances(
    x: Tensor, queries: Tensor, *, metric: str, weight: Tensor | None = None, combine: str = "min"
) -> Tensor:  # fmt: skip
    """Return the distance of vectors (n, D) or tokens (n, N, D) to all queries (q, D) together, float32 (n,).

    It is computed in float64, each row on its own; options as in `nearest`.
    """
    check_choice("metric", metric, get_args(Metric))
    check_choice("combine", combine, get_args(Combine))
    scale = 1.0 if weight is None else (weight if metric == "mae" else weight.sqrt())
    x, queries = x.double() * scale, queries.double() * scale
    parts = x.split(max(1, 2**20 // (len(queries) * x[0].numel())))
    return torch.cat([_combined(part, queries, metric, combine) for part in parts]).float()


def _combined(x: Tensor, queries: Tensor, metric: str, combine: str) -> Tensor:
    value = _distance(x[None], queries.view(len(queries), *[1] * (x.ndim - 1), x.shape[-1]), metric)
    return pool(value if value.ndim == 2 else pool(value, combine, 2), combine, 0)


def _distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the distance along the last axis of float64 vectors."""
    if metric == "mae":
        return (x - y).abs().mean(dim=-1)
    if metric == "mse":
        return (x - y).square().mean(dim=-1)
    norms = [v.square().sum(dim=-1, keepdim=True).sqrt() for v in (x, y)]
    x, y = (v / torch.where(norm > 0, norm, 1.0) for v, norm in zip((x, y), norms, strict=True))
    half = (x - y).square().sum(dim=-1) / 2  # 1 - cos, without cancellation: equal vectors are at 0 exactly
    return torch.where((norms[0] > 0)[..., 0] & (norms[1] > 0)[..., 0], half, 1.0)
