"""Approximate search of very many objects: inverted lists with compressed vectors by faiss [1]_, then exact distances.

References
----------
.. [1] Douze et al. 2024, "The Faiss library", arXiv:2401.08281.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from skylib.checks import check_range, checked
from skylib.model.embeddings import Embeddings
from skylib.search.nearest import nearest
from skylib.search.standard import CACHED, Standardiser, as_vectors

ROWS = 65_536  # added at a time
PER_LIST = 64  # training vectors of each list


class ApproximateIndex:
    """Finds nearly all look-alikes by cosine distance in a small part of the time of an exact search.

    Needs faiss (``pip install "skylib[scale]"``). In memory are a few bytes per object; the vectors may stay on disk
    (`open_parts`): only those of the candidates are read, and their distances are those of `SearchIndex`.

    Parameters
    ----------
    embeddings : Embeddings
        Objects whose vector is not finite are never an answer.
    n_lists : int, optional
        Into how many lists the objects are sorted; by default 4 sqrt(n).
    code_bytes : int
        That stand for a vector in memory.
    seed : int
        Of the sample to which lists and codes are fitted.

    Raises
    ------
    ModuleNotFoundError
        If faiss is not installed.
    ValueError
        If there are fewer than 256 objects, to which the codes are fitted.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).normal(size=(1000, 16))
    >>> many = skylib.Embeddings(vectors, ra=np.zeros(1000), dec=np.zeros(1000))
    >>> distance, rows = skylib.ApproximateIndex(many, n_lists=8).nearest(many.vectors[:2], k=5)
    >>> rows[:, 0]
    array([0, 1])
    """

    @checked
    def __init__(
        self, embeddings: Embeddings, *, n_lists: int | None = None, code_bytes: int = 48, seed: int = 0
    ) -> None:
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError('ApproximateIndex needs faiss: pip install "skylib[scale]"') from error
        self.embeddings, self._rows = embeddings, np.flatnonzero(embeddings.finite)
        if (n := len(self._rows)) < 256:
            raise ValueError(f"{n} objects: an approximate index needs 256 with a finite vector; use SearchIndex")
        n_lists = n_lists or max(1, int(4 * np.sqrt(n)))
        check_range("n_lists", n_lists, 1, n)
        blocks = [self._rows[start : start + ROWS] for start in range(0, n, ROWS)]
        self._standardise = Standardiser(torch.from_numpy(embeddings.vectors[rows]) for rows in blocks)
        width = embeddings.vectors.shape[1]
        codes = max(c for c in range(1, min(code_bytes, width) + 1) if width % c == 0)
        # "np": without the training for polysemous codes, which is nearly all of the time and of no use here.
        self._index: Any = faiss.index_factory(width, f"IVF{n_lists},PQ{codes}x8np", faiss.METRIC_INNER_PRODUCT)
        sample = np.sort(np.random.default_rng(seed).permutation(n)[: max(PER_LIST * n_lists, CACHED)])
        self._index.train(self._unit(torch.from_numpy(embeddings.vectors[self._rows[sample]])).numpy())
        for rows in blocks:
            self._index.add(self._unit(torch.from_numpy(embeddings.vectors[rows])).numpy())

    @checked
    def nearest(
        self, queries: np.ndarray, *, k: int = 100, n_lists: int = 64, candidates: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the objects nearest to each of many vectors, as `SearchIndex.nearest` does.

        Parameters
        ----------
        queries : ndarray of float, shape (q, D)
        k : int
        n_lists : int
            How many lists are looked through: more is slower, and finds more.
        candidates : int
            For each of the k, how many vectors are compared exactly.

        Returns
        -------
        distance : ndarray of float32, shape (q, k)
            Ascending; infinite where fewer were found.
        rows : ndarray of int64, shape (q, k)
        """
        given = as_vectors("queries", queries, self.embeddings.vectors.shape[1])
        self._index.nprobe = min(n_lists, self._index.nlist)
        found = self._index.search(self._unit(given).numpy(), min(k * candidates, len(self._rows)))[1]
        distance, rows = np.full((len(found), k), np.inf, np.float32), np.zeros((len(found), k), np.int64)
        for i, near in enumerate(found):
            near = self._rows[np.sort(near[near >= 0])]
            if not len(near):
                continue
            vectors = self._standardise(torch.from_numpy(self.embeddings.vectors[near]))
            d, at = nearest(vectors, self._standardise(given[i : i + 1]), k=k)
            distance[i, : d.shape[1]], rows[i, : d.shape[1]] = d[0].numpy(), near[at[0].numpy()]
        return distance, rows

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return standardised vectors (n, D) of length 1."""
        return torch.nn.functional.normalize(self._standardise(vectors), dim=1)
