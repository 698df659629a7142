"""Odd objects first: far from their neighbours, or easily set apart."""

from __future__ import annotations

from typing import Literal

import numpy as np
from astropy.table import Table
from sklearn.ensemble import IsolationForest

from skylib.checks import check_choice
from skylib.model.embeddings import Embeddings
from skylib.search.index import SearchIndex, ranked_table
from skylib.search.nearest import nearest

QUERIES = 1024  # objects at a time


def rank_anomalies(
    embeddings: Embeddings | SearchIndex,
    *,
    by: Literal["neighbour_distance", "isolation"] = "neighbour_distance",
    n_neighbors: int = 10,
    seed: int = 0,
) -> Table:
    """Rank all objects, the oddest first.

    Parameters
    ----------
    embeddings : Embeddings or SearchIndex
        Objects without a finite vector are left out.
    by : {"neighbour_distance", "isolation"}
        Euclidean distance to the k-th neighbour among the standardised vectors, or the score of an isolation forest
        (Liu, Ting & Zhou 2008): how few random cuts set an object apart, 0.5 and less for ordinary ones.
    n_neighbors : int
        k. Groups of fewer than k + 1 alike objects are odd too.
    seed : int
        Of the forest.

    Returns
    -------
    Table
        Columns rank, index, score (the one ranked by, large is odd), neighbour_distance, isolation, ra, dec, labels.

    Raises
    ------
    ValueError
        If there are not more than `n_neighbors` objects, or `by` is unknown.
    """
    check_choice("by", by, ("neighbour_distance", "isolation"))
    index = embeddings if isinstance(embeddings, SearchIndex) else SearchIndex(embeddings)
    rows = np.flatnonzero(index.finite.cpu().numpy())
    if not 0 < n_neighbors < len(rows):
        raise ValueError(f"n_neighbors={n_neighbors}: must be 1 to {len(rows) - 1}, for {len(rows)} objects")
    vectors = index.vectors.flatten(1)[index.finite]
    squares = vectors.square().sum(dim=1)
    parts = [nearest(vectors, x, k=n_neighbors + 1, metric="mse", squares=squares)[0][:, -1] for x in vectors.split(QUERIES)]  # fmt: skip
    distance = np.sqrt(np.concatenate([part.cpu().numpy() for part in parts]) * vectors.shape[1])
    x = vectors.cpu().numpy()
    isolation = (-IsolationForest(random_state=seed).fit(x).score_samples(x)).astype(np.float32)
    score = distance if by == "neighbour_distance" else isolation
    order = np.lexsort((rows, -score))
    more = {"neighbour_distance": distance[order], "isolation": isolation[order]}
    return ranked_table(index.embeddings, rows[order], score[order], **more)
