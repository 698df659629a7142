import json

import numpy as np
import pytest

from skylib import (
    ModelConfig,
    aperture_snr,
    build_model,
    evaluate,
    layer_sweep,
    split_cutouts,
    write_cutouts,
    write_results,
)
from skylib.data.photometry import aperture_magnitudes
from skylib.evaluation.baselines import pixel_pca, random_weights
from skylib.evaluation.labels import select_labels
from skylib.evaluation.probes import on_test
from skylib.evaluation.results import Evaluation
from skylib.model.embed import encode


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Point-like and extended sources in two bands, with a redshift that is a colour; no magnitudes, no split."""
    rng = np.random.default_rng(0)
    n = 360
    kind, z, flux = rng.integers(0, 2, n), rng.uniform(0.1, 1, n), rng.uniform(20, 60, n)
    y, x = np.mgrid[:16, :16] - 8
    shape = np.exp(-(x**2 + y**2) / 2 / (1.2 + 1.5 * kind)[:, None, None] ** 2)
    images = flux[:, None, None, None] * np.stack([shape, shape * z[:, None, None]], axis=1) + rng.normal(
        0, 0.3, (n, 2, 16, 16)
    )
    path = tmp_path_factory.mktemp("field") / "field.h5"
    sky = {"ra": 150 + rng.uniform(0, 0.1, n), "dec": 2 + rng.uniform(0, 0.1, n)}
    return write_cutouts(path, images, bands="gr", **sky, **{"class": kind, "z_spec": z})


@pytest.fixture(scope="module")
def model():
    model = build_model(
        ModelConfig(bands=("g", "r"), size="nano", image_size=16, patch_size=4, decoder_width=32, decoder_depth=1)
    )
    model.set_sky_noise([0.3, 0.3])
    return model


@pytest.fixture(scope="module")
def evaluated(field, model):
    split = split_cutouts(field)
    return split, evaluate(model, field, "z_spec", task="regression", split=split, pools=["central"], layers=[1, -1])


def test_every_baseline_stands_in_the_table(evaluated, tmp_path):
    split, result = evaluated
    methods = {
        "pretrained, linear",
        "pretrained, kNN",
        "pretrained, original's probe",
        "random weights, linear",
        "random weights, original's probe",
        "pixel PCA, linear",
        "aperture magnitudes",
        "mean",
    }
    assert set(result.results) == methods
    for one in result.results.values():
        np.testing.assert_array_equal(one.rows, np.flatnonzero(split == 2))
    assert result.results["aperture magnitudes"].metrics["r2"] > 0.9  # z is the colour
    assert result.results["pretrained, linear"].metrics["r2"] > 0.5
    assert abs(result.results["mean"].metrics["r2"]) < 0.1
    table = write_results(tmp_path, [result], more={"x": {"value": 1.0}})
    assert set(table.index.get_level_values("method")) == methods
    assert (table["n"] == (split == 2).sum()).all()
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["x"] == {"value": 1.0}
    low, high = told["z_spec, pretrained minus random weights: r2"]["interval"]
    assert low <= 0 <= high  # these weights are as random as those of the rival: by the seed, they are the same
    assert (tmp_path / "evaluation.csv").is_file()


@pytest.mark.parametrize("name", ["random weights, linear", "pixel PCA, linear", "aperture magnitudes", "mean"])
def test_a_table_without_a_baseline_cannot_be_made(evaluated, name):
    _, result = evaluated
    fewer = {key: one for key, one in result.results.items() if key != name}
    with pytest.raises(ValueError, match="no table without its baselines"):
        Evaluation(target="z_spec", task="regression", results=fewer)


def test_the_table_tells_of_each_class():
    """Completeness and purity by the names of classes, empty where nothing was called so; the median bias too."""
    truth, parts = np.repeat([0, 1], 20), np.repeat([0, 1, 2], 40)

    def on_all(values):
        return np.tile(values, 3)

    called = {
        name: np.where(np.arange(40) % 10 == 0, 1 - truth, truth)
        for name in ("pretrained, linear", "random weights, linear", "pixel PCA, linear", "catalogue magnitudes")
    }
    results = {
        name: on_test(one, select_labels({"class": on_all(truth)}, "class", parts, "classification"))
        for name, one in {**called, "majority class": 0 * truth}.items()
    }
    result = Evaluation(target="class", task="classification", results=results, class_names=("galaxy", "qso"))
    table = result.table().loc["class"]
    assert table.loc["pretrained, linear", "completeness_galaxy"].startswith("0.900 [")
    assert table.loc["majority class", "completeness_qso"] == "0.000 [0.000, 0.000]"
    assert table.loc["majority class", "purity_qso"] == ""
    assert "purity_1" not in table
    values = truth + np.linspace(0, 1, 40)
    moved = on_test(values + 0.1, select_labels({"z": on_all(values)}, "z", parts, "regression"))
    names = [*list(results)[:-1], "mean"]
    z = Evaluation(target="z", task="regression", results=dict.fromkeys(names, moved)).table()
    assert z["bias_median"].str.match(r"0\.\d{3} \[").all()


def test_all_orientations_give_the_same_for_an_image_however_it_is_turned(field, model, tmp_path):
    turned = write_cutouts(
        tmp_path / "turned.h5",
        np.ascontiguousarray(np.rot90(field.flux(), axes=(2, 3))),
        bands=field.bands,
        z_spec=field.column("z_spec"),
    )
    split = split_cutouts(field)
    how = {"task": "regression", "split": split, "pools": ["mean"], "all_orientations": True}
    one, other = (evaluate(model, cutouts, "z_spec", **how).results for cutouts in (field, turned))
    for method in ("pretrained, linear", "random weights, linear"):
        np.testing.assert_allclose(one[method].prediction, other[method].prediction, atol=1e-3)
    method = "pretrained, original's probe"
    assert np.abs(one[method].prediction - other[method].prediction).max() > 1e-3  # as published: one orientation


def test_layers_and_poolings_in_one_call(field, model, evaluated):
    split, _ = evaluated
    sweep = layer_sweep(model, field, "class", task="classification", split=split, pools=["mean", "central", "cls"])
    assert len(sweep) == 18
    assert sweep["chosen"].sum() == 1
    assert sweep.loc[sweep["chosen"], "loss"].item() == sweep["loss"].min()


def test_features_are_those_of_the_model(field, model):
    import torch

    rows = np.array([3, 1, 200])
    found = encode(model, field, rows=rows, pools=["mean", "central", "central_flat"], layers=[2, -1], batch_size=2)
    flux = torch.from_numpy(field.flux(rows))
    with torch.no_grad():
        for layer in (2, -1):
            for pool in ("mean", "central"):
                np.testing.assert_allclose(
                    found[layer, pool], model.embed(flux, pool=pool, layer=layer).numpy(), atol=1e-5
                )
        flux[:, 1] = torch.nan
        blind = encode(model, field, rows=rows, pools=["mean"], drop_bands=["r"])[-1, "mean"]
        np.testing.assert_allclose(blind, model.embed(flux).numpy(), atol=1e-5)
    assert found[-1, "central_flat"].shape == (3, 4 * 128)
    fresh = random_weights(model, seed=1)
    assert (fresh.sky_sigma == model.sky_sigma).all()
    with pytest.raises(ValueError, match="pool='middle'"):
        encode(model, field, rows=rows, pools=["middle"])


def test_magnitudes_and_noise_measured_on_pixels(field):
    rows = np.arange(50)
    mags = aperture_magnitudes(field, rows=rows, sky_sigma=np.array([0.3, 0.3]))
    colour = np.clip(field.column("z_spec")[:50], 1e-3, None)
    np.testing.assert_allclose(mags[:, 1] - mags[:, 0], -2.5 * np.log10(colour), atol=0.2)
    snr = aperture_snr(field, "g", rows=rows, sky_sigma=0.3)
    assert (snr > 20).all()


def test_a_hole_in_the_aperture_brings_no_noise(tmp_path):
    """Half of the pixels of a flat image are gone: half of the flux, over the noise of half of the pixels."""
    flux = np.ones((3, 2, 16, 16))
    flux[1, 0, :, ::2] = np.nan
    flux[2, 0] = np.nan
    data = write_cutouts(tmp_path / "holes.h5", flux, bands="gr", ra=np.zeros(3), dec=np.zeros(3))
    inside = ((np.indices((16, 16)) - 8) ** 2).sum(axis=0) <= 16
    snr = aperture_snr(data, "g", rows=np.arange(3), sky_sigma=0.5, radius=4.0)
    np.testing.assert_allclose(snr, [2 * inside.sum() ** 0.5, 2 * inside[:, 1::2].sum() ** 0.5, np.nan])


def test_components_are_fitted_on_train(field, model):
    rows = np.arange(100)
    first = pixel_pca(model, field, rows=rows, train=rows[:60], n_components=8)
    again = pixel_pca(model, field, rows=rows[60:], train=rows[:60], n_components=8)
    np.testing.assert_allclose(first[60:], again, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(first[:60].mean(axis=0), 0, atol=1e-3)
