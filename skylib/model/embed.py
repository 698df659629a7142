"""Embeddings: one vector an object, with its position and labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skylib.checks import check_choice
from skylib.config import Precision, to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.device import ahead, autocast, fast_precision, kept_memory
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.model.packed import packed

COMPILE_FROM = 500_000  # images, from which on compilation takes less time than it saves


def embed(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    rows: np.ndarray | None = None,
    pool: str = "mean",
    layer: int = -1,
    batch_size: int = 256,
    precision: str | None = None,
    compile: bool | None = None,
) -> Embeddings:
    """Embed the cutouts of a file, in its order.

    Images are read ahead of the device by a thread, a few batches at a time, so memory does not grow with their number.

    Parameters
    ----------
    model : MaskedImageModel
        Bands are matched by name; a band that the file lacks is taken as missing. Bigger cutouts are cropped at
        their centre.
    cutouts : CutoutFile
    rows : ndarray of int, optional
        Only these, in this order.
    pool : {"mean", "cls", "max", "central", "central16", "attention"}
    layer : int
        After which block; the last by default.
    batch_size : int
    precision : {"bf16", "fp32"}, optional
        Of the matrix products. By default bf16 where the processor has it: twice as fast, and vectors whose cosine with
        those of fp32 is above 0.999.
    compile : bool, optional
        Compile the model first, which takes about a minute; by default on CUDA for many images.

    Returns
    -------
    Embeddings
        With all one-dimensional columns of the file.
    """
    if pool == "tokens":
        raise ValueError("pool='tokens' gives no single vector an object; use embed_tokens")
    if precision is None:
        precision = fast_precision(model.sky_sigma.device)
    rows = np.arange(len(cutouts)) if rows is None else np.asarray(rows)
    vectors = _run(model, cutouts, rows, pool, layer, batch_size, precision, compile)
    meta = {
        "model": to_dict(model.config), "cutouts": str(cutouts.path), "pool": pool, "layer": layer,
        "precision": precision, **model.origin,
    }  # fmt: skip
    columns = {name: cutouts.column(name)[rows] for name in cutouts.columns}
    return Embeddings(vectors, ra=cutouts.ra[rows], dec=cutouts.dec[rows], columns=columns, meta=meta)


def embed_tokens(
    model: MaskedImageModel, cutouts: CutoutFile, *, rows: np.ndarray, layer: int = -1, batch_size: int = 256,
    precision: str = "fp32",
) -> np.ndarray:  # fmt: skip
    """Return the patch tokens of some cutouts, float32 (n, N, D)."""
    return _run(model, cutouts, rows, "tokens", layer, batch_size, precision, False)


def _run(
    model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray, pool: str, layer: int, batch_size: int,
    precision: str, compile: bool | None,
) -> np.ndarray:  # fmt: skip
    check_choice("precision", precision, get_args(Precision))
    device = model.sky_sigma.device
    starts = range(0, len(rows), batch_size)
    if compile is None:
        compile = device.type == "cuda" and len(rows) >= COMPILE_FROM
    out: np.ndarray | None = None
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision), kept_memory(device):
            encode = torch.compile(model.embed, dynamic=False) if compile else packed(model, precision=precision).embed
            batches = ahead(_batches(model, cutouts, rows, batch_size, device, fill=compile))
            bar = tqdm(batches, total=len(starts), desc="embed", unit="batch", leave=False, disable=len(starts) < 20)
            waiting: _Found | None = None  # stored when the next batch is under way
            for start, flux, ra, dec in bar:
                vectors = encode(flux, pool=pool, ra=ra, dec=dec, layer=layer).float()
                if out is None:
                    out = np.empty((len(rows), *vectors.shape[1:]), dtype=np.float32)
                _store(out, waiting)
                waiting = _fetch(start, vectors)
            if out is None:
                raise ValueError(f"{cutouts.path}: no cutouts to embed")
            _store(out, waiting)
    finally:
        model.train(was_training)
    return out


def _batches(
    model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray, batch_size: int, device: torch.device, *, fill: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Give number of the first, flux, ra and dec, on the device; the last batch is filled up if all must be alike."""
    c = model.config
    loader = CutoutLoader(
        cutouts, batch_size=batch_size, size=c.image_size, bands=c.bands, shuffle=False, device="cpu"
    )  # fmt: skip
    ra, dec = cutouts.ra, cutouts.dec
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        if fill:
            chosen = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
        if stream is None:
            images = np.ascontiguousarray(loader.flux(chosen))
            flux, *place = (torch.from_numpy(x) for x in (images, ra[chosen], dec[chosen]))
        else:
            flux = torch.empty(len(chosen), len(c.bands), c.image_size, c.image_size, pin_memory=True)
            loader.flux(chosen, out=flux.numpy())
            place = [torch.from_numpy(x[chosen]).pin_memory() for x in (ra, dec)]
            with torch.cuda.stream(stream):  # beside the computation, while this thread waits
                flux, *place = (x.to(device, non_blocking=True) for x in (flux, *place))
            stream.synchronize()
            for x in (flux, *place):
                x.record_stream(torch.cuda.default_stream(device))
        yield start, flux, place[0], place[1]


class _Found(NamedTuple):
    """Vectors of a batch, on their way to the host."""

    start: int
    vectors: Tensor
    arrived: torch.cuda.Event | None


def _fetch(start: int, vectors: Tensor) -> _Found:
    if vectors.device.type != "cuda":
        return _Found(start, vectors, None)
    there, arrived = vectors.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(vectors.device))
    return _Found(start, there, arrived)


def _store(out: np.ndarray, found: _Found | None) -> None:
    if found is not None:
        if found.arrived is not None:
            found.arrived.synchronize()
        out[found.start : found.start + len(found.vectors)] = found.vectors[: len(out) - found.start].cpu().numpy()
