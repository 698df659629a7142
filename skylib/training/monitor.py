"""How a run is doing: its log, its figures, and a progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skylib.device import keyed_generator
from skylib.files import replaced
from skylib.model.mim import MaskedImageModel

N_EXAMPLES = 6  # objects in the figure of reconstructions


class Recorder:
    """The log of a run, ``metrics.jsonl``: one line each time something is measured.

    Parameters
    ----------
    run_dir : path
    step : int
        Where the run goes on; lines of later steps, which are made again, are dropped.
    tensorboard : bool
        Also write scalars to ``tensorboard/``.

    Raises
    ------
    ModuleNotFoundError
        If TensorBoard is asked for and not installed.
    """

    def __init__(self, run_dir: str | Path, *, step: int = 0, tensorboard: bool = False) -> None:
        run_dir = Path(run_dir)
        self._path = run_dir / "metrics.jsonl"
        lines = [line for line in _lines(self._path) if line["step"] <= step]
        run_dir.mkdir(parents=True, exist_ok=True)
        with replaced(self._path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("tensorboard=True: install it, with pip install tensorboard") from error
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


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """Return ``metrics.jsonl`` of a run as a table, one row a step; it may be read while the run goes on."""
    merged: dict[int, dict[str, Any]] = {}
    for line in _lines(Path(run_dir) / "metrics.jsonl"):
        merged.setdefault(line["step"], {}).update(line)
    return pd.DataFrame(merged.values()) if merged else pd.DataFrame({"step": []})


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; one that a kill cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


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

    def __init__(self, run_dir: str | Path, *, steps: int, step: int = 0, quiet: bool = False) -> None:
        self._run_dir, self._shown, self._quiet, self._read = Path(run_dir), step, quiet, 0
        self._bar = tqdm(
            total=steps, initial=min(step, steps), desc="pretrain", unit="step", mininterval=1, disable=quiet
        )
        self._figures = {name: self._run_dir / "figures" / f"{name}.png" for name in ("progress", "reconstruction")}
        self._times = {name: _changed(path) for name, path in self._figures.items()}
        self._handles: dict[str, Any] = {}

    def refresh(self) -> None:
        """Show what was logged and drawn since the last call."""
        if self._quiet:
            return
        logged = [line for line in self._news() if "loss" in line]
        if logged and logged[-1]["step"] > self._shown:
            last = logged[-1]
            self._bar.set_postfix(loss=f"{last['loss']:.4f}", images_per_s=f"{last['images_per_s']:.0f}", refresh=False)
            self._bar.update(last["step"] - self._shown)
            self._shown = last["step"]
        for name, path in self._figures.items():
            if (changed := _changed(path)) != self._times[name]:
                self._times[name] = changed
                self._show(name, path)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _news(self) -> list[dict[str, Any]]:
        """Return the whole lines that the log has gained since the last call."""
        path = self._run_dir / "metrics.jsonl"
        if not path.is_file():
            return []
        if path.stat().st_size < self._read:  # a resumed run has dropped lines
            self._read = 0
        with open(path, "rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError:  # the log was rewritten in between: read it anew next time
            self._read = 0
            return []

    def _show(self, name: str, path: Path) -> None:
        try:
            from IPython import get_ipython
            from IPython.display import Image, display
        except ModuleNotFoundError:
            return
        if getattr(get_ipython(), "kernel", None) is None:  # no notebook
            return
        if name in self._handles:
            self._handles[name].update(Image(path))
        else:
            self._handles[name] = display(Image(path), display_id=True)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def draw_progress(run_dir: str | Path) -> None:
    """Draw ``figures/progress.png`` from the log."""
    from skylib import plotting

    _draw(plotting.plot_progress(read_metrics(run_dir)), Path(run_dir) / "figures" / "progress.png")


def draw_reconstruction(run_dir: str | Path, model: MaskedImageModel, flux: Tensor, *, seed: int) -> None:
    """Draw ``figures/reconstruction.png``: what the model makes of some images, always with the same patches hidden."""
    from skylib import plotting

    device = model.sky_sigma.device
    nowhere = torch.full((len(flux),), torch.nan, device=device)  # a model with positions is shown none
    generator = keyed_generator(seed, device=device)
    images, hidden = model.reconstruct(flux.to(device), ra=nowhere, dec=nowhere, generator=generator)
    figure = plotting.plot_reconstruction(
        flux.cpu().numpy(), images.cpu().numpy(), hidden.cpu().numpy(), model.config.bands,
        norm_pix=model.config.norm_pix, sky_sigma=model.sky_sigma.cpu().numpy(),
    )  # fmt: skip
    _draw(figure, Path(run_dir) / "figures" / "reconstruction.png")


def _draw(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)


def examples(flux: Tensor, sky_sigma: Tensor) -> Tensor:
    """Choose images worth looking at, from bright to middling, by the light at their centre over the sky noise."""
    side = flux.shape[-1]
    centre = slice(side // 2 - max(1, side // 8), side // 2 + max(1, side // 8))
    light = (flux[..., centre, centre] / sky_sigma[:, None, None].to(flux.device)).nan_to_num(0.0).sum(dim=(1, 2, 3))
    places = torch.linspace(0.03, 0.4, min(N_EXAMPLES, len(flux))) * (len(flux) - 1)
    return flux[light.argsort(descending=True, stable=True)[places.long()]]
