"""The whole sky searched from its tiles: every window is embedded and scored while the tiles stream by."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.table import Table
from tqdm.auto import tqdm

from skylib.checks import checked
from skylib.config import Precision, to_dict
from skylib.data.cutouts import CutoutFile
from skylib.data.sky import best_of_each_place
from skylib.data.tiles import Tile, TilePaths, tile_pixel_scale
from skylib.device import ahead, kept_memory
from skylib.files import replaced
from skylib.model.checkpoint import fingerprint
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.search.index import SearchIndex
from skylib.search.nearest import Combine, Metric
from skylib.search.queries import query_arrays, target_vectors
from skylib.search.windows import Range, WindowScan, read_tiles, shared_reference
from skylib.stopping import Interrupted, StopRequest

log = logging.getLogger(__name__)

HIT = np.dtype(
    [("score", "f4"), ("tile", "i4"), ("row", "i4"), ("col", "i4"), ("snr", "f4"), ("ra", "f8"), ("dec", "f8")]
)


@checked
def search_tiles(
    model: MaskedImageModel,
    targets: np.ndarray | CutoutFile,
    tiles: Sequence[TilePaths],
    *,
    k: int,
    overlap: float = 0.4,
    min_separation: float,
    snr_range: Range | None = None,
    run_dir: str | Path,
    metric: Metric = "cosine",
    weights: Literal["inverse_variance"] | None = None,
    combine: Combine = "min",
    augment_targets: bool = False,
    pool: str = "mean",
    layer: int = -1,
    reference: Embeddings | None = None,
    min_data: float = 0.5,
    bad_planes: Sequence[str] = (),
    batch_size: int = 256,
    precision: Precision = "fp32",
    shard: int | None = 0,
    n_shards: int = 1,
    on_error: Literal["raise", "skip"] = "raise",
) -> Table:
    """Search tiles for look-alikes of the targets.

    Each tile is covered by overlapping windows of the model's image size. They are embedded and scored, and the best
    ones of all tiles are kept; of those closer together on the sky than `min_separation`, in one tile or several, the
    best counts. A search that was stopped or killed resumes when it is started again with the same model, targets,
    tiles and arguments; tiles whose files have changed make another search.

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
        Of neighbouring windows, as a fraction of their side, 0 to below 1.
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
        Leave out windows where a smaller fraction of the pixels is known, in the best band.
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
        there are several. ``meta["skipped"]`` names the tiles that could not be read, and why.

    Raises
    ------
    ValueError
        If an argument is unknown or out of range, or with ``shard=None`` a tile has not been searched yet.
    Interrupted
        If a signal or a file ``STOP`` in the run folder asked to stop; all is saved.
    """
    if not tiles or overlap == 1 or (shard or 0) >= n_shards:
        raise ValueError(
            f"{len(tiles)} tiles, overlap={overlap}, shard={shard} of {n_shards}: needs tiles, overlap < 1, "
            "shard < n_shards"
        )
    tiles = sorted(tiles, key=lambda tile: tile.name)
    if len({tile.name for tile in tiles}) < len(tiles):
        raise ValueError("two tiles have the same name: each hit must say where it came from")
    given, places = query_arrays(model, targets)
    if augment_targets and given.ndim != 4:
        raise ValueError("augment_targets=True needs images of the targets, not vectors")
    stride = max(1, round(model.config.image_size * (1 - overlap)))
    how: dict[str, Any] = {"pool": pool, "layer": layer, "min_data": min_data, "precision": precision}
    options: dict[str, Any] = {"metric": metric, "weights": weights, "combine": combine}
    settings = {
        **{**how, **options, "k": k, "min_separation": min_separation, "stride": stride, "n_shards": n_shards},
        **{"snr_range": snr_range, "bad_planes": list(bad_planes), "augment_targets": augment_targets},
        "tiles": [_files(tile) for tile in tiles],
        "targets": _digest(given, *places.values()),
        "model": [to_dict(model.config), fingerprint(model)],
        "reference": None if reference is None else _digest(reference.vectors),
    }
    text = json.dumps(settings, sort_keys=True)
    folder = Path(run_dir) / "search" / hashlib.sha256(text.encode()).hexdigest()[:12]
    n_kept = _n_kept(tiles[0], k, min_separation, stride)
    if shard is None:
        parts = [SearchState(folder, number, n_kept) for number in range(n_shards)]
        seen = {tiles[t].name for part in parts for t in part.done} | {name for part in parts for name in part.skipped}
        if missing := [tile.name for tile in tiles if tile.name not in seen]:
            raise ValueError(f"{len(missing)} of {len(tiles)} tiles not searched yet, first {missing[0]}")
        return _answer(parts, tiles, k=k, min_separation=min_separation)
    state = SearchState(folder, shard, n_kept)
    todo = [t for t in range(shard, len(tiles), n_shards) if t not in state.done]
    if todo:
        with replaced(folder / "settings.json") as partial:
            partial.write_text(text)
        scan = WindowScan(model=model, stride=stride, batch_size=batch_size, **how)
        wanted = given
        if given.ndim == 4:
            wanted = target_vectors(model, given, augment=augment_targets, pool=pool, layer=layer, **places)
        reading: dict[str, Any] = {"bad_planes": bad_planes, "on_error": on_error}
        fitted = reference or shared_reference(scan, tiles, folder, **reading)
        score = functools.partial(SearchIndex(fitted, device=model.sky_sigma.device).scores, targets=wanted, **options)
        stream = ahead(read_tiles([tiles[t] for t in todo], **reading), depth=1)
        with StopRequest(run_dir) as stop, kept_memory(model.sky_sigma.device):
            for t, tile in zip(todo, tqdm(stream, total=len(todo), desc="search", unit="tile"), strict=True):
                if isinstance(tile, Tile):
                    state.add(t, tile.name, scan_tile(scan, tile, t, score, snr_range))
                else:
                    state.skip(tiles[t].name, tile)
                if t != todo[-1] and (why := stop.why()) is not None:
                    stop.done()
                    raise Interrupted(f"stopped by {why} after {len(state.done)} tiles; start again to resume")
    return _answer([state], tiles, k=k, min_separation=min_separation)


class SearchState:
    """What one shard of a search has found so far, and which tiles it has searched: one file, written after each tile.

    Attributes
    ----------
    hits : ndarray of HIT
        The best so far (`n_kept` at most), the best first.
    done : set of int
        Numbers of the tiles that were searched.
    skipped : dict of str to str
        Tiles that could not be read, which are not done, and why.
    """

    def __init__(self, folder: Path, shard: int, n_kept: int) -> None:
        self._path, self._n_kept = folder / f"shard-{shard:04d}.npz", n_kept
        self.hits, self.done, self.skipped = np.empty(0, HIT), set[int](), dict[str, str]()
        if self._path.is_file():
            try:
                with np.load(self._path) as saved:
                    self.hits, self.done = saved["hits"].astype(HIT), set(saved["done"].tolist())
                    self.skipped = json.loads(str(saved["skipped"]))
            except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
                raise OSError(f"{self._path}: cannot be read; delete it to search its tiles again: {error}") from error

    @property
    def full(self) -> bool:
        """Whether hits may have been left out."""
        return len(self.hits) == self._n_kept

    def add(self, number: int, name: str, hits: np.ndarray) -> None:
        """Keep the best of these hits and those before, and save."""
        self.hits = best_hits(np.concatenate([self.hits, hits]), self._n_kept)
        self.done.add(number)
        self.skipped.pop(name, None)
        self._save()

    def skip(self, name: str, why: Exception) -> None:
        """Note that a tile cannot be read, and save."""
        log.warning("tile %s is skipped: %s", name, why)
        self.skipped[name] = str(why)
        self._save()

    def _save(self) -> None:
        with replaced(self._path) as partial, open(partial, "wb") as file:
            np.savez(file, hits=self.hits, done=sorted(self.done), skipped=json.dumps(self.skipped))


def best_hits(hits: np.ndarray, n: int) -> np.ndarray:
    """Return the n best, in an order that does not depend on how they came together."""
    return hits[np.lexsort((hits["col"], hits["row"], hits["tile"], hits["score"]))[:n]]


def scan_tile(
    scan: WindowScan, tile: Tile, number: int, score: Callable[[np.ndarray], np.ndarray], snr_range: Range | None
) -> np.ndarray:
    """Return all windows of a tile that may be hits, with the score of their vectors."""
    corners = scan.corners(tile)
    numbers, snr, vectors = scan.embed(tile, corners, snr_range)
    found = np.empty(len(numbers), HIT)
    if len(numbers):
        found["score"], found["snr"], found["tile"] = score(vectors), snr, number
        found["row"], found["col"] = (corners[numbers] + scan.model.config.image_size // 2).T
        found["ra"], found["dec"] = tile.sky_at(found["row"], found["col"])
    return found


def _answer(parts: Sequence[SearchState], tiles: Sequence[TilePaths], *, k: int, min_separation: float) -> Table:
    """Return the k best hits of all parts that are far enough apart, as a table."""
    skipped = {name: why for part in parts for name, why in part.skipped.items()}
    if skipped:
        message = "%d of %d tiles could not be read, and are not in the answer: %s"
        log.warning(message, len(skipped), len(tiles), ", ".join(skipped))
    best = np.concatenate([part.hits for part in parts])
    best = best_hits(best, len(best))
    chosen = best_of_each_place(best["ra"], best["dec"], radius=min_separation, n=k)
    if len(chosen) < k and any(part.full for part in parts):
        log.warning("only %d of k=%d hits: more than four tiles overlap at some places", len(chosen), k)
    best = best[chosen]
    columns = {name: best[name] for name in ("score", "ra", "dec", "tile", "row", "col", "snr")}
    columns["tile"] = np.array([tiles[t].name for t in best["tile"]], dtype=str)
    return Table({"rank": np.arange(len(best)), **columns}, meta={"skipped": skipped})


def _n_kept(tile: TilePaths, k: int, min_separation: float, stride: int) -> int:
    """Return how many windows to keep so that k remain when each removes its neighbours, in up to four tiles."""
    pixels = min_separation / tile_pixel_scale(tile)
    return k * 4 * (2 * int(pixels // stride + 1) + 1) ** 2


def _files(tile: TilePaths) -> list[Any]:
    """Return what distinguishes a tile from another of the same name, or from itself before it changed."""
    about: dict[str, Any] = {}
    for band, path in tile.paths.items():
        found = path.stat() if path is not None and path.exists() else None
        about[band] = None if path is None or found is None else [path.name, found.st_size, found.st_mtime_ns]
    return [tile.name, about]


def _digest(*values: np.ndarray) -> str:
    """Return a short name for numbers: equal for equal ones."""
    return hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest()[:16]
