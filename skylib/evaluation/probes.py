"""What frozen embeddings know: linear and nearest-neighbour probes, fitted on train, chosen on validation, told on test."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skylib.checks import check_choice
from skylib.data.cutouts import CutoutFile
from skylib.data.splits import TEST, TRAIN, VALIDATION
from skylib.evaluation.bootstrap import bootstrap_intervals
from skylib.evaluation.metrics import Metric, classification_metrics, photoz_metrics, regression_metrics, roc_auc
from skylib.model.embed import embed
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel

Task = Literal["classification", "regression"]

# Chosen among on validation. C of the logistic regression, with classes weighted as they come or all the same; alpha
# of the ridge; number of neighbours.
LOGISTIC_C = (1e-3, 1e-2, 1e-1, 1.0)
CLASS_WEIGHTS = (None, "balanced")
RIDGE_ALPHA = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe said of the test objects.

    Attributes
    ----------
    metrics : dict of str to float
        On test, with ``n`` objects.
    intervals : dict of str to (low, high)
        95 % bootstrap intervals of the metrics.
    prediction, truth : ndarray, shape (n,)
        Of the test objects.
    rows : ndarray of int, shape (n,)
        Which objects these are.
    settings : dict
        What was chosen on validation, and the score there.
    probability : ndarray, shape (n, n_classes), or None
        Of each class, where the probe gives it; ``settings["classes"]`` are those of the columns.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    prediction: np.ndarray
    truth: np.ndarray
    rows: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)
    probability: np.ndarray | None = None

    def describe(self, name: str) -> str:
        """Return a metric with its interval, as text.

        Examples
        --------
        >>> nothing = np.empty(0)
        >>> r = ProbeResult(metrics={"r2": 0.5, "n": 9}, intervals={"r2": (0.4, 0.6)}, prediction=nothing, truth=nothing, rows=nothing)
        >>> r.describe("r2")
        '0.500 [0.400, 0.600]'
        """
        low, high = self.intervals.get(name, (np.nan, np.nan))
        return f"{self.metrics[name]:.3f} [{low:.3f}, {high:.3f}]"


def linear_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Fit a linear model to frozen embeddings: multinomial logistic regression, or ridge regression.

    Parameters
    ----------
    embeddings : Embeddings
    target : str or ndarray, shape (n,)
        A column, or the values. Negative classes and numbers that are not finite count as unlabelled; text is a class.
    task : {"classification", "regression"}
    split : str or ndarray of int, shape (n,)
        0 train, 1 validation, 2 test; others are left out. The scaler and the model are fitted on train, the
        regularisation is chosen on validation, test is looked at once.
    seed : int
        Of the bootstrap.

    Returns
    -------
    ProbeResult
    """
    return _probe(embeddings, target, task, split, seed, candidates("linear", task))


def original_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Fit the linear probes of the original, with its fixed settings, so that numbers compare; parameters as in `linear_probe`.

    Multinomial logistic regression with C = 0.01, or an elastic net with alpha = 1e-4 and an L1 share of 0.9. The
    original feeds them the four central patch tokens side by side (pool ``central_flat`` of `skylib.model.features.encode`).
    Its scaler saw all objects and its test part was drawn at random; here both are as in every other probe.
    """
    if task == "classification":
        models: dict[str, Any] = {"C=0.01": LogisticRegression(C=0.01, max_iter=10_000)}
    else:
        models = {"alpha=0.0001, l1_ratio=0.9": ElasticNet(alpha=1e-4, l1_ratio=0.9, max_iter=10_000)}
    with warnings.catch_warnings():
        # With a penalty as weak as that the descent often ends at its last iteration, as it did in the original.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _probe(embeddings, target, task, split, seed, models)


def knn_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict from the nearest training objects, in standardised embeddings; parameters as in `linear_probe`."""
    return _probe(embeddings, target, task, split, seed, candidates("knn", task))


def constant_probe(
    embeddings: Embeddings, target: str | np.ndarray, *, task: Task, split: str | np.ndarray, seed: int = 0
) -> ProbeResult:
    """Predict the majority class, or the mean, of the training objects: the floor that any probe must beat."""
    model = DummyClassifier(strategy="most_frequent") if task == "classification" else DummyRegressor()
    return _probe(embeddings, target, task, split, seed, {"constant": model})


