"""What embeddings should not encode, or do without: positions, missing bands, observing conditions, wrong labels."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skylib.checks import checked
from skylib.data.cutouts import CutoutFile
from skylib.data.plain import as_label, has_text
from skylib.data.splits import TEST, TRAIN, sky_folds
from skylib.evaluation.baselines import moved
from skylib.evaluation.labels import PARTS, Labels, Task, select_labels
from skylib.evaluation.metrics import metric_for
from skylib.evaluation.probes import ProbeResult, candidates, choose, on_test, probe
from skylib.evaluation.solvers import SoftmaxRegression
from skylib.model.embed import encode
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel

log = logging.getLogger(__name__)


@checked
def position_leakage(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str,
    *,
    task: Task,
    split: np.ndarray,
    pool: str = "mean",
    layer: int = -1,
    seed: int = 0,
) -> pd.DataFrame:
    """Test whether a probe reads labels off the position on the sky.

    A linear probe is fitted to embeddings made with the true positions, and judged on test three times: with true
    positions, with those of other test objects, and with none. A probe that relies on the position falls to chance
    in the last two. Beside it: nearest neighbours on the positions alone, the most that a leak could bring.

    Returns
    -------
    DataFrame
        ``positions`` (true, shuffled, zeroed, alone), the score, ``low``, ``high``, ``n``. For a model without
        ``ra_dec`` the first three are equal, which proves that it does not use positions.
    """
    labels = select_labels(cutouts.column, target, split, task)
    judge = _fitted_probe(model, cutouts, labels, pool, layer, seed)
    ra, dec, test = cutouts.ra, cutouts.dec, labels.rows[TEST]
    other, nowhere = np.arange(len(ra)), np.full(len(ra), np.nan)
    other[test] = np.random.default_rng(seed).permutation(test)
    lines = [{"positions": "true", **judge(cutouts)}]
    for name, r, d in (("shuffled", ra[other], dec[other]), ("zeroed", nowhere, nowhere)):
        lines.append({"positions": name, **judge(moved(cutouts, ra=r, dec=d))})
    place = np.stack([ra, dec], axis=1)[labels.used]
    alone = probe(place, labels, candidates("knn", task), seed=seed)
    return pd.DataFrame([*lines, {"positions": "alone", **_score(alone, labels)}])


@checked
def missing_bands(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str,
    *,
    task: Task,
    split: np.ndarray,
    pool: str = "mean",
    layer: int = -1,
    all_orientations: bool = False,
    max_dropped: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Test a probe that was fitted with all bands where bands are missing, for every subset of them.

    Parameters
    ----------
    pool, layer, all_orientations
        As in `embed`.
    max_dropped : int, optional
        Drop at most this many at once; all but one by default.

    Returns
    -------
    DataFrame
        ``dropped`` (names, "" for none), ``n_dropped``, the score on test, ``low``, ``high``, ``n``.
    """
    labels = select_labels(cutouts.column, target, split, task)
    judge = _fitted_probe(model, cutouts, labels, pool, layer, seed, all_orientations=all_orientations)
    bands = model.config.bands
    most = len(bands) - 1 if max_dropped is None else max_dropped
    subsets = [dropped for n in range(most + 1) for dropped in itertools.combinations(bands, n)]
    return pd.DataFrame(
        [{"dropped": " ".join(some), "n_dropped": len(some), **judge(cutouts, drop_bands=some)} for some in subsets]
    )


def _fitted_probe(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    labels: Labels,
    pool: str,
    layer: int,
    seed: int,
    *,
    all_orientations: bool = False,
) -> Callable[..., dict[str, Any]]:
    """Fit a linear probe to the images as they are; return what scores it on test images that are not."""
    how: dict[str, Any] = {"pools": [pool], "layers": [layer], "all_orientations": all_orientations}
    vectors = encode(model, cutouts, rows=labels.used, **how)
    fitted = choose(vectors[layer, pool], labels, candidates("linear", labels.task)).model

    def judge(changed: CutoutFile, *, drop_bands: Sequence[str] = ()) -> dict[str, Any]:
        given = encode(model, changed, rows=labels.rows[TEST], drop_bands=drop_bands, **how)
        return _score(on_test(fitted.predict(given[layer, pool]), labels, seed=seed), labels)

    return judge


