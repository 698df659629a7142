"""The table of a study: means over seeds, and paired differences to the plain recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

COLUMNS = {
    "class": "class",
    "class kNN": "class, kNN",
    "class attentive": "class, attentive",
    "z R2": "z R2",
    "z kNN R2": "z R2, kNN",
    "z sigma_mad": "sigma_mad",
    "z kNN sigma_mad": "sigma_mad, kNN",
    "z outliers": "outliers",
    "recall@100 dwarf": "dwarfs",
    "recall@100 arc": "arcs",
    "nDCG@10 2 %": "nDCG 2 %",
    "nDCG@10 0.1 %": "nDCG 0.1 %",
    "class without one, mean": "band lost",
    "class without one, worst": "worst band lost",
    "other field class": "other field",
    "class 128 labels": "2^7 labels",
    "class 2048 labels": "2^11 labels",
    "R2 of seeing": "seeing",
    "R2 of depth": "depth",
    "RankMe": "RankMe",
    "steps": "steps",
    "training TFLOP": "TFLOP",
    "seconds of training": "s",
}
COMPARED = ("class", "class kNN", "z R2", "z sigma_mad", "z kNN sigma_mad", "recall@100 arc", "class without one, mean")


def read_rows(out: Path) -> pd.DataFrame:
    """Return all rows of a study."""
    files = sorted((out / "rows").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return pd.DataFrame([json.loads(path.read_text()) for path in files])


def table(out: Path, *, base: str = "plain") -> str:
    """Return two tables in Markdown: means over the seeds, and by how much each recipe beats `base`."""
    rows = read_rows(out)
    if rows.empty:
        return "no results"
    measures = {name: short for name, short in COLUMNS.items() if name in rows}
    lines = ["| recipe | seeds | " + " | ".join(measures.values()) + " |", "|---" * (len(measures) + 2) + "|"]
    for name, group in rows.groupby("recipe", sort=False):
        lines.append(f"| {name} | {len(group)} | " + " | ".join(_text(group[m].mean()) for m in measures) + " |")
    compared = [name for name in COMPARED if name in rows]
    lines += [
        "",
        f"By how much each beats {base}, with the same seeds (mean, and its 95 % interval by Student's t):",
        "",
    ]
    lines += [
        "| recipe | seeds | " + " | ".join(COLUMNS[m] for m in compared) + " |",
        "|---" * (len(compared) + 2) + "|",
    ]
    wide = rows.set_index(["recipe", "seed"])
    if base in wide.index:
        reference = wide.loc[base]
        for name in rows["recipe"].unique():
            common = wide.loc[name].index.intersection(reference.index)
            if name != base and len(common):
                cells = [
                    _difference((wide.loc[name].loc[common, m] - reference.loc[common, m]).to_numpy(float))
                    for m in compared
                ]
                lines.append(f"| {name} | {len(common)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.3f}" if abs(value) < 5 else f"{value:.0f}"


def _difference(values: np.ndarray) -> str:
    """Return a mean and how far its interval reaches, as text."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    reach = values.std(ddof=1) / len(values) ** 0.5 * student.ppf(0.975, len(values) - 1)
    return f"{values.mean():+.3f} ± {reach:.3f}"
