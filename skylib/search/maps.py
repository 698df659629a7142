"""Two-dimensional maps of embeddings with UMAP [1]_, on a neighbour graph that is exact up to very many objects.

References
----------
.. [1] McInnes, Healy & Melville 2018, "UMAP: Uniform Manifold Approximation and Projection", arXiv:1802.03426.
.. [2] Venna & Kaski 2001, "Neighborhood preservation in nonlinear projection methods: an experimental study",
   ICANN 2001, LNCS 2130, 485 (trustworthiness).
.. [3] Kobak & Linderman 2021, "Initialization is critical for preserving global data structure in both t-SNE and
   UMAP", Nature Biotechnology 39, 156 (starting from principal components).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skylib.checks import check_fields, checked
from skylib.device import float32_products, kept_threads, pick_device
from skylib.files import replaced
from skylib.model.embeddings import Embeddings
from skylib.search.nearest import BLOCK, neighbour_graph


@dataclass(frozen=True, kw_only=True)
class EmbeddingMap:
    """A map, and what it takes to place new objects on it.

    Attributes
    ----------
    xy : ndarray of float32, shape (n, 2)
        Coordinates of the objects it was made from.
    components : ndarray of float32, shape (n, p)
        Their principal components.
    mean, scale : ndarray of float64, shape (D,)
    directions : ndarray of float64, shape (D, p)
        From standardised vectors to principal components.
    n_neighbors : int

    Examples
    --------
    >>> laid_out = skylib.fit_map(embeddings, n_epochs=20)
    >>> laid_out.xy.shape == (len(embeddings), 2)
    True
    """

    xy: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray
    n_neighbors: int

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def transform(self, embeddings: Embeddings, *, device: str | torch.device | None = None) -> np.ndarray:
        """Place other objects of the same model on the map.

        Each goes to the mean place of its nearest neighbours among the objects of the map, weighted by
        exp(-(d - d_1) / mean(d - d_1)), with d the distance and d_1 that of the nearest: where UMAP, too, begins.

        Returns
        -------
        ndarray of float32, shape (n, 2)
            NaN for objects whose vector is not finite.
        """
        n, d, p = np.shape(self.xy)[:1], np.shape(self.mean), np.shape(self.components)[1:]
        shapes = {name: np.shape(getattr(self, name)) for name in ("xy", "components", "mean", "scale", "directions")}
        if len(n + d + p) != 3 or tuple(shapes.values()) != ((*n, 2), n + p, d, d, d + p):
            raise ValueError(f"the map has shapes {shapes}: must be (n, 2), (n, p), (D,), (D,), (D, p)")
        if (width := embeddings.vectors.shape[1]) != len(self.mean):
            raise ValueError(f"vectors of {width} numbers: the map was made from {len(self.mean)}")
        place = pick_device(device)
        old, rows = torch.from_numpy(self.components).to(place), np.flatnonzero(embeddings.finite)
        xy = np.full((len(embeddings), 2), np.nan, dtype=np.float32)
        for start in range(0, len(rows), BLOCK):  # vectors may stay on disk
            some = rows[start : start + BLOCK]
            new = ((embeddings.vectors[some] - self.mean) / self.scale @ self.directions).astype(np.float32)
            near, distance = neighbour_graph(old, torch.from_numpy(new).to(place), k=self.n_neighbors)
            excess = distance - distance[:, :1]
            mean = excess.mean(axis=1, keepdims=True)
            weight = np.exp(-excess / np.where(mean > 0, mean, 1.0))
            weight /= weight.sum(axis=1, keepdims=True)
            xy[some] = (weight[..., None] * self.xy[near]).sum(axis=1)
        return xy

    @checked
    def save(self, path: str | Path) -> None:
        """Write it as ``.npz``; the file takes its name only when it is complete."""
        with replaced(Path(path)) as partial, open(partial, "wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    @checked
    def load(cls, path: str | Path) -> EmbeddingMap:
        """Read what `save` wrote."""
        try:
            with np.load(path) as file:
                values = {field.name: file[field.name].copy() for field in fields(cls)}  # damaged ones come as bytes
            return cls(**{**values, "n_neighbors": int(values["n_neighbors"])})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such map") from error
        except Exception as error:  # damage raises errors of many kinds in the layers below
            raise OSError(f"{path}: cannot be read as a map: {error}") from error


@checked
def umap_map(
    embeddings: Embeddings, *, n_neighbors: int = 15, min_dist: float = 0.1, n_components: int = 50, seed: int = 0
) -> np.ndarray:
    """Lay embeddings out in a plane so that neighbours stay neighbours; see `fit_map`.

    Returns
    -------
    ndarray of float32, shape (n, 2)

    Examples
    --------
    >>> skylib.umap_map(embeddings).shape == (len(embeddings), 2)
    True
    """
    asked = fit_map(embeddings, n_neighbors=n_neighbors, min_dist=min_dist, n_components=n_components, seed=seed)
    return asked.xy


@checked
def fit_map(
    embeddings: Embeddings,
    *,
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    n_components: int = 50,
    seed: int = 0,
    n_epochs: int | None = None,
    device: str | torch.device | None = None,
) -> EmbeddingMap:
    """Lay embeddings out in a plane so that neighbours stay neighbours, and keep what places new objects there.

    The vectors are standardised and reduced to their main components; the neighbours of each object are found on the
    device, exactly or, of very many objects, approximately (`neighbour_graph`); UMAP begins with the first two
    components [3]_. The seed fixes the result.

    Parameters
    ----------
    embeddings : Embeddings
    n_neighbors : int
        Small: detail; large: the broad picture.
    min_dist : float
        How tightly points may be packed.
    n_components : int
        Principal components kept.
    seed : int
    n_epochs : int, optional
        Passes over the graph; UMAP's choice by default, 500 for up to 10,000 objects, else 200.
    device : optional
        Where neighbours are sought; CUDA if there is one, by default.

    Returns
    -------
    EmbeddingMap

    Raises
    ------
    ValueError
        If there are not more objects than `n_neighbors`, or a vector is not finite.

    Examples
    --------
    >>> skylib.fit_map(embeddings, n_neighbors=10, n_epochs=20).xy.shape == (len(embeddings), 2)
    True
    """
    if len(embeddings) <= n_neighbors:
        raise ValueError(f"{len(embeddings)} objects: must be more than n_neighbors={n_neighbors}")
    _check_finite(embeddings)
    scaler = StandardScaler()
    x = scaler.fit_transform(embeddings.vectors)
    pca = PCA(min(n_components, *x.shape), svd_solver="covariance_eigh")
    components = np.ascontiguousarray(pca.fit_transform(x), dtype=np.float32)
    graph = neighbour_graph(torch.from_numpy(components).to(pick_device(device)), k=n_neighbors, seed=seed)
    import umap  # its first import compiles for seconds

    with warnings.catch_warnings(), kept_threads():
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)  # a seed means one thread
        # UMAP warns that it cannot place new objects; `EmbeddingMap.transform` does.
        warnings.filterwarnings("ignore", message=r"precomputed_knn\[2\]", category=UserWarning)
        reducer = umap.UMAP(
            n_neighbors=n_neighbors,
            min_dist=min_dist,
            random_state=seed,
            init="pca",
            n_epochs=n_epochs,
            precomputed_knn=graph,
        )
        xy = np.asarray(reducer.fit_transform(components), dtype=np.float32)
    return EmbeddingMap(
        xy=xy,
        components=components,
        mean=scaler.mean_,
        scale=scaler.scale_,
        directions=pca.components_.T.astype(np.float64),
        n_neighbors=n_neighbors,
    )


@checked
def trustworthiness(
    embeddings: Embeddings,
    xy: np.ndarray,
    *,
    n_neighbors: int = 15,
    sample: int = 2000,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> float:
    """Return how far neighbours on a map are neighbours among the standardised vectors, too [2]_: 1 is perfect.

    Parameters
    ----------
    embeddings : Embeddings
    xy : ndarray, shape (n, 2)
    n_neighbors : int
        Below n / 2.
    sample : int
        Number of objects, drawn with the seed, whose neighbours among all objects are judged.

    Returns
    -------
    float
        One minus the mean excess rank of map neighbours that are no true ones, scaled to 0 … 1.

    Examples
    --------
    >>> 0 < skylib.trustworthiness(embeddings, embeddings.vectors[:, :2], sample=50) <= 1
    True
    """
    n, k = len(embeddings), n_neighbors
    _check_finite(embeddings)
    if not 0 < k < n / 2:
        raise ValueError(f"n_neighbors={k}: must be 1 to below {n / 2}, half the number of objects")
    place = pick_device(device)
    x = torch.from_numpy(StandardScaler().fit_transform(embeddings.vectors)).to(place)
    if np.shape(xy) != (n, 2):
        raise ValueError(f"xy has shape {np.shape(xy)}: must be ({n}, 2)")
    plane = torch.from_numpy(np.ascontiguousarray(xy, dtype=np.float32)).to(place)
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(n)[:sample]).to(place)
    squares, excess = x.square().sum(dim=1), 0.0
    for part in chosen.split(256):
        shown, _ = neighbour_graph(plane, plane[part], k=k + 1)
        # The object itself is no neighbour; where others lie at the very same place, it may not be the first.
        others = [[row for row in found if row != i][:k] for found, i in zip(shown, part.tolist(), strict=True)]
        with float32_products("highest"):  # whatever a training loop set
            distance = torch.addmm(squares, x[part], x.T, alpha=-2)
        distance[torch.arange(len(part)), part] = -torch.inf  # itself has rank 0
        order = distance.sort(dim=1).values
        rank = torch.searchsorted(order, distance.gather(1, torch.tensor(others, device=place)))
        excess += float((rank - k).clamp(min=0).sum())
    return 1 - 2 / (len(chosen) * k * (2 * n - 3 * k - 1)) * excess


def _check_finite(embeddings: Embeddings) -> None:
    if bad := int((~embeddings.finite).sum()):
        how = "leave them out of the map, embeddings[embeddings.finite]"
        raise ValueError(f"{bad} of {len(embeddings)} vectors are not finite: {how}")