def _score(result: ProbeResult, labels: Labels) -> dict[str, Any]:
    score = metric_for(labels.task, labels.name)[1]
    low, high = result.intervals[score]
    return {score: result.metrics[score], "low": low, "high": high, "n": len(result.rows)}


@checked
def observing_conditions(cutouts: CutoutFile, *, rows: np.ndarray, block: int = 1024) -> dict[str, np.ndarray]:
    """Measure seeing, depth and the like on the pixels, or take them from columns: what embeddings should not encode.

    Returns
    -------
    dict of str to ndarray, shape (n,)
        ``depth``: the log10 of the sky noise, mean over bands; ``no_data``: the share of pixels without data;
        ``seeing``: the median full width at half maximum (arcsec) of the compact bright objects of the same tile; with
        the columns of `make_cutouts`, ``tile``, and ``edge_distance`` (pixels) to the outermost object of the tile.
    """
    rows = cutouts.row_numbers(rows)
    depth, no_data, width, peak = (np.full(len(rows), np.nan) for _ in range(4))
    half = cutouts.size // 2
    for start in range(0, len(rows), block):
        flux = cutouts.flux(rows[start : start + block])
        chunk = slice(start, start + len(flux))
        steps = torch.from_numpy(np.diff(flux)).abs().flatten(2)  # as in `measure_sky_noise`, but of each image
        noise = np.ma.masked_invalid(1.4826 / 2**0.5 * steps.nanmedian(dim=2).values.numpy())  # (b, C)
        depth[chunk] = np.ma.log10(noise).mean(axis=1).filled(np.nan)
        no_data[chunk] = (~np.isfinite(flux)).mean(axis=(1, 2, 3))
        white = np.nan_to_num(flux).sum(axis=1)
        top = white[:, half - 1 : half + 2, half - 1 : half + 2].max(axis=(1, 2))
        centre = slice(max(0, half - 8), half + 9)
        above = (white > top[:, None, None] / 2)[:, centre, centre].sum(axis=(1, 2))
        width[chunk] = 2 * np.sqrt(above / np.pi) * cutouts.pixel_scale  # of a disc of that area
        peak[chunk] = np.ma.divide(top, np.sqrt((noise.filled(0) ** 2).sum(axis=1))).filled(np.nan)
    found = {"depth": depth, "no_data": no_data}
    if "tile" in cutouts.columns:
        found["tile"] = tile = cutouts.column("tile")[rows]
        seeing = np.full(len(rows), np.nan)
        for name in np.unique(tile):
            bright = (tile == name) & (peak > 20)
            if bright.sum() >= 10:  # the narrowest quarter of the bright ones are stars
                seeing[tile == name] = np.median(width[bright & (width <= np.quantile(width[bright], 0.25))])
        found["seeing"] = seeing
        if {"row", "col"} <= set(cutouts.columns):
            place = pd.DataFrame({name: cutouts.column(name)[rows] for name in ("row", "col")})
            field = place.groupby(tile)
            sides = [place - field.transform("min"), field.transform("max") - place]
            found["edge_distance"] = pd.concat(sides, axis=1).min(axis=1).to_numpy()
    return found


