"""What the benchmark of recipes measures: an encoder's vectors of a simulated survey, in one flat row of numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skylib import CutoutFile, photoz_metrics
from skylib.data.splits import TEST, TRAIN
from skylib.evaluation.labels import Labels, nested_subset, select_labels
from skylib.evaluation.metrics import classification_metrics, effective_rank, regression_metrics
from skylib.evaluation.probes import candidates as models
from skylib.evaluation.probes import choose
from skylib.evaluation.solvers import SoftmaxRegression

FAINT_LIMIT = 24.5  # i band: objects are judged that are brighter
CLASS_C = (1e-3, 1e-2, 1e-1, 1.0)
PREVALENCES = (("26 %", 0.26, ("qso", "star")), ("2 %", 0.02, ("qso", "star")), ("0.1 %", 0.001, ("dwarf", "arc")))
LABELS = (2**7, 2**11)
CLASSES = ("galaxy", "qso", "star")
Vectors = dict[tuple[int, str], np.ndarray]  # by (layer, pool): (n, D)
Encoder = Callable[[CutoutFile, np.ndarray, Sequence[str]], Vectors]  # file, rows, bands that are taken away


@dataclass(frozen=True)
class Survey:
    """The simulated survey that `recipes.py survey` made."""

    folder: Path

    @cached_property
    def main(self) -> CutoutFile:
        """Return the field whose parts are fitted, chosen on and judged."""
        return CutoutFile(self.folder / "main.h5")

    @cached_property
    def other(self) -> CutoutFile:
        """Return the field of other seeing and depth, which nothing is fitted to."""
        return CutoutFile(self.folder / "other.h5")

    @cached_property
    def split(self) -> np.ndarray:
        """Return 0 train, 1 validation, 2 test of the judged objects of `main`, -1 for the faint ones."""
        return np.where(judged(self.main), self.main.column("split"), -1)

    @cached_property
    def used(self) -> np.ndarray:
        """Return the rows of `main` that are embedded: those judged, and the rare ones."""
        return np.flatnonzero((self.split >= 0) | np.isin(self.kind, ("dwarf", "arc")))

    @cached_property
    def kind(self) -> np.ndarray:
        """Return what each object of `main` is, for retrieval: dwarf, arc, galaxy, qso or star."""
        rare, classes = self.main.column("rare"), np.array(CLASSES)[self.main.column("class")]
        return np.where(rare == "none", classes, rare)


def judged(cutouts: CutoutFile) -> np.ndarray:
    """Return which objects are bright enough to be judged."""
    return cutouts.column("mag_i") < FAINT_LIMIT


def score(encoder: Encoder, survey: Survey, *, seed: int = 0) -> dict[str, Any]:
    """Return one row: everything that is measured of an encoder.

    Layer and settings are chosen on validation for each pooling. What has no pooling in its name is measured with that
    of the lowest loss on validation.
    """
    start = time.perf_counter()
    main = survey.main
    vectors = {}
    for key, some in encoder(main, survey.used, ()).items():
        vectors[key] = np.full((len(main), some.shape[1]), np.nan, np.float32)
        vectors[key][survey.used] = some
    row: dict[str, Any] = {}
    best: tuple[float, tuple[int, str], Any] | None = None
    for pool in dict.fromkeys(pool for _, pool in vectors):
        candidates = {key: x for key, x in vectors.items() if key[1] == pool}
        classes, redshift = _classify(candidates, survey), _regress(candidates, survey)
        row |= {f"{pool}: {name}": value for name, value in (classes["row"] | redshift["row"]).items()}
        if best is None or classes["loss"] < best[0]:
            best = (classes["loss"], classes["key"], (classes, redshift))
    assert best is not None
    _, key, (classes, redshift) = best
    row = {"pool": key[1], **classes["row"], **redshift["row"], **row}
    x = vectors[key]
    row["RankMe"] = effective_rank(x[survey.used[:: -(-len(survey.used) // 8000)]].astype(np.float64))
    row |= _retrieve(x, survey, seed=seed) | _few_labels(x, survey)
    row |= _missing_bands(encoder, survey, key, classes["model"])
    row |= _other_field(encoder, survey, vectors, classes, redshift)
    row["seconds of scoring"] = round(time.perf_counter() - start, 1)
    return row


def class_row(prediction: np.ndarray, truth: np.ndarray, prefix: str = "class") -> dict[str, float]:
    """Return balanced accuracy, and the share of each class that was found."""
    found = classification_metrics(prediction, truth)
    row = {f"{prefix}": found["balanced_accuracy"]}
    return row | {f"{prefix} {name}": found.get(f"completeness_{c}", np.nan) for c, name in enumerate(CLASSES)}


def redshift_row(prediction: np.ndarray, truth: np.ndarray, prefix: str = "z") -> dict[str, float]:
    """Return R2, sigma_mad, outliers and bias, also by bin of the true redshift."""
    found = photoz_metrics(prediction, truth)
    names = {"R2": "r2", "sigma_mad": "sigma_mad", "outliers": "outlier_fraction", "bias": "bias"}
    row = {f"{prefix} {name}": found[key] for name, key in names.items()}
    dz = (prediction - truth) / (1 + truth)
    for low, high in ((0.0, 0.4), (0.4, 0.8), (0.8, 2.6)):
        mine = (truth >= low) & (truth < high)
        row[f"{prefix} bias {low:g}-{high:g}"] = float(dz[mine].mean()) if mine.any() else np.nan
    return row


def redshift_rows(cutouts: CutoutFile, rows: np.ndarray) -> np.ndarray:
    """Return which of the rows have a redshift to be judged: galaxies."""
    return rows[(cutouts.column("class")[rows] == 0) & np.isfinite(cutouts.column("z_spec")[rows])]


def labels_of(survey: Survey, target: str) -> Labels:
    """Return the labels of `main`: classes, or redshifts of galaxies."""
    if target == "class":
        return select_labels(survey.main.column, "class", survey.split, "classification")
    split = np.where(survey.main.column("class") == 0, survey.split, -1)
    return select_labels(survey.main.column, target, split, "regression")


def _classify(candidates: Vectors, survey: Survey) -> dict[str, Any]:
    labels = labels_of(survey, "class")
    x = {key: vectors[labels.used] for key, vectors in candidates.items()}
    key = min(x, key=lambda key: choose(x[key], labels, classifiers(0.03)).loss)
    best = choose(x[key], labels, classifiers(*CLASS_C))
    nearest = choose(x[key], labels, models("knn", "classification"))
    test, truth = x[key][labels.places(TEST)], labels.of(TEST)
    row = {"class layer": key[0], "class setting": best.setting, **class_row(best.model.predict(test), truth)}
    row |= class_row(nearest.model.predict(test), truth, "class kNN")
    return {"row": row, "loss": best.loss, "key": key, "model": best.model}


def classifiers(*strengths: float) -> dict[str, Any]:
    return {f"C={c:g}": SoftmaxRegression(c, class_weight="balanced") for c in strengths}


def _regress(candidates: Vectors, survey: Survey) -> dict[str, Any]:
    labels = labels_of(survey, "z_spec")
    x = {key: vectors[labels.used] for key, vectors in candidates.items()}
    chosen = {key: choose(vectors, labels, models("linear", "regression")) for key, vectors in x.items()}
    key = min(chosen, key=lambda key: chosen[key].loss)
    nearest = choose(x[key], labels, models("knn", "regression"))
    test, truth = x[key][labels.places(TEST)], labels.of(TEST)
    row = {"z layer": key[0], "z setting": chosen[key].setting}
    row |= redshift_row(chosen[key].model.predict(test), truth)
    row |= redshift_row(nearest.model.predict(test), truth, "z kNN")
    return {"row": row, "key": key, "model": chosen[key].model}


def _retrieve(x: np.ndarray, survey: Survey, *, seed: int) -> dict[str, float]:
    """Search by each planted rare object for the others, and by common ones at several prevalences."""
    kinds, used = survey.kind[survey.used], x[survey.used]
    fit = survey.split[survey.used] == 0
    scaled = (used - used[fit].mean(0)) / used[fit].std(0).clip(min=1e-6)
    unit = torch.from_numpy(scaled / np.linalg.norm(scaled, axis=1, keepdims=True).clip(min=1e-12)).float()
    row: dict[str, float] = {}
    for kind in ("dwarf", "arc"):
        wanted = np.flatnonzero(kinds == kind)
        found = _hits(unit, wanted, kinds == kind, k=100).sum(1).mean() if len(wanted) > 1 else np.nan
        row[f"recall@100 {kind}"] = float(found / max(1, min(100, len(wanted) - 1)))
    rng = np.random.default_rng(seed)
    for name, prevalence, sought in PREVALENCES:
        gains = []
        for kind in sought:
            relevant, rest = np.flatnonzero(kinds == kind), np.flatnonzero(kinds != kind)
            if len(relevant) / len(kinds) > prevalence:
                relevant = rng.permutation(relevant)[: max(2, round(len(rest) * prevalence / (1 - prevalence)))]
            else:
                rest = rng.permutation(rest)[: round(len(relevant) * (1 - prevalence) / prevalence)]
            if len(relevant) > 1:
                base = np.concatenate([relevant, rest])
                hits = _hits(unit[base], np.arange(min(300, len(relevant))), np.arange(len(base)) < len(relevant), k=10)
                gain = 1 / np.log2(np.arange(2, 2 + hits.shape[1]))
                gains.append((hits @ gain).mean() / gain[: min(10, len(relevant) - 1)].sum())
        row[f"nDCG@10 {name}"] = float(np.mean(gains)) if gains else np.nan
    return row


def _hits(unit: torch.Tensor, queries: np.ndarray, relevant: np.ndarray, *, k: int) -> np.ndarray:
    """Return which of the k nearest to each query, but itself, are relevant: (q, k)."""
    alike = unit[torch.from_numpy(queries)] @ unit.T
    alike[torch.arange(len(queries)), torch.from_numpy(queries)] = -torch.inf
    return relevant[alike.topk(min(k, len(unit) - 1), dim=1).indices.numpy()].astype(float)


def _few_labels(x: np.ndarray, survey: Survey) -> dict[str, float]:
    """Fit the linear classifier to few labels, three subsets of each number."""
    labels = labels_of(survey, "class")
    row = {}
    for n in LABELS:
        scores = []
        for seed in range(3 if n <= len(labels.rows[TRAIN]) else 0):
            some = labels.rows[TRAIN][nested_subset(labels.of(TRAIN), n, task="classification", seed=seed)]
            few = replace(labels, rows={**labels.rows, TRAIN: some})
            model = choose(x[few.used], few, classifiers(*CLASS_C)).model
            found = model.predict(x[few.rows[TEST]])
            scores.append(classification_metrics(found, few.of(TEST))["balanced_accuracy"])
        if scores:
            row[f"class {n} labels"] = float(np.mean(scores))
    return row


def _missing_bands(encoder: Encoder, survey: Survey, key: tuple[int, str], model: Any) -> dict[str, float]:
    """Judge the classifier that was fitted with all bands where one is missing."""
    test = np.flatnonzero(survey.split == 2)
    y, row = survey.main.column("class")[test], {}
    for band in survey.main.bands:
        found = model.predict(encoder(survey.main, test, (band,))[key])
        row[f"class without {band}"] = classification_metrics(found, y)["balanced_accuracy"]
    return row | {
        "class without one, mean": float(np.mean(list(row.values()))),
        "class without one, worst": min(row.values()),
    }


def _other_field(
    encoder: Encoder, survey: Survey, vectors: Vectors, classes: Mapping[str, Any], redshift: Mapping[str, Any]
) -> dict[str, float]:
    """Judge on the field of other seeing and depth; and see how well these two can be read from the vectors."""
    rows = np.flatnonzero(judged(survey.other))
    found = encoder(survey.other, rows, ())
    y, z = (survey.other.column(name)[rows] for name in ("class", "z_spec"))
    galaxies = np.flatnonzero((y == 0) & np.isfinite(z))
    row = class_row(classes["model"].predict(found[classes["key"]]), y, "other field class")
    row |= redshift_row(redshift["model"].predict(found[redshift["key"]][galaxies]), z[galaxies], "other field z")
    test = np.flatnonzero(survey.split == 2)
    x = np.concatenate([vectors[classes["key"]][test], found[classes["key"]]])
    third = np.random.default_rng(0).permutation(len(x)) % 3
    for name in ("seeing", "depth"):
        value = np.concatenate([survey.main.column(name)[test], survey.other.column(name)[rows]])
        labels = select_labels({}, value, third, "regression")
        model = choose(x, labels, models("linear", "regression")).model
        row[f"R2 of {name}"] = regression_metrics(model.predict(x[third == TEST]), value[third == TEST])["r2"]
    return row
