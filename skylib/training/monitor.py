"""How a run is doing: what is measured, its log, its figures, and a progress bar."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skylib.config import PretrainConfig
from skylib.data.loading import CutoutLoader, Loader
from skylib.device import autocast, keyed_generator
from skylib.files import read_log, replaced
from skylib.model.mim import MaskedImageModel

log = logging.getLogger(__name__)

N_EXAMPLES = 6  # objects in the figure of reconstructions
_VALIDATE = 1  # what a mask is for: part of its key


class Measurement(Protocol):
    """What `pretrain` takes as a probe: a function of the model, which returns named numbers for the log."""

    def __call__(self, model: MaskedImageModel, *, precision: str, shared: dict[Any, Any]) -> dict[str, float]:
        """Return the numbers; `shared` is empty before the first probe, and lets the next use what one computed."""


def measure(
    model: MaskedImageModel,
    validation: CutoutLoader | None,
    probes: Sequence[Measurement],
    *,
    config: PretrainConfig,
    run_dir: Path,
) -> dict[str, float]:
    """Return the validation loss and what the probes measure, and draw some reconstructions."""
    model.eval()
    line: dict[str, float] = {}
    shared: dict[Any, Any] = {}
    if validation is not None:
        line["validation_loss"] = validation_loss(model, validation, precision=config.precision, seed=config.seed)
        flux = torch.from_numpy(validation.flux(validation.rows[:256]))
        draw_reconstruction(run_dir, model, examples(flux, model.sky_sigma.cpu()), seed=config.seed)
    for probe in probes:
        line |= probe(model, precision=config.precision, shared=shared)
    return line


@torch.no_grad()
def validation_loss(model: MaskedImageModel, loader: CutoutLoader, *, precision: str, seed: int) -> float:
    """Return the error of the pixels over one pass of a loader; the masks are the same each time.

    Other terms of the loss, some of which grow by design as a training goes on, are not in it.
    """
    device = model.sky_sigma.device
    total = torch.zeros(2, device=device)  # summed error, pixels
    for number, batch in enumerate(loader):
        generator = keyed_generator(seed, _VALIDATE, number, device=device)
        with autocast(device, precision):
            out = model(batch.flux, weight=batch.weight, ra=batch.ra, dec=batch.dec, generator=generator)
        total += torch.stack([out.parts["pixels"] * out.n_pixels, out.n_pixels])
    error, n_pixels = total.tolist()
    return error / n_pixels if n_pixels else float("nan")


def sky_noise(loader: Loader) -> np.ndarray:
    """Return the sky noise per band of the training data; a band without data gets the median of the others."""
    noise = loader.sky_noise()
    if not (noise > 0).any():
        raise ValueError(f"the sky noise cannot be measured in any of the bands {' '.join(loader.bands)}")
    if bad := [band for band, sigma in zip(loader.bands, noise, strict=True) if not sigma > 0]:
        log.warning("no data in band %s: its sky noise is taken from the other bands", ", ".join(bad))
    return np.where(noise > 0, noise, np.nanmedian(noise[noise > 0])).astype(np.float32)


class Recorder:
    """The log of a run, ``metrics.jsonl``: one line each time something is measured.

    Parameters
    ----------
    run_dir : path
    step : int
        Where the run resumes; lines of later steps, which are made again, are dropped.
    tensorboard : bool
        Also write scalars to ``tensorboard/``.
    """

    def __init__(self, run_dir: str | Path, *, step: int = 0, tensorboard: bool = False) -> None:
        run_dir = Path(run_dir)
        self._path = run_dir / "metrics.jsonl"
        lines, damaged = read_log(self._path)
        run_dir.mkdir(parents=True, exist_ok=True)
        if damaged > 1:  # a kill cuts off one line at most
            aside = run_dir / "metrics.damaged.jsonl"
            os.replace(self._path, aside)
            message = "%s: %d lines cannot be read and are left out; the file is kept as %s"
            log.warning(message, self._path, damaged, aside)
        lines = [line for line in lines if line["step"] <= step]
        with replaced(self._path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it holds ``step``."""
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])
            self._board.flush()

    def draw(self) -> None:
        """Draw ``figures/progress.png``."""
        from skylib import plotting

        run_dir = self._path.parent
        _draw(plotting.plot_progress(read_metrics(run_dir)), run_dir, "progress")


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """Return ``metrics.jsonl`` of a run as a table, one row per step; it may be read while the run trains."""
    merged: dict[int, dict[str, Any]] = {}
    for line in read_log(Path(run_dir) / "metrics.jsonl")[0]:
        merged.setdefault(line["step"], {}).update(line)
    return pd.DataFrame(merged.values()) if merged else pd.DataFrame({"step": []})


