"""Every public function, and the public classes, name the argument that is wrong, wherever they are imported from."""

import inspect
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

import skylib
from skylib import CutoutLoader, Embeddings, SearchIndex, Survey, Tile, TileLoader, TilePaths
from skylib.checks import checked

N, D = 300, 8
SOME = Embeddings(np.eye(D), ra=np.zeros(D), dec=np.zeros(D))
FRESH = """
from skylib.bands import canonical_band
from skylib.data.surveys import get_survey
for function, message in ((canonical_band, "name=3: must be text"), (get_survey, "survey=3: must be text or")):
    try:
        function(3)
    except ValueError as error:
        assert str(error).startswith(message), error
    else:
        raise AssertionError(function)
"""


@pytest.mark.parametrize("name", skylib.__all__)
def test_public_functions_are_checked_where_they_are_defined(name):
    value = getattr(skylib, name)
    if inspect.isfunction(value):
        assert value.__code__ is checked(value).__code__, f"{value.__module__}.{name} lacks @checked"
        assert getattr(import_module(value.__module__), name) is value


def test_a_function_of_a_module_is_checked_without_the_package_handing_it_out():
    subprocess.run([sys.executable, "-c", FRESH], check=True, timeout=100)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each public class, of random numbers."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("made") / "c.h5"
    place = {"ra": 150 + np.arange(N) / 100, "dec": np.zeros(N)}
    cutouts = skylib.write_cutouts(path, rng.normal(size=(N, 2, 8, 8)), bands="gr", **place)
    embeddings = Embeddings(rng.normal(size=(N, D)), **place, columns={"class": np.arange(N) % 3})
    laid_out = {"xy": rng.normal(size=(N, 2)), "components": rng.normal(size=(N, 5)), "mean": np.zeros(D)}
    laid_out |= {"scale": np.ones(D), "directions": np.ones((D, 5)), "n_neighbors": 5}
    pdf = {"edges": np.linspace(0, 1, 6), "density": np.ones((N, 5)), "truth": np.full(N, 0.5), "rows": np.arange(N)}
    tile = {"flux": np.zeros((2, 9, 9)), "bands": ("g", "r"), "wcs": None, "name": "t"}
    paths = TilePaths("t", {"g": path, "r": path})
    return {
        "cutouts": cutouts,
        "loader": CutoutLoader(cutouts, batch_size=4, device="cpu"),
        "stream": TileLoader([paths], batch_size=4, device="cpu"),
        "embeddings": embeddings,
        "index": SearchIndex(embeddings, device="cpu"),
        "map": skylib.EmbeddingMap(**laid_out),
        "new_map": lambda **changed: skylib.EmbeddingMap(**laid_out | changed),
        "pdf": skylib.RedshiftPDF(**pdf),
        "new_pdf": lambda **changed: skylib.RedshiftPDF(**pdf | changed),
        "new_tile": lambda **changed: Tile(**tile | changed),
        "survey": Survey(name="s", bands="gr", file_names="{tile}_{band}", zero_point=25.0),
        "new_survey": lambda **changed: Survey(**{"name": "s", "bands": "gr", "file_names": "{tile}", **changed}),
    }


