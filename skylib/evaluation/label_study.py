"""Scores against the number of labels, for each method: one file per training, merged into one table."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from skylib.checks import checked
from skylib.config import Method, ProbeConfig, to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.splits import TRAIN
from skylib.evaluation.bootstrap import LEVEL, mean_interval, seed_error
from skylib.evaluation.heads import LabelledCutouts, train_on
from skylib.evaluation.labels import Task
from skylib.evaluation.metrics import metric_for
from skylib.files import read_json, replaced, write_json
from skylib.model.checkpoint import fingerprint
from skylib.model.mim import MaskedImageModel
from skylib.processes import in_processes

log = logging.getLogger(__name__)


@checked
def label_grid(
    *, methods: Sequence[Method], n_labels: Sequence[int], seeds: Sequence[int]
) -> list[tuple[Method, int, int]]:
    """Return (method, number of labels, seed) of every row of the study, in their order; row k is the k-th.

    Examples
    --------
    >>> rows = label_grid(methods=["linear", "supervised"], n_labels=[128, 0], seeds=[0, 1, 2])
    >>> len(rows), rows[0], rows[-1]
    (12, ('linear', 128, 0), ('supervised', 0, 2))
    """
    return [(method, n, seed) for n in n_labels for method in methods for seed in seeds]


@checked
def label_efficiency(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    target: str,
    *,
    methods: Sequence[Method] = ("supervised", "finetune", "attentive"),
    n_labels: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    run_dir: str | Path,
    config: ProbeConfig | None = None,
    task: Task = "classification",
    split: str | np.ndarray | None = None,
    weights: str | np.ndarray | None = None,
    row: int | None = None,
    cap: bool = False,
    workers: int | None = 1,
) -> pd.DataFrame:
    """Train every method with every number of labels and every seed.

    A row that is done is a small file in ``label_efficiency/`` of the run folder, whole or not there. A call does
    what is missing, so it resumes after a kill; several processes may work in one folder at once, each on its own row.
    Rows count for the same labels, parts, settings, network and file of cutouts alone, known by its size and time.

    Parameters
    ----------
    model, cutouts, target, task, split, weights
        As in `train_head`.
    methods, n_labels, seeds : sequences
        Every combination is a row, in the order of `label_grid`. 0 labels stands for all that there are.
    run_dir : path
    config : ProbeConfig, optional
        With `rate_factors` and `length_factors` each row tunes itself on validation, every method with as many trials.
    row : int, optional
        Do this row alone, as one task of an array does. None: do all that are missing, and merge them into
        ``label_efficiency.csv``.
    cap : bool
        Take all labels, with a warning, where more are asked for than there are.
    workers : int, optional
        Trainings at the same time, each in a process with its share of the threads: small networks are trained faster
        so. None: on a CPU one per thread, at most 8; on a GPU one.

    Returns
    -------
    DataFrame
        One row per training: target, model, study, method, n_labels, seed, seconds, the metrics on test, the interval
        of the main one, the score on validation and the chosen learning rate, epochs and steps.

    Raises
    ------
    ValueError
        If there are fewer labels than asked for, without `cap`, or no such row.
    """
    config, folder = config or ProbeConfig(), Path(run_dir) / "label_efficiency"
    grid = label_grid(methods=methods, n_labels=n_labels, seeds=seeds)
    if row is not None and not 0 <= row < len(grid):
        raise ValueError(f"row={row}: the study has {len(grid)} rows, 0 to {len(grid) - 1}")
    data = LabelledCutouts(model, cutouts, target, task=task, split=split, weights=weights)
    available = len(data.labels.rows[TRAIN])
    if too_many := [n for n in n_labels if not 0 <= n <= available]:
        message = f"n_labels={too_many}: the training part has 1 to {available} labels"
        if not cap or min(too_many) < 0:
            raise ValueError(message)
        log.warning("%s; all are taken", message)
    text = json.dumps([data.key(), target, task, to_dict(config)], sort_keys=True)
    study = hashlib.sha256(text.encode()).hexdigest()[:10]
    setting = {"target": target, "model": fingerprint(model), "study": study, "score": metric_for(task, target)[1]}
    asked = [(m, min(n or available, available), s) for m, n, s in (grid if row is None else [grid[row]])]
    wanted = {folder / f"{target}-{m}-{n}-{s}-{study}.json": (m, n, s) for m, n, s in asked}
    missing = {path: one for path, one in wanted.items() if not path.is_file()}
    if workers is None:
        workers = min(8, torch.get_num_threads()) if data.model.sky_sigma.device.type == "cpu" else 1
    if min(workers, len(missing)) > 1:
        jobs: list[Any] = [partial(_do_row_in_worker, path, *one) for path, one in missing.items()]
        shared = (torch.get_num_threads() // workers, data, config, setting)
        done: Any = in_processes(jobs, workers, initializer=_share, initargs=shared)
    else:
        jobs = [partial(_do_row, data, config, setting, path, *one) for path, one in missing.items()]
        done = (job() for job in jobs)
    for _ in tqdm(done, total=len(missing), desc="label efficiency", unit="run"):
        pass
    table = pd.DataFrame([_read_row(path) for path in wanted])
    if row is None:
        everything = pd.DataFrame([_read_row(path) for path in sorted(folder.glob("*.json"))])
        with replaced(Path(run_dir) / "label_efficiency.csv") as new:
            everything.to_csv(new, index=False)
    return table


def _do_row(
    data: LabelledCutouts,
    config: ProbeConfig,
    setting: dict[str, Any],
    path: Path,
    method: Method,
    n_labels: int,
    seed: int,
) -> None:
    """Train once, and write the row."""
    start = time.perf_counter()
    result = train_on(data, method=method, n_labels=n_labels, seed=seed, config=config)
    line = {**setting, "method": method, "n_labels": n_labels, "seed": seed, "seconds": time.perf_counter() - start}
    score = line.pop("score")
    low, high = result.intervals[score]
    line |= {**result.metrics, f"{score}_low": low, f"{score}_high": high}
    line |= {name: result.settings[name] for name in ("validation", "learning_rate", "epochs", "steps")}
    write_json(path, {**line, "trials": result.settings["trials"]})
    log.info("%s: %s %.3f", path.stem, score, result.metrics[score])


_shared: tuple[Any, ...] = ()  # in a worker: what its rows have in common


def _share(threads: int, *common: Any) -> None:
    global _shared
    torch.set_num_threads(max(1, threads))
    _shared = common


def _do_row_in_worker(path: Path, method: Method, n_labels: int, seed: int) -> None:
    data, config, setting = _shared
    _do_row(data, config, setting, path, method, n_labels, seed)


def _check_table(table: pd.DataFrame, metric: str) -> None:
    names = list(getattr(table, "columns", ()))
    if lacking := {"method", "n_labels", metric} - set(names):
        raise ValueError(f"table has no column {', '.join(sorted(lacking))}; columns: {', '.join(map(str, names))}")


@checked
def seed_means(table: pd.DataFrame, *, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Return median and mean over seeds of a test score, by method and number of labels, and an interval of the mean.

    The interval is that of `mean_interval`: how far the mean moves with subsets of labels, fresh weights and order. All
    seeds are judged on the same test objects, so the error that comes from these is not in it; the ``…_low`` and
    ``…_high`` of each row of `label_efficiency` hold that.

    Parameters
    ----------
    table : DataFrame
        Of `label_efficiency`, one target.

    Returns
    -------
    DataFrame
        ``method``, ``n_labels``, ``seeds`` (how many), the mean, ``median``, ``low``, ``high`` (NaN with one seed), and
        ``n``, the number of test objects.
    """
    lines = []
    _check_table(table, metric)
    for method in table["method"].unique():
        for n_labels, rows in table[table["method"] == method].groupby("n_labels"):
            scores = rows[metric].to_numpy(dtype=np.float64)
            low, high = mean_interval(scores)
            line = {"method": method, "n_labels": n_labels, "seeds": len(scores), metric: scores.mean()}
            lines.append({**line, "median": np.median(scores), "low": low, "high": high, "n": int(rows["n"].iloc[0])})
    return pd.DataFrame(lines)


