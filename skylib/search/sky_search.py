"""The whole sky searched from its tiles: every window is embedded and scored while the tiles stream by."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.checks import check_choice
from skylib.config import Precision, to_dict
from skylib.data.cutouts import CutoutFile, slice_cutout, write_cutouts
from skylib.data.loading import CutoutLoader
from skylib.data.sky import best_of_each_place
from skylib.data.tiles import Tile, TilePaths, read_tile, read_wcs
from skylib.device import kept_memory
from skylib.files import replaced
from skylib.model.checkpoint import fingerprint
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.search.index import SearchIndex
from skylib.search.nearest import Combine, Metric
from skylib.search.queries import target_vectors
from skylib.search.shards import HIT, Shard, best_hits
from skylib.search.skyscan import WindowScan, read_ahead
from skylib.stopping import Interrupted, StopRequest

log = logging.getLogger(__name__)

_REFERENCE_TILES, _REFERENCE_WINDOWS = 16, 4096  # from how many the standardisation is fitted


def search_tiles(
    model: MaskedImageModel,
    targets: np.ndarray | CutoutFile,
    tiles: Sequence[TilePaths],
    *,
    k: int,
    overlap: float = 0.4,
    min_separation: float,
    snr_range: tuple[float | None, float | None] | None = None,
    run_dir: str | Path,
    metric: str = "cosine",
    weights: str | None = None,
    combine: str = "min",
    augment_targets: bool = False,
    pool: str = "mean",
    layer: int = -1,
    reference: Embeddings | None = None,
    min_data: float = 0.5,
    bad_planes: Sequence[str] = (),
    batch_size: int = 256,
    precision: str = "fp32",
    shard: int | None = 0,
    n_shards: int = 1,
    on_error: str = "raise",
) -> Table:
    """Search tiles for look-alikes of the targets.

    Each tile is covered by overlapping windows of the model's image size. They are embedded and scored, and the best
    ones of all tiles are kept; of those closer together on the sky than `min_separation`, in one tile or several, the
    best counts. A search that was stopped, or killed, goes on at the tile where it stood when it is started again with
    the same model, targets, tiles and arguments; tiles whose files have changed make another search.

    Parameters
    ----------
    model : MaskedImageModel
        Bands are matched by name; a band that the tiles lack is taken as missing.
    targets : ndarray of float32 (t, C, S, S), ndarray of float (t, D), or CutoutFile
        Images in the model's bands and size, vectors of the same `pool` and `layer`, or a file of images. A model that
        takes positions gets those of the windows, and of targets in a file; those of other images count as unknown.
    tiles : sequence of TilePaths
        From `find_tiles`; the same, in any order, for all shards.
    k : int
        How many to return.
    overlap : float
        Of neighbouring windows, as a part of their side, 0 to below 1.
    min_separation : float
        Arcsec.
    snr_range : (float or None, float or None), optional
        Only windows whose brightest spot has a signal-to-noise ratio (`signal_to_noise`) in this range, ends included.
    run_dir : path
        The state is kept there, in a folder of ``search/`` for each search.
    metric, weights, combine
        As in `search`.
    augment_targets : bool
        Compare with all eight orientations of the targets (images only).
    pool, layer
        As in `embed`.
    reference : Embeddings, optional
        Vectors to which the standardisation is fitted; by default those of 4,096 windows spread over up to 16 tiles.
    min_data : float
        Leave out windows with a smaller part of their pixels known, in the best band.
    bad_planes : sequence of str
        Mask planes whose pixels become NaN.
    batch_size : int
    precision : {"fp32", "bf16"}
    shard, n_shards : int
        Search only each n-th tile, beginning with this one. With ``shard=None`` nothing is searched: the shards, all
        done with the same arguments, are joined to the answer that a single run would have given.
    on_error : {"raise", "skip"}
        ``skip``: unreadable tiles are logged, and tried again at the next start.

    Returns
    -------
    Table
        Columns rank, score, ra, dec, tile, row, col (of the window's centre pixel), snr; of this shard alone, where
        there are several. ``meta["skipped"]`` says of each tile that could not be read why.

    Raises
    ------
    ValueError
        If an argument is unknown or out of range, or with ``shard=None`` a tile has not been searched yet.
    Interrupted
        If a signal or a file ``STOP`` in the run folder asked to stop; all is saved.
    """
    check_choice("on_error", on_error, ("raise", "skip"))
    check_choice("metric", metric, get_args(Metric))
    check_choice("combine", combine, get_args(Combine))
    check_choice("weights", weights, ("inverse_variance", None))
    check_choice("precision", precision, get_args(Precision))
    part = 0 if shard is None else shard
    if not tiles or k < 1 or not 0 <= overlap < 1 or not 0 <= part < n_shards or min_separation < 0:
        raise ValueError(
            f"{len(tiles)} tiles, k={k}, overlap={overlap}, min_separation={min_separation}, shard={shard} of {n_shards}: "
            "needs tiles, k >= 1, 0 <= overlap < 1, min_separation >= 0, 0 <= shard < n_shards"
        )
    tiles = sorted(tiles, key=lambda tile: tile.name)
    if len({tile.name for tile in tiles}) < len(tiles):
        raise ValueError("two tiles have the same name: each hit must say where it came from")
    stride = max(1, round(model.config.image_size * (1 - overlap)))
    scan = WindowScan(
        model, stride=stride, pool=pool, layer=layer, min_data=min_data, batch_size=batch_size, precision=precision
    )
    given, places = _target_array(model, targets)
    options: dict[str, Any] = {"metric": metric, "weights": weights, "combine": combine}
    settings = {
        **options, "k": k, "min_separation": min_separation, "stride": stride, "min_data": min_data, "pool": pool,
        "layer": layer, "snr_range": snr_range and list(snr_range), "bad_planes": list(bad_planes), "n_shards": n_shards,
        "tiles": [_files(tile) for tile in tiles], "targets": _digest(given, *places.values()),
        "augment_targets": augment_targets, "precision": precision,
        "model": to_dict(model.config), "weights_of_model": fingerprint(model),
        "reference": None if reference is None else _digest(reference.vectors),
    }  # fmt: skip
    text = json.dumps(settings, sort_keys=True)
    folder = Path(run_dir) / "search" / hashlib.sha256(text.encode()).hexdigest()[:12]
    n_kept = _n_kept(tiles[0], k, min_separation, stride)
    shards = [Shard(folder, number, n_kept) for number in (range(n_shards) if shard is None else [shard])]
    todo = [t for t in range(len(tiles)) if (shard is None or t % n_shards == shard)]
    todo = [t for t in todo if not any(t in one.done for one in shards)]
    if shard is None:
        if todo := [t for t in todo if not any(tiles[t].name in one.skipped for one in shards)]:
            raise ValueError(f"{folder}: {len(todo)} of {len(tiles)} tiles not searched yet, first {tiles[todo[0]].name}")  # fmt: skip
    elif todo:
        with replaced(folder / "settings.json") as partial:
            partial.write_text(text)
        wanted = given
        if given.ndim == 4:
            wanted = target_vectors(model, given, augment=augment_targets, pool=pool, layer=layer, **places)
        elif augment_targets:
            raise ValueError("augment_targets=True needs images of the targets, not vectors")
        index = SearchIndex(
            reference or _reference(scan, tiles, bad_planes, on_error, folder), device=model.sky_sigma.device
        )
        with StopRequest(run_dir) as stop, kept_memory(model.sky_sigma.device):
            reading = read_ahead([tiles[t] for t in todo], tuple(bad_planes), on_error)
            for t, tile in zip(todo, tqdm(reading, total=len(todo), desc="search", unit="tile"), strict=True):
                if isinstance(tile, Tile):
                    shards[0].add(_hits(scan, tile, t, index, wanted, snr_range, options))
                    shards[0].done.add(t)
                    shards[0].skipped.pop(tiles[t].name, None)
                else:
                    log.warning("tile %s is skipped: %s", tiles[t].name, tile)
                    shards[0].skipped[tiles[t].name] = str(tile)
                shards[0].save()
                if t != todo[-1] and (why := stop.why()) is not None:
                    stop.done()
                    raise Interrupted(f"stopped by {why} after {len(shards[0].done)} tiles; start again to go on")
    skipped = {name: why for one in shards for name, why in one.skipped.items()}
    if skipped:
        log.warning("%d of %d tiles could not be read, and are not in the answer: %s", len(skipped), len(tiles), ", ".join(skipped))  # fmt: skip
    best = best_hits(np.concatenate([one.hits for one in shards]), n_kept)
    chosen = best_of_each_place(best["ra"], best["dec"], radius=min_separation, n=k)
    if len(chosen) < k and len(best) == n_kept:
        log.warning("only %d of k=%d hits are left of the best %d windows: more than four tiles overlap", len(chosen), k, n_kept)  # fmt: skip
    best = best[chosen]
    names = np.array([tiles[t].name for t in best["tile"]], dtype=str)
    columns = {name: best[name] for name in ("score", "ra", "dec", "tile", "row", "col", "snr")}
    return Table({"rank": np.arange(len(best)), **columns, "tile": names}, meta={"skipped": skipped})


def hit_cutouts(hits: Table, tiles: Sequence[TilePaths], out: str | Path, *, size: int = 64) -> CutoutFile:
    """Save the images of hits, cut from the tiles where they were found, with all their columns.

    Parameters
    ----------
    hits : Table
        From `search_tiles`.
    tiles : sequence of TilePaths
    out : path
        The new HDF5 file, in the order of the hits.
    size : int
        Side in pixels.
    """
    by_name = {tile.name: tile for tile in tiles}
    if unknown := sorted(set(map(str, hits["tile"])) - set(by_name)):
        raise ValueError(f"hits lie in tiles that were not given: {', '.join(unknown[:5])}")
    if not len(hits):
        raise ValueError("no hits: there is nothing to save")
    bands = tuple(tiles[0].paths)
    flux = np.empty((len(hits), len(bands), size, size), dtype=np.float32)
    for name in dict.fromkeys(map(str, hits["tile"])):
        image = read_tile(by_name[name]).flux
        for i in np.flatnonzero(np.asarray(hits["tile"]).astype(str) == name):
            flux[i] = slice_cutout(image, int(hits["row"][i]), int(hits["col"][i]), size)
    columns: dict[str, Any] = {name: np.asarray(hits[name]) for name in hits.colnames if name not in ("ra", "dec")}
    ra, dec = np.asarray(hits["ra"]), np.asarray(hits["dec"])
    provenance = f"hits of a search through {len(tiles)} tiles"
    return write_cutouts(out, flux, ra=ra, dec=dec, bands=bands, provenance=provenance, **columns)


def _hits(
    scan: WindowScan,
    tile: Tile,
    number: int,
    index: SearchIndex,
    wanted: np.ndarray,
    snr_range: Any,
    options: dict[str, Any],
) -> np.ndarray:
    """Return all windows of a tile that may be hits, scored."""
    corners = scan.corners(tile)
    parts = []
    for numbers, snr, vectors in scan.batches(tile, corners, snr_range):
        found = np.empty(len(numbers), HIT)
        found["score"], found["snr"], found["tile"] = index.scores(vectors, wanted, **options), snr, number
        found["row"], found["col"] = (corners[numbers] + scan.size // 2).T
        parts.append(found)
    hits = np.concatenate(parts) if parts else np.empty(0, HIT)
    if len(hits):
        hits["ra"], hits["dec"] = tile.sky_at(hits["row"], hits["col"])
    return hits


def _n_kept(tile: TilePaths, k: int, min_separation: float, stride: int) -> int:
    """Return how many windows must be kept so that k stay when each takes its neighbours away.

    Up to four tiles overlap at a place; in each, the windows nearer than `min_separation` form a square at most.
    """
    wcs, _ = read_wcs(tile)
    pixels = min_separation / 3600 / float(np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))))
    return k * 4 * (2 * int(pixels // stride + 1) + 1) ** 2


def _reference(
    scan: WindowScan, tiles: Sequence[TilePaths], bad_planes: Sequence[str], on_error: str, folder: Path
) -> Embeddings:
    """Embed windows spread evenly over some of all tiles, whichever shard asks; the first to do so keeps them."""
    path = folder / "reference.h5"
    if path.is_file():
        return Embeddings.load(path)
    chosen = [tiles[t] for t in np.unique(np.linspace(0, len(tiles) - 1, _REFERENCE_TILES).astype(int))]
    parts = []
    for tile in read_ahead(chosen, tuple(bad_planes), on_error):
        if isinstance(tile, Tile):
            corners = scan.corners(tile)
            some = np.linspace(0, len(corners) - 1, min(len(corners), _REFERENCE_WINDOWS // len(chosen))).astype(int)
            parts += [vectors.cpu().numpy() for _, _, vectors in scan.batches(tile, corners[np.unique(some)])]
    if not parts:
        raise ValueError(f"none of {len(chosen)} tiles has a window with data: there is nothing to search")
    vectors = np.concatenate(parts)
    mine = folder / f"reference.{uuid.uuid4().hex}.h5"
    try:
        Embeddings(vectors, ra=np.zeros(len(vectors)), dec=np.zeros(len(vectors))).save(mine)
        with suppress(FileExistsError):  # another shard was faster: all use the same
            os.link(mine, path)
    finally:
        mine.unlink(missing_ok=True)
    return Embeddings.load(path)


def _files(tile: TilePaths) -> list[Any]:
    """Return what tells a tile from another of the same name, or from itself before it changed."""
    about: dict[str, Any] = {}
    for band, path in tile.paths.items():
        there = path.stat() if path is not None and path.exists() else None
        about[band] = [path.name, there.st_size, there.st_mtime_ns] if path is not None and there is not None else None
    return [tile.name, about]


def _target_array(
    model: MaskedImageModel, targets: np.ndarray | CutoutFile
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return images in the model's bands and size (t, C, S, S), or vectors (t, D); and ra and dec, where they matter."""
    places: dict[str, np.ndarray] = {}
    if isinstance(targets, CutoutFile):
        c = model.config
        if c.ra_dec:
            places = {"ra": targets.ra, "dec": targets.dec}
        loader = CutoutLoader(targets, batch_size=1, size=c.image_size, bands=c.bands, shuffle=False, device="cpu")
        targets = loader.flux(np.arange(len(targets)))
    targets = np.asarray(targets, dtype=np.float32)
    if targets.ndim not in (2, 4) or not len(targets):
        raise ValueError(f"targets of shape {targets.shape}: must be images (t, C, S, S), or vectors (t, D)")
    return targets, places


def _digest(*values: np.ndarray) -> str:
    """Return a name for numbers: the same for the same ones."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]
