"""Pretraining: one call that starts a run, or goes on where it stood."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from skylib.config import ModelConfig, PretrainConfig
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader, Loader
from skylib.device import pick_device
from skylib.evaluation.progress import Probe
from skylib.model.checkpoint import load_last
from skylib.model.mim import MaskedImageModel
from skylib.model.weights import load_model
from skylib.training.distributed import launch, process_number, world_size
from skylib.training.monitor import Display, read_metrics
from skylib.training.trainer import train as train_here


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
    validation: CutoutLoader | CutoutFile | None = None,
    probes: Sequence[Probe] = (),
    run_dir: str | Path,
    device: str | torch.device | None = None,
    processes: int | None = None,
) -> PretrainResult:
    """Train a masked image model; called again on the same run folder, go on where it stood.

    Every random draw follows from the seed and the step, so on a CPU in fp32 a run that was interrupted and resumed
    ends with the weights of one that was not. SIGUSR1, SIGTERM, or a file ``STOP`` in the run folder, end it after the
    step at hand.

    Parameters
    ----------
    model_config : ModelConfig
    config : PretrainConfig
    train : CutoutLoader, TileLoader or CutoutFile
        From a file, batches of `config.batch_size` are drawn at random and turned. Where a loader gives weights of pixels,
        they count in the loss.
    validation : CutoutLoader or CutoutFile, optional
        Its loss is measured with masks that never change.
    probes : sequence of Probe
        Measured together with the validation loss; they do not touch the training.
    run_dir : path
        Gets ``config.json``, ``metrics.jsonl``, ``figures/``, and ``checkpoints/``: ``last.pt``, ``previous.pt``, and
        ``best.pt`` with the weights of the lowest validation loss.
    device : optional
        CUDA if there is one, by default.
    processes : int, optional
        On each node; by default one for each GPU. More than one are started as workers, unless ``torchrun`` or
        ``srun`` has started this program as one of several already. A batch is divided among them.

    Returns
    -------
    PretrainResult

    Raises
    ------
    ValueError
        If the run folder holds a run of another model, the bands do not match, or the batch cannot be divided.
    FloatingPointError
        If the gradient was not finite for `config.max_bad_steps` steps in a row.
    Interrupted
        If asked to stop; the state is saved.
    OSError
        If no checkpoint of the run can be read.
    """
    run_dir, device = Path(run_dir), pick_device(device)
    processes = processes or (torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1)
    arguments: dict[str, Any] = {"model_config": model_config, "config": config, "train": train, "validation": validation,
                 "probes": tuple(probes), "run_dir": run_dir, "device": device}  # fmt: skip
    found = load_last(run_dir)
    step = found[1]["step"] if found else 0
    display = Display(run_dir, steps=config.steps, step=step, quiet=process_number() > 0)
    try:
        several = processes * int(os.environ.get("SLURM_JOB_NUM_NODES", 1)) > 1
        if several and world_size() == 1 and step < config.steps:
            launch(
                "skylib.training.trainer:train", arguments, run_dir=run_dir, processes=processes, watch=display.refresh
            )
        else:
            train_here(**arguments, watch=display.refresh)
        display.refresh()
    finally:
        display.close()
    model = load_model(run_dir, device=device)
    return PretrainResult(run_dir=run_dir, model=model, step=config.steps, metrics=read_metrics(run_dir))