@checked
def labels_to_match(
    table: pd.DataFrame, *, metric: str = "balanced_accuracy", reference: str = "supervised", seed: int = 0
) -> pd.DataFrame:
    """Find with how many labels each method equals `reference` trained on everything.

    The mean over seeds is read between the numbers of labels along a straight line in log2, at the first crossing;
    the interval comes from drawing each mean by Student's t, as `seed_means` has it, and holds what that does alone.

    Parameters
    ----------
    table : DataFrame
        Of `label_efficiency`, one target.

    Returns
    -------
    DataFrame
        One row per method: ``n_labels``, ``times_fewer`` (labels of the reference over these) with ``low`` and ``high``
        (NaN where a mean is of one seed); ``note``: ``""``, ``"at most"`` (even the fewest labels that were tried are
        enough, so that `n_labels` is an upper and `times_fewer` a lower limit), or ``"not reached"``; and ``text``,
        which says it in words.

    Examples
    --------
    >>> t = pd.DataFrame({"method": ["supervised"] * 2 + ["linear"] * 2, "n_labels": [64, 256] * 2, "seed": 0,
    ...                   "balanced_accuracy": [0.5, 0.8, 0.7, 0.9]})
    >>> labels_to_match(t)[["method", "n_labels", "times_fewer", "text"]].values.tolist()
    [['linear', 128.0, 2.0, '2.0 times fewer labels']]
    """
    _check_table(table, metric)
    curves = {
        method: {n: rows.loc[rows["n_labels"] == n, metric].to_numpy() for n in sorted(rows["n_labels"].unique())}
        for method, rows in table.groupby("method", sort=False)
    }
    if reference not in curves:
        raise ValueError(f"reference={reference!r}: the table has {', '.join(map(str, curves))}")
    goal, most = curves[reference][max(curves[reference])], max(curves[reference])
    rng, lines = np.random.default_rng(seed), []
    for method, curve in curves.items():
        if method == reference:
            continue
        n, note = _crossing({k: v.mean() for k, v in curve.items()}, goal.mean())
        low = high = float("nan")
        if min(map(len, (goal, *curve.values()))) > 1:
            goals = _drawn_means(goal, rng)
            drawn = pd.DataFrame({k: _drawn_means(v, rng) for k, v in curve.items()})
            found = [
                most / _crossing(dict(means), one)[0] for (_, means), one in zip(drawn.iterrows(), goals, strict=True)
            ]
            # Not reached: fewer than any factor.
            low, high = np.quantile(np.nan_to_num(found, nan=0.0), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        text = f"{'at least ' if note else ''}{most / n:.1f} times fewer labels"
        if note == "not reached":
            text = f"not reached with {max(curve)} labels"
        lines.append((method, n, most / n, low, high, note, text))
    return pd.DataFrame(lines, columns=["method", "n_labels", "times_fewer", "low", "high", "note", "text"])


def _drawn_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw what the mean of a few runs may be, (1000,)."""
    error, freedom = seed_error(values)
    return values.mean() + error * rng.standard_t(freedom, 1000)


def _crossing(means: dict[int, float], goal: float) -> tuple[float, str]:
    """Return where a curve first reaches `goal`, in number of labels."""
    numbers = list(means)
    if means[numbers[0]] >= goal:
        return float(numbers[0]), "at most"
    for a, b in itertools.pairwise(numbers):
        if means[b] >= goal:
            share = (goal - means[a]) / (means[b] - means[a])
            return float(2 ** (np.log2(a) + share * (np.log2(b) - np.log2(a)))), ""
    return float("nan"), "not reached"


def _read_row(path: Path) -> dict[str, Any]:
    row = read_json(path, "method", "n_labels", "seed")
    return {name: value for name, value in row.items() if name != "trials"}
