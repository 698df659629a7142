"""Two-dimensional maps of embeddings with UMAP [1]_.

References
----------
.. [1] McInnes, Healy & Melville 2018, "UMAP: Uniform Manifold Approximation and Projection", arXiv:1802.03426.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skylib.embed import Embeddings


def umap_map(
    embeddings: Embeddings, *, n_neighbors: int = 15, min_dist: float = 0.1, n_components: int = 50, seed: int = 0
) -> np.ndarray:
    """Lay embeddings out in a plane so that neighbours stay neighbours.

    The vectors are standardised and reduced to their main components first; the seed fixes the result.

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

    Returns
    -------
    ndarray of float32, shape (n, 2)

    Raises
    ------
    ValueError
        If there are not more objects than `n_neighbors`.
    """
    if len(embeddings) <= n_neighbors:
        raise ValueError(f"{len(embeddings)} objects: must be more than n_neighbors={n_neighbors}")
    x = StandardScaler().fit_transform(embeddings.vectors)
    x = PCA(min(n_components, *x.shape), svd_solver="full").fit_transform(x)
    import umap  # its first import compiles for seconds

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)  # a seed means one thread
        reducer = umap.UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed)
        return np.asarray(reducer.fit_transform(x), dtype=np.float32)
