"""How good the embeddings of an encoder are, beside baselines that need no pretraining; also while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from skylib.checks import checked
from skylib.data.cutouts import CutoutFile
from skylib.data.photometry import aperture_magnitudes
from skylib.data.splits import TRAIN
from skylib.evaluation.baselines import pixel_pca, random_weights
from skylib.evaluation.labels import Labels, Task, select_labels
from skylib.evaluation.metrics import effective_rank
from skylib.evaluation.probes import Chosen, ProbeResult, candidates, choose, judge, linear_probe, probe, with_colours
from skylib.evaluation.results import CATALOGUE, FLOORS, MEASURED, PIXELS, UPPER_BOUND, Evaluation
from skylib.model.embed import Features, embed, encode
from skylib.model.mim import MaskedImageModel


@checked
def evaluate(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str | np.ndarray,
    *,
    task: Task,
    split: str | np.ndarray,
    pools: Sequence[str] = ("mean", "central", "central_flat"),
    layers: Sequence[int] = (-1,),
    magnitudes: Sequence[str] | None = None,
    all_orientations: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Probe an encoder for one target, and compare with baselines that need no pretraining.

    The network with random weights has the same choice of layers, poolings and regularisation, made on validation.

    Parameters
    ----------
    model : MaskedImageModel
    cutouts : CutoutFile
    target, task, split
        As in `linear_probe`.
    pools : sequence of str
        Of `skylib.model.pooling.POOLS`.
    layers : sequence of int
    magnitudes : sequence of str, optional
        Columns in the order of wavelength; by default ``mag_g`` … of the model's bands, if the file has them. Those of
        a simulated file hold no noise, and are an upper bound. Magnitudes measured on the pixels are always compared.
    all_orientations : bool
        Vectors of both networks are means over the rotations and flips of an image, as in `embed`; but for the
        original's probe.
    seed : int
        Of random weights and the bootstrap.

    Returns
    -------
    Evaluation
    """
    labels = select_labels(cutouts.column, target, split, task)
    results: dict[str, ProbeResult] = {}
    sweeps = []

    def add(name: str, x: np.ndarray, kind: Any) -> None:
        results[name] = probe(x, labels, candidates(kind, task, seed=seed), seed=seed)

    for name, encoder in (("pretrained", model), ("random weights", random_weights(model, seed=seed))):
        every = list(dict.fromkeys((*pools, "central_flat")))
        features = encode(encoder, cutouts, rows=labels.used, pools=every, layers=sorted({*layers, -1}))
        asked = {key: x for key, x in features.items() if key[0] in layers and key[1] in pools}
        if all_orientations:
            asked = encode(encoder, cutouts, rows=labels.used, pools=pools, layers=layers, all_orientations=True)
        table, key, best = _sweep(encoder, asked, labels)
        results[f"{name}, linear"] = judge(best, asked[key], labels, seed=seed)
        if encoder is model:
            add(f"{name}, kNN", asked[key], "knn")
        add(f"{name}, original's probe", features[-1, "central_flat"], "original")
        sweeps.append(table.assign(encoder=name))
    parts = np.asarray(cutouts.column(split) if isinstance(split, str) else split)
    train = np.flatnonzero(parts == TRAIN)  # labelled or not
    pca = pixel_pca(model, cutouts, rows=labels.used, train=train, seed=seed)
    add(PIXELS, pca, "linear")
    noise = dict(zip(model.config.bands, model.sky_sigma.tolist(), strict=True))
    sigma = np.array([noise.get(band, 1.0) for band in cutouts.bands])
    add(MEASURED, with_colours(aperture_magnitudes(cutouts, rows=labels.used, sky_sigma=sigma)), "boosting")
    if magnitudes is None:
        magnitudes = [name for b in model.config.bands if (name := f"mag_{b.lower()}") in cutouts.columns]
    if magnitudes:
        given = np.stack([cutouts.column(name)[labels.used] for name in magnitudes], axis=1)
        add(UPPER_BOUND if cutouts.simulated else CATALOGUE, with_colours(given), "boosting")
    add(FLOORS[task], pca, "constant")
    named = task == "classification" and isinstance(target, str) and cutouts.column(target).dtype.kind in "iu"
    return Evaluation(
        target=labels.name,
        task=task,
        sweep=pd.concat(sweeps, ignore_index=True),
        class_names=cutouts.class_names(labels.name) if named else (),
        results=results,
    )


@checked
def layer_sweep(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str | np.ndarray,
    *,
    task: Task,
    split: str | np.ndarray,
    pools: Sequence[str] = ("mean", "central", "central_flat", "max", "cls"),
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Score a linear probe on validation for every layer and pooling; test is not looked at.

    Parameters
    ----------
    layers : sequence of int, optional
        All by default.
    model, cutouts, target, task, split, pools
        As in `evaluate`.

    Returns
    -------
    DataFrame
        ``layer`` (from 0), ``pool``, ``score`` and ``loss`` on validation, ``setting``, and ``chosen``, True for the
        one with the lowest loss (see `skylib.evaluation.probes.choose`).
    """
    labels = select_labels(cutouts.column, target, split, task)
    layers = range(len(model.encoder.blocks)) if layers is None else layers
    features = encode(model, cutouts, rows=labels.used, pools=pools, layers=list(layers))
    return _sweep(model, features, labels)[0]


def _sweep(model: MaskedImageModel, features: Features, labels: Labels) -> tuple[pd.DataFrame, tuple[int, str], Chosen]:
    """Return the table of all layers and poolings, and the one with the lowest loss with its model."""
    found = {key: choose(x, labels, candidates("linear", labels.task)) for key, x in features.items()}
    best = min(found, key=lambda key: found[key].loss)
    depth = len(model.encoder.blocks)
    rows = [
        (layer % depth, pool, one.score, one.loss, one.setting, (layer, pool) == best)
        for (layer, pool), one in found.items()
    ]
    table = pd.DataFrame(rows, columns=["layer", "pool", "score", "loss", "setting", "chosen"])
    return table, best, found[best]


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

        A rank that falls while the loss falls too is the sign of a collapse. Probes of the same objects embed them
        once: they keep their embeddings in `shared`.

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
        vectors = shared[key].vectors[shared[key].finite]
        rank = effective_rank(vectors[:: -(-len(vectors) // MOST_RANKED)])
        return {f"probe_{self.target}_{metric}": result.metrics[metric], "rank": rank}
