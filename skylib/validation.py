"""What is measured while a model trains: the loss on held-out images, and what probes read from the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skylib.cutouts import CutoutFile
from skylib.embed import embed
from skylib.loading import CutoutLoader
from skylib.mim import MaskedImageModel
from skylib.probes import Task, linear_probe
from skylib.runtime import autocast, keyed_generator

_VALIDATE = 1  # what a mask is for: part of its key


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


MOST_RANKED = 20_000  # vectors whose effective rank is measured: more take minutes, and change nothing


@torch.no_grad()
def validation_loss(model: MaskedImageModel, loader: CutoutLoader, *, precision: str, seed: int) -> float:
    """Return the loss over one pass of a loader; the masks are the same each time."""
    device = model.sky_sigma.device
    total = torch.zeros(2, device=device)  # summed error, pixels
    for number, batch in enumerate(loader):
        generator = keyed_generator(seed, _VALIDATE, number, device=device)
        with autocast(device, precision):
            out = model(batch.flux, weight=batch.weight, ra=batch.ra, dec=batch.dec, generator=generator)
        total += torch.stack([out.loss * out.n_pixels, out.n_pixels])
    error, n_pixels = total.tolist()
    return error / n_pixels if n_pixels else float("nan")


def run_probes(model: MaskedImageModel, probes: Sequence[Probe], *, precision: str) -> dict[str, float]:
    """Return ``probe_<target>_<metric>`` for each probe, and ``rank``, the effective rank of the embeddings [1]_.

    A rank that falls while the loss falls too is the sign of a collapse.

    References
    ----------
    .. [1] Garrido et al. 2023, "RankMe", arXiv:2210.02885.
    """
    measured: dict[str, float] = {}
    embedded = {}
    for probe in probes:
        split = np.asarray(probe.split)
        rows = np.flatnonzero(split >= 0)
        key = (str(probe.cutouts.path), probe.pool, probe.layer, rows.tobytes())
        if key not in embedded:
            embedded[key] = embed(model, probe.cutouts, rows=rows, pool=probe.pool, layer=probe.layer, precision=precision)  # fmt: skip
        result = linear_probe(embedded[key], probe.target, task=probe.task, split=split[rows])
        metric = "accuracy" if probe.task == "classification" else "r2"
        measured[f"probe_{probe.target}_{metric}"] = result.metrics[metric]
        vectors = embedded[key].vectors
        measured["rank"] = effective_rank(vectors[:: -(-len(vectors) // MOST_RANKED)])
    return measured


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
