"""A model on real images: KiDS and VIKING, three tiles to fit on and choose with, the fourth to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from recipe_scores import Encoder

from skylib import CutoutFile, CutoutLoader, find_tiles, make_cutouts
from skylib.data.splits import TEST, TRAIN
from skylib.evaluation.labels import select_labels
from skylib.evaluation.metrics import bootstrap_intervals, metric_for
from skylib.evaluation.probes import candidates, choose

TEST_TILE = "1,1"


def make_kids(data: Path, out: Path, *, size: int) -> CutoutFile:
    """Cut out the sources of the four tiles in g r i z y, once."""
    from astropy.table import Table

    path = out / f"kids-{size}.h5"
    if path.is_file():
        return CutoutFile(path)
    sources = Table.read(data / "kids_viking" / "catalogue.fits")
    sources["r_minus_ks"] = np.where(
        (sources["snr_r"] > 5) & (sources["snr_ks"] > 5), sources["mag_r"] - sources["mag_ks"], np.nan
    )
    place = np.array([str(name) for name in sources["tile"]])
    sources["split"] = np.where(place == TEST_TILE, 2, np.arange(len(sources)) % 4 == 0).astype(np.int64)
    tiles = find_tiles(data / "kids_viking", bands="grizy")
    return make_cutouts(tiles, sources, path, size=size)


def score_kids(encoder_of: Any, model: Any, cutouts: CutoutFile) -> dict[str, Any]:
    """Return star/galaxy balanced accuracy and R2 of r - Ks on the test tile; the stretch takes the noise of this survey."""
    loader = CutoutLoader(cutouts, batch_size=256, size=model.config.image_size, bands=model.config.bands, device="cpu")
    model.set_sky_noise(loader.sky_noise())
    encoder: Encoder = encoder_of(model)
    row: dict[str, Any] = {}
    for target, task in (("class", "classification"), ("r_minus_ks", "regression")):
        labels = select_labels(cutouts.column, target, "split", task)
        vectors = encoder(cutouts, labels.used, ())
        found = {key: choose(x, labels, candidates("linear", task)) for key, x in vectors.items()}
        key = min(found, key=lambda key: found[key].loss)
        metric, score = metric_for(task, target)
        truth, prediction = labels.of(TEST), found[key].model.predict(vectors[key][labels.places(TEST)])
        low, high = bootstrap_intervals(prediction, truth, metric)[score]
        row[f"{target}: {score}"], row[f"{target}: interval"] = metric(prediction, truth)[score], [low, high]
        row |= {
            f"{target}: n": len(truth),
            f"{target}: n train": len(labels.rows[TRAIN]),
            f"{target}: layer, pool": list(key),
        }
    return row
