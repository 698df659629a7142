"""p(z) of objects as histograms on one grid: quantiles, calibration, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from astropy.table import Table
from scipy.stats import binomtest, rankdata

from skylib.checks import check_fields, checked
from skylib.evaluation.metrics import bootstrap_intervals
from skylib.files import replaced

CALIBRATED = {"coverage_68": 0.68, "coverage_95": 0.95, "pit_mean": 0.5, "pit_outliers": 2e-4}  # where p(z) is right


@dataclass(frozen=True, kw_only=True)
class RedshiftPDF:
    """p(z) of objects, as histograms on one grid.

    Attributes
    ----------
    edges : ndarray, shape (k + 1,)
    density : ndarray, shape (n, k)
        Integrates to 1.
    truth : ndarray, shape (n,)
        Spectroscopic redshift; NaN where unknown.
    rows : ndarray of int, shape (n,)
        Which objects these are.
    settings : dict
        What was chosen on validation.
    """

    edges: np.ndarray
    density: np.ndarray
    truth: np.ndarray
    rows: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        shapes = {name: np.shape(getattr(self, name)) for name in ("edges", "truth", "rows", "density")}
        edges, truth, rows, density = shapes.values()
        if len(density) != 2 or edges != (density[1] + 1,) or {truth, rows} != {density[:1]}:
            raise ValueError(f"shapes {shapes}: must be (k + 1,), (n,), (n,), (n, k)")

    def cdf(self) -> np.ndarray:
        """Return the cumulative distribution at the edges, (n, k + 1)."""
        total = np.cumsum(self.density * np.diff(self.edges), axis=1)
        return np.concatenate([np.zeros((len(total), 1)), total], axis=1)

    @checked
    def cdf_at(self, z: np.ndarray) -> np.ndarray:
        """Return the probability below z (n,), of each object its own."""
        if (z := np.asarray(z)).shape != self.truth.shape or z.dtype.kind not in "fiu":
            raise ValueError(f"z of shape {z.shape} and type {z.dtype}: must be {len(self.truth)} redshifts")
        return np.array([np.interp(x, self.edges, c) for x, c in zip(z, self.cdf(), strict=True)])

    @checked
    def quantile(self, q: float) -> np.ndarray:
        """Return the redshift below which lies the probability q, (n,)."""
        return np.array([np.interp(q, c, self.edges) for c in self.cdf()])

    def point(self) -> np.ndarray:
        """Return the median of each p(z)."""
        return self.quantile(0.5)

    def pit(self) -> np.ndarray:
        """Return the probability below the true redshift; uniform between 0 and 1 if p(z) is calibrated."""
        return self.cdf_at(self.truth)

    def crps(self) -> np.ndarray:
        """Return the continuous ranked probability score of each object, in units of z (Gneiting and Raftery 2007).

        It is the integral of the squared difference between the cumulative distribution and the step at the truth.
        """
        scores = []
        for z, c in zip(self.truth, self.cdf(), strict=True):
            grid = np.union1d(self.edges, [z])
            values = np.interp(grid, self.edges, c)
            below, above = grid[1:] <= z, grid[1:] > z
            scores.append(_square_integral(grid, values, below) + _square_integral(grid, values - 1, above))
        return np.array(scores)

    @checked
    def metrics(self, *, seed: int = 0) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """Return the measures of calibration, and their 95 % intervals: Wilson's of fractions, bootstrap of the others.

        ``coverage_68`` and ``coverage_95`` of the central intervals, the mean ``crps``, ``pit_mean`` (0.5 if calibrated),
        ``pit_outliers``, the share of PIT below 1e-4 or above 1 - 1e-4 (2e-4 if calibrated; Schmidt et al. 2020,
        MNRAS 499, 1587), and ``n``.
        """
        pit = self.pit()
        crps = self.crps()

        def measure(index: np.ndarray, _truth: np.ndarray) -> dict[str, float]:
            u = pit[index]
            return {
                "coverage_68": float((np.abs(u - 0.5) <= 0.34).mean()),
                "coverage_95": float((np.abs(u - 0.5) <= 0.475).mean()),
                "crps": float(crps[index].mean()),
                "pit_mean": float(u.mean()),
                "pit_outliers": float(((u < 1e-4) | (u > 1 - 1e-4)).mean()),
                "n": len(index),
            }

        everyone = np.arange(len(pit))
        values, n = measure(everyone, everyone), len(pit)
        intervals = bootstrap_intervals(everyone, everyone.astype(float), measure, seed=seed)
        for name in ("coverage_68", "coverage_95", "pit_outliers"):
            intervals[name] = tuple(binomtest(round(values[name] * n), n).proportion_ci(method="wilson"))
        return values, intervals

    @checked
    def headline(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Return ``{"p(z), measure": {"value": x, "interval": [low, high], "n": n}}``, as `Evaluation.headline`."""
        metrics, intervals = self.metrics(seed=seed)
        n = int(metrics.pop("n"))
        lines = {f"p(z), {m}": {"value": v, "interval": list(intervals[m]), "n": n} for m, v in metrics.items()}
        for name, value in CALIBRATED.items():
            lines[f"p(z), {name}"]["note"] = f"{value:g} if calibrated"
        return lines

    @checked
    def save(self, path: str | Path, *, columns: Mapping[str, np.ndarray] | None = None) -> None:
        """Write the tables that `qp` [1]_ reads: ``qp.read(path)`` gives an ensemble of the kind "hist".

        Parameters
        ----------
        path : path
            ``.hdf5`` or ``.fits`` says the format: tables ``meta``, ``data`` and ``ancil``.
        columns : mapping, optional
            More for ``ancil``, which has ``row`` and ``z_spec`` already.

        References
        ----------
        .. [1] Malz et al. 2018, AJ 156, 35; https://github.com/LSSTDESC/qp.
        """
        path = Path(path)
        tables = {
            "meta": {"pdf_name": np.array([b"hist"]), "pdf_version": np.array([0]), "bins": self.edges[None]},
            "data": {"pdfs": self.density},
            "ancil": {"row": self.rows, "z_spec": self.truth, **(columns or {})},
        }
        if path.suffix not in (".hdf5", ".h5", ".fits"):
            raise ValueError(f"{path}: the name must end in .hdf5, .h5 or .fits")
        with replaced(path) as partial:
            if path.suffix == ".fits":
                hdus = [fits.table_to_hdu(Table(dict(table))) for table in tables.values()]
                for hdu, name in zip(hdus, tables, strict=True):
                    hdu.name = name
                fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(partial, overwrite=True)
            else:
                with h5py.File(partial, "w") as file:
                    for name, table in tables.items():
                        for column, values in table.items():
                            file.create_dataset(f"{name}/{column}", data=values)


