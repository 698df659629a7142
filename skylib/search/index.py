"""Exact search for look-alikes among embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from skylib.checks import check_choice
from skylib.data.augment import turn
from skylib.data.sky import near_any
from skylib.device import pick_device
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.search.filters import Where, matching_rows
from skylib.search.nearest import Combine, Metric, distances, nearest

Targets = int | Sequence[int] | np.ndarray
BLOCK = 65536  # vectors compared at a time
CACHED = 4096  # vectors made ready at a time


class SearchIndex:
    """Embeddings made ready to be searched many times: standardised once, and kept on the device.

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
        Vectors compared at a time; it changes memory and speed, not the answer.

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

    def __init__(
        self, embeddings: Embeddings, *, tokens: np.ndarray | None = None, standardize: bool | str = True,
        device: str | torch.device | None = None, block: int = BLOCK,
    ) -> None:  # fmt: skip
        check_choice("standardize", standardize, (True, False, "whiten"))
        given = np.ascontiguousarray(embeddings.vectors if tokens is None else tokens, dtype=np.float32)
        if given.ndim != (2 if tokens is None else 3) or len(given) != len(embeddings):
            raise ValueError(f"tokens of shape {given.shape}: must be ({len(embeddings)}, N, D), one row an object")
        self.embeddings, self.device, self._block = embeddings, pick_device(device), block
        self._given = torch.from_numpy(given).to(self.device)
        blocks = [slice(start, start + CACHED) for start in range(0, len(given), CACHED)]
        finite = [self._given[b].flatten(1).isfinite().all(dim=1) for b in blocks]
        self.finite = torch.cat(finite) if finite else torch.empty(0, dtype=torch.bool)
        if not bool(self.finite.any()):
            raise ValueError(f"none of {len(embeddings)} objects has a finite vector: nothing to search")
        self._mean, self._matrix, self._variance = self._fit(blocks, standardize)
        self.vectors = torch.empty_like(self._given)
        for b in blocks:
            self.vectors[b] = self._standardise(self._given[b].double()).nan_to_num(0.0, 0.0, 0.0).float()
        if self._matrix is not None and self._matrix.ndim == 2:  # whitened vectors are what is searched, as they are
            self._given = self.vectors
        self._squares = torch.cat([self.vectors[b].square().sum(dim=-1) for b in blocks])
        ids = embeddings.columns.get("object_id")
        self._ties = None
        if ids is not None and len(np.unique(ids)) == len(ids):
            self._ties = torch.from_numpy(np.argsort(np.argsort(ids, kind="stable"))).to(self.device)

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(
        self, targets: Targets, *, k: int = 100, metric: Metric = "cosine",
        weights: Literal["inverse_variance"] | None = None, combine: Combine = "min", exclude_targets: bool = True,
        exclude_radius: float = 0.0, where: Where | None = None, keep: np.ndarray | None = None,
    ) -> Table:  # fmt: skip
        """Rank the objects by their distance to one or more targets; see `search`.

        With `keep`, bool (n,), only those objects can be an answer.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        rows, wanted = self._targets(targets)
        weight = self._weight(wanted, weights)
        allowed = self.finite.clone()
        if keep is not None:
            allowed &= torch.from_numpy(keep).to(self.device)
        if where:
            allowed &= torch.from_numpy(matching_rows(self.embeddings, where)).to(self.device)
        if exclude_targets and len(rows):
            allowed[torch.from_numpy(rows).to(self.device)] = False
            if exclude_radius > 0:
                ra, dec = self.embeddings.ra, self.embeddings.dec
                near = near_any(ra, dec, ra[rows], dec[rows], radius=exclude_radius)
                allowed &= ~torch.from_numpy(near).to(self.device)
        distance, found = nearest(
            self.vectors, wanted, k=k, metric=metric, weight=weight, combine=combine, keep=allowed, ties=self._ties,
            squares=self._squares, precise=self._precise, block=self._block,
        )  # fmt: skip
        score, index = distance[0].cpu().numpy(), found[0].cpu().numpy()
        return ranked_table(self.embeddings, index[np.isfinite(score)], score[np.isfinite(score)])

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
            raise ValueError("an index of tokens answers one question at a time: use search")
        distance, rows = nearest(
            self.vectors, self._targets(queries)[1], k=k, metric=metric, keep=None if bool(self.finite.all()) else
            self.finite, ties=self._ties, squares=self._squares, precise=self._precise, block=self._block,
        )  # fmt: skip
        return distance.cpu().numpy(), rows.cpu().numpy()

    def scores(
        self, vectors: Tensor, targets: Targets, *, metric: Metric = "cosine",
        weights: Literal["inverse_variance"] | None = None, combine: Combine = "min",
    ) -> np.ndarray:  # fmt: skip
        """Return the distance of other vectors (n, D), not standardised, to the targets together, float32 (n,)."""
        _, wanted = self._targets(targets)
        x = self._standardise(vectors.to(self.device, torch.float64))
        weight = self._weight(wanted, weights)
        return distances(x, wanted, metric=metric, weight=weight, combine=combine).cpu().numpy()

    def _weight(self, wanted: Tensor, weights: str | None) -> Tensor | None:
        check_choice("weights", weights, ("inverse_variance", None))
        if weights is None:
            return None
        variance = wanted.var(dim=0, correction=0) + self._variance / len(wanted)
        weight = torch.where(variance > 0, 1 / variance, 0.0)
        return weight / weight.mean()

    def _targets(self, targets: Targets) -> tuple[np.ndarray, Tensor]:
        """Return row numbers (empty for given vectors) and standardised vectors of the targets, float64 (t, D)."""
        wanted, width = np.atleast_1d(np.asarray(targets)), self.vectors.shape[-1]
        if wanted.size == 0:
            raise ValueError("no targets given")
        if wanted.dtype.kind in "iu":
            if wanted.ndim != 1 or wanted.min() < 0 or wanted.max() >= len(self):
                raise ValueError(f"targets {wanted.tolist()}: row numbers must be 0 to {len(self) - 1}")
            rows = torch.from_numpy(wanted.astype(np.int64)).to(self.device)
            if not bool(self.finite[rows].all()):
                raise ValueError(f"targets {wanted.tolist()}: a vector is not finite")
            return wanted.astype(np.int64), self._precise(rows).reshape(-1, width)
        wanted = np.atleast_2d(wanted)
        if wanted.ndim != 2 or wanted.shape[1] != width:
            raise ValueError(f"targets of shape {wanted.shape}: vectors must be (t, {width})")
        if not np.isfinite(wanted).all():
            raise ValueError("targets: a vector is not finite")
        return np.empty(0, dtype=np.int64), self._standardise(torch.from_numpy(wanted).to(self.device, torch.float64))

    def _precise(self, rows: Tensor) -> Tensor:
        given = self._given[rows].double()
        return given if self._given is self.vectors else self._standardise(given)

    def _standardise(self, x: Tensor) -> Tensor:
        if self._matrix is None:
            return x
        return (x - self._mean) @ self._matrix if self._matrix.ndim == 2 else (x - self._mean) / self._matrix

    def _fit(self, blocks: list[slice], standardize: bool | str) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return mean, scale (D,) or whitening matrix (D, D), and the variance (D,) after; of all finite vectors."""
        everything = bool(self.finite.all())

        def rows(b: slice) -> Tensor:
            x = self._given[b] if everything else self._given[b][self.finite[b]]
            return x.flatten(0, -2).double()

        n = int(self.finite.sum()) * self._given[0, ..., 0].numel()
        mean = torch.stack([rows(b).sum(dim=0) for b in blocks]).sum(dim=0) / n
        if standardize == "whiten":
            covariance = torch.zeros(len(mean), len(mean)).to(mean)
            for b in blocks:
                x = rows(b) - mean
                covariance += x.T @ x / n
            values, directions = torch.linalg.eigh(covariance)
            floor = values.clamp(min=float(values.max()) * 1e-6 or 1.0)  # directions without variance are noise
            return mean, directions / floor.sqrt(), values.clamp(min=0) / floor
        variance = torch.stack([(rows(b) - mean).square_().sum(dim=0) for b in blocks]).sum(dim=0) / n
        if standardize is False:
            return mean, None, variance
        known = variance > 0  # a constant feature says nothing; any scale will do
        return mean, torch.where(known, variance, 1.0).sqrt(), known.double()


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
    targets : int, sequence of int, or ndarray of float, shape (t, D)
        Row numbers of `embeddings`, or vectors of the same model, such as those of `target_vectors`.
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
        Leave targets given as row numbers out of the answer,
    exclude_radius : float
        and all objects within so many arcsec of them: the same source, listed twice.
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
        Columns rank, index (row of `embeddings`), score (distance, small is alike), ra, dec, and the labels. Ties are
        ordered by the column ``object_id`` where there is one, without doubles; else by index.

    Raises
    ------
    ValueError
        If an option is unknown, or the targets are out of range, of another width or not finite.
    KeyError
        If `where` names a column that is not there.
    """
    index = SearchIndex(embeddings, tokens=tokens, standardize=standardize, device=device)
    return index.search(
        targets, k=k, metric=metric, weights=weights, combine=combine, exclude_targets=exclude_targets,
        exclude_radius=exclude_radius, where=where,
    )  # fmt: skip


def ranked_table(embeddings: Embeddings, rows: np.ndarray, score: np.ndarray, **more: np.ndarray) -> Table:
    """Return objects in the order given as a table: rank, index, score, ra, dec, and the labels."""
    labels = {name: values[rows] for name, values in embeddings.columns.items()}
    columns = {"rank": np.arange(len(rows)), "index": rows, "score": score, **more}
    return Table({**columns, "ra": embeddings.ra[rows], "dec": embeddings.dec[rows], **labels})


def target_vectors(
    model: MaskedImageModel, flux: np.ndarray, *, augment: bool = False, pool: str = "mean", layer: int = -1,
    ra: np.ndarray | None = None, dec: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Embed images of targets, if wanted in all eight turns and mirrors, for a search that does not care for them.

    Parameters
    ----------
    model : MaskedImageModel
    flux : ndarray of float32, shape (t, C, S, S)
        In the bands of the model and of its size, counts.
    augment : bool
        All eight orientations of each image.
    pool, layer
        As in `embed`.
    ra, dec : ndarray of float, shape (t,), optional
        Degrees; used only by a model with ``ra_dec=True``, for which they are unknown otherwise.

    Returns
    -------
    ndarray of float32, shape (t, D), or (8 t, D) with `augment`
    """
    device = model.sky_sigma.device
    images = torch.from_numpy(np.asarray(flux, dtype=np.float32)).to(device)
    unknown = np.full(len(images), np.nan)
    place = [torch.from_numpy(np.asarray(unknown if v is None else v, dtype=np.float64)).to(device) for v in (ra, dec)]
    if augment:
        turns = torch.cartesian_prod(*[torch.tensor([False, True])] * 3).T  # all eight, (3, 8)
        turns = turns.repeat(1, len(images))
        images, *place = (x.repeat_interleave(8, dim=0) for x in (images, *place))
        images = turn(images, turns)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = zip(*(x.split(256) for x in (images, *place)), strict=True)
            vectors = [model.embed(x, pool=pool, ra=a, dec=d, layer=layer).float().cpu() for x, a, d in parts]
            return torch.cat(vectors).numpy()
    finally:
        model.train(was_training)
