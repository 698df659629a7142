"""Checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skylib.files import replaced

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
        If it is truncated, damaged or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as file:  # torch itself does not look at the checksums
            if damaged := file.testzip():
                raise OSError(f"the checksum of {damaged} is wrong")
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
            return last, load_training(last)
        except OSError as error:
            if not previous.is_file():
                raise
            log.warning("%s; going back to %s", error, previous)
    elif previous.is_file():
        log.warning("%s: no such checkpoint; going back to %s", last, previous)
    return (previous, load_training(previous)) if previous.is_file() else None


def load_training(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a training: it must hold a model."""
    checkpoint = load_checkpoint(path)
    message = f"{path}: cannot be read as the checkpoint of a training"
    if not isinstance(checkpoint, dict):
        raise OSError(f"{message}: it is a {type(checkpoint).__name__}")
    if lacking := [name for name in ("step", "model", "model_config") if name not in checkpoint]:
        raise OSError(f"{message}: it lacks {', '.join(lacking)}")
    step, of_dicts = checkpoint["step"], all(isinstance(checkpoint[name], dict) for name in ("model", "model_config"))
    if type(step) is not int or step < 0 or not of_dicts:
        raise OSError(f"{message}: step={step!r} must be a whole number, model and model_config mappings")
    return checkpoint


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Raise OSError, which names the checkpoint, where a training cannot take up what it holds."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise OSError(f"{path}: cannot be resumed: {type(error).__name__}: {error}") from error


def fingerprint(model: nn.Module) -> str:
    """Return a short name for all that a model holds, weights and buffers: the same values, the same name."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
