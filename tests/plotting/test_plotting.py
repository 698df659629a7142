import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import skylib
from skylib import plotting


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_a_red_source_is_red_and_missing_bands_do_not_matter():
    flux = np.zeros((5, 8, 8), np.float32)
    flux[2, 4, 4] = 50
    picture = plotting.rgb_image(flux, "grizy")
    assert picture.shape == (8, 8, 3)
    assert picture[4, 4].argmax() == 0
    assert picture[4, 4, 0] > 100
    flux[2] = np.nan
    assert np.isfinite(plotting.rgb_image(flux, "grizy")).all()
    assert plotting.rgb_image(np.ones((1, 8, 8)), ["NB0816"]).shape == (8, 8, 3)


def test_confusion_matrix_shows_shares_and_counts():
    ax = plotting.plot_confusion(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 2]), ("galaxy", "qso", "star"))
    assert [t.get_text() for t in ax.texts] == ["0.67\n(2)", "0.00\n(0)", "0.00\n(0)", "1.00\n(1)"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["galaxy", "star"]


def test_every_figure_is_drawn(cutouts, tmp_path):
    rng = np.random.default_rng(0)
    flux, bands, n = cutouts.flux(slice(0, 40)), cutouts.bands, 40
    xy, classes = rng.normal(size=(n, 2)), cutouts.column("class")[:n]
    sigma = np.full(5, 0.1)
    metrics = pd.DataFrame(
        {
            "step": [1, 2, 3],
            "loss": [3, 2, 1.0],
            "validation_loss": [np.nan, 2, 1],
            "probe_class_accuracy": [np.nan, 0.5, 0.6],
        }
    )
    table = pd.DataFrame(
        {
            "method": ["a", "a", "b", "b"] * 2,
            "n_labels": [8, 16, 8, 16] * 2,
            "seed": [0] * 4 + [1] * 4,
            "balanced_accuracy": [0.3, 0.5, 0.4, 0.6, 0.31, 0.5, 0.42, 0.61],
            "n": 40,
        }
    )
    z_spec = rng.uniform(0, 2, 400)
    z_phot = z_spec + rng.normal(0, 0.1, 400)
    sweep = pd.DataFrame(
        {
            "layer": [0, 1, 0, 1],
            "pool": ["mean", "mean", "cls", "cls"],
            "score": [0.5, 0.6, 0.4, 0.7],
            "chosen": [False, False, False, True],
        }
    )
    missing = pd.DataFrame(
        {
            "dropped": ["", "g", "r"],
            "n_dropped": [0, 1, 1],
            "balanced_accuracy": [0.9, 0.7, 0.8],
            "low": 0.6,
            "high": 0.95,
        }
    )
    audit = pd.DataFrame(
        {"nuisance": ["depth", "tile"], "value": [0.4, 0.6], "low": [0.3, 0.5], "high": [0.5, 0.7], "chance": [0, 0.5]}
    )
    drawn = [
        plotting.show_cutouts(flux[:5], bands, titles=list("abcde")),
        plotting.show_bands(flux[0], bands, sky_sigma=sigma)[0].figure,
        plotting.plot_counts(cutouts.column("mag_i"), cutouts.column("class"), names=cutouts.class_names()).figure,
        plotting.plot_progress(metrics),
        plotting.plot_reconstruction(
            flux[:2], flux[:2], np.zeros(flux[:2].shape, bool), bands, norm_pix="band", sky_sigma=sigma
        ),
        plotting.plot_comparison({"a": (0.5, (0.4, 0.6)), "b": (0.1, (0.1, 0.1))}, label="accuracy").figure,
        plotting.plot_regression(rng.random(n), rng.random(n), outlier_threshold=0.15).figure,
        plotting.plot_map(xy, classes, names=cutouts.class_names()).figure,
        plotting.plot_map(xy, np.where(classes == 0, np.nan, 1.0 * np.arange(n)), label="z").figure,
        plotting.plot_density(xy).figure,
        plotting.plot_thumbnails(xy, flux, bands, n_side=4).figure,
        plotting.plot_label_efficiency(table, reference="a").figure,
        plotting.plot_redshift(z_phot, z_spec, metrics=skylib.photoz_metrics(z_phot, z_spec)).figure,
        plotting.plot_redshift_panels(z_phot, z_spec, skylib.redshift_bins(z_phot, z_spec)),
        plotting.plot_residual_by_snr(z_phot, z_spec, rng.uniform(5, 100, 400), band="i").figure,
        plotting.plot_pit(rng.random(400)).figure,
        plotting.plot_layer_sweep(sweep, label="accuracy").figure,
        plotting.plot_missing_bands(missing).figure,
        plotting.plot_nuisances(audit).figure,
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(path := tmp_path / f"{number}.png")
        assert plt.imread(path)[..., :3].std() > 0.02
    assert "true mean and scale" in drawn[4].get_suptitle()


def test_panels_by_predicted_redshift_hold_what_was_predicted_there():
    z_spec = np.repeat([0.25, 0.75], 50)
    bias = []
    for by in ("z_spec", "z_pred"):
        table = skylib.redshift_bins(z_spec[::-1], z_spec, by=by, n_bins=2)
        figure = plotting.plot_redshift_panels(z_spec[::-1], z_spec, table, by=by)
        bias.append(figure.axes[2].lines[0].get_ydata(orig=False))
    np.testing.assert_allclose(bias[0], [0.5 / 1.25, -0.5 / 1.75])
    np.testing.assert_allclose(bias[1], bias[0][::-1])
    with pytest.raises(ValueError, match="by='z'"):
        plotting.plot_redshift_panels(z_spec, z_spec, table, by="z")
    with pytest.raises(ValueError, match="by='z'"):
        skylib.redshift_bins(z_spec, z_spec, by="z")


def test_interval_of_no_outliers_is_not_empty():
    """Where 0 of 50 are outliers, the share may be as large as 7 % (Wilson)."""
    z = np.linspace(0.1, 1, 100)
    table = skylib.redshift_bins(z, z, n_bins=2)
    assert (table["outlier_fraction"] == 0).all()
    assert table["outlier_fraction_high"].between(0.05, 0.1).all()


def test_few_objects_are_points_and_many_a_density():
    rng = np.random.default_rng(0)
    for n, collections in ((100, 0), (3000, 1)):
        z = rng.uniform(0, 2, n)
        assert len(plotting.plot_redshift(z, z).collections) == collections


@pytest.mark.parametrize("name", ["cost ($)", "$x_{$", r"cost $\frac{$"])
def test_a_dollar_in_a_name_is_a_dollar(name, tmp_path):
    rng, c = np.random.default_rng(0), np.arange(30) % 3
    xy, value = rng.normal(size=(30, 2)), np.arange(30.0)
    table = pd.DataFrame({"method": name, "n_labels": [8, 16], "seed": 0, "r2": [0.3, 0.5]})
    dropped = pd.DataFrame({"dropped": ["", name], "n_dropped": [0, 1], "r2": 0.5, "low": 0.4, "high": 0.6})
    audit = pd.DataFrame({"nuisance": [name], "value": 0.4, "low": 0.3, "high": 0.5, "chance": 0.0})
    drawn = [
        plotting.plot_map(xy, c, names=("a", name, "b")).figure,
        plotting.plot_map(xy, value, label=plotting.column_label(name)).figure,
        plotting.plot_confusion(c, c, ("a", name, "b")).figure,
        plotting.plot_regression(value, value, label=name).figure,
        plotting.plot_counts(value, c, names=("a", name, "b"), label=plotting.column_label(name)).figure,
        plotting.plot_comparison({name: (0.5, (0.4, 0.6))}, label="accuracy").figure,
        plotting.plot_label_efficiency(table, metric="r2").figure,
        plotting.plot_missing_bands(dropped, metric="r2").figure,
        plotting.plot_nuisances(audit).figure,
        plotting.plot_progress(pd.DataFrame({"step": [1], "loss": [1.0], f"probe_{name}_r2": [0.5]})),
        plotting.show_cutouts(np.ones((1, 1, 8, 8)), ["r"], titles=[name]),
    ]
    for figure in drawn:
        figure.savefig(tmp_path / "figure.png")


def test_one_object_far_out_does_not_shrink_the_map():
    xy = np.random.default_rng(0).normal(size=(1000, 2))
    xy[0] = 1e4
    for ax in (plotting.plot_map(xy, xy[:, 0]), plotting.plot_density(xy)):
        assert ax.get_xlim()[1] < 10
        assert ax.get_ylim()[1] < 10


def test_a_clipped_colour_bar_has_arrows():
    values = np.r_[np.zeros(90), np.linspace(0, 1, 10)]
    figure = plotting.plot_map(np.random.default_rng(0).normal(size=(100, 2)), values, label="z").figure
    assert figure.axes[1]._colorbar.extend == "max"


def test_a_picture_without_data_says_so():
    flux = np.full((2, 2, 8, 8), np.nan)
    flux[1] = 1
    figure = plotting.show_cutouts(flux, "gr")
    assert [[t.get_text() for t in ax.texts] for ax in figure.axes] == [["no data"], []]
    axes = plotting.show_bands(np.stack([flux[0, 0], flux[1, 0]]), "gr", sky_sigma=np.ones(2))
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [["no data"], []]


def test_a_tile_has_sky_coordinates(tiles):
    tile = skylib.read_tile(tiles[0])
    ax = plotting.show_tile(tile.flux, tile.bands, wcs=tile.wcs, title=tile.name)
    assert ax.get_xlabel() == "right ascension"
    ax.figure.canvas.draw()
    assert plotting.show_tile(tile.flux, tile.bands).get_xlabel() == "column (pixels)"


def test_little_to_show_is_shown():
    """One seed is a point and a line, without a band; where no nuisance could be judged, there is none."""
    one = pd.DataFrame({"method": "a", "n_labels": [8, 16], "seed": 0, "balanced_accuracy": [0.3, 0.5], "n": 40})
    assert not plotting.plot_label_efficiency(one, reference="a").collections
    nothing = pd.DataFrame({name: [] for name in ("nuisance", "value", "low", "high", "chance")})
    assert not plotting.plot_nuisances(nothing).get_yticks().size


def test_small_changes_of_a_score_look_small():
    metrics = pd.DataFrame(
        {"step": [1, 2], "loss": [1.0, 0.9], "probe_z_r2": [0.489, 0.474], "probe_class_accuracy": [0.3, 0.8]}
    )
    _, small, large = plotting.plot_progress(metrics).axes
    low, high = small.get_ylim()
    assert high - low == pytest.approx(0.1)
    assert (low + high) / 2 == pytest.approx((0.489 + 0.474) / 2)
    assert np.ptp(large.get_ylim()) < 0.6
