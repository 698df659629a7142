"""How good the embeddings of an encoder are, in one table with baselines that need no pretraining."""

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
from skylib.data.splits import TRAIN
from skylib.evaluation.baselines import pixel_pca, random_weights
from skylib.evaluation.labels import Labels, Task, select_labels
from skylib.evaluation.metrics import metric_for, paired_margin
from skylib.evaluation.probes import ProbeResult, candidates, choose, probe, with_colours
from skylib.files import replaced
from skylib.model.embed import Features, encode
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
            shown = [m for m in TABLE_METRICS if m in result.metrics]
            shown += [m for kind in OF_A_CLASS for m in result.metrics if m.startswith(kind)]
            row: dict[str, Any] = {self._named(m): result.describe(m) for m in shown if np.isfinite(result.metrics[m])}
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
        has_name = f"{kind}_" in OF_A_CLASS and c.isdecimal() and int(c) < len(self.class_names)
        return f"{kind}_{self.class_names[int(c)]}" if has_name else measure

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
        Columns in the order of wavelength; by default ``mag_g`` … of the model's bands. Where the file has none,
        they are measured on the pixels, and the row is called so.
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
        table = _sweep(encoder, {key: x for key, x in features.items() if key[0] in layers and key[1] in pools}, labels)
        chosen = features[table.loc[table["chosen"], "key"].item()]
        add(f"{name}, linear", chosen, "linear")
        if encoder is model:
            add(f"{name}, kNN", chosen, "knn")
        add(f"{name}, original's probe", features[-1, "central_flat"], "original")
        sweeps.append(table.drop(columns="key").assign(encoder=name))
    parts = np.asarray(cutouts.column(split) if isinstance(split, str) else split)
    train = np.flatnonzero(parts == TRAIN)  # labelled or not
    pca = pixel_pca(model, cutouts, rows=labels.used, train=train, seed=seed)
    add(PIXELS, pca, "linear")
    mags, name = _magnitudes(model, cutouts, labels.used, magnitudes)
    add(name, with_colours(mags), "boosting")
    add(FLOORS[task], pca, "constant")
    named = task == "classification" and isinstance(target, str) and cutouts.column(target).dtype.kind in "iu"
    return Evaluation(
        target=labels.name,
        task=task,
        sweep=pd.concat(sweeps, ignore_index=True),
        class_names=cutouts.class_names(labels.name) if named else (),
        results=results,
    )


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
    labels = select_labels(cutouts.column, target, split, task)
    layers = range(len(model.encoder.blocks)) if layers is None else layers
    features = encode(model, cutouts, rows=labels.used, pools=pools, layers=list(layers))
    return _sweep(model, features, labels).drop(columns="key")


def _sweep(model: MaskedImageModel, features: Features, labels: Labels) -> pd.DataFrame:
    lines = []
    for (layer, pool), vectors in features.items():
        best = choose(vectors, labels, candidates("linear", labels.task))
        line = {"layer": layer % len(model.encoder.blocks), "pool": pool, "score": best.score, "loss": best.loss}
        lines.append({**line, "setting": best.setting, "key": (layer, pool)})
    table = pd.DataFrame(lines)
    table["chosen"] = np.arange(len(table)) == int(table["loss"].to_numpy().argmin())
    return table


def _magnitudes(
    model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray, names: Sequence[str] | None
) -> tuple[np.ndarray, str]:
    """Return magnitudes (n, C) of the catalogue, or else measured on the pixels, and which of the two they are."""
    if names is None:
        names = [f"mag_{b.lower()}" for b in model.config.bands if f"mag_{b.lower()}" in cutouts.columns]
    if names:
        return np.stack([cutouts.column(one)[rows] for one in names], axis=1), MAGNITUDES[0]
    noise = dict(zip(model.config.bands, model.sky_sigma.tolist(), strict=True))
    sigma = np.array([noise.get(band, 1.0) for band in cutouts.bands])
    return aperture_magnitudes(cutouts, rows=rows, sky_sigma=sigma), MAGNITUDES[1]
