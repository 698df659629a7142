"""Redshift with its uncertainty: p(z) from frozen embeddings, calibrated on validation, judged on test."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from skylib.checks import checked
from skylib.data.splits import TEST, TRAIN, VALIDATION, sky_halves
from skylib.device import seeded_init
from skylib.evaluation.labels import select_labels
from skylib.evaluation.pdf import RedshiftPDF, conformal
from skylib.model.embeddings import Embeddings

_CALIBRATION = 3  # the half of validation that chooses nothing
_STEPS = 300  # of the fit
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # chosen among on validation


@checked
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
    calibration of a whole distribution [2]_), so that intervals have their nominal coverage, as long as test is like
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
    labels = select_labels(embeddings.column, target, split, "regression", usable=embeddings.finite)
    z, rows = labels.values, labels.rows
    if (lowest := z[labels.used].min()) <= -1:
        raise ValueError(f"redshifts down to {lowest:.3f}: must lie above -1")
    halves = "none"
    if calibrate:
        validation = rows[VALIDATION]
        if len(validation) < 2:
            raise ValueError(f"{len(validation)} validation object: must be two at least, to choose and to calibrate")
        half, halves = sky_halves(embeddings.ra[validation], embeddings.dec[validation], seed=seed)
        rows = {**rows, VALIDATION: validation[half == 0], _CALIBRATION: validation[half == 1]}
    train = rows[TRAIN]
    scaler = StandardScaler().fit(embeddings.vectors[train])
    x = {part: torch.from_numpy(scaler.transform(embeddings.vectors[chosen])).float() for part, chosen in rows.items()}
    y = {part: torch.from_numpy(np.log1p(z[chosen])).float() for part, chosen in rows.items()}
    heads = [_fit_mixture(x, y, n_components, decay, seed) for decay in weight_decays]
    best = min(range(len(heads)), key=lambda i: heads[i][1])
    head, loss = heads[best][0].double(), heads[best][1]
    low, high = min(0.0, float(z[train].min())), float(z[train].max())
    edges = np.linspace(low, high + 0.25 * (high - low), n_bins + 1)
    settings = {"weight_decay": weight_decays[best], "validation_nll": loss, "n_train": len(train), "halves": halves}
    settings |= {"n_validation": len(rows[VALIDATION]), "n_calibration": len(rows.get(_CALIBRATION, ()))}
    raw = {
        part: _as_histogram(head, x[part], edges, z[chosen], chosen, settings)
        for part, chosen in rows.items()
        if part in (TEST, _CALIBRATION)
    }
    return conformal(raw[TEST], raw[_CALIBRATION].pit()) if calibrate else raw[TEST]


class MixtureHead(nn.Module):
    """A linear layer from vectors (n, D) to weights, means and widths of K Gaussians."""

    def __init__(self, width: int, n_components: int, *, mean: float, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3 * n_components)
        nn.init.normal_(self.linear.weight, std=1e-3)
        spread = torch.linspace(-1, 1, n_components) if n_components > 1 else torch.zeros(1)
        with torch.no_grad():
            self.linear.bias.copy_(torch.cat([torch.zeros(n_components), spread, torch.zeros(n_components)]))
        self.mean, self.scale = mean, scale

    def forward(self, x: Tensor) -> MixtureSameFamily:
        """Return the distribution of each object."""
        weight, mean, log_width = self.linear(x).chunk(3, dim=1)
        width = self.scale * log_width.clamp(-6, 3).exp()
        return MixtureSameFamily(Categorical(logits=weight), Normal(self.mean + self.scale * mean, width))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean negative log likelihood of y (n,)."""
        return -self(x).log_prob(y).mean()


def _fit_mixture(
    x: dict[int, Tensor], y: dict[int, Tensor], n_components: int, weight_decay: float, seed: int
) -> tuple[MixtureHead, float]:
    """Fit on train; return the head with the lowest loss on validation, and that loss."""
    with seeded_init(seed):
        scale = float(y[TRAIN].std()) or 1.0
        head = MixtureHead(x[TRAIN].shape[1], n_components, mean=float(y[TRAIN].mean()), scale=scale)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    best, kept = float("inf"), deepcopy(head.state_dict())
    for step in range(_STEPS):
        optimizer.zero_grad()
        head.loss(x[TRAIN], y[TRAIN]).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            with torch.no_grad():
                loss = float(head.loss(x[VALIDATION], y[VALIDATION]))
            if loss < best:
                best, kept = loss, deepcopy(head.state_dict())
    head.load_state_dict(kept)
    return head, best


def _as_histogram(
    head: MixtureHead, x: Tensor, edges: np.ndarray, truth: np.ndarray, rows: np.ndarray, settings: dict[str, Any]
) -> RedshiftPDF:
    """Return the mixture in ln(1 + z) as a histogram in z; what lies beyond the grid goes to its ends."""
    with torch.no_grad():
        distribution = head(x.double())
        at = torch.from_numpy(np.log1p(np.maximum(edges, -1 + 1e-9)))
        cdf = torch.stack([distribution.cdf(one) for one in at], dim=1)
    cdf[:, 0], cdf[:, -1] = 0.0, 1.0
    density = np.diff(cdf.numpy(), axis=1) / np.diff(edges)
    return RedshiftPDF(edges=edges, density=density, truth=truth, rows=rows, settings=settings)
