"""The recipes of `recipes.py`: what they are, and how one is trained and measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe_scores import Survey, score

from skylib import CutoutFile, CutoutLoader, ModelConfig, PretrainConfig, build_model, load_model, pretrain
from skylib.data.augment import Augmentation
from skylib.device import fast_precision, pick_device
from skylib.files import write_json
from skylib.model.embed import encode

POOLS, LAYERS = ("mean", "mean_central"), (2, 3, 4, 5)

# What a recipe is a sum of: fields of ModelConfig and of PretrainConfig.
SHAPE: dict[str, Any] = {"size": "nano", "image_size": 32, "patch_size": 4, "decoder_width": 96, "decoder_depth": 1}
SHAPE |= {"norm_pix": "band", "flux_weight": 0.0, "hide_bands": 0.0}  # whatever the defaults of this version are
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"norm_pix": "band"}, {}),
    "patch": ({"norm_pix": "patch"}, {}),
    "raw": ({"norm_pix": None}, {}),
    "flux": ({"flux_weight": 0.3}, {}),
    "flux10": ({"flux_weight": 0.1}, {}),
    "flux100": ({"flux_weight": 1.0}, {}),
    "bands": ({"hide_bands": 0.5}, {}),
    "bands25": ({"hide_bands": 0.25}, {}),
    "wide": ({"decoder_width": 256}, {}),
    "deep4": ({"decoder_depth": 4}, {}),
    "ema": ({}, {"ema": 0.998}),
    "half": ({"mask_ratio": 0.5}, {}),
    "dropout": ({}, {"band_dropout": 0.2}),  # of the augmentation
    "original": (
        {"objective": "simmim", "stretch": "linear", "norm_pix": "patch", "loss": "l1", "ra_dec": True},
        {"learning_rate": 1e-4, "warmup_steps": 0, "clip_grad": 0.0},
    ),
    "fast": ({}, {"learning_rate": 2e-3, "warmup_steps": None, "clip_grad": 1.0}),  # "original" at our learning rate
}
RECIPES = (
    "plain",
    "patch",
    "original",
    "original+fast",
    "flux",
    "bands25",
    "patch+flux",
    "patch+flux+bands",
    "patch+flux+bands25",
)


def recipe(name: str, *, bands: tuple[str, ...]) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the model of a recipe, and its settings of the training; ValueError if this version lacks one."""
    model: dict[str, Any] = dict(SHAPE)
    training: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in SETTINGS:
            raise ValueError(f"recipe {name!r}: no setting {part!r}; there are {', '.join(SETTINGS)}")
        model |= SETTINGS[part][0]
        training |= SETTINGS[part][1]
    try:
        return ModelConfig(bands=bands, **model), training
    except TypeError as error:
        raise ValueError(f"recipe {name!r}: this version cannot do it ({error})") from error


def flops(config: ModelConfig, *, n: int = 8) -> float:
    """Return the floating point operations of a training step, for one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(config)
    flux = torch.randn(n, len(config.bands), config.image_size, config.image_size)
    nowhere = torch.zeros(n)
    with FlopCounterMode(display=False) as counter:
        model(flux, ra=nowhere, dec=nowhere).loss.backward()
    return counter.get_total_flops() / n


def train_recipe(
    name: str,
    survey: Survey,
    run_dir: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    extra: bool = False,
    compile: bool = False,
) -> dict[str, Any]:
    """Pretrain by a recipe, and return what it took."""
    main = survey.main
    config, training = recipe(name, bands=main.bands)
    cost = flops(config)
    steps = max(2, round(steps * flops(recipe("plain", bands=main.bands)[0]) / cost))
    augment = Augmentation(band_dropout=training.pop("band_dropout", 0.0))
    training = {"learning_rate": learning_rate, "warmup_steps": None, **training}
    if training["warmup_steps"] is None:
        training["warmup_steps"] = steps // 10
    device = pick_device()
    settings = PretrainConfig(
        steps=steps,
        batch_size=batch,
        precision=fast_precision(device) if device.type == "cuda" else "fp32",
        seed=seed,
        compile=compile,
        log_every=max(1, steps // 20),
        validate_every=steps,
        checkpoint_every=steps,
        checkpoint_minutes=1e6,
        **training,
    )
    data = CutoutFile(survey.folder / "pretrain.h5") if extra else main
    rows = None if extra else np.flatnonzero(main.column("split") == 0)
    how: dict[str, Any] = {"batch_size": batch, "size": config.image_size, "augment": augment, "device": device}
    loader = CutoutLoader(data, rows=rows, seed=seed, memory=2**40, **how)
    start = time.perf_counter()
    result = pretrain(config, settings, train=loader, run_dir=run_dir)
    seconds = time.perf_counter() - start
    loss = result.metrics["loss"].dropna().tail(3).mean()
    return {
        "steps": steps,
        "batch": batch,
        "training TFLOP": cost * steps * batch / 1e12,
        "seconds of training": round(seconds, 1),
        "images/s": round(steps * batch / seconds),
        "loss": float(loss),
    }


def model_encoder(model: Any, *, all_orientations: bool = False) -> Any:
    """Return a function from a file, rows and missing bands to the vectors of all layers and poolings that are tried."""
    precision = fast_precision(model.sky_sigma.device)
    depth = len(model.encoder.blocks)
    layers = LAYERS if depth == 6 else tuple(range(depth // 3, depth, max(1, depth // 6)))

    def run(cutouts: CutoutFile, rows: np.ndarray, dropped: Any) -> Any:
        how: dict[str, Any] = {"batch_size": 1024, "precision": precision, "all_orientations": all_orientations}
        return encode(model, cutouts, rows=rows, pools=POOLS, layers=layers, drop_bands=dropped, **how)

    return run


def run(name: str, survey: Survey, out: Path, *, seed: int, attentive: bool = False, **training: Any) -> dict[str, Any]:
    """Train and measure one recipe with one seed, and write its row; `training` as in `train_recipe`."""
    folder = out / "runs" / f"{name}-{seed}"
    took = train_recipe(name, survey, folder, seed=seed, **training)
    row = {"recipe": name, "seed": seed, **took, **measure(load_model(folder), survey, attentive=attentive)}
    write_json(out / "rows" / f"{name}-{seed}.json", row)
    return row


def measure(model: Any, survey: Survey, *, attentive: bool = False) -> dict[str, Any]:
    """Return everything that is measured of a model."""
    row = score(model_encoder(model), survey)
    if attentive:
        from skylib import ProbeConfig, train_head

        config = ProbeConfig(batch_size=512, epochs=20, learning_rate=2e-3)
        found = train_head(model, survey.main, "class", method="attentive", split=survey.split, config=config)
        row["class attentive"] = found.metrics["balanced_accuracy"]
    return row
