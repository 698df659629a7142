"""Exact nearest neighbours by blocked matrix products, on any device.

All rows are compared in float32, block by block. The best of them, a few more than asked for, are computed again in
float64, each on its own, so that the answer depends neither on the size of the blocks nor on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from skylib.device import float32_products, kept_threads

Metric = Literal["cosine", "mse", "mae"]
Combine = Literal["min", "mean", "max"]

BLOCK = 65_536  # rows compared at a time
DISTANCES = 2**26  # at a time, on a GPU, which small pieces would not keep busy
SPARE = 32  # rows computed again beyond the k best
GROUP = 64  # of how many values the smallest is taken first, to find the smallest of all
ROUNDING = 2.0**-24  # of float32
PAIRS = {True: 5e9, False: 2e12}  # of which a graph is exact, on a CPU or elsewhere: about a minute
POOL: dict[str, Callable[..., Tensor]] = {"min": torch.amin, "mean": torch.mean, "max": torch.amax}  # of `combine`
NUMBERS = {True: 2**20, False: 2**26}  # in float64 at a time, on a CPU (whose cache holds no more) or elsewhere


def nearest(
    vectors: Tensor,
    queries: Tensor,
    *,
    k: int,
    metric: Metric = "cosine",
    weight: Tensor | None = None,
    combine: Combine | None = None,
    keep: Tensor | None = None,
    ties: Tensor | None = None,
    squares: Tensor | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Find the objects nearest to each query, or to all queries together.

    Parameters
    ----------
    vectors : Tensor of float32, shape (n, D), or (n, N, D) for objects of N tokens each
        Its device is the one that computes.
    queries : Tensor, shape (q, D)
    k : int
        How many objects; at most n.
    metric : {"cosine", "mse", "mae"}
        Cosine distance, mean squared or mean absolute difference of the features.
    weight : Tensor, shape (D,), optional
        Of each feature; with ``cosine`` both vectors are scaled by its square root.
    combine : {"min", "mean", "max"}, optional
        Distance to several queries: to the nearest, on average, or to the farthest; tokens of an object are combined
        likewise. Without it, each query has its own answer, and `vectors` must be (n, D).
    keep : Tensor of bool, shape (n,), optional
        False for objects that cannot be an answer.
    ties : Tensor of int64, shape (n,), optional
        Equal distances are ordered by these numbers; by default by row.
    squares : Tensor of float32, shape (n,) or (n, N), optional
        The squared norms of the vectors, if they have been computed before. Ignored with a weight.
    block : int
        Rows compared at a time; on a GPU more, if the queries are few. It changes memory and speed, not the answer.

    Returns
    -------
    distance : Tensor of float32, shape (q, k) or, with `combine`, (1, k)
        Ascending; infinite where fewer than k objects may be an answer.
    rows : Tensor of int64, of the same shape

    Examples
    --------
    >>> distance, rows = nearest(torch.eye(4), torch.eye(4)[:1], k=3, metric="mse")
    >>> distance.tolist(), rows.tolist()
    ([[0.0, 0.5, 0.5]], [[0, 1, 2]])
    """
    n, device = len(vectors), vectors.device
    queries = queries.to(device, torch.float64)
    scale = None if weight is None else (weight if metric == "mae" else weight.sqrt()).to(device, torch.float64)
    n_answers, k, m = len(queries) if combine is None else 1, min(k, n), min(k + SPARE, n)
    distance = torch.empty(n_answers, k, device=device)
    rows = torch.empty(n_answers, k, dtype=torch.int64, device=device)
    todo = torch.arange(n_answers, device=device)
    while len(todo):
        asked = queries[todo] if combine is None else queries
        with float32_products("highest"):  # whatever a training loop set
            bound, found = _candidates(vectors, asked, m, metric, scale, combine, keep, squares, block)
        at_a_time = max(1, NUMBERS[device.type == "cpu"] // (len(asked) * vectors[0].numel()))
        parts = found.split(at_a_time, dim=1)
        value = torch.cat([_exact(vectors[part], asked, metric, scale, combine) for part in parts], dim=1)
        value = torch.where(bound.isfinite(), value, torch.inf)
        order = (found if ties is None else ties[found]).argsort(dim=1)
        value, found = value.gather(1, order), found.gather(1, order)
        order = value.argsort(dim=1, stable=True)[:, :k]
        distance[todo], rows[todo] = value.gather(1, order), found.gather(1, order)
        if m == n:
            break
        # Where float32 cannot tell the k-th object from the ones left out, more of them are computed again.
        last = bound.amax(dim=1)
        todo, m = todo[(distance[todo, -1] >= last) & last.isfinite()], min(4 * m, n)
    return distance, rows


def distances(
    x: Tensor, queries: Tensor, *, metric: Metric, weight: Tensor | None = None, combine: Combine = "min"
) -> Tensor:
    """Return the distance of vectors (n, D) or tokens (n, N, D) to all queries (q, D) together, float32 (n,).

    It is computed in float64; options as in `nearest`.
    """
    scale = None if weight is None else (weight if metric == "mae" else weight.sqrt()).double()
    parts = x.split(max(1, NUMBERS[x.device.type == "cpu"] // (len(queries) * x[0].numel())))
    return torch.cat([_exact(part[None], queries.double(), metric, scale, combine)[0] for part in parts])


def neighbour_graph(
    points: Tensor, queries: Tensor | None = None, *, k: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k points nearest to each query, by Euclidean distance.

    Without queries the points are compared with each other, and each is its own first neighbour. Where there are too
    many pairs for the device, nearly all neighbours are found by nearest-neighbour descent (Dong, Moses & Li 2011,
    WWW 2011, 577), in about n log n.

    Returns
    -------
    rows : ndarray of int64, shape (q, k)
    distance : ndarray of float32, shape (q, k)
    """
    if queries is None and len(points) ** 2 > PAIRS[points.device.type == "cpu"]:
        from pynndescent import NNDescent  # its first import compiles for seconds

        with kept_threads() as n:
            descent = NNDescent(points.cpu().numpy(), n_neighbors=k, random_state=seed, n_jobs=n)
            rows, distance = descent.neighbor_graph
        return rows.astype(np.int64), distance.astype(np.float32)
    squares, found = points.square().sum(dim=1), []
    for part in (points if queries is None else queries).split(1024):
        distance, rows = nearest(points, part, k=k, metric="mse", squares=squares)
        found.append((rows.cpu(), (distance * points.shape[1]).sqrt().cpu()))
    rows, distance = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return rows, distance


def smallest(values: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Return the m smallest values of each row (q, n), and where they are, in no order.

    Each of them lies in one of the m groups with the smallest minima, so that few values have to be sorted.
    """
    n_groups = values.shape[1] // GROUP
    if n_groups < 2 * m:
        best = values.topk(min(m, values.shape[1]), dim=1, largest=False, sorted=False)
        return best.values, best.indices
    even = values[:, : n_groups * GROUP].view(len(values), GROUP, n_groups)  # group g: g, g + n_groups, …
    groups = even.amin(dim=1).topk(m, dim=1, largest=False, sorted=False).indices  # (q, m)
    inside = groups[:, None, :] + n_groups * torch.arange(GROUP, device=values.device)[None, :, None]
    rest = torch.arange(n_groups * GROUP, values.shape[1], device=values.device).expand(len(values), -1)
    where = torch.cat([inside.flatten(1), rest], dim=1)
    best = values.gather(1, where).topk(m, dim=1, largest=False, sorted=False)
    return best.values, where.gather(1, best.indices)


def _candidates(
    vectors: Tensor,
    queries: Tensor,
    m: int,
    metric: str,
    scale: Tensor | None,
    combine: str | None,
    keep: Tensor | None,
    squares: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Return the m lowest lower bounds of the distance, and their rows, both (q or 1, m).

    A bound is the distance in float32, less the most that rounding can have added. Nothing here waits for the device.
    """
    n_tokens = vectors[0, ..., 0].numel()
    q = (queries if scale is None else queries * scale).float()
    if metric == "cosine":
        q = torch.nn.functional.normalize(q, dim=1)
    bound, rows = torch.empty(0, device=q.device), torch.empty(0, dtype=torch.int64, device=q.device)
    step = max(block, 0 if q.device.type == "cpu" else DISTANCES // len(q)) // n_tokens or 1
    factor = torch.ones_like(q[0]) if scale is None else scale.float()
    for start in range(0, len(vectors), step):
        x = vectors[start : start + step].flatten(0, -2)
        square = None if squares is None or scale is not None else squares[start : start + step].flatten()
        value = _lower_bounds(q, x, square, factor, metric)
        if n_tokens > 1:
            value = POOL[str(combine)](value.view(len(q), -1, n_tokens), dim=2)
        if combine is not None:
            value = POOL[combine](value, dim=0)[None]
        if keep is not None:
            value.masked_fill_(~keep[start : start + step], torch.inf)
        low, at = smallest(value, m)
        if start:
            low, at = torch.cat([bound, low], dim=1), torch.cat([rows, at + start], dim=1)
        bound, best = low.topk(min(m, low.shape[1]), dim=1, largest=False, sorted=False)
        rows = at.gather(1, best)
    return bound, rows


def _lower_bounds(queries: Tensor, x: Tensor, square: Tensor | None, factor: Tensor, metric: str) -> Tensor:
    """Return lower bounds of the distance of vectors (n, D) times a factor (D,) to queries, (q, n).

    `square` is the squared norms of the scaled vectors, if they are known.
    """
    width, parts = x.shape[1], x.split(1024 if x.device.type == "cpu" else BLOCK)  # what a CPU's cache holds
    slack = (width + 64) * ROUNDING
    if metric == "mae":
        found = [torch.cdist(queries, part * factor, p=1.0) for part in parts]
        return torch.cat(found, dim=1).mul_((1 - slack) / width)
    if square is None:
        square = torch.cat([part.square() @ factor.square() for part in parts])
    product = (queries * factor) @ x.T
    if metric == "cosine":
        return product.mul_(-square.clamp(min=1e-30).rsqrt()).add_(1 - 2 * slack)
    norms = queries.square().sum(dim=1)[:, None]
    return product.mul_(-2).add_(square * (1 - 2 * slack)).add_(norms * (1 - 2 * slack)).div_(width)


def _exact(x: Tensor, queries: Tensor, metric: str, scale: Tensor | None, combine: str | None) -> Tensor:
    """Return the distance of objects (q or 1, m, [N,] D) to queries (q, D), float32 (q or 1, m)."""
    x, y = x.double(), queries.view(len(queries), *[1] * (x.ndim - 2), -1)
    value = _distance(*((x, y) if scale is None else (x * scale, y * scale)), metric)
    if value.ndim == 3:
        value = POOL[str(combine)](value, dim=2)
    return (value if combine is None else POOL[combine](value, dim=0)[None]).float()


def _distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Return the distance along the last axis."""
    if metric == "mae":
        return (x - y).abs().mean(dim=-1)
    if metric == "mse":
        return (x - y).square().mean(dim=-1)
    norms = [v.square().sum(dim=-1, keepdim=True).sqrt() for v in (x, y)]
    x, y = (v / torch.where(norm > 0, norm, 1.0) for v, norm in zip((x, y), norms, strict=True))
    half = (x - y).square().sum(dim=-1) / 2  # 1 - cos, without cancellation: equal vectors are at 0 exactly
    return torch.where((norms[0] > 0)[..., 0] & (norms[1] > 0)[..., 0], half, 1.0)