def conformal(pdf: RedshiftPDF, pit: np.ndarray) -> RedshiftPDF:
    """Map a cumulative distribution by the empirical one of PIT values from other objects.

    Parameters
    ----------
    pdf : RedshiftPDF
    pit : ndarray, shape (m,)
        Probability integral transforms of calibration objects, of the same head.

    Returns
    -------
    RedshiftPDF
    """
    # The i-th smallest of m exchangeable values lies at i / (m + 1), on average: no value is certain, however few.
    u = np.concatenate([[0.0], np.sort(np.clip(pit, 0, 1)), [1.0]])
    values, first = np.unique(u, return_index=True)
    level = (rankdata(u)[first] - 1) / (len(u) - 1)  # of equal values the mean
    level[0], level[-1] = 0.0, 1.0
    cdf = np.interp(pdf.cdf(), values, level)
    density = np.diff(cdf, axis=1) / np.diff(pdf.edges)
    return RedshiftPDF(**{**vars(pdf), "density": density})


def _square_integral(grid: np.ndarray, values: np.ndarray, use: np.ndarray) -> float:
    """Integrate the square of a function that is straight between the points of the grid, over some of its pieces."""
    a, b, h = values[:-1][use], values[1:][use], np.diff(grid)[use]
    return float((h * (a * a + a * b + b * b) / 3).sum())
