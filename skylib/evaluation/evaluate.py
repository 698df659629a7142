"""What an encoder knows, in a table that always holds what anyone gets without pretraining."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skylib.data.cutouts import CutoutFile
from skylib.data.photometry import aperture_magnitudes
from skylib.data.splits import TRAIN, UNUSED
from skylib.evaluation.bootstrap import paired_margin
from skylib.evaluation.probes import (
    ProbeResult,
    Task,
    candidates,
    catalogue_probe,
    choose,
    constant_probe,
    knn_probe,
    labelled_parts,
    linear_probe,
    metric_for,
    original_probe,
)
from skylib.files import replaced
from skylib.model.embeddings import Embeddings
from skylib.model.features import encode, pixel_pca, random_weights
from skylib.model.mim import MaskedImageModel

BEST = "pretrained, linear"
RANDOM = "random weights, linear"
PIXELS = "pixel PCA, linear"
FLOORS: dict[Task, str] = {"classification": "majority class", "regression": "mean"}
MAGNITUDES = ("catalogue magnitudes", "aperture magnitudes")  # of the file's columns, or else measured on its pixels

TABLE_METRICS = (
    "accuracy", "balanced_accuracy", "roc_auc", "r2", "rms", "bias", "bias_median", "sigma_mad", "outlier_fraction",
    "outlier_fraction_0.05",
)  # fmt: skip
SHORT = ("balanced_accuracy", "r2", "sigma_mad", "outlier_fraction")
OF_A_CLASS = ("completeness_", "purity_")  # measures that each class has, and stand in the table too


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of one target, on the same test objects; without every baseline it cannot be made.

    Attributes
    ----------
    target : str
    task : {"classification", "regression"}
    results : dict of str to ProbeResult
    sweep : DataFrame
        Score and loss on validation by ``encoder``, ``layer`` and ``pool``; ``chosen`` marks the best of each encoder.
    class_names : sequence of str
        Of classes 0, 1, …, for the table; numbers by default.

    Raises
    ------
    ValueError
        If a baseline is missing, or results are of different objects.
    """

    target: str
    task: Task
    results: dict[str, ProbeResult]
    sweep: pd.DataFrame = field(default_factory=pd.DataFrame)
    class_names: Sequence[str] = ()
    _margins: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict, repr=False)  # kept

    def __post_init__(self) -> None:
        missing = [name for name in (BEST, RANDOM, PIXELS, FLOORS[self.task]) if name not in self.results]
        if not any(name in self.results for name in MAGNITUDES):
            missing.append(" or ".join(MAGNITUDES))
        if missing:
            raise ValueError(f"results of {self.target!r} lack {', '.join(missing)}: no table without its baselines")
        first = self.results[BEST].rows
        for name, result in self.results.items():
            if not np.array_equal(result.rows, first):
                raise ValueError(f"{name!r} is of other test objects than {BEST!r}: cannot stand in one table")

    @property
    def score(self) -> str:
        """Name of the measure by which settings were chosen."""
        return metric_for(self.task, self.target)[1]

    @property
    def chosen(self) -> tuple[str, int]:
        """Pooling and layer of the pretrained network that were chosen on validation."""
        best = self.sweep[self.sweep["chosen"] & (self.sweep["encoder"] == "pretrained")]
        return str(best["pool"].item()), int(best["layer"].item())

    def table(self, *, short: bool = False) -> pd.DataFrame:
        """Return every measure of every method on test, as text with its 95 % interval, and n.

        What is not defined is left empty, such as the purity of a class to which a method puts nothing. The last
        column says by how much the pretrained network beats each of the others, on the same objects. The short table has
        the main measures alone, and the best method on top.
        """
        rows = []
        for name, result in self.results.items():
            told = [m for m in TABLE_METRICS if m in result.metrics]
            told += [m for kind in OF_A_CLASS for m in result.metrics if m.startswith(kind)]
            row: dict[str, Any] = {self._named(m): result.describe(m) for m in told if np.isfinite(result.metrics[m])}
            row["n"] = int(result.metrics["n"])
            if name != BEST:
                value, low, high = self.margin(name)
                row[f"{self.score}: pretrained minus it"] = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append(row)
        index = pd.MultiIndex.from_tuples([(self.target, name) for name in self.results], names=["target", "method"])
        table = pd.DataFrame(rows, index=index).fillna("")
        if not short:
            return table
        names = [c for c in map(str, table) if c in SHORT or c.startswith("completeness_") or c.endswith("minus it")]
        order = sorted(self.results, key=lambda name: -self.results[name].metrics[self.score])
        return table.droplevel("target").loc[order][[*names, "n"]]

    def _named(self, measure: str) -> str:
        """Return a measure with the name of its class in the place of the number."""
        kind, _, c = measure.rpartition("_")
        known = f"{kind}_" in OF_A_CLASS and c.isdecimal() and int(c) < len(self.class_names)
        return f"{kind}_{self.class_names[int(c)]}" if known else measure

    def scores(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """Return the main score of every method and its interval, for `plotting.plot_comparison`."""
        return {name: (r.metrics[self.score], r.intervals[self.score]) for name, r in self.results.items()}

    def margin(self, rival: str, *, best: str = BEST) -> tuple[float, float, float]:
        """Return by how much one method beats another on the same objects: difference, and its 95 % interval."""
        if (best, rival) not in self._margins:
            one, two = self.results[best], self.results[rival]
            metric, score = metric_for(self.task, self.target)
            self._margins[best, rival] = paired_margin(one.prediction, two.prediction, one.truth, metric)[score]
        return self._margins[best, rival]

    def headline(self) -> dict[str, dict[str, Any]]:
        """Return the main score of each method, and by how much the pretrained network beats each baseline.

        Returns
        -------
        dict
            ``{"target, name: score": {"value": …, "interval": [low, high], "n": …}}``.
        """
        lines: dict[str, dict[str, Any]] = {
            f"{self.target}, {name}: {self.score}": {
                "value": value, "interval": list(interval), "n": int(self.results[name].metrics["n"]),
            }
            for name, (value, interval) in self.scores().items()
        }  # fmt: skip
        n = int(self.results[BEST].metrics["n"])
        for name in self.results:
            if not name.startswith("pretrained"):
                value, low, high = self.margin(name)
                label = f"{self.target}, pretrained minus {name.removesuffix(', linear')}: {self.score}"
                lines[label] = {"value": value, "interval": [low, high], "n": n}
        return lines


def write_results(
    run_dir: str | Path, evaluations: Sequence[Evaluation], *, more: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """Write ``evaluation.csv`` (the tables) and ``results.json`` (the headlines, and `more`), and return the table."""
    table = pd.concat([one.table() for one in evaluations]).fillna("")
    lines: dict[str, Any] = {}
    for one in evaluations:
        lines |= one.headline()
    run = Path(run_dir)
    for name, text in (("evaluation.csv", table.to_csv()), ("results.json", json.dumps({**lines, **(more or {})}, indent=2))):  # fmt: skip
        run.mkdir(parents=True, exist_ok=True)
        with replaced(run / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return table


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
    seed: int = 0,
) -> Evaluation:
    """Probe an encoder for one target, beside what anyone gets without pretraining.

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
        Columns in the order of wavelength; by default ``mag_g`` … of the model's bands. Where the file has none,
        they are measured on the pixels, and the row is called so.
    seed : int
        Of random weights and the bootstrap.

    Returns
    -------
    Evaluation
    """
    name = target if isinstance(target, str) else "target"
    used, values, parts = _used(cutouts, target, split, task)
    position = {"ra": cutouts.ra[used], "dec": cutouts.dec[used]}
    how: dict[str, Any] = {"task": task, "split": parts, "seed": seed}

    def as_embeddings(vectors: np.ndarray, columns: Mapping[str, np.ndarray] | None = None) -> Embeddings:
        return Embeddings(vectors, **position, columns={name: values, **(columns or {})})

    results: dict[str, ProbeResult] = {}
    sweeps = []
    for label, encoder in (("pretrained", model), ("random weights", random_weights(model, seed=seed))):
        every = list(dict.fromkeys((*pools, "central_flat")))
        features = encode(encoder, cutouts, rows=used, pools=every, layers=sorted({*layers, -1}))
        asked = {key: x for key, x in features.items() if key[0] in layers and key[1] in pools}
        table = _sweep(encoder, asked, as_embeddings, name, task, parts)
        chosen = as_embeddings(features[table.loc[table["chosen"], "key"].item()])
        results[f"{label}, linear"] = linear_probe(chosen, name, **how)
        if encoder is model:
            results[f"{label}, kNN"] = knn_probe(chosen, name, **how)
        side_by_side = as_embeddings(features[-1, "central_flat"])
        results[f"{label}, original's probe"] = original_probe(side_by_side, name, **how)
        sweeps.append(table.drop(columns="key").assign(encoder=label))
    everyone = np.asarray(cutouts.column(split) if isinstance(split, str) else split)
    pca = pixel_pca(model, cutouts, rows=used, train=np.flatnonzero(everyone == TRAIN), seed=seed)  # needs no labels
    results[PIXELS] = linear_probe(as_embeddings(pca), name, **how)
    mags, label = _magnitudes(model, cutouts, used, magnitudes)
    results[label] = catalogue_probe(as_embeddings(pca, mags), name, magnitudes=list(mags), **how)
    results[FLOORS[task]] = constant_probe(as_embeddings(pca), name, **how)
    named = task == "classification" and isinstance(target, str) and cutouts.column(target).dtype.kind in "iu"
    return Evaluation(
        target=name, task=task, sweep=pd.concat(sweeps, ignore_index=True),
        class_names=cutouts.class_names(name) if named else (),
        results={label: _in_file(result, used) for label, result in results.items()},
    )  # fmt: skip


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
        ``layer`` (from 0), ``pool``, ``score`` and ``loss`` on validation, ``setting``, and ``chosen``, True for the one
        with the lowest loss (see `skylib.evaluation.probes.choose`).
    """
    name = target if isinstance(target, str) else "target"
    used, values, parts = _used(cutouts, target, split, task)
    layers = range(len(model.encoder.blocks)) if layers is None else layers
    features = encode(model, cutouts, rows=used, pools=pools, layers=list(layers))

    def as_embeddings(vectors: np.ndarray) -> Embeddings:
        return Embeddings(vectors, ra=cutouts.ra[used], dec=cutouts.dec[used], columns={name: values})

    return _sweep(model, features, as_embeddings, name, task, parts).drop(columns="key")


def _sweep(
    model: MaskedImageModel, features: Mapping[tuple[int, str], np.ndarray], as_embeddings: Any, name: str, task: Task,
    parts: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    metric, score = metric_for(task, name)
    lines = []
    for (layer, pool), vectors in features.items():
        values, rows = labelled_parts(as_embeddings(vectors), name, parts, task)
        best = choose(vectors, values, rows, metric, score, candidates("linear", task))
        lines.append({"layer": layer % len(model.encoder.blocks), "pool": pool, "score": best.score, "loss": best.loss,
                      "setting": best.setting, "key": (layer, pool)})  # fmt: skip
    table = pd.DataFrame(lines)
    table["chosen"] = np.arange(len(table)) == int(table["loss"].to_numpy().argmin())
    return table


def _used(
    cutouts: CutoutFile, target: str | np.ndarray, split: str | np.ndarray, task: Task
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of the file that are labelled and in a part, and the target and part of each."""
    columns = {one: cutouts.column(one) for one in (target, split) if isinstance(one, str)}
    values, rows = labelled_parts(columns, target, split, task)
    used = np.sort(np.concatenate(list(rows.values())))
    parts = np.full(len(values), UNUSED)
    for part, mine in rows.items():
        parts[mine] = part
    return used, values[used], parts[used]


def _magnitudes(
    model: MaskedImageModel, cutouts: CutoutFile, used: np.ndarray, names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], str]:
    if names is None:
        names = [f"mag_{b.lower()}" for b in model.config.bands if f"mag_{b.lower()}" in cutouts.columns]
    if names:
        return {one: cutouts.column(one)[used] for one in names}, MAGNITUDES[0]
    planes = [cutouts.bands.index(b) for b in model.config.bands if b in cutouts.bands]
    sigma = np.ones(len(cutouts.bands))
    sigma[planes] = [
        float(s) for b, s in zip(model.config.bands, model.sky_sigma.cpu(), strict=True) if b in cutouts.bands
    ]
    mags = aperture_magnitudes(cutouts, rows=used, sky_sigma=sigma)
    return {f"mag_{b.lower()}": mags[:, i] for i, b in enumerate(cutouts.bands)}, MAGNITUDES[1]


def _in_file(result: ProbeResult, used: np.ndarray) -> ProbeResult:
    """Return a result whose rows are those of the file."""
    return ProbeResult(**{**vars(result), "rows": used[result.rows]})