def catalogue_probe(
    embeddings: Embeddings,
    target: str | np.ndarray,
    *,
    magnitudes: Sequence[str],
    task: Task,
    split: str | np.ndarray,
    seed: int = 0,
) -> ProbeResult:
    """Predict from catalogue magnitudes and their colours by gradient boosting: what is known without any image.

    Parameters
    ----------
    embeddings : Embeddings
        Of which only the columns are used.
    magnitudes : sequence of str
        Columns, in the order of wavelength; NaN where a band is missing.
    target, task, split, seed
        As in `linear_probe`.
    """
    mags = np.stack([embeddings.column(name) for name in magnitudes], axis=1).astype(np.float64)
    features = np.concatenate([mags, np.diff(mags, axis=1)], axis=1)
    known = Embeddings(features, ra=embeddings.ra, dec=embeddings.dec, columns=embeddings.columns)
    if task == "classification":
        models: dict[str, Any] = {
            f"{n} leaves": HistGradientBoostingClassifier(max_leaf_nodes=n, class_weight="balanced", random_state=seed)
            for n in (7, 15)
        }
    else:
        models = {f"{n} leaves": HistGradientBoostingRegressor(max_leaf_nodes=n, random_state=seed) for n in (7, 15)}
    return _probe(known, target, task, split, seed, models)


def candidates(kind: Literal["linear", "knn"], task: Task) -> dict[str, Any]:
    """Return the models among which validation chooses, by the name of their setting."""
    check_choice("task", task, get_args(Task))
    if kind == "knn":
        model = KNeighborsClassifier if task == "classification" else KNeighborsRegressor
        return {f"k={k}": model(k, weights="distance") for k in NEIGHBOURS}
    if task == "regression":
        return {f"alpha={a:g}": Ridge(alpha=a) for a in RIDGE_ALPHA}
    return {
        f"C={c:g}" + (", balanced" if weight else ""): LogisticRegression(
            C=c, class_weight=weight, tol=1e-3, max_iter=2000
        )
        for c in LOGISTIC_C
        for weight in CLASS_WEIGHTS
    }


def metric_for(task: str, target: str | np.ndarray = "") -> tuple[Metric, str]:
    """Return the metrics of a task, and the name of the one by which models are chosen."""
    if task == "classification":
        return classification_metrics, "balanced_accuracy"
    if isinstance(target, str) and target.startswith("z"):
        return photoz_metrics, "r2"
    return regression_metrics, "r2"


