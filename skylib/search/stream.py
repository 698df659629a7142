"""Exact search through files of embeddings that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table, vstack

from skylib.device import ahead, pick_device
from skylib.model.embeddings import Embeddings
from skylib.search.filters import Where, matching_rows
from skylib.search.nearest import Combine, Metric, nearest

ROWS = 65_536  # read at a time


def search_files(
    paths: Sequence[str | Path],
    targets: np.ndarray,
    *,
    k: int = 100,
    metric: Metric = "cosine",
    standardize: bool = True,
    combine: Combine = "min",
    where: Where | None = None,
    device: str | torch.device | None = None,
    rows: int = ROWS,
) -> Table:
    """Rank the objects of many files by their distance to one or more vectors, as `search` ranks those of one.

    The files are read twice, block by block: once for mean and variance of each feature, and once to search. Memory
    holds a few blocks, whatever the number of objects, and the time is proportional to it.

    Parameters
    ----------
    paths : sequence of path
        Written by `Embeddings.save`, of the same model.
    targets : ndarray of float, shape (t, D)
        Vectors of the same model.
    k, metric, standardize, combine, where, device
        As in `search`.
    rows : int
        How many are read at a time. It changes memory and speed, not the answer.

    Returns
    -------
    Table
        Columns rank, file (number in `paths`), row (in that file), score, ra, dec, and the labels.

    Raises
    ------
    ValueError
        If the vectors have different widths, the targets are not finite, or no object can be an answer.
    OSError
        If a file cannot be read.
    """
    wanted = np.atleast_2d(np.asarray(targets, dtype=np.float64))
    if k < 1 or not len(paths) or not wanted.size or not np.isfinite(wanted).all():
        raise ValueError(
            f"k={k}, {len(paths)} files, targets of shape {wanted.shape}: needs k >= 1, files, finite targets"
        )
    mean, scale = _moments(paths, rows, wanted.shape[1]) if standardize else (np.zeros(1), np.ones(1))
    place = pick_device(device)
    queries = torch.from_numpy(((wanted - mean) / scale).astype(np.float32)).to(place)
    best = np.empty(0, [("score", "f4"), ("file", "i4"), ("row", "i8")])
    for number, start, part in ahead(_blocks(paths, rows), depth=1):
        keep = np.isfinite(part.vectors).all(axis=1) & matching_rows(part, where or {})
        x = torch.from_numpy(np.nan_to_num((part.vectors - mean) / scale, posinf=0, neginf=0).astype(np.float32))
        free = torch.from_numpy(keep).to(place)
        distance, found = nearest(x.to(place), queries, k=k, metric=metric, combine=combine, keep=free)
        hits = np.empty(distance.shape[1], best.dtype)
        hits["score"], hits["file"], hits["row"] = distance[0].cpu(), number, found[0].cpu() + start
        best = np.concatenate([best, hits[np.isfinite(hits["score"])]])
        best = best[np.lexsort((best["row"], best["file"], best["score"]))[:k]]
    if not len(best):
        raise ValueError(f"none of the objects of {len(paths)} files can be an answer")
    tables = [Embeddings.load(paths[hit["file"]], rows=slice(hit["row"], hit["row"] + 1)).to_table() for hit in best]
    for table in tables:
        table.remove_column("vector")
        table.meta.clear()
    found = Table({"rank": np.arange(len(best)), **{name: best[name] for name in ("file", "row", "score")}})
    labels = vstack(tables, join_type="outer")
    for name in labels.colnames:
        found[f"{name}_label" if name in found.colnames else name] = labels[name]
    return found


def _blocks(paths: Sequence[str | Path], rows: int) -> Iterator[tuple[int, int, Embeddings]]:
    """Yield the number of the file, the first row, and the objects from there on."""
    for number, path in enumerate(paths):
        start = 0
        while len(part := Embeddings.load(path, rows=slice(start, start + rows))):
            yield number, start, part
            start += len(part)


def _moments(paths: Sequence[str | Path], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature over all finite vectors; 1 for a constant feature."""
    n, first, second, origin = 0, np.zeros(width), np.zeros(width), None
    for number, _, part in ahead(_blocks(paths, rows), depth=1):
        if part.vectors.shape[1] != width:
            raise ValueError(f"{paths[number]}: vectors of {part.vectors.shape[1]} numbers, the targets have {width}")
        x = part.vectors[np.isfinite(part.vectors).all(axis=1)].astype(np.float64)
        if origin is None and len(x):
            origin = x.mean(axis=0)  # sums about a value near the mean lose no digits
        if len(x):
            x -= origin
            n, first, second = n + len(x), first + x.sum(axis=0), second + np.square(x, out=x).sum(axis=0)
    if origin is None:
        raise ValueError(f"none of the objects of {len(paths)} files has a finite vector")
    variance = np.maximum(second / n - (first / n) ** 2, 0)
    return origin + first / n, np.sqrt(np.where(variance > 0, variance, 1.0))
