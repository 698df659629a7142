"""Results in words: how many labels each part has, and what pretraining brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skylib.data.cutouts import CutoutFile
from skylib.data.splits import TEST, TRAIN, VALIDATION
from skylib.evaluation.evaluate import BEST, RANDOM, Evaluation
from skylib.files import write_json

WORDS = {"balanced_accuracy": "balanced accuracy", "r2": "R²", "class": "classes", "z_spec": "redshift"}


def count_labels(
    cutouts: CutoutFile, split: np.ndarray, *, class_target: str | None = None, regression_target: str | None = None
) -> pd.DataFrame:
    """Count the objects of each part, those of each class, and those with a value to predict.

    Parameters
    ----------
    cutouts : CutoutFile
    split : ndarray of int, shape (n,)
        0 train, 1 validation, 2 test; others are not counted.
    class_target, regression_target : str, optional
        Columns; left out if the file lacks them.

    Returns
    -------
    DataFrame
        A row for each part.
    """
    lines: dict[str, dict[str, int]] = {}
    for name, part in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        inside = split == part
        lines[name] = {"objects": int(inside.sum())}
        if class_target is not None and class_target in cutouts.columns:
            classes = cutouts.column(class_target)[inside]
            lines[name] |= {str(n): int((classes == c).sum()) for c, n in enumerate(cutouts.class_names(class_target))}
        if regression_target is not None and regression_target in cutouts.columns:
            values = cutouts.column(regression_target)[inside]
            lines[name][f"with {regression_target}"] = int(np.isfinite(values).sum())
    return pd.DataFrame(lines).T


def summarise(evaluation: Evaluation) -> str:
    """Return one sentence: what pretraining brought compared with the same network with random weights."""
    difference, low, high = evaluation.margin(RANDOM)
    best, other = (evaluation.results[name] for name in (BEST, RANDOM))
    score, target = (WORDS.get(name, name) for name in (evaluation.score, evaluation.target))
    verb = "raises" if low > 0 else "lowers" if high < 0 else "does not measurably change"
    values = f"from {other.metrics[evaluation.score]:.3f} with random weights to {best.metrics[evaluation.score]:.3f}"
    interval = f"({difference:+.3f}, 95 % {low:+.3f} to {high:+.3f}; {best.metrics['n']:.0f} test objects)"
    return f"Pretraining {verb} the {score} of {target} {values} {interval}."


def write_summary(run_dir: str | Path, evaluations: Sequence[Evaluation]) -> str:
    """Write ``summary.json``, with which the page of results opens, and return its text.

    Parameters
    ----------
    run_dir : path
        Its ``figures/classification.png`` or ``figures/regression.png`` is named as the figure to show.
    evaluations : sequence of Evaluation
        A sentence for each, of `summarise`; nothing is written if there are none.
    """
    if not evaluations:
        return "Nothing was evaluated: the file has no labels."
    text = " ".join(summarise(one) for one in evaluations)
    figure = f"figures/{evaluations[0].task}.png"
    alt = "Test scores of the pretrained network and of all baselines, with 95 % intervals"
    write_json(Path(run_dir) / "summary.json", {"text": text, "figure": figure, "alt": alt})
    return text


def of_class(cutouts: CutoutFile, column: str, number: int) -> np.ndarray:
    """Return which objects are of a class (n,); all, for a negative number or if the file lacks the column."""
    if number < 0 or column not in cutouts.columns:
        return np.ones(len(cutouts), dtype=bool)
    return np.asarray(cutouts.column(column) == number)
