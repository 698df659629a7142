"""Exact search for look-alikes among embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from skylib.checks import checked, free_name
from skylib.data.plain import filled, row_numbers
from skylib.data.sky import best_of_each_place, near_any
from skylib.device import kept_memory, pick_device, tensor_of
from skylib.model.embeddings import Embeddings
from skylib.search.filters import Where, matching_rows
from skylib.search.nearest import BLOCK, Combine, Metric, distances, nearest
from skylib.search.queries import find_object
from skylib.search.standard import CACHED, Standardiser, as_vectors

Targets = int | str | Sequence[int] | Sequence[str] | np.ndarray


class SearchIndex:
    """Embeddings prepared for many searches: standardised once, and kept on the device.

    Parameters
    ----------
    embeddings : Embeddings
        Objects whose vector holds a NaN or infinity are never an answer.
    tokens : ndarray of float32, shape (n, N, D), optional
        Patch tokens of the same objects (`embed_tokens`), searched in place of their pooled vectors.
    standardize : bool or "whiten"
        Bring each feature to mean 0 and variance 1 over all objects; ``"whiten"`` also makes features uncorrelated.
    device : optional
        CUDA if there is one, by default.
    block : int
        Vectors compared at a time. It changes memory and speed, not the answer.

    Attributes
    ----------
    embeddings : Embeddings
    vectors : Tensor of float32, shape (n, D) or (n, N, D)
        The standardised vectors.
    finite : Tensor of bool, shape (n,)
        Objects that can be an answer.

    Raises
    ------
    ValueError
        If `tokens` are of other objects, or no object has a finite vector.
    """

    @checked
    def __init__(
        self,
        embeddings: Embeddings,
        *,
        tokens: np.ndarray | None = None,
        standardize: bool | str = True,
        device: str | torch.device | None = None,
        block: int = BLOCK,
    ) -> None:
        given = tensor_of("tokens", embeddings.vectors if tokens is None else tokens).float()
        if given.ndim != (2 if tokens is None else 3) or len(given) != len(embeddings):
            raise ValueError(f"tokens of shape {tuple(given.shape)}: must be ({len(embeddings)}, N, D), one per object")
        self.embeddings, self.device = embeddings, pick_device(device)
        vectors = given.to(self.device)
        self.finite = torch.cat([part.flatten(1).isfinite().all(dim=1) for part in vectors.split(CACHED)])
        if not bool(self.finite.any()):
            raise ValueError(f"none of {len(embeddings)} objects has a finite vector: nothing to search")
        self._all_finite = bool(self.finite.all())
        with kept_memory(self.device):
            good = vectors if self._all_finite else vectors[self.finite]
            self._standardise = Standardiser([good.flatten(0, -2)], standardize)
            own = vectors if standardize or self._all_finite else vectors.clone()  # not those of the embeddings
            found = self._standardise(own)
            self.vectors = found if self._all_finite else found.nan_to_num_(0.0, 0.0, 0.0)
        squares = torch.cat([part.square().sum(dim=-1) for part in self.vectors.split(CACHED)])
        ids, ties = embeddings.columns.get("object_id"), None
        if ids is not None and len(np.unique(ids)) == len(ids):
            ties = torch.from_numpy(np.argsort(np.argsort(ids, kind="stable"))).to(self.device)
        self._how: dict[str, Any] = {"squares": squares, "ties": ties, "block": block}

    def __len__(self) -> int:
        return len(self.embeddings)

    @checked
    def search(
        self,
        targets: Targets,
        *,
        k: int = 100,
        metric: Metric = "cosine",
        weights: Literal["inverse_variance"] | None = None,
        combine: Combine = "min",
        exclude_targets: bool = True,
        exclude_radius: float = 0.0,
        min_separation: float = 0.0,
        where: Where | None = None,
        keep: np.ndarray | None = None,
    ) -> Table:
        """Rank the objects by their distance to one or more targets; see `search`.

        With `keep`, bool (n,) or row numbers, only those objects can be an answer.
        """
        objects, (rows, wanted) = self.embeddings, self._targets(targets)
        allowed = self.finite.cpu().numpy() & matching_rows(objects, where or {})
        if keep is not None:
            allowed &= np.isin(np.arange(len(self)), row_numbers(keep, len(self), where="keep: "))
        if exclude_targets and len(rows):
            allowed[rows] = False
            if exclude_radius > 0:
                allowed &= ~near_any(
                    objects.ra, objects.dec, objects.ra[rows], objects.dec[rows], radius=exclude_radius
                )
        how = {"metric": metric, "weight": self._weight(wanted, weights), "combine": combine, **self._how}
        how["keep"] = torch.from_numpy(allowed).to(self.device)

        def ranked(n: int) -> tuple[np.ndarray, np.ndarray]:
            score, index = (found[0].cpu().numpy() for found in nearest(self.vectors, wanted, k=n, **how))
            return index[np.isfinite(score)], score[np.isfinite(score)]

        return ranked_table(objects, *best_apart(ranked, objects, k=k, radius=min_separation))

    @checked
    def nearest(self, queries: np.ndarray, *, k: int = 100, metric: Metric = "cosine") -> tuple[np.ndarray, np.ndarray]:
        """Find the objects nearest to each of many vectors.

        Parameters
        ----------
        queries : ndarray of float, shape (q, D)
            Vectors of the same model, not standardised.

        Returns
        -------
        distance : ndarray of float32, shape (q, k)
            Ascending; infinite where there are fewer than k objects.
        rows : ndarray of int64, shape (q, k)
        """
        if self.vectors.ndim != 2:
            raise ValueError("an index of tokens takes one question at a time: use search")
        keep = None if self._all_finite else self.finite
        wanted = self._standardise(as_vectors("queries", queries, self.vectors.shape[1]).to(self.device))
        distance, rows = nearest(self.vectors, wanted, k=k, metric=metric, keep=keep, **self._how)
        return distance.cpu().numpy(), rows.cpu().numpy()

    @checked
    def scores(
        self,
        vectors: Tensor | np.ndarray,
        targets: Targets,
        *,
        metric: Metric = "cosine",
        weights: Literal["inverse_variance"] | None = None,
        combine: Combine = "min",
    ) -> np.ndarray:
        """Return the distance of other vectors (n, D), not standardised, to the targets together, float32 (n,)."""
        wanted, given = self._targets(targets)[1], as_vectors("vectors", vectors, self.vectors.shape[-1], finite=False)
        weight, x = self._weight(wanted, weights), self._standardise(given.to(self.device))
        return distances(x, wanted, metric=metric, weight=weight, combine=combine).cpu().numpy()

    def _weight(self, wanted: Tensor, weights: str | None) -> Tensor | None:
        if weights is None:
            return None
        variance = wanted.double().var(dim=0, correction=0) + self._standardise.variance / len(wanted)
        weight = torch.where(variance > 0, 1 / variance, 0.0)
        return weight / weight.mean()

    def _targets(self, targets: Targets) -> tuple[np.ndarray, Tensor]:
        """Return row numbers (empty for given vectors) and standardised vectors of the targets, float32 (t, D)."""
        wanted, width = np.atleast_1d(np.asarray(filled(targets))), self.vectors.shape[-1]
        if wanted.size == 0:
            raise ValueError("no targets given")
        if wanted.dtype.kind == "b" and wanted.shape == (len(self),):
            wanted = np.flatnonzero(wanted)
        if wanted.dtype.kind == "U":
            wanted = np.array([find_object(self.embeddings, text, radius=5.0)[0] for text in wanted.ravel()])
        if wanted.dtype.kind in "iu":
            if wanted.ndim != 1 or wanted.min() < 0 or wanted.max() >= len(self):
                raise ValueError(f"targets {wanted.tolist()}: row numbers must be 0 to {len(self) - 1}")
            rows = torch.from_numpy(wanted.astype(np.int64)).to(self.device)
            if not bool(self.finite[rows].all()):
                raise ValueError(f"targets {wanted.tolist()}: a vector is not finite")
            return wanted.astype(np.int64), self.vectors[rows].reshape(-1, width)
        return np.empty(0, dtype=np.int64), self._standardise(as_vectors("targets", wanted, width).to(self.device))


@checked
def search(
    embeddings: Embeddings,
    targets: Targets,
    *,
    k: int = 100,
    metric: Metric = "cosine",
    weights: Literal["inverse_variance"] | None = None,
    standardize: bool | str = True,
    combine: Combine = "min",
    exclude_targets: bool = True,
    exclude_radius: float = 0.0,
    min_separation: float = 0.0,
    where: Where | None = None,
    tokens: np.ndarray | None = None,
    device: str | torch.device | None = None,
) -> Table:
    """Rank all objects by their distance to one or more targets.

    For many searches of the same objects make a `SearchIndex` once: this function makes one each time.

    Parameters
    ----------
    embeddings : Embeddings
        The objects to search.
    targets : int, str, sequence of int or str, or ndarray of float, shape (t, D)
        Row numbers of `embeddings`; texts for `find_object`, such as the position ``"150.1 2.2"`` within 5 arcsec; or
        vectors of the same model, such as those of `target_vectors`.
    k : int
        How many to return; fewer if there are no more.
    metric : {"cosine", "mse", "mae"}
        Cosine distance, mean squared (Euclidean) or mean absolute (L1) difference of the features.
    weights : {"inverse_variance", None}
        Weigh each feature by 1 / (variance over the targets + variance over all objects / number of targets), which
        is defined for a single target too (equal weights then, after standardisation).
    standardize : bool or "whiten"
        Bring each feature to mean 0 and variance 1 over all objects, whatever `where` leaves of them; ``"whiten"``
        also makes features uncorrelated.
    combine : {"min", "mean", "max"}
        Distance to several targets: to the nearest, on average, or to the farthest. Of tokens, over all pairs of a
        token of a target and a token of the object.
    exclude_targets : bool
        Leave targets given as row numbers out of the answer.
    exclude_radius : float
        Also leave out all objects within this many arcsec of them: the same source, listed twice.
    min_separation : float
        Of objects closer together than this many arcsec, return the best only: one entry per source.
    where : mapping, optional
        Only objects that fulfil ``{column: (low, high)}``, ``{column: value}`` or ``{column: [value, …]}``; such as
        ``{"mag_i": (20, 24), "class": 0, "snr": (5, None)}``.
    tokens : ndarray of float32, shape (n, N, D), optional
        Patch tokens of the same objects, searched in place of their pooled vectors.
    device : optional
        CUDA if there is one, by default. The answer is the same everywhere.

    Returns
    -------
    Table
        Columns rank, index (row of `embeddings`), score (distance; smaller is more similar), ra, dec, and the labels.
        Ties are ordered by the column ``object_id`` where there is one, without doubles; else by index.

    Raises
    ------
    ValueError
        If an option is unknown, or the targets are out of range, of another width or not finite.
    KeyError
        If `where` names a column that is not there.
    """
    return SearchIndex(embeddings, tokens=tokens, standardize=standardize, device=device).search(
        targets,
        k=k,
        metric=metric,
        weights=weights,
        combine=combine,
        exclude_targets=exclude_targets,
        exclude_radius=exclude_radius,
        min_separation=min_separation,
        where=where,
    )


def best_apart(
    ranked: Callable[[int], tuple[np.ndarray, np.ndarray]], embeddings: Embeddings, *, k: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows of a ranking that are not within `radius` (arcsec) of a better one, and their scores.

    `ranked` gives the n best rows and their scores, or fewer if there are no more.
    """
    n = k
    while True:
        rows, scores = ranked(n)
        chosen = np.arange(len(rows))
        if radius > 0:
            chosen = best_of_each_place(embeddings.ra[rows], embeddings.dec[rows], radius=radius, n=k)
        if len(chosen) == k or len(rows) < n:
            return rows[chosen], scores[chosen]
        n *= 2


def ranked_table(embeddings: Embeddings, rows: np.ndarray, score: np.ndarray, **more: np.ndarray) -> Table:
    """Return objects in the order given as a table: rank, index, score, ra, dec, and the labels.

    A label that has the name of one of these columns is called ``NAME_label``.
    """
    columns = {"rank": np.arange(len(rows)), "index": rows, "score": score, **more}
    columns |= {"ra": embeddings.ra[rows], "dec": embeddings.dec[rows]}
    for name, values in embeddings.columns.items():
        own = free_name(name, columns)
        columns[own if own == name else free_name(own, embeddings.columns)] = values[rows]
    return Table(columns)
