"""Which objects are labelled, and in which part they are: selected once, for every probe and head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd

from skylib.checks import check_choice, checked
from skylib.data.calibration import FILLERS
from skylib.data.cutouts import CutoutFile
from skylib.data.plain import as_label, has_text, numbers_of
from skylib.data.splits import TEST, TRAIN, VALIDATION, read_parts

log = logging.getLogger(__name__)

Task = Literal["classification", "regression"]
PARTS = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True)
class Labels:
    """The labelled objects of a data set, by the parts train, validation and test.

    Attributes
    ----------
    name : str
        Of the target.
    task : {"classification", "regression"}
    values : ndarray, shape (n,)
        The target of all objects: int64 (-1 where unlabelled) or text if they are classes, float64 if they are values.
    rows : dict of int to ndarray
        The labelled objects of each part.
    """

    name: str
    task: Task
    values: np.ndarray
    rows: dict[int, np.ndarray]

    @cached_property
    def used(self) -> np.ndarray:
        """All labelled objects of the three parts, in ascending order."""
        return np.sort(np.concatenate(list(self.rows.values())))

    def places(self, part: int) -> np.ndarray:
        """Return where the objects of a part stand among those used."""
        return np.searchsorted(self.used, self.rows[part])

    def of(self, part: int) -> np.ndarray:
        """Return the targets of a part."""
        return self.values[self.rows[part]]


def select_labels(
    column: Callable[[str], np.ndarray] | Mapping[str, np.ndarray],
    target: str | np.ndarray,
    split: str | np.ndarray,
    task: Task,
    *,
    usable: np.ndarray | None = None,
) -> Labels:
    """Select the objects that have a label and belong to a part.

    Parameters
    ----------
    column : callable or mapping
        Gives a column by its name, such as `Embeddings.column` or `CutoutFile.column`.
    target : str or ndarray, shape (n,)
        A column, or the values. Unlabelled are negative classes, numbers that are not finite, values of -99, -999,
        -9999 or -32768 (with a warning), and text that is empty or stands for it, such as "nan".
    split : str or ndarray of int, shape (n,)
        A column, or the parts: 0 train, 1 validation, 2 test; others are left out.
    task : {"classification", "regression"}

    usable : ndarray of bool, shape (n,), optional
        Objects with a vector (`Embeddings.finite`); a warning counts the labelled ones that have none and are left out.

    Raises
    ------
    ValueError
        If a part has no labelled object, lengths differ, a class is no whole number, or train has one class alone.
    """
    check_choice("task", task, get_args(Task))
    get = column.__getitem__ if isinstance(column, Mapping) else column
    name = target if isinstance(target, str) else "target"
    values = get(target) if isinstance(target, str) else as_label(name, target)[0]
    parts = get(split) if isinstance(split, str) else as_label("split", split)[0]
    parts = read_parts(parts, "split") if parts.dtype.kind == "U" else parts
    if values.shape != parts.shape or values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, split {parts.shape}: must be one value per object")
    numbers = values.dtype.kind in "biuf"
    values = values if numbers else np.char.strip(values)
    labelled = np.isfinite(values) if numbers else has_text(values)
    if task == "classification" and numbers:
        labelled &= values >= 0
        if (broken := values[labelled] % 1 != 0).any():
            raise ValueError(f"{name} holds {values[labelled][broken][0]}: classes are whole numbers or text")
        if labelled.any() and (most := values[labelled].max()) >= 2**63:
            raise ValueError(f"{name} holds {most}: classes are below 2^63")
        values = np.where(labelled, values, -1).astype(np.int64)
    elif task == "regression":
        if not numbers:
            raise ValueError(f"{name} holds text, such as {str(values[0])!r}: a regression needs numbers")
        values = values.astype(np.float64)
        if (unset := np.isin(values, FILLERS)).any():
            message = "%d of %d values of %s are -99, -999 or the like and are left out"
            log.warning(message, unset.sum(), len(values), name)
            labelled &= ~unset
    if usable is not None and (n_bad := int((labelled & ~usable).sum())):
        message = "%d of %d labelled objects have a vector that is not finite and are left out"
        log.warning(message, n_bad, labelled.sum())
        labelled &= usable
    rows = {part: np.flatnonzero((parts == part) & labelled) for part in PARTS}
    for part, words in PARTS.items():
        if not len(rows[part]):
            raise ValueError(f"no object with a known {name!r} in the {words} part of {len(parts)} objects")
    labels = Labels(name, task, values, rows)
    if task == "classification" and len(classes := np.unique(labels.of(TRAIN))) < 2:
        raise ValueError(f"all {len(rows[TRAIN])} training objects have {name}={classes[0]}: no classes to tell apart")
    return labels


def nested_subset(labels: np.ndarray, n: int, *, task: str, seed: int) -> np.ndarray:
    """Return the positions of `n` labels; a larger subset of the same seed holds the smaller one.

    Classes keep their proportion, and each has a member as soon as `n` allows.

    Examples
    --------
    >>> labels = np.array([0] * 90 + [1] * 10)
    >>> rows = nested_subset(labels, 20, task="classification", seed=0)
    >>> np.bincount(labels[rows])
    array([18,  2])
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if task == "regression":
        return order[:n]
    place = np.empty(len(labels))
    for c in np.unique(labels):
        members = order[labels[order] == c]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")[:n]


@checked
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
    split = read_parts(as_label("split", split)[0], "split")
    if len(split) != len(cutouts):
        raise ValueError(f"split has {len(split)} values for {len(cutouts)} cutouts")
    counted = {"objects": np.ones(len(split), dtype=bool)}
    if class_target in cutouts.columns:
        names = enumerate(cutouts.class_names(class_target))
        counted |= {str(name): cutouts.column(class_target) == c for c, name in names}
    if regression_target in cutouts.columns:
        counted[f"with {regression_target}"] = np.isfinite(numbers_of(cutouts, regression_target))
    return pd.DataFrame(counted).groupby(split).sum().reindex(list(PARTS), fill_value=0).rename(PARTS)


@checked
def of_class(cutouts: CutoutFile, column: str, number: int) -> np.ndarray:
    """Return which objects are of a class (n,); all, for a negative number or if the file lacks the column."""
    if number < 0 or column not in cutouts.columns:
        return np.ones(len(cutouts), dtype=bool)
    return np.asarray(numbers_of(cutouts, column) == number)
