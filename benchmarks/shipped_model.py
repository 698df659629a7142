"""Train the model that the package ships, on simulated fields of varied seeing and depth.

    python benchmarks/recipes.py survey --out SURVEY --workers 16 --extra-tiles 44
    python benchmarks/shipped_model.py train --survey SURVEY --out RUN --minutes 3
    python benchmarks/recipes.py score --survey SURVEY --out RESULTS --model RUN --name sky-nano
    python benchmarks/shipped_model.py export --out RUN --scores RESULTS/rows/sky-nano-0.json

`train` sees the training tiles of the benchmark's main field and all of its extra fields, no labels, and no pixel that
the benchmark judges. With `--minutes` a short training first measures the speed, which says how many steps there is time
for; they are part of the card, and `--steps` repeats them. `export` writes ``skylib/weights/sky-nano.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recipe_train import flops, recipe

from skylib import CutoutFile, CutoutLoader, PretrainConfig, load_model, pretrain
from skylib.data.augment import Augmentation
from skylib.device import fast_precision, pick_device
from skylib.files import write_json

SHOWN = (
    "class",
    "class kNN",
    "z R2",
    "z kNN R2",
    "z sigma_mad",
    "z kNN sigma_mad",
    "class without one, mean",
    "class without one, worst",
    "other field class",
    "recall@100 dwarf",
    "recall@100 arc",
    "RankMe",
)


def train(options: argparse.Namespace, *, steps: int, run_dir: Path) -> dict[str, Any]:
    """Pretrain for this many steps, or resume an interrupted training; return what it took."""
    data, device = CutoutFile(options.survey / "pretrain.h5"), pick_device()
    config, training = recipe(options.recipe, bands=data.bands)
    settings = PretrainConfig(
        steps=steps,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        warmup_steps=max(1, steps // 20),
        precision=fast_precision(device),
        seed=options.seed,
        log_every=100,
        checkpoint_minutes=0.7,
        **training,
    )
    loader = CutoutLoader(
        data,
        batch_size=options.batch,
        size=config.image_size,
        augment=Augmentation(),
        seed=options.seed,
        device=device,
        memory=2**40,
    )
    start = time.perf_counter()
    result = pretrain(config, settings, train=loader, run_dir=run_dir)
    seconds = time.perf_counter() - start
    speed = result.metrics["images_per_s"].dropna()
    return {
        "recipe": options.recipe,
        "seed": options.seed,
        "steps": steps,
        "batch": options.batch,
        "learning rate": options.learning_rate,
        "cutouts": len(data),
        "seconds": round(seconds, 1),
        "training TFLOP": round(flops(config) * steps * options.batch / 1e12, 1),
        "images/s": float(speed.tail(max(1, len(speed) // 2)).median()),
        "loss": float(result.metrics["loss"].dropna().tail(3).mean()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }


def main() -> None:
    """Read the command line, and do what it says."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "export"))
    parser.add_argument("--survey", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--recipe", default="patch+flux+bands25")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, help="instead of --steps: for everything, compiling included")
    parser.add_argument("--scores", type=Path, help="row of the benchmark, for the card")
    options = parser.parse_args()
    logging.getLogger("skylib").setLevel(logging.ERROR)
    if options.command == "export":
        export(options)
        return
    steps = options.steps
    if options.minutes:
        with tempfile.TemporaryDirectory() as folder:
            trial_start = time.perf_counter()
            trial = train(options, steps=400, run_dir=Path(folder))
            overhead = time.perf_counter() - trial_start - 400 * options.batch / trial["images/s"]
        left = 60 * options.minutes - (time.perf_counter() - start) - 0.6 * overhead - 4  # compiled graphs are kept
        steps = max(500, int(0.93 * left * trial["images/s"] / options.batch))
        print(f"{trial['images/s']:.0f} images/s, {overhead:.0f} s to begin: {steps} steps", flush=True)
    if not steps:
        parser.error("give --steps or --minutes")
    took = train(options, steps=steps, run_dir=options.out)
    write_json(options.out / "took.json", took)
    print(json.dumps(took), flush=True)


def export(options: argparse.Namespace) -> None:
    """Write the weights with their card into the package."""
    from skylib.model.weights import SHIPPED, save_weights

    took = json.loads((options.out / "took.json").read_text())
    scores = json.loads(options.scores.read_text())
    card = {
        "name": "sky-nano",
        "what": "Masked image model of multi-band cutouts, 32 x 32 pixels of 0.168 arcsec, for embeddings",
        "data": "simulated HSC-like sky (skylib.simulate_sky), fields of varied seeing (0.8 to 1.5 of HSC Wide's) and "
        "depth (-1.0 to +0.5 mag), g r i z y; no labels",
        "training": took,
        "metrics": {name: round(float(scores[name]), 4) for name in SHOWN if name in scores},
        "metrics of": "benchmarks/recipes.py, test tiles of the simulated survey (version 1), i < 24.5",
        "licence": "MIT",
        "limits": "Trained on simulated images alone: compact stars, quasars and smooth galaxies. On real images go on "
        "with pretraining (notebook 01, start='sky-nano') before relying on it. Other pixel scales than 0.168 arcsec, "
        "other bands than g r i z y, and objects larger than 5 arcsec were not in its data.",
    }
    path = save_weights(load_model(options.out, device="cpu"), SHIPPED / "sky-nano.safetensors", card=card)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
