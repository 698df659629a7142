"""Whether embeddings get better while a model trains: a linear probe, and their effective rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skylib.data.cutouts import CutoutFile
from skylib.evaluation.labels import Task
from skylib.evaluation.probes import linear_probe
from skylib.model.embed import embed
from skylib.model.mim import MaskedImageModel

MOST_RANKED = 20_000  # vectors whose effective rank is measured: more take minutes, and change nothing


@dataclass(frozen=True)
class Probe:
    """A linear probe that is run while a model trains, to see whether its embeddings get better.

    Its settings stay the same through a run, so that its values can be compared.

    Parameters
    ----------
    target : str
        A column of `cutouts`.
    cutouts : CutoutFile
    task : {"classification", "regression"}
    split : ndarray of int, shape (n,)
        0 to fit, 1 to choose, 2 to report. Keep the test part of the study out of it.
    pool : str
    layer : int
        As in `embed`.
    """

    target: str
    cutouts: CutoutFile
    task: Task
    split: np.ndarray
    pool: str = "mean"
    layer: int = -1

    def __call__(self, model: MaskedImageModel, *, precision: str, shared: dict[Any, Any]) -> dict[str, float]:
        """Return ``probe_<target>_<metric>``, and ``rank``, the effective rank of the embeddings [1]_.

        A rank that falls while the loss falls too is the sign of a collapse. Probes of the same objects embed them once:
        they keep their embeddings in `shared`.

        References
        ----------
        .. [1] Garrido et al. 2023, "RankMe", arXiv:2210.02885.
        """
        split = np.asarray(self.split)
        rows = np.flatnonzero(split >= 0)
        key = (str(self.cutouts.path), self.pool, self.layer, rows.tobytes())
        if key not in shared:
            options: dict[str, Any] = {"pool": self.pool, "layer": self.layer, "precision": precision}
            shared[key] = embed(model, self.cutouts, rows=rows, **options)
        result = linear_probe(shared[key], self.target, task=self.task, split=split[rows])
        metric = "accuracy" if self.task == "classification" else "r2"
        vectors = shared[key].vectors
        rank = effective_rank(vectors[:: -(-len(vectors) // MOST_RANKED)])
        return {f"probe_{self.target}_{metric}": result.metrics[metric], "rank": rank}


def effective_rank(vectors: np.ndarray) -> float:
    """Return the exponential of the entropy of the normalised singular values of centred vectors (n, D).

    Examples
    --------
    >>> round(effective_rank(np.vstack([np.eye(4), -np.eye(4)])), 6)
    4.0
    """
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