class Display:
    """A progress bar, and in a notebook the figures, of a run that writes into its folder, here or elsewhere.

    Parameters
    ----------
    run_dir : path
    steps, step : int
        Of the whole run, and where it stands.
    quiet : bool
        Show nothing.
    """

    def __init__(self, run_dir: str | Path, *, steps: int = 0, step: int = 0, quiet: bool = False) -> None:
        run_dir = Path(run_dir)
        self._log = run_dir / "metrics.jsonl"
        self._bar = tqdm(total=steps, initial=min(step, steps), desc="pretrain", unit="step", disable=quiet)
        figures = [run_dir / "figures" / f"{name}.png" for name in ("progress", "reconstruction")]
        self._times = {path: _changed(path) for path in figures}
        self._handles: dict[Path, Any] = {}

    def tick(self, step: int) -> None:
        """Show how many steps are made."""
        if step > self._bar.n:
            self._bar.update(step - self._bar.n)

    def refresh(self) -> None:
        """Show what was logged and drawn since the last call."""
        if self._bar.disable:
            return
        for line in read_log(self._log, last=4096)[0][-2:]:  # the last may be of a validation
            if {"loss", "images_per_s", "step"} <= set(line):
                shown = {"loss": f"{line['loss']:.4f}", "images_per_s": f"{line['images_per_s']:.0f}"}
                self._bar.set_postfix(shown, refresh=False)
                self.tick(line["step"])
        for path, before in self._times.items():
            if (changed := _changed(path)) != before:
                self._times[path] = changed
                self._show(path)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _show(self, path: Path) -> None:
        try:
            from IPython import get_ipython
            from IPython.display import Image, display
        except ModuleNotFoundError:
            return
        if getattr(get_ipython(), "kernel", None) is None:  # no notebook
            return
        live = {"live": True}  # the page of results leaves them out
        if path in self._handles:
            self._handles[path].update(Image(path), metadata=live)
        else:
            self._handles[path] = display(Image(path), display_id=True, metadata=live)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def draw_reconstruction(run_dir: str | Path, model: MaskedImageModel, flux: Tensor, *, seed: int) -> None:
    """Draw ``figures/reconstruction.png``: what the model makes of some images, always with the same patches hidden."""
    from skylib import plotting

    device = model.sky_sigma.device
    nowhere = torch.full((len(flux),), torch.nan, device=device)  # a model with positions is shown none
    generator = keyed_generator(seed, device=device)
    images, hidden = model.reconstruct(flux.to(device), ra=nowhere, dec=nowhere, generator=generator)
    before, after, where, sky_sigma = (x.cpu().numpy() for x in (flux, images, hidden, model.sky_sigma))
    bands, norm_pix = model.config.bands, model.config.norm_pix
    figure = plotting.plot_reconstruction(before, after, where, bands, norm_pix=norm_pix, sky_sigma=sky_sigma)
    _draw(figure, run_dir, "reconstruction")


def _draw(figure: Any, run_dir: str | Path, name: str) -> None:
    import matplotlib.pyplot as plt

    from skylib.plotting import save_figure

    save_figure(figure, run_dir, name)
    plt.close(figure)


def examples(flux: Tensor, sky_sigma: Tensor) -> Tensor:
    """Choose images worth looking at, from bright to middling, by the light at their centre over the sky noise."""
    side = flux.shape[-1]
    centre = slice(side // 2 - max(1, side // 8), side // 2 + max(1, side // 8))
    light = (flux[..., centre, centre] / sky_sigma[:, None, None].to(flux.device)).nan_to_num(0.0).sum(dim=(1, 2, 3))
    places = torch.linspace(0.03, 0.4, min(N_EXAMPLES, len(flux))) * (len(flux) - 1)
    return flux[light.argsort(descending=True, stable=True)[places.long()]]
