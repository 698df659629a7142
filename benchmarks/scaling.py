"""What grows with what: cost against images, bands, tokens, size of the model and processes, and memory against images.

Times are of one image: a training step (`mae`) divided by its images, or embedding a file divided by its images. Each
group takes turns. `relative` is to the first of its group.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from training import DEVICE, ours, settings

from skylib import CutoutFile, CutoutLoader, ModelConfig, PretrainConfig, build_model, embed, pretrain, write_cutouts

Rows = dict[str, dict[str, Any]]
SMALL = {"size": "nano", "image_size": 32, "patch_size": 16, "decoder_width": 64, "decoder_depth": 1}


def main() -> None:
    options = harness.parser(__doc__).parse_args()
    quick, repeats = options.quick, min(options.repeats, 3)
    batch = 2 if quick else 16 if DEVICE.type == "cpu" else 256
    sizes = ["nano", "tiny"] if quick else ["nano", "tiny", "small", "base"]
    bands = (
        ["grizy"[:1], "grizy"]
        if quick
        else ["g", "gri", "grizy", ["g", "r", "i", "z", "y", "NB0387", "NB0816", "NB0921", "NB1010"]]
    )
    patches = [16, 8] if quick else [16, 8, 4]
    common = {"size": "nano" if quick else "tiny", "decoder_width": 192, "decoder_depth": 1}
    rows = steps({f"size {size}": ModelConfig(**{**common, "size": size}) for size in sizes}, batch, repeats)
    rows |= steps({f"{len(b)} bands": ModelConfig(bands=tuple(b), **common) for b in bands}, batch, repeats)
    rows |= steps({f"{(64 // p) ** 2} tokens": ModelConfig(patch_size=p, **common) for p in patches}, batch, repeats)
    with tempfile.TemporaryDirectory() as folder:
        rows |= images(Path(folder), [500, 1000] if quick else [4000, 16_000], repeats)
        rows |= processes(Path(folder), quick=quick)
    harness.report("Scaling", rows, json_file=options.json)


def steps(configs: dict[str, ModelConfig], batch: int, repeats: int) -> Rows:
    """Time training steps of several models, in turns."""
    with ExitStack() as stack:
        cases = {name: stack.enter_context(ours(config, settings(batch))) for name, config in configs.items()}
        return table(cases, dict.fromkeys(cases, batch), repeats)


def table(cases: dict[str, Callable[[], Any]], n: dict[str, int], repeats: int) -> Rows:
    memory = {name: harness.peak_memory(case) for name, case in cases.items()}  # warms up, too
    seconds = harness.measure(cases, repeats=repeats, warm_up=0)
    first = next(iter(cases))
    rows: Rows = {}
    for name, times in seconds.items():
        relative = np.median(np.array(times) / np.array(seconds[first])) * n[first] / n[name]
        rows[name] = {
            "ms/image": 1e3 * float(np.median(times)) / n[name],
            "relative": float(relative),
            "memory MB": memory[name],
        }
    return rows


def images(folder: Path, numbers: list[int], repeats: int) -> Rows:
    """Embed and load files of more and more images; memory is what is taken beyond the vectors themselves."""
    model = build_model(ModelConfig(**SMALL)).to(DEVICE).eval()
    cases: dict[str, Callable[[], Any]] = {}
    n: dict[str, int] = {}
    for number in numbers:
        flux = np.random.default_rng(0).normal(size=(number, 5, 32, 32)).astype(np.float32)
        place = {"ra": np.zeros(number), "dec": np.zeros(number), "bands": "grizy"}
        data = write_cutouts(folder / f"{number}.h5", flux, **place)
        del flux
        cases[f"embed {number} images"] = lambda data=data: embed(model, data, compile=False)
        cases[f"load {number} images"] = lambda data=data: one_pass(data)
        n |= dict.fromkeys((f"embed {number} images", f"load {number} images"), number)
    rows: Rows = {}
    for kind in ("embed", "load"):
        rows |= table({k: v for k, v in cases.items() if k.startswith(kind)}, n, repeats)
    return rows


def one_pass(data: CutoutFile) -> None:
    for _ in CutoutLoader(data, batch_size=128, device=DEVICE, memory=2**20):  # far less than the file: it is streamed
        pass


def processes(folder: Path, *, quick: bool) -> Rows:
    """Train by one process and by several, on what this machine has: as many GPUs, or parts of its cores."""
    most = 1 if quick else torch.cuda.device_count() if DEVICE.type == "cuda" else min(2, os.cpu_count() or 1)
    steps = 6 if quick else 60
    number = 512
    flux = np.random.default_rng(0).normal(size=(number, 5, 32, 32)).astype(np.float32)
    data = write_cutouts(folder / "train.h5", flux, ra=np.zeros(number), dec=np.zeros(number), bands="grizy")
    config = PretrainConfig(steps=steps, batch_size=128, warmup_steps=1, log_every=max(1, steps // 6), precision="fp32")
    rows: Rows = {}
    for count in dict.fromkeys((1, most)):
        result = pretrain(
            ModelConfig(**SMALL),
            config,
            train=data,
            run_dir=folder / f"run{count}",
            processes=count,
            device=DEVICE.type,
        )
        rate = result.metrics["images_per_s"].iloc[1:].median()  # the first holds the start
        rows[f"{count} process{'es' if count > 1 else ''}"] = {"ms/image": 1e3 / rate}
    first = next(iter(rows.values()))["ms/image"]
    for row in rows.values():
        row["relative"] = row["ms/image"] / first
    return rows


if __name__ == "__main__":
    main()
