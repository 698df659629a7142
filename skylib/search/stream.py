"""Exact search through files of embeddings that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table, vstack

from skylib.checks import checked
from skylib.data.plain import filled
from skylib.device import ahead, pick_device
from skylib.model.embeddings import Embeddings, mapped_vectors
from skylib.model.parts import part_files
from skylib.search.filters import Where, matching_rows
from skylib.search.nearest import Combine, Metric, nearest
from skylib.search.standard import Standardiser

ROWS = 65_536  # read at a time


@checked
def search_files(
    paths: Sequence[str | Path],
    targets: np.ndarray,
    *,
    k: int = 100,
    metric: Metric = "cosine",
    standardize: bool | str = True,
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
        Files written by `Embeddings.save`, or folders of parts (`embed_parts`), of the same model.
    targets : ndarray of float, shape (t, D)
        Vectors of the same model.
    k, metric, standardize, combine, where, device
        As in `search`.
    rows : int
        How many are read at a time. It changes memory and speed, not the answer.

    Returns
    -------
    Table
        Columns rank, file (number among all files), row (in that file), score, ra, dec, and the labels.

    Raises
    ------
    ValueError
        If the vectors have different widths, the targets are not finite, or no object can be an answer.
    OSError
        If a file cannot be read.
    """
    files = [file for path in paths for file in (part_files(path) if Path(path).is_dir() else [Path(path)])]
    wanted = np.atleast_2d(np.asarray(filled(targets), dtype=np.float64))
    if k < 1 or not files or not wanted.size or not np.isfinite(wanted).all():
        given = f"k={k}, {len(files)} files, targets of shape {wanted.shape}"
        raise ValueError(f"{given}: needs k >= 1, files, finite targets")
    place = pick_device(device)
    finite = (x[x.isfinite().all(dim=1)] for _, _, x in _blocks(files, rows, wanted.shape[1], place))
    try:
        standardised = Standardiser(finite, standardize)
    except ValueError as error:
        raise ValueError(f"{files[0]} and {len(files) - 1} more: {error}") from error
    queries = standardised(torch.from_numpy(wanted).to(place))
    best = np.empty(0, [("score", "f4"), ("file", "i4"), ("row", "i8")])
    allowed, at = torch.empty(0), -1
    for number, start, x in _blocks(files, rows, wanted.shape[1], place):
        if number != at and where:
            at, allowed = number, torch.from_numpy(matching_rows(Embeddings.load(files[number], mapped=True), where))
        keep = x.isfinite().all(dim=1)
        if where:
            keep &= allowed[start : start + len(x)].to(place)
        x = standardised(x).nan_to_num_(0.0, 0.0, 0.0)
        distance, found = nearest(x, queries, k=k, metric=metric, combine=combine, keep=keep)
        hits = np.empty(distance.shape[1], best.dtype)
        hits["score"], hits["file"], hits["row"] = distance[0].cpu(), number, found[0].cpu() + start
        best = np.concatenate([best, hits[np.isfinite(hits["score"])]])
        best = best[np.lexsort((best["row"], best["file"], best["score"]))[:k]]
    if not len(best):
        raise ValueError(f"none of the objects of {len(files)} files can be an answer")
    tables = [Embeddings.load(files[hit["file"]], rows=slice(hit["row"], hit["row"] + 1)).to_table() for hit in best]
    for table in tables:
        table.remove_column("vector")
        table.meta.clear()
    found = Table({"rank": np.arange(len(best)), **{name: best[name] for name in ("file", "row", "score")}})
    labels = vstack(tables, join_type="outer")
    for name in labels.colnames:
        found[f"{name}_label" if name in found.colnames else name] = labels[name]
    return found


def _blocks(
    files: Sequence[Path], rows: int, width: int, device: torch.device
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield the number of the file, the first row, and the vectors from there on, read ahead."""

    def read() -> Iterator[tuple[int, int, torch.Tensor]]:
        for number, path in enumerate(files):
            n, found = mapped_vectors(path).shape
            if found != width:
                raise ValueError(f"{path}: vectors of {found} numbers, the targets have {width}")
            for start in range(0, n, rows):  # mapped anew, so that pages that were read do not stay
                block = torch.from_numpy(mapped_vectors(path)[start : start + rows].copy())
                yield number, start, block.to(device).float()

    return ahead(read(), depth=1)
