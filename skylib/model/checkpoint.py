"""Checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skylib.config import model_config_from_dict
from skylib.device import pick_device
from skylib.files import replaced
from skylib.model.mim import MaskedImageModel, build_model

log = logging.getLogger(__name__)


def save_checkpoint(path: str | Path, payload: dict[str, Any], *, keep: str | Path | None = None) -> None:
    """Write a checkpoint that a kill at any moment leaves either old or new, never broken.

    Parameters
    ----------
    path : path
    payload : dict
        Tensors and plain types.
    keep : path, optional
        The checkpoint that was at `path` before goes there.
    """
    path = Path(path)
    with replaced(path) as partial:
        torch.save(payload, partial)
        if keep is not None and path.exists():
            os.replace(path, keep)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU, without running any code that the file may hold.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If it is truncated or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError or KeyError by the kind of damage
        raise OSError(f"{path}: cannot be read as a checkpoint: {error}") from error


def load_last(run_dir: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest whole checkpoint of a run.

    Where ``checkpoints/last.pt`` is damaged, ``previous.pt`` is taken, with a warning.

    Returns
    -------
    path : Path
        The checkpoint that was read.
    checkpoint : dict
        Or None instead of both, if the run has no checkpoint.

    Raises
    ------
    OSError
        If none can be read.
    """
    last, previous = (Path(run_dir) / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    if last.is_file():
        try:
            return last, load_checkpoint(last)
        except OSError as error:
            if not previous.is_file():
                raise
            log.warning("%s; going back to %s", error, previous)
    return (previous, load_checkpoint(previous)) if previous.is_file() else None


def load_model(run_dir_or_checkpoint: str | Path, *, device: str | torch.device | None = None) -> MaskedImageModel:
    """Load a pretrained model, ready to embed; with averaged weights, where the run kept them.

    Parameters
    ----------
    run_dir_or_checkpoint : path
        A run folder, of which the last checkpoint is taken, or a checkpoint, such as ``checkpoints/best.pt``.
    device : optional
        CUDA if there is one, by default.

    Returns
    -------
    MaskedImageModel
        In evaluation mode.
    """
    path = Path(run_dir_or_checkpoint)
    found = load_last(path) if path.is_dir() else None
    if found is None:
        path = path / "checkpoints" / "last.pt" if path.is_dir() else path
        found = path, load_checkpoint(path)
    source, checkpoint = found
    model = build_model(model_config_from_dict(checkpoint["model_config"]))
    model.load_state_dict(checkpoint.get("optimiser", {}).get("average", checkpoint["model"]))
    model.origin = {
        "checkpoint": str(source),
        "step": checkpoint["step"],
        "pretrain": checkpoint.get("pretrain_config"),
    }
    return model.to(pick_device(device)).eval()


def fingerprint(model: nn.Module) -> str:
    """Return a short name for all that a model holds, weights and buffers: the same values, the same name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