def labelled_parts(
    embeddings: Embeddings | Mapping[str, np.ndarray], target: str | np.ndarray, split: str | np.ndarray, task: str
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Return the target of all objects, and the rows of the labelled ones in train, validation and test.

    Numbers come as int64, -1 where unlabelled, if they are classes, and as float64 if they are values: by that the
    two are told apart later.

    Raises
    ------
    ValueError
        If a part has no labelled object, lengths differ, or a class is no whole number.
    """
    check_choice("task", task, get_args(Task))
    name = target if isinstance(target, str) else "target"
    column = embeddings.column if isinstance(embeddings, Embeddings) else embeddings.__getitem__
    values = column(target) if isinstance(target, str) else np.asarray(target)
    parts = np.asarray(column(split) if isinstance(split, str) else split)
    if values.shape != parts.shape or values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}, split {parts.shape}: must be one value an object")
    numbers = values.dtype.kind in "biuf"
    known = np.isfinite(values) if numbers else values == values
    if task == "classification" and numbers:
        known &= values >= 0
        if (values[known] % 1 != 0).any():
            raise ValueError(
                f"{name} holds {values[known][values[known] % 1 != 0][0]}: classes are whole numbers or text"
            )
        values = np.where(known, values, -1).astype(np.int64)
    elif task == "regression":
        values = values.astype(np.float64)
    rows = {part: np.flatnonzero((parts == part) & known) for part in (TRAIN, VALIDATION, TEST)}
    for part, label in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        if not len(rows[part]):
            raise ValueError(f"no object with a known {name!r} in the {label} part of {len(parts)} objects")
    if task == "classification" and len(np.unique(values[rows[TRAIN]])) < 2:
        raise ValueError(
            f"all {len(rows[TRAIN])} training objects have {name!r} = {values[rows[TRAIN]][0]}: no classes to tell apart"
        )
    return values, rows


def on_test(
    prediction: np.ndarray,
    truth: np.ndarray,
    rows: np.ndarray,
    metric: Metric,
    *,
    seed: int = 0,
    probability: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    **settings: Any,
) -> ProbeResult:
    """Return a `ProbeResult` with metrics and intervals; with probabilities, the area under the ROC curve too."""
    metrics, intervals = dict(metric(prediction, truth)), bootstrap_intervals(prediction, truth, metric, seed=seed)
    if probability is not None and classes is not None:
        labels = np.asarray(classes)

        def area(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
            return {"roc_auc": roc_auc(p, t, classes=labels)}

        metrics |= area(probability, truth)
        intervals |= bootstrap_intervals(probability, truth, area, n_resamples=200, seed=seed)
        settings["classes"] = labels.tolist()
    return ProbeResult(
        metrics=metrics, intervals=intervals, prediction=prediction, truth=truth, rows=rows, settings=settings,
        probability=probability,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The candidate that was best on validation: its setting, its loss and score there, and what was fitted on train."""

    setting: str
    loss: float
    score: float
    model: Pipeline


def choose(
    x: np.ndarray,
    values: np.ndarray,
    rows: Mapping[int, np.ndarray],
    metric: Metric,
    score: str,
    models: dict[str, Any],
) -> Chosen:
    """Fit every candidate on train, and return the best on validation.

    Classifiers are compared by their log loss, each class counting the same: with few objects of a class it is much
    less a matter of luck than the balanced accuracy, which moves in steps of one object. Regressions, and neighbours,
    whose votes are no probabilities where classes are unequal, by the score.
    """
    train, validation = rows[TRAIN], rows[VALIDATION]
    found = []
    x = x.astype(np.float64)  # weak penalties on features that say the same want every digit
    for name, model in models.items():
        if getattr(model, "n_neighbors", 1) <= len(train):
            fitted = make_pipeline(StandardScaler(), model).fit(x[train], values[train])
            value = metric(fitted.predict(x[validation]), values[validation])[score]
            loss = -value
            if hasattr(fitted, "predict_proba") and not hasattr(model, "n_neighbors"):
                loss = balanced_log_loss(fitted.predict_proba(x[validation]), values[validation], fitted.classes_)
            found.append(Chosen(setting=name, loss=loss, score=value, model=fitted))
    return min(found, key=lambda one: one.loss)


def balanced_log_loss(probability: np.ndarray, truth: np.ndarray, classes: np.ndarray, *, floor: float = 1e-3) -> float:
    """Return the mean over classes of -ln p of the true class; p below `floor` counts as that.

    Examples
    --------
    >>> round(balanced_log_loss(np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 0, 1]), np.array([0, 1])), 4)
    0.3466
    """
    losses = [
        -np.log(np.maximum(probability[truth == c, i], floor)).mean()
        for i, c in enumerate(classes)
        if (truth == c).any()
    ]
    return float(np.mean(losses))


def _probe(
    embeddings: Embeddings,
    target: str | np.ndarray,
    task: Task,
    split: str | np.ndarray,
    seed: int,
    models: dict[str, Any],
) -> ProbeResult:
    values, rows = labelled_parts(embeddings, target, split, task)
    metric, score = metric_for(task, target)
    best = choose(embeddings.vectors, values, rows, metric, score, models)
    fitted = best.model
    x = embeddings.vectors[rows[TEST]]
    known: dict[str, Any] = {}
    if task == "classification":
        known = {"probability": fitted.predict_proba(x), "classes": fitted.classes_}
    found: dict[str, Any] = {"chosen": best.setting, "validation": best.score, "n_train": len(rows[TRAIN])}
    return on_test(fitted.predict(x), values[rows[TEST]], rows[TEST], metric, seed=seed, **known, **found)


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


MOST_RANKED = 20_000  # vectors whose effective rank is measured: more take minutes, and change nothing