@pytest.mark.parametrize(
    ("what", "call", "wrong", "message"),
    [
        ("cutouts", lambda c, v: c.column(v), [[], 3, None], "name="),
        ("cutouts", lambda c, v: c.about(v), [[], {}], "name="),
        ("cutouts", lambda c, v: c.class_names(v), [np.eye(3)], "name="),
        ("cutouts", lambda c, v: c.flux([0], size=v), ["4", 1.5, True, [], 0, np.eye(3)], "size="),
        ("cutouts", lambda c, v: c.flux([0], pad=v), ["x", 1, None], "pad="),
        ("cutouts", lambda c, v: c.flux([0], out=v), ["x", {}], "out="),
        (
            "cutouts",
            lambda c, v: c.flux([0], out=v),
            [np.empty((2, 2)), 3.0],
            r"out has shape .* must be \(1, 2, 8, 8\)",
        ),
        ("cutouts", lambda c, v: c.flux(v), [[0.5], "x", np.eye(3), 10**6], "index=|rows of type|row 1000000 of 300"),
        ("loader", lambda c, v: c.shard(v, 2), ["0", None, 1.5, -1, 2], "rank="),
        ("loader", lambda c, v: c.shard(0, v), ["2", 0, None, 3], "world_size"),
        ("loader", lambda c, v: c.load_state_dict(v), ["x", None, 3], "state="),
        ("loader", lambda c, v: c.load_state_dict(v), [{}, {"epoch": 1}, {"epoch": "1", "next": 0}], "state"),
        ("stream", lambda c, v: c.shard(v, 2), ["0", 2], "rank="),
        ("stream", lambda c, v: c.load_state_dict({"next": v}), ["x", -1, 1.5, None], "state: next="),
        ("stream", lambda c, v: TileLoader([TilePaths("t", {"g": None})], batch_size=1, rank=v), [1, -1], "rank="),
        ("embeddings", lambda c, v: c[v], ["x", None, [0.5], np.eye(2), N], "rows of type|row 300 of 300"),
        ("embeddings", lambda c, v: c.column(v), [[], 3], "name="),
        ("embeddings", lambda c, v: c.load("e.h5", rows=v), [[0], 3, None], "rows=.*must be a slice"),
        ("embeddings", lambda c, v: Embeddings(v, ra=c.ra, dec=c.dec), [object(), "x", None], "vectors="),
        ("embeddings", lambda c, v: SearchIndex(c, tokens=v), [np.array(["a"]), object()], "tokens( holds|=)"),
        ("index", lambda c, v: c.nearest(v), [np.ones((1, 3)), [1], np.full(D, np.nan), [["a"] * D], []], "queries"),
        ("index", lambda c, v: c.scores(v, 0), ["x", None, 1.0, np.eye(3), np.zeros((2, 2, D))], "vectors"),
        ("map", lambda c, v: c.transform(v), ["e.h5", None, np.eye(8)], "embeddings="),
        ("map", lambda c, v: c.save(v), [3, None], "path="),
        ("new_map", lambda c, v: c(xy=v), ["x", None], "xy"),
        ("new_map", lambda c, v: c(n_neighbors=v), [0, 1.5, "5"], "n_neighbors="),
        ("new_map", lambda c, v: c(xy=v).transform(SOME), [np.zeros((N, 3)), np.zeros((3, 2))], "'xy'"),
        ("new_map", lambda c, v: c(mean=v).transform(SOME), [np.zeros(3), 1.0], "'mean'"),
        ("pdf", lambda c, v: c.quantile(v), ["0.5", -0.1, 1.1, np.nan], "q="),
        ("pdf", lambda c, v: c.cdf_at(v), [0.5, np.zeros(3), ["a"] * N, None], "z"),
        ("pdf", lambda c, v: c.metrics(seed=v), [-1, "0", 1.5], "seed="),
        ("pdf", lambda c, v: c.headline(seed=v), [-1, None], "seed="),
        ("pdf", lambda c, v: c.save(v), [3, None], "path="),
        ("new_pdf", lambda c, v: c(density=v), [np.ones((N, 4)), np.ones(N), "x", 1.0], "density"),
        ("new_pdf", lambda c, v: c(edges=v), [np.zeros(3), 1.0, None], "edges"),
        ("new_tile", lambda c, v: c(flux=v), [np.zeros((9, 9)), np.zeros((3, 9, 9)), "x", None], "tile t: flux"),
        ("new_tile", lambda c, v: c(variance=v), [np.zeros((2, 9, 8)), "x"], "tile t: .*variance"),
        ("new_tile", lambda c, v: c().sky_at(v, 0), ["x", None, {}], "rows="),
        ("new_tile", lambda c, v: TilePaths("t", v), [3, None, {"g": 3}], "paths="),
        ("survey", lambda c, v: c.match(v), [None, 3, b"x"], "file_name="),
        ("survey", lambda c, v: c.band(v), [None, 3, []], "word="),
        ("new_survey", lambda c, v: c(bands=v), [None, 3, [np.nan], {"g": "x"}], "survey s: bands="),
        ("new_survey", lambda c, v: c(name=v), [np.eye(3), 3, ""], "name="),
    ],
)
def test_classes_name_the_argument_that_is_wrong(made, what, call, wrong, message):
    for value in wrong:
        with pytest.raises((ValueError, IndexError), match=message):
            call(made[what], value)


def test_an_approximate_index_names_the_argument_that_is_wrong(made):
    pytest.importorskip("faiss", reason="needs faiss, of the extra scale")
    index = skylib.ApproximateIndex(made["embeddings"], n_lists=4)
    assert index.nearest(made["embeddings"].vectors[:1], k=2, n_lists=10**6, candidates=10**6)[1][0, 0] == 0
    for wrong in ([1.0], np.ones((1, 3)), [["a"] * D], np.full((1, D), np.nan)):
        with pytest.raises(ValueError, match="queries"):
            index.nearest(wrong)
    for option, value in (("n_lists", 0), ("candidates", -1), ("k", "3")):
        with pytest.raises(ValueError, match=f"{option}="):
            index.nearest(np.ones((1, D)), **{option: value})
    with pytest.raises(ValueError, match="n_lists=301: must be 1 to 300"):
        skylib.ApproximateIndex(made["embeddings"], n_lists=301)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sky_sigma": "x"}, "sky_sigma='x': must be Tensor or an array"),
        ({"sky_sigma": None}, "sky_sigma=None"),
        ({"sky_sigma": np.array(["a", "b"])}, "sky_sigma holds <U1: must be numbers"),
        ({"sky_sigma": np.ones(3)}, r"sky_sigma \(3,\): must be"),
        ({"sky_sigma": 1.0}, r"sky_sigma \(\): must be"),
        ({"flux": np.ones(8)}, r"flux has shape \(8,\)"),
        ({"flux": {}}, "flux={}"),
        ({"box": 9}, "S at least box=9"),
    ],
)
def test_a_signal_to_noise_ratio_names_the_argument_that_is_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        skylib.signal_to_noise(**{"flux": np.ones((3, 2, 8, 8)), "sky_sigma": np.ones(2), **given})
