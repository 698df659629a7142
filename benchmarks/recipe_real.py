"""A model on real images, beside what needs no pretraining: KiDS and VIKING, SDSS Stripe 82, SDSS quasars, HSC g r i."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from skylib import (
    CutoutFile,
    CutoutLoader,
    ModelConfig,
    PretrainConfig,
    Survey,
    evaluate,
    find_tiles,
    load_model,
    make_cutouts,
    pretrain,
    split_cutouts,
)
from skylib.data.splits import TRAIN
from skylib.files import write_json
from skylib.model.checkpoint import fingerprint

POOLS, LAYERS = ("mean", "mean_central"), (2, 3, 4, 5)  # chosen among on validation
SHOWN = ("balanced_accuracy", "r2", "bias", "sigma_mad", "outlier_fraction")
Prepared = tuple[CutoutFile, dict[str, tuple[str, np.ndarray]]]  # the cutouts, and (task, split) of each target


def kids(data: Path, out: Path) -> Prepared:
    """Return g r i z y cutouts of four tiles; the last one is test, a quarter of the others validation."""
    sources = Table.read(data / "kids_viking" / "catalogue.fits")
    bright = (sources["snr_r"] > 5) & (sources["snr_ks"] > 5)
    sources["r_minus_ks"] = np.where(bright, sources["mag_r"] - sources["mag_ks"], np.nan)
    cutouts = make_cutouts(find_tiles(data / "kids_viking", bands="grizy"), sources, out, size=32)
    test = cutouts.column("tile").astype(str) == "1-1,1"
    split = np.where(test, 2, np.arange(len(cutouts)) % 4 == 0)
    return cutouts, {"class": ("classification", split), "r_minus_ks": ("regression", split)}


def stripe(data: Path, out: Path) -> Prepared:
    """Return u g r i z cutouts of stars and galaxies in one SDSS frame, split by cells of the sky."""
    sources = Table.read(data / "sdss_stripe82" / "catalogue.fits")
    tiles = find_tiles(data / "sdss_stripe82", survey="sdss")
    cutouts = make_cutouts(tiles, sources[sources["leaf"]], out, size=32)
    return cutouts, {"class": ("classification", split_cutouts(cutouts, size=16))}


def quasars(data: Path, out: Path) -> Prepared:
    """Return the u g r i z cutouts of SDSS quasars; fold 2 is test, a quarter of the others validation."""
    cutouts = CutoutFile(data / "sdss_qso_z" / "sdss_qso_z.h5", zero_point=22.5, pixel_scale=0.396)
    split = np.where(cutouts.column("fold") == 2, 2, np.arange(len(cutouts)) % 4 == 0)
    return cutouts, {"z": ("regression", np.where(cutouts.column("repeat_spectra_disagree"), -1, split))}


def hsc(data: Path, out: Path) -> Prepared:
    """Return g r i cutouts of one HSC image without sky coordinates; its right half is test, a strip before it validation."""
    folder = data / "hsc_gri_labelled"
    survey = Survey(name="gri", bands="gri", file_names="{band}-{tile}", zero_point=27.0, pixel_scale=0.168, sky=False)
    objects = json.loads((folder / "single_test.json").read_text())[0]["annotations"]
    x, y, w, h = np.array([one["bbox"] for one in objects], float).T
    sources = Table({"x": x + w / 2, "y": y + h / 2, "class": [2 - 2 * one["category_id"] for one in objects]})
    sources["place"] = sources["x"]
    cutouts = make_cutouts(find_tiles(folder, survey=survey), sources, out, size=32)
    return cutouts, {"class": ("classification", np.digitize(cutouts.column("place"), (350, 525)))}


SETS: dict[str, Callable[[Path, Path], Prepared]] = {"kids": kids, "stripe": stripe, "quasars": quasars, "hsc": hsc}


def measure(
    name: str, data: Path, out: Path, *, model: str, steps: int, all_orientations: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """Return a row for each target and method; with `steps`, also of the model trained on with the images of train."""
    out.mkdir(parents=True, exist_ok=True)
    cutouts, targets = SETS[name](data, out / f"{name}-32.h5")
    frozen, rows = load_model(model), []
    noise = CutoutLoader(cutouts, batch_size=256, size=32, bands=frozen.config.bands, device="cpu").sky_noise()
    frozen.set_sky_noise(np.where(np.isfinite(noise) & (noise > 0), noise, frozen.sky_sigma.cpu()))
    arms = {"frozen": frozen}
    if steps:
        split = next(iter(targets.values()))[1]
        loader = CutoutLoader(cutouts, rows=np.flatnonzero(split == TRAIN), batch_size=64, size=32, augment=True)
        shape = {key: getattr(frozen.config, key) for key in ("size", "image_size", "patch_size", "decoder_width")}
        config = ModelConfig(bands=cutouts.bands, decoder_depth=frozen.config.decoder_depth, **shape)
        training = PretrainConfig(steps=steps, batch_size=64, learning_rate=5e-4, start=model, seed=seed)
        arms[f"{steps} steps on"] = pretrain(config, training, train=loader, run_dir=out / f"{name}-start").model
    for arm, network in arms.items():
        for target, (task, split) in targets.items():
            how: dict[str, Any] = {"pools": POOLS, "layers": LAYERS, "all_orientations": all_orientations, "seed": seed}
            found = evaluate(network, cutouts, target, task=task, split=split, **how)
            for method, result in found.results.items():
                row = {"set": name, "arm": arm, "bands": " ".join(network.config.bands), "target": target}
                row |= {"method": method, "n train": int((split == TRAIN).sum()), "n": int(result.metrics["n"])}
                row |= {key: result.describe(key) for key in SHOWN if key in result.metrics}
                rows.append({**row, "setting": str(result.settings.get("chosen")), "weights": fingerprint(network)})
            write_json(out / f"real-{name}.json", rows)
    return rows
