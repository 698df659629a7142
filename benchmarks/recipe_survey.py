"""The simulated survey of `recipes.py`, which is always the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from recipe_train import SHAPE

from skylib import CutoutFile
from skylib.files import write_json

VERSION = 1  # of the survey: numbers of different versions do not compare
SEED, OTHER_SEED, EXTRA_SEED = 7, 1007, 2007
OTHER_SEEING, OTHER_DEPTH = (1.3, 1.0, 1.3, 1.15), (0.0, -0.75, -0.75, -0.4)  # of the four tiles of the other field


def make_survey(
    folder: Path, *, tiles: int, extra_tiles: int, workers: int, quick: bool, keep_tiles: bool = False
) -> None:
    """Render the fields, cut out the objects, and write ``main.h5``, ``other.h5``, ``pretrain.h5`` and ``survey.json``."""
    size = {"tile_size": 192, "n_objects": 120} if quick else {"tile_size": 1024, "n_objects": 1500}
    rng = np.random.default_rng(EXTRA_SEED)
    conditions = rng.uniform(0.8, 1.5, extra_tiles), rng.uniform(-1.0, 0.5, extra_tiles)
    fields = {
        "main": (tiles, SEED, np.ones(tiles), np.zeros(tiles)),
        "other": (len(OTHER_SEEING), OTHER_SEED, np.array(OTHER_SEEING), np.array(OTHER_DEPTH)),
    }
    if extra_tiles:
        fields["extra"] = (extra_tiles, EXTRA_SEED, *conditions)
    folder.mkdir(parents=True, exist_ok=True)

    def make(name: str) -> None:
        n, seed, seeing, depth = fields[name]
        if (folder / f"{name}.h5").is_file():
            return
        _make_field(folder, name, n, seed, seeing, depth, size=size, workers=workers, keep_tiles=keep_tiles)

    with ThreadPoolExecutor(len(fields)) as pool:  # the processes of all fields share the cores
        list(pool.map(make, fields))
    if extra_tiles:
        _join(folder)
    write_json(folder / "survey.json", {"version": VERSION, "tiles": tiles, "extra_tiles": extra_tiles, "quick": quick})


def _make_field(
    folder: Path,
    name: str,
    n: int,
    seed: int,
    seeing: np.ndarray,
    depth: np.ndarray,
    *,
    size: dict[str, int],
    workers: int,
    keep_tiles: bool,
) -> None:
    import shutil

    from astropy.table import Table

    from skylib import find_tiles, make_cutouts, simulate_sky

    place = folder / "fields" / name
    if not (place / "catalogue.fits").is_file():
        per_tile = size["n_objects"]
        simulate_sky(
            place,
            n_tiles=n,
            tile_size=size["tile_size"],
            n_objects=per_tile * n,
            seed=seed,
            seeing=seeing.tolist(),
            depth=depth.tolist(),
            workers=workers,
        )
    objects = Table.read(place / "catalogue.fits")
    number = objects["object_id"] // 100_000 - 1
    objects["seeing"], objects["depth"] = seeing[number], depth[number]
    objects["split"] = np.select([number % 5 == 3, number % 5 == 4], [1, 2], 0).astype(np.int64)
    tiles = find_tiles(place / "tiles", bands="grizy", min_bands=4)
    make_cutouts(tiles, objects, folder / f"{name}.h5", size=SHAPE["image_size"], workers=min(workers, 8))
    if not keep_tiles:
        shutil.rmtree(place)


def _join(folder: Path) -> None:
    """Write ``pretrain.h5``: the training tiles of the main field and all of the extra ones, without labels."""
    from skylib import write_cutouts

    main, extra = CutoutFile(folder / "main.h5"), CutoutFile(folder / "extra.h5")
    rows = np.flatnonzero(main.column("split") == 0)
    flux = np.concatenate([main.flux(rows), extra.flux()])
    ra, dec = (np.concatenate([getattr(main, axis)[rows], getattr(extra, axis)]) for axis in ("ra", "dec"))
    write_cutouts(folder / "pretrain.h5", flux, ra=ra, dec=dec, bands=main.bands)
