"""A small simulated sky, which tests share, and which the examples in docstrings find as `cutouts`, `model` and so on."""

import os
import re
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def sky(tmp_path_factory):
    """Two tiles of 256 x 256 pixels with 240 objects; the second lacks y and has a strip without data."""
    from skylib import simulate_sky

    return simulate_sky(tmp_path_factory.mktemp("sky"), n_tiles=2, tile_size=256, n_objects=240, seed=1)


@pytest.fixture(scope="session")
def tiles(sky):
    """Both tiles, by their names."""
    from skylib import find_tiles

    return find_tiles(sky.tiles, bands="grizy", min_bands=4)


@pytest.fixture(scope="session")
def cutouts(sky, tiles, tmp_path_factory):
    """The objects of `sky`, 32 pixels a side."""
    from skylib import make_cutouts

    return make_cutouts(tiles, sky.catalogue, tmp_path_factory.mktemp("cutouts") / "cutouts.h5", size=32)


@pytest.fixture(scope="session")
def examples(sky, tiles, cutouts):
    """What the examples in docstrings build on; see docs/reference.md."""
    import numpy as np

    import skylib

    model = skylib.load_model("sky-nano")
    embeddings = skylib.embed(model, cutouts, pool="mean_central")
    split = skylib.split_cutouts(cutouts, size=8, cell=32768)
    return {
        "skylib": skylib,
        "np": np,
        "Path": Path,
        "sky": sky,
        "tiles": tiles,
        "cutouts": cutouts,
        "model": model,
        "embeddings": embeddings,
        "split": split,
    }


@pytest.fixture(autouse=True)
def _examples(request, tmp_path_factory, monkeypatch):
    """Give an example in a docstring that needs it the small sky, and each a folder of its own."""
    test = getattr(request.node, "dtest", None)
    if test is None:
        return
    monkeypatch.chdir(tmp_path_factory.mktemp("example"))
    words = set(re.findall(r"\w+", " ".join(example.source for example in test.examples)))
    if words & {"skylib", "sky", "tiles", "cutouts", "model", "embeddings", "split"}:
        test.globs.update(request.getfixturevalue("examples"))
