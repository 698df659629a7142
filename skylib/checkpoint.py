"""Checkpoints that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from skylib.config import model_config_from_dict
from skylib.mim import MaskedImageModel, build_model
from skylib.runtime import pick_device


def save_checkpoint(path: str | Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint that a kill at any moment leaves either old or new, never broken."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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


def load_model(run_dir_or_checkpoint: str | Path, *, device: str | torch.device | None = None) -> MaskedImageModel:
    """Load a pretrained model, ready to embed.

    Parameters
    ----------
    run_dir_or_checkpoint : path
        A run folder, of which ``checkpoints/last.pt`` is taken, or a checkpoint.
    device : optional
        CUDA if there is one, by default.

    Returns
    -------
    MaskedImageModel
        In evaluation mode.
    """
    path = Path(run_dir_or_checkpoint)
    checkpoint = load_checkpoint(path / "checkpoints" / "last.pt" if path.is_dir() else path)
    model = build_model(model_config_from_dict(checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    return model.to(pick_device(device)).eval()


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that a kill at any moment leaves either old or new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)
