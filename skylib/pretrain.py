"""The training loop: one call that starts a run, or goes on where it stood."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from skylib.checkpoint import load_checkpoint, load_model, save_checkpoint, write_json
from skylib.config import ModelConfig, PretrainConfig, difference, to_dict
from skylib.cutouts import CutoutFile
from skylib.embed import embed
from skylib.loading import Batch, CutoutLoader, Loader
from skylib.mim import MaskedImageModel, build_model
from skylib.probes import Task, linear_probe
from skylib.runtime import autocast, keyed_generator, pick_device

log = logging.getLogger(__name__)

_TRAIN, _VALIDATE = range(2)  # what a mask is for: part of its key


@dataclass(frozen=True)
class Probe:
    """A linear probe that is run while a model trains, to see whether its embeddings get better.

    Parameters
    ----------
    target : str
        A column of `cutouts`.
    cutouts : CutoutFile
    task : {"classification", "regression"}
    split : ndarray of int, shape (n,)
        0 to fit, 1 to choose, 2 to report. Keep the test part of the study out of it.
    pool : str
        As in `embed`.
    """

    target: str
    cutouts: CutoutFile
    task: Task
    split: np.ndarray
    pool: str = "mean"


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What `pretrain` left in the run folder."""

    run_dir: Path
    model: MaskedImageModel
    step: int
    metrics: pd.DataFrame  # one row a log step: step, loss, learning_rate, …; validation and probes where measured


