"""Training: images per second of whole optimiser steps, beside Hugging Face's ViTMAE and the published recipe as it ran.

Every case makes the same kind of step: forward, backward, clipping where the case has it, AdamW. "model" takes images
that are in memory already; "from file" reads them from HDF5 through the loader. On a CPU each case has a process of its
own. The share of the peak is the FLOPs that the matrix products of a step need, by their shapes, over those of one large
product of the same precision, measured in the same run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import harness
import numpy as np
import torch
from harness import DEVICE, Case
from torch.utils.flop_counter import FlopCounterMode

from skylib import CutoutFile, CutoutLoader, ModelConfig, PretrainConfig, build_model, write_cutouts
from skylib.config import VIT_SIZES
from skylib.data.loading import Batch
from skylib.device import autocast, fast_precision, kept_memory, keyed_generator
from skylib.training.distributed import World
from skylib.training.optimise import Optimiser, Step, SummedLoss


def settings(batch: int, **values: Any) -> PretrainConfig:
    common = {"steps": 1000, "warmup_steps": 10, "batch_size": batch, "precision": fast_precision(DEVICE)}
    return PretrainConfig(**(common | values))


class Ours:
    """Steps as `pretrain` makes them."""

    def __init__(self, config: ModelConfig, run: PretrainConfig) -> None:
        self.run, self.made = run, 0
        self.model = build_model(config).to(DEVICE).train()
        self.step, self.optimiser = Step(self.model, run, World(0, 1, DEVICE)), Optimiser(self.model, run)

    def __call__(self, batches: Iterator[Batch]) -> None:
        """Make one step."""
        batch = next(batches)
        generator = keyed_generator(self.run.seed, self.made, device=DEVICE)
        sums = self.step(batch, self.model.draw_mask(len(batch.flux), generator=generator, device=DEVICE))
        self.optimiser.step(1, sums[1])
        self.made += 1


def gflop(config: ModelConfig, *, batch: int = 8) -> float:
    """Return the GFLOP an image of the matrix products of a step, forward and backward."""
    model = build_model(config).to(DEVICE)
    place = torch.zeros(batch, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        flux = next(same_batch(config, batch)).flux
        SummedLoss(model)(flux, model.draw_mask(batch, device=DEVICE), None, place, place)[0].backward()
    return counter.get_total_flops() / batch / 1e9


@contextmanager
def ours(config: ModelConfig, run: PretrainConfig, file: Path | None = None) -> Iterator[Case]:
    """A step as `pretrain` makes it, on images that are in memory, or from a file."""
    loader = file and CutoutLoader(CutoutFile(file), batch_size=run.batch_size, augment=True, device=DEVICE)
    batches = endless(loader) if loader else same_batch(config, run.batch_size)
    with kept_memory(DEVICE):
        yield partial(Ours(config, run), batches)


@contextmanager
def hugging_face(config: ModelConfig, run: PretrainConfig) -> Iterator[Case]:
    """The same architecture, objective, precision and optimiser from transformers."""
    import transformers

    batches = same_batch(config, run.batch_size)
    width, depth, heads = VIT_SIZES[config.size]
    shape = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": len(config.bands),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attn_implementation": "sdpa",
    }
    if config.objective == "mae":
        decoder = {
            "decoder_hidden_size": config.decoder_width,
            "decoder_num_hidden_layers": config.decoder_depth,
            "decoder_num_attention_heads": config.decoder_width // 32,
            "mask_ratio": config.mask_ratio,
            "decoder_intermediate_size": 4 * config.decoder_width,
            "norm_pix_loss": True,
        }
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**shape, **decoder))
    else:
        stride = {"encoder_stride": config.patch_size}
        model = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**shape, **stride))
    model = model.to(DEVICE).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def case() -> None:
        flux = next(batches).flux
        mask = None
        if config.objective == "simmim":
            mask = {"bool_masked_pos": torch.rand(len(flux), config.n_patches, device=DEVICE) < 0.45}
        with autocast(DEVICE, run.precision):
            loss = model(flux, **(mask or {})).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip_grad)
        optimiser.step()
        optimiser.zero_grad()

    yield case


@contextmanager
def original(config: ModelConfig, run: PretrainConfig, file: Path) -> Iterator[Case]:
    """The published recipe as its code ran: fp32, eager, masks from the loader, the loss fetched each step."""
    batches = per_item(file, config, run.batch_size)
    model = build_model(config).to(DEVICE).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def case() -> float:
        flux, mask = next(batches)
        place = torch.zeros(len(flux), device=DEVICE)
        loss = model(flux.to(DEVICE), mask=mask.to(DEVICE), ra=place, dec=place).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    yield case


class PerItem(torch.utils.data.Dataset):
    """One cutout at a time, the file opened again for each, with its mask: as the original's loader did it."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path, self.config, self.rng = path, config, np.random.default_rng(0)

    def __len__(self) -> int:
        with h5py.File(self.path) as file:
            return len(file["cutouts"])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        c = self.config
        with h5py.File(self.path) as file:
            flux = file["cutouts"][index]
        mask = np.zeros((len(c.bands), c.n_patches), dtype=bool)
        n_hidden = int(self.rng.uniform(0, c.max_mask_ratio) * c.n_patches)
        for band in mask:
            band[self.rng.permutation(c.n_patches)[:n_hidden]] = True
        return torch.from_numpy(flux), torch.from_numpy(mask)


