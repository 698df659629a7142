"""The results of probes and baselines on one target: tables, margins, one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skylib.checks import checked
from skylib.evaluation.bootstrap import paired_margin
from skylib.evaluation.labels import Task
from skylib.evaluation.metrics import metric_for
from skylib.evaluation.probes import ProbeResult
from skylib.files import replaced, write_json

BEST = "pretrained, linear"
RANDOM = "random weights, linear"
PIXELS = "pixel PCA, linear"
FLOORS: dict[Task, str] = {"classification": "majority class", "regression": "mean"}
MEASURED = "aperture magnitudes"  # on the pixels
CATALOGUE = "catalogue magnitudes"  # columns of the file
UPPER_BOUND = "upper bound: noise-free magnitudes"  # columns of a simulated file: the truth, which no survey has
IN_TABLE = "accuracy balanced_accuracy roc_auc r2 rms bias bias_median sigma_mad outlier_fraction outlier_fraction_0.05"
SHORT = ("balanced_accuracy", "r2", "sigma_mad", "outlier_fraction")
OF_A_CLASS = ("completeness_", "purity_")  # measures that each class has, and stand in the table too
WORDS = {"balanced_accuracy": "balanced accuracy", "r2": "R²", "class": "classes", "z_spec": "redshift"}


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

    def __post_init__(self) -> None:
        missing = [name for name in (BEST, RANDOM, PIXELS, FLOORS[self.task]) if name not in self.results]
        if MEASURED not in self.results and CATALOGUE not in self.results:
            missing.append(f"{CATALOGUE} or {MEASURED}")
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

        What is not defined is left empty, such as the purity of a class to which a method puts nothing. The last column
        says by how much the pretrained network beats each of the others, on the same objects. The short table has the
        main measures alone, and the best method on top.
        """
        rows = []
        for name, result in self.results.items():
            shown = [m for m in IN_TABLE.split() if m in result.metrics]
            shown += [m for kind in OF_A_CLASS for m in result.metrics if m.startswith(kind)]
            row: dict[str, Any] = {self._named(m): result.describe(m) for m in shown if np.isfinite(result.metrics[m])}
            row["n"] = int(result.metrics["n"])
            if name != BEST:
                value, low, high = self.margins[name]
                row[f"{self.score}: pretrained minus this"] = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append(row)
        index = pd.MultiIndex.from_tuples([(self.target, name) for name in self.results], names=["target", "method"])
        table = pd.DataFrame(rows, index=index).fillna("")
        if not short:
            return table
        names = [c for c in map(str, table) if c in SHORT or c.startswith("completeness_") or c.endswith("minus this")]
        order = sorted(self.results, key=lambda name: -self.results[name].metrics[self.score])
        short_table = table.droplevel("target").loc[order][[*names, "n"]]
        return short_table.rename(columns=lambda name: name.replace("_", " ")).rename_axis(None)

    def _named(self, measure: str) -> str:
        """Return a measure with the name of its class instead of the number."""
        kind, _, c = measure.rpartition("_")
        has_name = f"{kind}_" in OF_A_CLASS and c.isdecimal() and int(c) < len(self.class_names)
        return f"{kind}_{self.class_names[int(c)]}" if has_name else measure

    def scores(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """Return the main score of every method and its interval, for `plotting.plot_comparison`."""
        return {name: (r.metrics[self.score], r.intervals[self.score]) for name, r in self.results.items()}

    @cached_property
    def margins(self) -> dict[str, tuple[float, float, float]]:
        """By how much the pretrained network beats each method on the same objects: difference, 95 % interval."""
        metric, best = metric_for(self.task, self.target)[0], self.results[BEST]
        return {
            name: paired_margin(best.prediction, other.prediction, other.truth, metric)[self.score]
            for name, other in self.results.items()
            if name != BEST
        }

    def headline(self) -> dict[str, dict[str, Any]]:
        """Return the main score of each method, and by how much the pretrained network beats each baseline.

        Returns
        -------
        dict
            ``{"target, name: score": {"value": …, "interval": [low, high], "n": …}}``.
        """
        lines = {f"{self.target}, {name}: {self.score}": (value, ends) for name, (value, ends) in self.scores().items()}
        for name, (value, low, high) in self.margins.items():
            if not name.startswith("pretrained"):
                label = f"{self.target}, pretrained minus {name.removesuffix(', linear')}: {self.score}"
                lines[label] = value, (low, high)
        n = int(self.results[BEST].metrics["n"])
        return {label: {"value": value, "interval": list(ends), "n": n} for label, (value, ends) in lines.items()}


@checked
def write_results(
    run_dir: str | Path, evaluations: Sequence[Evaluation], *, more: Mapping[str, Mapping[str, Any]] | None = None
) -> pd.DataFrame:
    """Write ``evaluation.csv`` (the tables) and ``results.json`` (the headlines, and `more`), and return the table."""
    table = pd.concat([one.table() for one in evaluations]).fillna("")
    with replaced(Path(run_dir) / "evaluation.csv") as partial:
        partial.write_text(table.to_csv(), encoding="utf-8")
    lines = {label: line for one in evaluations for label, line in one.headline().items()}
    write_json(Path(run_dir) / "results.json", {**lines, **(more or {})})
    return table


def summarise(evaluation: Evaluation) -> str:
    """Return one sentence: what pretraining brought compared with the same network with random weights."""
    difference, low, high = evaluation.margins[RANDOM]
    best, other = (evaluation.results[name] for name in (BEST, RANDOM))
    score, target = (WORDS.get(name, name) for name in (evaluation.score, evaluation.target))
    verb = "raises" if low > 0 else "lowers" if high < 0 else "does not measurably change"
    before, after = (f"{result.metrics[evaluation.score]:.3f}" for result in (other, best))
    values = f" from {before} with random weights to {after}"
    if low <= 0 <= high:
        values = f": {before} with random weights, {after} pretrained"
    interval = f"({difference:+.3f}, 95 % {low:+.3f} to {high:+.3f}; {best.metrics['n']:.0f} test objects)"
    return f"Pretraining {verb} the {score} of {target}{values} {interval}."


@checked
def write_summary(run_dir: str | Path, evaluations: Sequence[Evaluation]) -> str:
    """Write ``summary.json``, with which the page of results opens, and return its text.

    Parameters
    ----------
    run_dir : path
        Its ``figures/classification.png`` or ``figures/regression.png`` is named as the figure to show.
    evaluations : sequence of Evaluation
        A sentence for each, of `summarise`. Without any, the page opens with the look-alikes of `05_similarity`.
    """
    text = " ".join(summarise(one) for one in evaluations) or "No labels, so nothing was evaluated."
    figure = f"figures/{evaluations[0].task if evaluations else 'similar'}.png"
    alt = "Test scores of the pretrained network and of all baselines, with 95 % intervals"
    alt = alt if evaluations else "The query object and its look-alikes"
    write_json(Path(run_dir) / "summary.json", {"text": text, "figure": figure, "alt": alt})
    return text
