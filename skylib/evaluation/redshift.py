"""Redshift with its uncertainty: p(z) from frozen embeddings, calibrated on validation, judged on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from skylib.data.splits import TEST, TRAIN, VALIDATION, sky_halves
from skylib.device import seeded_init
from skylib.evaluation.bootstrap import bootstrap_intervals
from skylib.evaluation.probes import labelled_parts
from skylib.files import replaced
from skylib.model.embeddings import Embeddings

_CALIBRATION = 3  # the half of validation that chooses nothing
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # chosen among on validation


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

    def cdf(self) -> np.ndarray:
        """Return the cumulative distribution at the edges, (n, k + 1)."""
        total = np.cumsum(self.density * np.diff(self.edges), axis=1)
        return np.concatenate([np.zeros((len(total), 1)), total], axis=1)

    def cdf_at(self, z: np.ndarray) -> np.ndarray:
        """Return the probability below z (n,), of each object its own."""
        return np.array([np.interp(x, self.edges, c) for x, c in zip(z, self.cdf(), strict=True)])

    def quantile(self, q: float) -> np.ndarray:
        """Return the redshift below which lies the probability q, (n,)."""
        return np.array([np.interp(q, c, self.edges) for c in self.cdf()])

    def point(self) -> np.ndarray:
        """Return the median of each p(z)."""
        return self.quantile(0.5)

    def pit(self) -> np.ndarray:
        """Return the probability below the true redshift; uniform between 0 and 1 if p(z) is honest."""
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

    def metrics(self, *, seed: int = 0) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """Return the measures of honesty, and their 95 % bootstrap intervals.

        ``coverage_68`` and ``coverage_95`` of the central intervals, the mean ``crps``, ``pit_mean`` (0.5 if honest),
        ``pit_outliers``, the share of PIT below 1e-4 or above 1 - 1e-4 (2e-4 if honest; Schmidt et al. 2020,
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
        return measure(everyone, everyone), bootstrap_intervals(everyone, everyone.astype(float), measure, seed=seed)

    def headline(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Return ``{"p(z): measure": {"value": …, "interval": [low, high], "n": …}}``, as `Evaluation.headline` does."""
        metrics, intervals = self.metrics(seed=seed)
        n = int(metrics.pop("n"))
        return {f"p(z): {m}": {"value": v, "interval": list(intervals[m]), "n": n} for m, v in metrics.items()}

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


def redshift_pdf(
    embeddings: Embeddings,
    target: str | np.ndarray = "z_spec",
    *,
    split: str | np.ndarray,
    n_components: int = 3,
    n_bins: int = 200,
    calibrate: bool = True,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    seed: int = 0,
) -> RedshiftPDF:
    """Predict p(z) by a linear mixture-density head on frozen embeddings [1]_.

    The head gives weights, means and widths of Gaussians in ln(1 + z). It is fitted on train by maximum likelihood; its
    weight decay and the number of steps are chosen on one half of validation. Then the cumulative distribution is
    mapped by that of the probability integral transforms on the other half, which no choice has seen (conformal
    calibration of a whole distribution [2]_), so that intervals cover what they say, as long as test is like
    validation. Without calibration, all of validation chooses.

    Parameters
    ----------
    embeddings : Embeddings
    target, split
        As in `linear_probe`; z above -1.
    n_components : int
        Gaussians.
    n_bins : int
        Of the grid, evenly from 0 (or the lowest z of train) to a quarter of the range above the highest of train.
    calibrate : bool
    weight_decays : sequence of float
    seed : int

    Returns
    -------
    RedshiftPDF
        Of the test objects. Its settings hold ``n_train``, ``n_validation`` (that chose) and ``n_calibration``, and
        ``halves``, by what validation was halved (see `skylib.data.splits.sky_halves`).

    Raises
    ------
    ValueError
        If a redshift is -1 or lower, or there are fewer than two validation objects to calibrate with.

    References
    ----------
    .. [1] Bishop 1994, "Mixture density networks".
    .. [2] Chernozhukov et al. 2021, "Distributional conformal prediction", PNAS 118; Kuleshov et al. 2018,
       arXiv:1807.00263.
    """
    z, rows = labelled_parts(embeddings, target, split, "regression")
    lowest = z[np.concatenate(list(rows.values()))].min()
    if lowest <= -1:
        raise ValueError(f"redshifts down to {lowest:.3f}: must lie above -1")
    halves = "none"
    if calibrate:
        validation = rows[VALIDATION]
        if len(validation) < 2:
            raise ValueError(
                f"{len(validation)} validation object: must be two at least, to choose with and to calibrate with"
            )
        half, halves = sky_halves(embeddings.ra[validation], embeddings.dec[validation], seed=seed)
        rows = {**rows, VALIDATION: validation[half == 0], _CALIBRATION: validation[half == 1]}
    train = rows[TRAIN]
    scaler = StandardScaler().fit(embeddings.vectors[train])
    x = {part: torch.from_numpy(scaler.transform(embeddings.vectors[mine])).float() for part, mine in rows.items()}
    y = {part: torch.from_numpy(np.log1p(z[mine])).float() for part, mine in rows.items()}
    heads = [_fit_mixture(x, y, n_components, decay, seed) for decay in weight_decays]
    best = min(range(len(heads)), key=lambda i: heads[i][1])
    head, loss = heads[best]
    low, high = min(0.0, float(z[train].min())), float(z[train].max())
    edges = np.linspace(low, high + 0.25 * (high - low), n_bins + 1)
    settings = {"weight_decay": weight_decays[best], "validation_nll": loss, "n_train": len(train), "halves": halves,
                "n_validation": len(rows[VALIDATION]), "n_calibration": len(rows.get(_CALIBRATION, ()))}  # fmt: skip
    raw = {
        part: _as_histogram(head, x[part], edges, z[mine], mine, settings)
        for part, mine in rows.items()
        if part in (TEST, _CALIBRATION)
    }
    return conformal(raw[TEST], raw[_CALIBRATION].pit()) if calibrate else raw[TEST]


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
    level = np.arange(len(u)) / (len(u) - 1)
    unique, first = np.unique(u, return_index=True)
    level = np.array([level[u == value].mean() if 0 < value < 1 else value for value in unique]) if len(first) < len(u) else level  # fmt: skip
    cdf = np.interp(pdf.cdf(), unique, level)
    density = np.diff(cdf, axis=1) / np.diff(pdf.edges)
    return RedshiftPDF(**{**vars(pdf), "density": density})


class MixtureHead(nn.Module):
    """A linear layer from vectors (n, D) to weights, means and widths of Gaussians, each (n, K)."""

    def __init__(self, width: int, n_components: int, *, mean: float, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * n_components)
        nn.init.normal_(self.linear.weight, std=1e-3)
        spread = torch.linspace(-1, 1, n_components) if n_components > 1 else torch.zeros(1)
        with torch.no_grad():
            self.linear.bias.copy_(torch.cat([torch.zeros(n_components), spread, torch.zeros(n_components)]))
        self.mean, self.scale = mean, scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights, means and widths."""
        weight, mean, log_width = self.linear(x).chunk(3, dim=1)
        width = self.scale * log_width.clamp(-6, 3).exp()
        return weight.log_softmax(dim=1), self.mean + self.scale * mean, width

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean negative log likelihood of y (n,)."""
        weight, mean, width = self(x)
        normal = torch.distributions.Normal(mean, width)
        return -(weight + normal.log_prob(y[:, None])).logsumexp(dim=1).mean()


def _fit_mixture(
    x: dict[int, Tensor], y: dict[int, Tensor], n_components: int, weight_decay: float, seed: int, *, steps: int = 600
) -> tuple[MixtureHead, float]:
    """Fit on train, and return the head as it was best on validation, with its loss there."""
    with seeded_init(seed):
        head = MixtureHead(x[TRAIN].shape[1], n_components, mean=float(y[TRAIN].mean()), scale=float(y[TRAIN].std()) or 1.0)  # fmt: skip
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=weight_decay)
    best, kept = float("inf"), {name: value.clone() for name, value in head.state_dict().items()}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimizer.zero_grad()
        head.loss(x[TRAIN], y[TRAIN]).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                loss = float(head.loss(x[VALIDATION], y[VALIDATION]))
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    return head, best


def _as_histogram(
    head: MixtureHead, x: Tensor, edges: np.ndarray, truth: np.ndarray, rows: np.ndarray, settings: dict[str, Any]
) -> RedshiftPDF:
    """Return the mixture in ln(1 + z) as a histogram in z; what lies beyond the grid goes to its ends."""
    with torch.no_grad():
        weight, mean, width = (part.double() for part in head(x))
        at = torch.from_numpy(np.log1p(np.maximum(edges, -1 + 1e-9)))
        cdf = torch.zeros(len(x), len(edges), dtype=torch.float64)
        for k in range(weight.shape[1]):
            normal = torch.distributions.Normal(mean[:, k, None], width[:, k, None])
            cdf += weight[:, k, None].exp() * normal.cdf(at[None])
    cdf[:, 0], cdf[:, -1] = 0.0, 1.0
    density = np.diff(cdf.numpy(), axis=1) / np.diff(edges)
    return RedshiftPDF(edges=edges, density=density, truth=truth, rows=rows, settings=settings)


def _square_integral(grid: np.ndarray, values: np.ndarray, use: np.ndarray) -> float:
    """Integrate the square of a function that is straight between the points of the grid, over some of its pieces."""
    a, b, h = values[:-1][use], values[1:][use], np.diff(grid)[use]
    return float((h * (a * a + a * b + b * b) / 3).sum())