def per_item(path: Path, config: ModelConfig, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from torch.utils.data.DataLoader(PerItem(path, config), batch, shuffle=True, drop_last=True)


def endless(loader: CutoutLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def same_batch(config: ModelConfig, batch: int) -> Iterator[Batch]:
    flux = torch.randn(batch, len(config.bands), config.image_size, config.image_size, device=DEVICE)
    place = torch.zeros(batch, device=DEVICE, dtype=torch.float64)
    while True:
        yield Batch(flux, place, place, {})


def needs(case: Case) -> dict[str, Any]:
    """Return the MB that a case takes, and the GFLOP of its matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        memory = harness.peak_memory(case)
    return {"memory MB": memory, "GFLOP": counter.get_total_flops() / 1e9}


def main() -> None:
    options = harness.parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"], choices=list(VIT_SIZES))
    options.add_argument(
        "--batch", type=int, default=None, help="images per step; 64, as published, on a CPU, 1024 on CUDA"
    )
    options.add_argument("--compile", action="store_true", help="compile on a CPU too (a minute a case)")
    options.add_argument("--precision", default=fast_precision(DEVICE), choices=["bf16", "fp32"], help="of our steps")
    chosen = options.parse_args()
    sizes = ["nano"] if chosen.quick else chosen.sizes
    batch = chosen.batch or (4 if chosen.quick else 64 if DEVICE.type == "cpu" else 1024)
    repeats = 2 if chosen.quick else chosen.repeats
    peaks = {precision: harness.peak(precision, quick=chosen.quick) for precision in (chosen.precision, "fp32")}
    run = settings(batch, compile=chosen.compile or None, precision=chosen.precision)
    default = replace(run, batch_size=batch if chosen.quick else max(batch, PretrainConfig.batch_size))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cutouts.h5"
        n = 8 * batch
        flux = np.random.default_rng(0).normal(size=(n, 5, 64, 64)).astype(np.float32)
        write_cutouts(file, flux, ra=np.zeros(n), dec=np.zeros(n), bands="grizy")
        for size in sizes:
            rows |= compare(size, file, run, default, repeats=repeats, peaks=peaks, quick=chosen.quick)
    for precision, peak in peaks.items():
        rows[f"largest matrix product, {precision}"] = {"GFLOP/s": peak / 1e9}
    harness.report("Training", rows, json_file=chosen.json)


def compare(
    size: str,
    file: Path,
    run: PretrainConfig,
    default: PretrainConfig,
    *,
    repeats: int,
    peaks: dict[str, float],
    quick: bool = False,
) -> dict[str, dict[str, Any]]:
    """Time all cases of one size; those that are compared take turns. Our default recipe has the `default` batch.

    Quickly, the first two cases alone have processes of their own.
    """
    mae, simmim = (ModelConfig(size=size, objective=objective) for objective in ("mae", "simmim"))
    recipe = ModelConfig(**{**ModelConfig.original().__dict__, "size": size})
    groups = [
        {
            f"{size} {config.objective}": partial(ours, config, run),
            f"{size} {config.objective}, Hugging Face": partial(hugging_face, config, run),
        }
        for config in (mae, simmim)
    ]
    groups.append(
        {
            f"{size} mae, from file": partial(ours, mae, default, file),
            f"{size} original model, from file": partial(ours, recipe, run, file),
            f"{size} original as it ran, from file": partial(original, recipe, run, file),
        }
    )
    rows: dict[str, dict[str, Any]] = {}
    for group in groups:
        apart = not quick or group is groups[0]
        needed, seconds = harness.measure_apart(group, first=needs, repeats=repeats, runs=2, apart=apart)
        for name, times in seconds.items():
            n = group[name].args[1].batch_size
            precision = "fp32" if group[name].func is original else run.precision
            seconds[name] = [t / n for t in times]
            rate, work = 1 / float(np.median(seconds[name])), needed[name]["GFLOP"] / n
            rows[name] = {
                "images/s": rate,
                "batch": n,
                "precision": precision,
                "GFLOP/image": work,
                "share of peak": 1e9 * work * rate / peaks[precision],
                "memory MB": needed[name]["memory MB"],
            }
        *mine, other = seconds  # the peer is the last of its group
        column = "x Hugging Face" if "Hugging" in other else "x original"
        for name in mine:
            rows[name][column] = harness.ratio(seconds, other, name)
    return rows


if __name__ == "__main__":
    main()