@checked
def nuisance_audit(
    embeddings: Embeddings, nuisances: Mapping[str, np.ndarray], *, split: str | np.ndarray, seed: int = 0
) -> pd.DataFrame:
    """Measure how much of each nuisance a linear probe reads from the embeddings.

    Parameters
    ----------
    embeddings : Embeddings
    nuisances : mapping of str to ndarray, shape (n,)
        Numbers are regressed (R2), text is classified (balanced accuracy). Text that train does not have counts as
        unknown, and those without any spread in one of the parts are left out: the tile, where parts are whole tiles.
    split : str or ndarray
        As in `linear_probe`.

    Returns
    -------
    DataFrame
        ``nuisance``, ``measure``, ``value``, ``low``, ``high``, ``chance``, ``n``; and ``found``, True where the whole
        interval lies above chance.
    """
    lines, finite = [], embeddings.finite
    parts = embeddings.column(split) if isinstance(split, str) else np.asarray(split)
    for name, values in nuisances.items():
        values = as_label(name, values)[0]
        if values.shape != finite.shape:
            raise ValueError(f"nuisances: {name!r} has shape {values.shape}: must be {finite.shape}")
        text = values.dtype.kind == "U"
        target = np.unique(values, return_inverse=True)[1] if text else values.astype(np.float64)
        labelled = np.isin(target, target[parts == TRAIN]) if text else np.isfinite(target)
        labelled &= finite
        if any(len(np.unique(target[labelled & (parts == part)])) < 2 for part in PARTS):
            log.info("%s is left out: it has no spread in one of the parts", name)
            continue
        task: Task = "classification" if text else "regression"
        labels = select_labels({}, np.where(labelled, target, -1 if text else np.nan), parts, task)
        result = probe(embeddings.vectors[labels.used], labels, candidates("linear", task), seed=seed)
        measure = metric_for(task)[1]
        chance = 1 / len(np.unique(result.truth)) if text else 0.0
        value, (low, high) = result.metrics[measure], result.intervals[measure]
        lines.append((name, measure, value, low, high, chance, len(result.rows), low > chance))
    return pd.DataFrame(lines, columns=["nuisance", "measure", "value", "low", "high", "chance", "n", "found"])


@checked
def find_label_errors(
    embeddings: Embeddings, target: str | np.ndarray, *, n_folds: int = 5, cell: int = 8192, seed: int = 0
) -> pd.DataFrame:
    """Find labels that embeddings contradict, by confident learning [1]_ across folds of the sky.

    Each object is judged by a logistic regression that has not seen its part of the sky. It is suspect if another
    class is more probable for it than that class is, on average, for its own members.

    Parameters
    ----------
    embeddings : Embeddings
    target : str or ndarray of int, shape (n,)
        Negative = unlabelled.
    n_folds : int
    cell : int
        ``nside`` of the cells that folds are made of.
    seed : int

    Returns
    -------
    DataFrame
        The suspects, worst first: ``row``, ``ra``, ``dec``, ``label``, ``suggested``, ``probability`` (of the label)
        and ``margin`` (of the suggestion over it).

    References
    ----------
    .. [1] Northcutt, Jiang and Chuang 2021, JAIR 70, 1373.
    """
    labels = embeddings.column(target) if isinstance(target, str) else as_label("class", target)[0]
    labels = np.char.strip(labels) if labels.dtype.kind == "U" else labels
    rows = np.flatnonzero((has_text(labels) if labels.dtype.kind == "U" else (labels >= 0)) & embeddings.finite)
    y, x = labels[rows], embeddings.vectors[rows]
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"all {len(y)} labelled objects have the same class: no label can contradict another")
    fold = sky_folds(embeddings.ra[rows], embeddings.dec[rows], n_folds=n_folds, seed=seed, cell=cell)
    probability = np.zeros((len(rows), len(classes)))
    for f in np.unique(fold):
        fit = fold != f
        if len(np.unique(y[fit])) < len(classes):
            raise ValueError(f"a class of {classes.tolist()} lies in one fold of {n_folds} alone: use smaller cells")
        model = make_pipeline(StandardScaler(), PCA(svd_solver="covariance_eigh"), SoftmaxRegression(0.1))
        probability[~fit] = model.fit(x[fit], y[fit]).predict_proba(x[~fit])
    own = np.searchsorted(classes, y)
    usual = np.array([probability[own == k, k].mean() for k in range(len(classes))])
    confident = np.where(probability >= usual, probability, -1.0)
    suggested = confident.argmax(axis=1)
    suspect = (confident.max(axis=1) > 0) & (suggested != own)
    each = np.arange(len(rows))
    table = pd.DataFrame({"row": rows, "ra": embeddings.ra[rows], "dec": embeddings.dec[rows], "label": y})
    table = table.assign(suggested=classes[suggested], probability=probability[each, own])
    table["margin"] = probability[each, suggested] - table["probability"]
    return table[suspect].sort_values("margin", ascending=False, ignore_index=True)
