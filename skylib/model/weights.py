"""Trained models: from a run, or from a file to share, in the safetensors format with a card that says what it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skylib.checks import checked
from skylib.config import model_config_from_dict, to_dict
from skylib.device import pick_device
from skylib.files import replaced
from skylib.model.checkpoint import fingerprint, load_last, load_training
from skylib.model.mim import MaskedImageModel, build_model

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "weights"


def shipped_models() -> tuple[str, ...]:
    """Return the names that `load_model` knows."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.safetensors")))


@checked
def load_model(
    run_dir_or_checkpoint_or_name: str | Path, *, device: str | torch.device | None = None
) -> MaskedImageModel:
    """Load a pretrained model, ready to embed; with averaged weights, where the run kept them.

    Parameters
    ----------
    run_dir_or_checkpoint_or_name : path or str
        A run folder, of which the last checkpoint is taken; a checkpoint, such as ``checkpoints/best.pt``; a file of
        `save_weights`; or the name of a model that is part of the package, such as ``"sky-nano"``.
    device : optional
        CUDA if there is one, by default.

    Returns
    -------
    MaskedImageModel
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such thing; the message lists the models of the package.
    OSError
        If the file is damaged, or its weights are those of another model or not finite.
    """
    path = Path(run_dir_or_checkpoint_or_name)
    if path.is_dir():
        found = load_last(path)
        if found is None:
            raise FileNotFoundError(f"{path / 'checkpoints' / 'last.pt'}: no such checkpoint")
        path, checkpoint = found
        model = _restored(path, checkpoint)
    elif (path := find_weights(run_dir_or_checkpoint_or_name)).suffix == ".safetensors":
        model = load_weights(path)
    else:
        model = _restored(path, load_training(path))
    trained = model.origin.get("trained_on", {})
    scale = trained.get("pixel_scale", 1.0) if isinstance(trained, dict) else None
    if not isinstance(scale, int | float) or scale <= 0:
        raise OSError(f"{path}: what it says of the data it was trained on is damaged: {trained!r}")
    if bad := [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]:
        raise OSError(f"{path}: {len(bad)} of its weights hold values that are not finite, the first is {bad[0]}")
    return model.to(pick_device(device)).eval()


def start_from(model: MaskedImageModel, start: str | Path | MaskedImageModel | None) -> None:
    """Give a new model the weights of another one, or of what `load_model` finds, as far as they mean the same.

    With other bands, a warning says which both have: these keep their part of the patch embedding. The other layers
    that belong to bands, and terms of the loss that the other model lacks, stay as they are.

    Raises
    ------
    ValueError
        If the models differ in size, patches or objective.
    """
    if start is None:
        return
    other = start if isinstance(start, MaskedImageModel) else load_model(start, device="cpu")
    new, old = model.config, other.config
    for name in ("size", "patch_size", "objective"):
        if getattr(new, name) != getattr(old, name):
            found = f"{name}={getattr(old, name)!r}, this one {getattr(new, name)!r}"
            raise ValueError(f"start: that model has {found}; start=None begins with random weights")
    state, given = model.state_dict(), other.state_dict()
    if new.bands != old.bands:
        whole = {"no_data", "hidden", "decoder.weight", "decoder.bias", "encoder.embed.weight"}
        given = {name: x for name, x in given.items() if name not in whole and not name.startswith(_BAND_LAYERS)}
        pixels, source = (
            m.encoder.embed.weight.detach().unflatten(1, (len(m.config.bands), -1)) for m in (model, other)
        )
        both = [band for band in new.bands if band in old.bands]
        log.warning(
            "start=%s has the bands %s, this model %s: the weights of %s are kept; those of other bands, and all that "
            "predict pixels, begin at random",
            start if isinstance(start, str | Path) else "the model given",
            " ".join(old.bands),
            " ".join(new.bands),
            " ".join(both) or "no band",
        )
        for at in both:
            pixels[:, new.bands.index(at)] = source[:, old.bands.index(at)]
    fitting = {name: x for name, x in given.items() if name in state and x.shape == state[name].shape}
    model.load_state_dict({**state, **fitting})


