"""Learning from yes and no: objects ranked again by what a person said of a few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from skylib.search.index import SearchIndex

N_UNLABELLED = 1000  # objects, drawn at random, that stand for all that is not marked


def feedback_scores(
    index: SearchIndex, yes: Sequence[int], no: Sequence[int] = (), *, strength: float = 0.01, seed: int = 0
) -> np.ndarray:
    """Return for each object how much it is like those marked yes rather than the rest.

    A logistic regression on the frozen, standardised features. Nearly all objects are not what is sought, so a random
    sample of the unmarked counts as no, too: alone at first, and as one part with the marked ones after; all of yes
    weigh as much as all of no.

    Parameters
    ----------
    index : SearchIndex
        Of pooled vectors.
    yes, no : sequence of int
        Rows.
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
    """
    if not len(yes):
        raise ValueError("mark at least one object with yes")
    if both := sorted(set(yes) & set(no)):
        raise ValueError(f"objects {both} are marked both yes and no")
    if index.vectors.ndim != 2:
        raise ValueError("an index of tokens has no single vector an object")
    finite = index.finite.cpu().numpy()
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
