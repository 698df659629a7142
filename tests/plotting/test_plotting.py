import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

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
        plotting.plot_counts({"mag_i": cutouts.column("mag_i"), "class": cutouts.column("class")}, "mag_i", cutouts.class_names()).figure,
        plotting.plot_progress(metrics),
        plotting.plot_reconstruction(flux[:2], flux[:2], np.zeros(flux[:2].shape, bool), bands, norm_pix="band", sky_sigma=sigma),
        plotting.plot_comparison({"a": (0.5, (0.4, 0.6)), "b": (0.1, (0.1, 0.1))}, label="accuracy").figure,
        plotting.plot_regression(rng.random(n), rng.random(n), outlier_threshold=0.15).figure,
        plotting.plot_map(xy, classes, names=cutouts.class_names()).figure,
        plotting.plot_map(xy, np.where(classes == 0, np.nan, 1.0 * np.arange(n)), label="z").figure,
        plotting.plot_density(xy).figure,
        plotting.plot_thumbnails(xy, flux, bands, n_side=4).figure,
        plotting.plot_label_efficiency(table, reference="a").figure,
        plotting.plot_redshift(z_phot, z_spec).figure,
        plotting.plot_redshift_panels(z_phot, z_spec),
        plotting.plot_residual_by_snr(z_phot, z_spec, rng.uniform(5, 100, 400), band="i").figure,
        plotting.plot_pit(rng.random(400)).figure,
        plotting.plot_layer_sweep(sweep, label="accuracy").figure,
        plotting.plot_missing_bands(missing).figure,
        plotting.plot_nuisances(audit).figure,
    ]  # fmt: skip
    for number, figure in enumerate(drawn):
        figure.savefig(path := tmp_path / f"{number}.png")
        assert plt.imread(path)[..., :3].std() > 0.02
    assert "true mean and scale" in drawn[4].get_suptitle()


def test_panels_by_predicted_redshift_hold_what_was_predicted_there():
    z_spec = np.repeat([0.25, 0.75], 50)
    figures = [plotting.plot_redshift_panels(z_spec[::-1], z_spec, by=by, n_bins=2) for by in ("z_spec", "z_pred")]
    bias = [figure.axes[2].lines[0].get_ydata(orig=False) for figure in figures]
    np.testing.assert_allclose(bias[0], [0.5 / 1.25, -0.5 / 1.75])
    np.testing.assert_allclose(bias[1], bias[0][::-1])
    with pytest.raises(ValueError, match="by='z'"):
        plotting.plot_redshift_panels(z_spec, z_spec, by="z")


def test_little_to_show_is_shown():
    """One seed has no interval; where no nuisance could be judged, there is none."""
    one = pd.DataFrame({"method": "a", "n_labels": [8, 16], "seed": 0, "balanced_accuracy": [0.3, 0.5], "n": 40})
    assert not plotting.plot_label_efficiency(one, reference="a").collections
    nothing = pd.DataFrame({name: [] for name in ("nuisance", "value", "low", "high", "chance")})
    assert not plotting.plot_nuisances(nothing).get_yticks().size
