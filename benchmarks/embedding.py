"""Embedding: images per second from an HDF5 file of cutouts to a saved file of embeddings, beside a plain loop.

The plain loop is what one would write first: fp32, eager, batch by batch from the open file, vectors gathered in a list.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import harness
import numpy as np
import torch
from harness import DEVICE

from skylib import CutoutFile, Embeddings, MaskedImageModel, ModelConfig, build_model, embed, write_cutouts
from skylib.config import VIT_SIZES
from skylib.device import autocast, fast_precision

IMAGES = {"nano": 32, "tiny": 768, "small": 384, "base": 96, "large": 64, "huge": 32}  # on a CPU


def plain_loop(model: MaskedImageModel, path: Path, out: Path, *, batch: int) -> None:
    vectors = []
    with h5py.File(path) as file, torch.no_grad():
        ra, dec = file["ra"][:], file["dec"][:]
        for start in range(0, len(ra), batch):
            flux = torch.from_numpy(file["cutouts"][start : start + batch]).to(DEVICE)
            vectors.append(model.embed(flux).cpu().numpy())
    Embeddings(np.concatenate(vectors), ra=ra, dec=dec).save(out)


def hugging_face(config: ModelConfig, path: Path, rows: np.ndarray, *, batch: int) -> Callable[[], np.ndarray]:
    """Return a case: the encoder from transformers over rows of a file in their order, in the fast precision."""
    import transformers

    width, depth, heads = VIT_SIZES[config.size]
    shape = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_channels=len(config.bands),
        attn_implementation="sdpa",
    )
    model = transformers.ViTModel(shape, add_pooling_layer=False).to(DEVICE).eval()

    def case() -> np.ndarray:
        vectors, data = [], CutoutFile(path)
        with torch.inference_mode(), autocast(DEVICE, fast_precision(DEVICE)):
            for start in range(0, len(rows), batch):
                flux = torch.from_numpy(data.flux(rows[start : start + batch])).to(DEVICE)
                vectors.append(model(flux).last_hidden_state[:, 1:].float().mean(dim=1).cpu().numpy())
        return np.concatenate(vectors)

    return case


def gflop(config: ModelConfig) -> float:
    """Return the GFLOP an image of the matrix products of the blocks: 12 width^2 a token, and the attention."""
    width, depth, tokens = config.width, VIT_SIZES[config.size][1], config.n_patches + 1
    return 2e-9 * depth * tokens * (12 * width**2 + 2 * tokens * width)


def main() -> None:
    options = harness.parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"], choices=list(VIT_SIZES))
    options.add_argument("--images", type=int, default=None, help="100,000 on CUDA; on a CPU fewer, by size")
    options.add_argument("--batch", type=int, default=None, help="32 on a CPU, 1024 on CUDA")
    options.add_argument("--compile", action="store_true", help="also compiled, which is the default on CUDA")
    chosen = options.parse_args()
    sizes = ["nano"] if chosen.quick else chosen.sizes
    batch = chosen.batch or (8 if chosen.quick else 32 if DEVICE.type == "cpu" else 1024)
    peak = harness.peak(quick=chosen.quick)
    rows: dict[str, dict[str, Any]] = {}
    for size in sizes:
        n = chosen.images or (IMAGES[size] if DEVICE.type == "cpu" else 100_000)
        with tempfile.TemporaryDirectory() as folder:
            compiled = chosen.compile or DEVICE.type == "cuda"
            rows |= compare(size, Path(folder), n, batch, repeats=min(chosen.repeats, 3), compiled=compiled, peak=peak)
    harness.report("Embedding", rows, json_file=chosen.json)


def compare(
    size: str, folder: Path, n: int, batch: int, *, repeats: int, compiled: bool, peak: float
) -> dict[str, dict[str, Any]]:
    flux = np.random.default_rng(0).normal(size=(n, 5, 64, 64)).astype(np.float32)
    file, out = folder / "cutouts.h5", folder / "embeddings.h5"
    data = write_cutouts(file, flux, ra=np.zeros(n), dec=np.zeros(n), bands="grizy")
    config = ModelConfig(size=size)
    model = build_model(config).to(DEVICE).eval()

    def ours(data: CutoutFile, **values: Any) -> None:
        embed(model, data, batch_size=batch, **values).save(out)

    cases = {
        f"{size}, embed": lambda: ours(data, compile=False),
        f"{size}, embed in fp32": lambda: ours(data, precision="fp32", compile=False),
        f"{size}, plain loop": lambda: plain_loop(model, file, out, batch=batch),
    }
    if compiled:
        cases[f"{size}, embed, compiled"] = lambda: ours(data, compile=True)
    memory = {name: harness.peak_memory(run) for name, run in cases.items()}  # warms up, too
    seconds = harness.measure(cases, repeats=repeats, warm_up=0)
    rows: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        rate = n / float(np.median(times))
        rows[name] = {
            "images/s": rate,
            "x plain loop": harness.ratio(seconds, f"{size}, plain loop", name),
            "share of peak": 1e9 * rate * gflop(config) / peak,
            "memory MB": memory[name],
        }
    rows[f"{size}, embed"]["precision"] = fast_precision(DEVICE)
    return rows


if __name__ == "__main__":
    main()
