"""Embedding of many cutouts: the one loop for everything that embeds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skylib.checks import check_choice, checked
from skylib.config import Precision, to_dict
from skylib.data.augment import orientations
from skylib.data.cutouts import CutoutFile
from skylib.data.loading import CutoutLoader
from skylib.device import ahead, autocast, kept_memory, packed, pick_precision
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.model.origin import warn_of_differences

Key = tuple[int, str]  # layer, pool
Features = dict[Key, np.ndarray]  # vectors (n, D)

log = logging.getLogger(__name__)

COMPILE_FROM = 500_000  # images, from which on compilation takes less time than it saves


@checked
def embed(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    rows: np.ndarray | None = None,
    pool: str = "mean",
    layer: int = -1,
    all_orientations: bool = False,
    batch_size: int = 256,
    precision: str = "auto",
    compile: bool | None = None,
) -> Embeddings:
    """Embed the cutouts of a file, in its order.

    Images are read ahead of the device by a thread, a few batches at a time, so memory does not grow with their number.

    Parameters
    ----------
    model : MaskedImageModel
        Bands are matched by name; a band that the file lacks is taken as missing. Larger cutouts are cropped at their
        centre, smaller ones are padded with NaN. A warning says how the cutouts differ from the training data.
    cutouts : CutoutFile
    rows : ndarray of int or bool, optional
        Only these, in this order.
    pool : str
        A row of `skylib.model.pooling.POOLS`, such as ``mean``, ``central`` or ``mean_central``, both side by side.
    layer : int
        After which block; the last by default.
    all_orientations : bool
        The mean of the vectors of an image in all eight rotations and flips, which does not depend on its orientation.
        It takes eight times as long, and makes redshifts more accurate (docs/recipes.md).
    batch_size : int
    precision : {"auto", "bf16", "fp32"}
        Of the matrix products. ``auto`` is bf16 where the processor has it: twice as fast, and vectors whose cosine
        with those of fp32 is above 0.999.
    compile : bool, optional
        Compile the model first, which takes about a minute; by default on CUDA for many images.

    Returns
    -------
    Embeddings
        With all one-dimensional columns of the file. A cutout without a pixel of data (all NaN, or all zero) gets a
        vector of NaN, which search, maps and probes leave out or refuse; a warning counts them.
    """
    if pool == "tokens":
        raise ValueError("pool='tokens' gives no single vector per object; use embed_tokens")
    rows = cutouts.row_numbers(slice(None) if rows is None else rows)
    precision = pick_precision(precision, model.sky_sigma.device)
    seen: list[Tensor] = []
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "compile": compile, "seen": seen}
    how["all_orientations"] = all_orientations
    features = encode(model, cutouts, rows=rows, pools=(pool,), layers=(layer,), **how)
    if len(empty := np.flatnonzero(~torch.cat(seen)[: len(rows)].cpu().numpy())):
        features[layer, pool][empty] = np.nan
        log.warning(
            "%s: %d of %d cutouts have no pixel of data, the first is row %d: their vectors are NaN",
            *(cutouts.path, len(empty), len(rows), rows[empty[0]]),
        )
    meta = {"model": to_dict(model.config), "cutouts": str(cutouts.path), "pool": pool, "layer": layer}
    meta |= {"all_orientations": all_orientations, "precision": precision, **model.origin}
    columns = {name: cutouts.column(name)[rows] for name in cutouts.columns}
    return Embeddings(features[layer, pool], ra=cutouts.ra[rows], dec=cutouts.dec[rows], columns=columns, meta=meta)


def embed_tokens(model: MaskedImageModel, cutouts: CutoutFile, *, rows: np.ndarray, layer: int = -1) -> np.ndarray:
    """Return the patch tokens of some cutouts, float32 (n, N, D)."""
    return encode(model, cutouts, rows=rows, pools=("tokens",), layers=(layer,))[layer, "tokens"]


def encode(
    model: MaskedImageModel,
    cutouts: CutoutFile,
    *,
    rows: np.ndarray,
    pools: Sequence[str] = ("mean", "central"),
    layers: Sequence[int] = (-1,),
    drop_bands: Sequence[str] = (),
    all_orientations: bool = False,
    batch_size: int = 256,
    precision: str = "fp32",
    compile: bool | None = False,
    seen: list[Tensor] | None = None,
) -> Features:
    """Embed some cutouts at several layers and poolings, in one pass.

    Parameters
    ----------
    model : MaskedImageModel
    cutouts : CutoutFile
    rows : ndarray of int, shape (n,)
    pools : sequence of str
        Rows of `skylib.model.pooling.POOLS`.
    layers : sequence of int
        After which blocks, counted as in a list.
    drop_bands : sequence of str
        Bands to remove: NaN in every cutout.
    all_orientations, batch_size, precision, compile
        As in `embed`.
    seen : list, optional
        Gets, for each batch, which of its images have a pixel of data (B,).

    Returns
    -------
    dict of (layer, pool) to ndarray of float32, shape (n, D)
    """
    for band in drop_bands:
        check_choice("drop_bands", band, model.config.bands)
    if len(rows) == 0:
        raise ValueError(f"{cutouts.path}: no cutouts to embed")
    device = model.sky_sigma.device
    dropped = torch.tensor([model.config.bands.index(band) for band in drop_bands], dtype=torch.int64, device=device)
    if compile is None:
        compile = device.type == "cuda" and len(rows) * (8 if all_orientations else 1) >= COMPILE_FROM
    batches = ahead(_batches(model, cutouts, rows, batch_size, device, fill=compile))
    total = -(-len(rows) // batch_size)
    bar = tqdm(batches, total=total, desc="embed", unit="batch", leave=False, disable=total < 20)

    def shown() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for flux, ra, dec in bar:
            if seen is not None:
                seen.append(has_data(flux))
            yield flux.index_fill(1, dropped, torch.nan) if drop_bands else flux, ra, dec

    how: dict[str, Any] = {"all_orientations": all_orientations, "precision": precision, "compile": compile}
    return encode_batches(model, shown(), n=len(rows), pools=pools, layers=layers, **how)


def has_data(flux: Tensor) -> Tensor:
    """Return which images (B, C, S, S) have a pixel that is neither NaN nor zero, bool (B,)."""
    return (flux.abs() > 0).flatten(1).any(dim=1)


def encode_batches(
    model: MaskedImageModel,
    batches: Iterable[tuple[Tensor, Tensor | None, Tensor | None]],
    *,
    n: int,
    pools: Sequence[str] = ("mean",),
    layers: Sequence[int] = (-1,),
    all_orientations: bool = False,
    precision: str = "fp32",
    compile: bool = False,
) -> Features:
    """Embed images from anywhere at several layers and poolings: the loop behind all that embeds.

    Parameters
    ----------
    model : MaskedImageModel
    batches : iterable of (flux, ra, dec)
        Flux (B, C, S, S), and positions in degrees (B,) or None, all on the device.
    n : int
        Number of images in all; what the last batch holds beyond is left out.
    pools, layers, all_orientations, precision, compile
        As in `encode`.

    Returns
    -------
    dict of (layer, pool) to ndarray of float32, shape (n, D)
    """
    check_choice("precision", precision, get_args(Precision))
    if all_orientations and "tokens" in pools:
        raise ValueError("all_orientations: tokens of an image in another orientation belong to other patches")
    device, out, start = model.sky_sigma.device, Features(), 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(device, precision), kept_memory(device):
            network: Callable[..., dict[Key, Tensor]] = packed(model, precision=precision).encode
            if compile:
                network = _compiled(model.encode)

            def begun() -> Iterator[Any]:
                for flux, ra, dec in batches:
                    total: dict[Key, Tensor] = {}
                    views = list(orientations(flux)) if all_orientations else [flux]
                    for view in views:
                        for key, x in network(view, pools=pools, layers=layers, ra=ra, dec=dec).items():
                            total[key] = total[key] + x.float() if key in total else x.float()
                    yield _fetch({key: x / len(views) for key, x in total.items()}, device)

            for (vectors, arrived), _ in pairwise(chain(begun(), [None])):  # stored when the next batch is under way
                if arrived is not None:
                    arrived.synchronize()
                for key, x in vectors.items():
                    if key not in out:
                        out[key] = np.empty((n, *x.shape[1:]), dtype=np.float32)
                    out[key][start : start + len(x)] = x[: n - start].numpy()
                start += len(x)
    finally:
        model.train(was_training)
    return out


def _compiled(encode: Callable[..., dict[Key, Tensor]]) -> Callable[..., dict[Key, Tensor]]:
    """Compile what encodes; where that fails it runs as it is, with a warning that says why."""
    run = torch.compile(encode, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> dict[Key, Tensor]:
        nonlocal run
        try:
            return run(*args, **kwargs)
        except Exception as error:  # whatever compilers, drivers and their versions come up with
            if run is encode:
                raise
            reason = " ".join(str(error).split())[:400]
            warnings.warn(f"embedding is not compiled, and slower: {type(error).__name__}: {reason}", stacklevel=2)
            run = encode
            return encode(*args, **kwargs)

    return call


def _batches(
    model: MaskedImageModel, cutouts: CutoutFile, rows: np.ndarray, batch_size: int, device: torch.device, *, fill: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give flux, ra and dec, on the device; the last batch is filled up if all must be alike."""
    c = model.config
    how: dict[str, Any] = {"shuffle": False, "device": "cpu", "pad": True}
    loader = CutoutLoader(cutouts, batch_size=batch_size, size=c.image_size, bands=c.bands, **how)
    warn_of_differences(model, cutouts)
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
            with torch.cuda.stream(stream):  # in parallel with the computation, while this thread waits
                flux, *place = (x.to(device, non_blocking=True) for x in (flux, *place))
            stream.synchronize()
            for x in (flux, *place):
                x.record_stream(torch.cuda.default_stream(device))
        yield flux, place[0], place[1]


def _fetch(found: dict[Key, Tensor], device: torch.device) -> tuple[dict[Key, Tensor], torch.cuda.Event | None]:
    """Send vectors to the host, float32; return them, and on CUDA what to wait for before they are read."""
    vectors = {key: x.to("cpu", non_blocking=device.type == "cuda") for key, x in found.items()}
    if device.type != "cuda":
        return vectors, None
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))
    return vectors, arrived