_BAND_LAYERS = ("decoder.head", "flux_head.layers.1", "sky_sigma")


@checked
def save_weights(model: MaskedImageModel, path: str | Path, *, card: Mapping[str, Any], half: bool = True) -> Path:
    """Write the weights of a model with their card, for others to use.

    Parameters
    ----------
    model : MaskedImageModel
        Such as ``load_model(run_dir)``.
    path : path
        Ends with ``.safetensors``; in ``skylib/weights/`` its stem becomes a name for `load_model`.
    card : mapping
        What a user must know: data, metrics, licence, limits; anything that JSON can hold. Model, step and settings of
        the training are added.
    half : bool
        Keep matrices in float16.

    Returns
    -------
    Path
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: must end with .safetensors")
    tensors = {name: x.detach().cpu().float().contiguous() for name, x in model.state_dict().items()}
    if half:
        tensors = {name: x.half() if x.ndim > 1 and "sky_sigma" not in name else x for name, x in tensors.items()}
    stored = build_model(model.config)
    stored.load_state_dict(tensors)
    # Without the path of the run, which means nothing on another machine.
    origin = {name: value for name, value in model.origin.items() if name != "checkpoint"}
    content = {**origin, **card, "model": to_dict(model.config), "fingerprint": fingerprint(stored)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as partial:
        save_file(tensors, partial, metadata={"card": json.dumps(content)})
    return path


@checked
def read_card(path_or_name: str | Path) -> dict[str, Any]:
    """Return the card of a file of weights, or of a model that is part of the package."""
    return _read(find_weights(path_or_name))[0]


def find_weights(path_or_name: str | Path) -> Path:
    """Return the file of a shipped model, or the path itself where it is a file.

    Raises
    ------
    FileNotFoundError
        If there is neither; the message lists the models there are.
    """
    path = SHIPPED / f"{path_or_name}.safetensors"
    if str(path_or_name) in shipped_models():
        return path
    if Path(path_or_name).is_file():
        return Path(path_or_name)
    names = ", ".join(shipped_models()) or "none"
    raise FileNotFoundError(f"{path_or_name}: no such run, checkpoint or model; models of this package: {names}")


def load_weights(path: str | Path) -> MaskedImageModel:
    """Return the model that `save_weights` wrote, in float32 and on the CPU.

    Raises
    ------
    OSError
        If the file is damaged, or of another kind.
    """
    card, tensors = _read(Path(path))
    model = _built(path, card.get("model"), tensors)
    if (found := fingerprint(model)) != card.get("fingerprint"):
        raise OSError(f"{path}: damaged: the weights have the fingerprint {found}, must have {card.get('fingerprint')}")
    stated: dict[str, Any] = {name: card[name] for name in ("step", "pretrain", "trained_on") if name in card}
    model.origin = {"weights": Path(path).stem, **stated}
    return model


def _restored(path: Path, checkpoint: dict[str, Any]) -> MaskedImageModel:
    averages = checkpoint["optimiser"] if isinstance(checkpoint.get("optimiser"), dict) else {}
    model = _built(path, checkpoint["model_config"], averages.get("average", checkpoint["model"]))
    model.origin = {"checkpoint": str(path), "step": checkpoint["step"], "pretrain": checkpoint.get("pretrain_config")}
    model.origin |= {"trained_on": checkpoint["trained_on"]} if "trained_on" in checkpoint else {}
    return model


def _built(path: str | Path, config: Any, weights: Any) -> MaskedImageModel:
    try:
        model = build_model(model_config_from_dict(config))
        model.load_state_dict(weights)
        return model
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise OSError(f"{path}: its weights and settings make no model: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            card = dict(json.loads((file.metadata() or {})["card"]))
            return card, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise OSError(f"{path}: cannot be read as weights with a card: {error!r}") from error
