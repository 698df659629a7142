"""How many labels pretraining saves on the simulated survey: frozen probes against training from random weights."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from recipe_scores import CLASS_C, Survey, classifiers
from recipe_train import model_encoder

from skylib import ProbeConfig, label_efficiency
from skylib.data.splits import TEST, TRAIN, VALIDATION
from skylib.evaluation.labels import nested_subset, select_labels
from skylib.evaluation.metrics import classification_metrics
from skylib.evaluation.probes import candidates, choose
from skylib.files import write_json

# Frozen tokens are cheap; a whole network is not, and is trained at the two numbers that are compared, and between.
FROZEN = ProbeConfig(epochs=10, min_steps=400, batch_size=64, evaluations=5, patience=5)
SUPERVISED = ProbeConfig(epochs=6, min_steps=64, batch_size=64, evaluations=1, patience=4)


def logistic(model: Any, survey: Survey, out: Path, *, n_labels: list[int], seeds: range) -> None:
    """Fit logistic regression and neighbours to pooled vectors; layers, pooling and settings are chosen on validation.

    Also to the vectors of two layers side by side, each the mean over all orientations of an image.
    """
    labels = select_labels(survey.main.column, "class", survey.split, "classification")
    vectors = model_encoder(model)(survey.main, labels.used, ())
    mean = model_encoder(model, all_orientations=True)(survey.main, labels.used, ())
    layers = sorted({layer for layer, pool in mean if pool == "mean_central"})
    pairs = {
        (*pair, "mean_central"): np.concatenate([mean[layer, "mean_central"] for layer in pair], axis=1)
        for pair in combinations(layers, 2)
    }
    regression = classifiers(*CLASS_C)
    methods = [
        ("logistic", vectors, regression),
        ("kNN", vectors, candidates("knn", "classification")),
        ("logistic, eight orientations, two layers", pairs, regression),
    ]
    lines = []
    for n, seed in product(n_labels, seeds):
        some = labels.rows[TRAIN][nested_subset(labels.of(TRAIN), n, task="classification", seed=seed)]
        few = replace(labels, rows={**labels.rows, TRAIN: some})
        inside = np.searchsorted(labels.used, few.used)
        for method, found, models in methods:
            best = {key: choose(x[inside], few, models) for key, x in found.items()}
            key = min(best, key=lambda key: best[key].loss)
            classes = best[key].model.predict(found[key][labels.places(TEST)])
            row = {"method": method, "n_labels": n, "seed": seed, "key": list(key), "setting": best[key].setting}
            lines.append({**row, "validation": best[key].score, **classification_metrics(classes, few.of(TEST))})
            print(json.dumps(lines[-1]), flush=True)
            write_json(out / "logistic.json", lines)


def study(model: Any, survey: Survey, out: Path, *, seeds: int = 3) -> None:
    """Do all of it, the points that matter first; every training is a file in ``OUT/label_efficiency``."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("skylib.evaluation").setLevel(logging.DEBUG)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "logistic.json").is_file():
        logistic(model, survey, out, n_labels=[2**k for k in (5, 7, 9, 11, 12)], seeds=range(5))
    # To save time: a third of validation, to choose with, and for frozen heads a fifth of train, from which labels are drawn.
    place = np.arange(len(survey.split))
    whole = np.where((survey.split == VALIDATION) & (place % 3 > 0), -1, survey.split)
    fifth = np.where((survey.split == TRAIN) & (place % 5 > 0), -1, whole)
    options: dict[str, Any] = {"seeds": range(seeds), "run_dir": out}
    one = partial(label_efficiency, model, survey.main, "class", **options)
    one(methods=["supervised"], n_labels=[2**9, 2**12], split=whole, config=SUPERVISED)
    one(methods=["attentive"], n_labels=[2**9, 2**7, 2**11], split=fifth, config=FROZEN)
