"""Objects ranked without a query: by what a person marked, or by how odd they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from astropy.table import Table

from skylib.checks import checked
from skylib.data.plain import row_numbers
from skylib.data.sky import best_of_each_place
from skylib.model.embeddings import Embeddings
from skylib.search.index import SearchIndex, ranked_table
from skylib.search.nearest import neighbour_graph

N_UNLABELLED = 1000  # objects, drawn at random, that stand for all that is not marked


@checked
def feedback_scores(
    index: SearchIndex,
    yes: Sequence[int] | np.ndarray,
    no: Sequence[int] | np.ndarray = (),
    *,
    strength: float = 0.01,
    seed: int = 0,
) -> np.ndarray:
    """Return for each object how much it is like those marked yes rather than the rest.

    A logistic regression on the frozen, standardised features. Nearly all objects are not what is sought, so a random
    sample of the unmarked ones counts as no, too: with the whole weight of no until one is marked no, and with half of
    it from then on. All of yes weigh as much as all of no.

    Parameters
    ----------
    index : SearchIndex
        Of pooled vectors.
    yes, no : sequence of int
        Rows; those without a finite vector do not count.
    strength : float
        Inverse of the regularisation (C); small, since there are fewer marks than features.
    seed : int
        Of the sample.

    Returns
    -------
    ndarray of float32, shape (n,)
        The logit; large is alike. NaN for objects without a finite vector.

    Raises
    ------
    ValueError
        If no object is marked yes, or one is marked both.

    Examples
    --------
    >>> scores = skylib.feedback_scores(skylib.SearchIndex(embeddings), yes=[12, 34], no=[5])
    >>> bool(scores[12] > scores[5])
    True
    """
    from sklearn.linear_model import LogisticRegression  # late: a browser opens a second sooner

    yes, no = (
        row_numbers(marked, len(index), where=f"{name}: ").tolist() for name, marked in (("yes", yes), ("no", no))
    )
    if both := sorted(set(yes) & set(no)):
        raise ValueError(f"objects {both} are marked both yes and no")
    if index.vectors.ndim != 2:
        raise ValueError("an index of tokens has no single vector per object")
    finite = index.finite.cpu().numpy()
    yes, no = ([row for row in marked if finite[row]] for marked in (yes, no))
    if not yes:
        raise ValueError("mark at least one object with yes, whose vector is finite")
    free = finite.copy()
    free[[*yes, *no]] = False
    free_rows = np.flatnonzero(free)
    sample = np.random.default_rng(seed).permutation(free_rows)[:N_UNLABELLED]
    rows = np.concatenate([yes, no, sample]).astype(int)
    x = index.vectors[torch.from_numpy(rows).to(index.device)].cpu().numpy()
    truth = np.arange(len(rows)) < len(yes)
    # Marks are certain and unmarked objects only probably no: both kinds of no get one half of the weight.
    weight = np.full(len(rows), 1 / len(yes))
    weight[len(yes) : len(yes) + len(no)] = 0.5 / max(1, len(no))
    weight[len(yes) + len(no) :] = (0.5 if len(no) else 1.0) / max(1, len(sample))
    model = LogisticRegression(C=strength * len(rows), max_iter=300).fit(x, truth, sample_weight=weight)
    coefficients = torch.from_numpy(model.coef_[0].astype(np.float32)).to(index.device)
    scores = (index.vectors @ coefficients).cpu().numpy() + np.float32(model.intercept_[0])
    return np.where(finite, scores, np.nan)


@checked
def rank_anomalies(
    embeddings: Embeddings | SearchIndex,
    *,
    by: Literal["neighbour_distance", "isolation"] = "neighbour_distance",
    n_neighbors: int = 10,
    min_separation: float = 0.0,
    seed: int = 0,
) -> Table:
    """Rank all objects, the oddest first.

    Parameters
    ----------
    embeddings : Embeddings or SearchIndex
        Objects without a finite vector are left out.
    by : {"neighbour_distance", "isolation"}
        Euclidean distance to the k-th neighbour among the standardised vectors, or the score of an isolation forest
        (Liu, Ting & Zhou 2008): how few random cuts isolate an object, 0.5 and less for ordinary ones. The neighbours
        of many objects are found approximately (`neighbour_graph`), in a time that grows little faster than n.
    n_neighbors : int
        k. Groups of fewer than k + 1 similar objects are odd too.
    min_separation : float
        Of objects closer together than this many arcsec, return the oddest only: one entry per source.
    seed : int
        Of the forest and of the approximate neighbours.

    Returns
    -------
    Table
        Columns rank, index, score (the one ranked by, large is odd), neighbour_distance, isolation, ra, dec, labels.

    Raises
    ------
    ValueError
        If there are not more than `n_neighbors` objects, or `by` is unknown.

    Examples
    --------
    >>> odd = skylib.rank_anomalies(embeddings)
    >>> bool(odd["score"][0] >= odd["score"][-1])
    True
    """
    from sklearn.ensemble import IsolationForest  # late, as above

    index = embeddings if isinstance(embeddings, SearchIndex) else SearchIndex(embeddings)
    rows = np.flatnonzero(index.finite.cpu().numpy())
    if not 0 < n_neighbors < len(rows):
        raise ValueError(f"n_neighbors={n_neighbors}: must be 1 to {len(rows) - 1}, for {len(rows)} objects")
    vectors = index.vectors.flatten(1)[index.finite]
    distance = neighbour_graph(vectors, k=n_neighbors + 1, seed=seed)[1][:, -1]
    x = vectors.cpu().numpy()
    isolation = (-IsolationForest(random_state=seed).fit(x).score_samples(x)).astype(np.float32)
    score = distance if by == "neighbour_distance" else isolation
    order = np.lexsort((rows, -score))
    if min_separation > 0:
        ra, dec = index.embeddings.ra[rows[order]], index.embeddings.dec[rows[order]]
        order = order[best_of_each_place(ra, dec, radius=min_separation, n=len(order))]
    more = {"neighbour_distance": distance[order], "isolation": isolation[order]}
    return ranked_table(index.embeddings, rows[order], score[order], **more)