def pretrain(
    model_config: ModelConfig,
    config: PretrainConfig,
    *,
    train: Loader | CutoutFile,
    validation: Loader | CutoutFile | None = None,
    probes: Sequence[Probe] = (),
    run_dir: str | Path,
    device: str | torch.device | None = None,
) -> PretrainResult:
    """Train a masked image model; called again on the same run folder, go on where it stood.

    Every random draw follows from the seed and the step, so on a CPU in fp32 a run that was interrupted and resumed
    ends with the weights of one that was not.

    Parameters
    ----------
    model_config : ModelConfig
    config : PretrainConfig
    train : CutoutLoader, TileLoader or CutoutFile
        From a file, batches of `config.batch_size` are drawn at random and turned.
    validation : CutoutLoader or CutoutFile, optional
        Its loss is measured with masks that never change.
    probes : sequence of Probe
        Measured together with the validation loss; they do not touch the training.
    run_dir : path
        Gets ``config.json``, ``checkpoints/last.pt`` and ``metrics.jsonl``.

    Returns
    -------
    PretrainResult

    Raises
    ------
    ValueError
        If the run folder holds a run of another model, or the bands do not match.
    FloatingPointError
        If the loss is not finite.
    """
    run_dir, device = Path(run_dir), pick_device(device)
    path = run_dir / "checkpoints" / "last.pt"
    loader = _as_loader(train, model_config, config, device, shuffle=True)
    validation_loader = (
        None if validation is None else _as_loader(validation, model_config, config, device, shuffle=False)
    )
    if tuple(loader.bands) != model_config.bands:
        raise ValueError(
            f"the training data holds bands {' '.join(loader.bands)}, the model {' '.join(model_config.bands)}"
        )
    model = build_model(model_config, seed=config.seed)
    optimizer = torch.optim.AdamW(_decay_groups(model, config), lr=config.learning_rate, betas=config.betas)
    step = 0
    if path.is_file():
        step = _restore(path, model, optimizer, loader, model_config, config)
        model.to(device)
    else:
        model.set_sky_noise(torch.from_numpy(_sky_noise(loader)))
        model.to(device)
        write_json(run_dir / "config.json", {"model": to_dict(model_config), "pretrain": to_dict(config)})
    _truncate_metrics(run_dir / "metrics.jsonl", step)

    model.train()
    batches = _endless(loader)
    running = torch.zeros((), device=device)
    since, clock = step, time.perf_counter()
    bar = tqdm(total=config.steps, initial=min(step, config.steps), desc="pretrain", unit="step", mininterval=1)
    while step < config.steps:
        learning_rate = cosine_schedule(
            step,
            steps=config.steps,
            warmup=config.warmup_steps,
            peak=config.learning_rate,
            final=config.final_learning_rate,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        batch = next(batches)
        with autocast(device, config.precision):
            loss = _loss(model, batch, keyed_generator(config.seed, _TRAIN, step, device=device))
        optimizer.zero_grad()
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        running += loss.detach()
        step += 1
        bar.update()

        if step % config.log_every == 0 or step == config.steps:
            mean = float(running) / (step - since)
            if not math.isfinite(mean):
                raise FloatingPointError(f"{run_dir}: the loss is {mean} at step {step}; the last checkpoint is kept")
            now = time.perf_counter()
            rate = (step - since) * len(batch.flux) / (now - clock)
            line = {"step": step, "loss": mean, "learning_rate": learning_rate, "gradient_norm": float(gradient), "images_per_s": round(rate, 1)}  # fmt: skip
            _append(run_dir / "metrics.jsonl", line)
            bar.set_postfix(loss=f"{mean:.4f}", images_per_s=f"{rate:.0f}")
            running.zero_()
            since, clock = step, now
        if step % config.validate_every == 0 or step == config.steps:
            paused = time.perf_counter()
            line = {"step": step, **_validate(model, validation_loader, probes, config)}
            if len(line) > 1:
                _append(run_dir / "metrics.jsonl", line)
            clock += time.perf_counter() - paused
        if step % config.checkpoint_every == 0 or step == config.steps:
            save_checkpoint(path, _payload(model, optimizer, loader, step, model_config, config))
    bar.close()
    return PretrainResult(
        run_dir=run_dir, model=load_model(path, device=device), step=step, metrics=read_metrics(run_dir)
    )


def cosine_schedule(step: int, *, steps: int, warmup: int, peak: float, final: float = 0.0) -> float:
    """Return the learning rate: linear warm-up to `peak`, then half a cosine down to `final`.

    Examples
    --------
    >>> [cosine_schedule(s, steps=12, warmup=2, peak=1.0) for s in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """Return ``metrics.jsonl`` of a run as a table, one row a step."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        return pd.DataFrame({"step": []})
    lines: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        lines.setdefault(values["step"], {}).update(values)
    return pd.DataFrame(lines.values())


def _as_loader(
    data: Loader | CutoutFile, model: ModelConfig, config: PretrainConfig, device: torch.device, *, shuffle: bool
) -> Loader:
    if not isinstance(data, CutoutFile):
        return data
    return CutoutLoader(
        data, batch_size=config.batch_size, size=model.image_size, bands=model.bands, shuffle=shuffle, augment=shuffle,
        device=device, seed=config.seed,
    )  # fmt: skip


def _sky_noise(loader: Loader) -> np.ndarray:
    noise = loader.sky_noise()
    if not (noise > 0).any():
        raise ValueError(f"the sky noise cannot be measured in any of the bands {' '.join(loader.bands)}")
    if bad := [band for band, sigma in zip(loader.bands, noise, strict=True) if not sigma > 0]:
        log.warning("no data in band %s: its sky noise is taken from the other bands", ", ".join(bad))
    return np.where(noise > 0, noise, np.nanmedian(noise[noise > 0])).astype(np.float32)


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def _loss(model: MaskedImageModel, batch: Batch, generator: torch.Generator) -> Tensor:
    return model(batch.flux, ra=batch.ra, dec=batch.dec, generator=generator).loss


def _decay_groups(model: nn.Module, config: PretrainConfig) -> list[dict[str, Any]]:
    """Return two groups of parameters: weight matrices, which decay, and all else, which does not."""
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    ids = {id(weight) for weight in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    return [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def _validate(
    model: MaskedImageModel, loader: Loader | None, probes: Sequence[Probe], config: PretrainConfig
) -> dict[str, float]:
    model.eval()
    measured: dict[str, float] = {}
    if loader is not None:
        device = model.sky_sigma.device
        total, n = torch.zeros((), device=device), 0
        for number, batch in enumerate(loader):
            with autocast(device, config.precision):
                generator = keyed_generator(config.seed, _VALIDATE, number, device=device)
                total += _loss(model, batch, generator) * len(batch.flux)
            n += len(batch.flux)
        measured["validation_loss"] = float(total) / n
    for probe in probes:
        result = linear_probe(
            embed(model, probe.cutouts, pool=probe.pool), probe.target, task=probe.task, split=probe.split
        )
        name = "accuracy" if probe.task == "classification" else "r2"
        measured[f"probe_{probe.target}_{name}"] = result.metrics[name]
    model.train()
    return measured


def _payload(
    model: MaskedImageModel, optimizer: torch.optim.Optimizer, loader: Loader, step: int, model_config: ModelConfig,
    config: PretrainConfig,
) -> dict[str, Any]:  # fmt: skip
    return {
        "step": step,
        "model_config": to_dict(model_config),
        "pretrain_config": to_dict(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
    }


def _restore(
    path: Path, model: MaskedImageModel, optimizer: torch.optim.Optimizer, loader: Loader, model_config: ModelConfig,
    config: PretrainConfig,
) -> int:  # fmt: skip
    """Load a checkpoint into the parts of a run and return its step."""
    checkpoint = load_checkpoint(path)
    if changed := difference(checkpoint["model_config"], to_dict(model_config)):
        raise ValueError(f"{path} is of another model ({changed}); use another run folder, or the same model")
    if changed := difference(checkpoint["pretrain_config"], to_dict(config)):
        log.warning("%s goes on with other settings: %s", path, changed)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    loader.load_state_dict(checkpoint["loader"])
    return int(checkpoint["step"])


def _append(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def _truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines after the checkpoint: the steps they tell of are made again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line cut off by a kill
            continue
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)
