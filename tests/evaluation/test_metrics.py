import numpy as np
import pytest

from skylib import binned_metrics, classification_metrics, photoz_metrics
from skylib.evaluation.bootstrap import bootstrap_intervals, mean_interval, paired_margin
from skylib.evaluation.metrics import regression_metrics, roc_auc


def test_redshift_metrics_by_hand():
    z_spec = np.array([0.0, 1.0, 3.0, 0.0])
    z_pred = np.array([0.1, 1.0, 2.6, 0.5])  # dz = 0.1, 0, -0.1, 0.5
    metrics = photoz_metrics(z_pred, z_spec)
    assert metrics["bias"] == pytest.approx(0.125)
    assert metrics["bias_median"] == pytest.approx(0.05)
    assert metrics["sigma_mad"] == pytest.approx(1.4826 * 0.1)  # |dz - 0.05| = 0.05, 0.05, 0.15, 0.45
    assert metrics["outlier_fraction"] == 0.25
    assert photoz_metrics(z_pred, z_spec, outlier_threshold=0.05)["outlier_fraction"] == 0.75
    assert metrics["r2"] == pytest.approx(1 - (0.01 + 0.16 + 0.25) / 6)


def test_perfect_and_useless_regression():
    truth = np.arange(10.0)
    assert regression_metrics(truth, truth) == {"r2": 1.0, "rms": 0.0, "bias": 0.0, "n": 10}
    assert regression_metrics(np.full(10, truth.mean()), truth)["r2"] == 0


def test_completeness_and_purity_by_hand():
    truth, called = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 1])
    metrics = classification_metrics(called, truth, names={0: "galaxy", 1: "qso", 2: "star"})
    assert metrics["completeness_galaxy"] == pytest.approx(2 / 3)
    assert metrics["purity_qso"] == 0.25
    assert metrics["completeness_star"] == 0
    assert np.isnan(metrics["purity_star"])
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    text = classification_metrics(np.array(["star", "star"]), np.array(["star", "qso"]))
    assert text["purity_star"] == 0.5


def test_bootstrap_interval_of_an_accuracy_is_binomial():
    rng = np.random.default_rng(0)
    truth = np.zeros(400, int)
    truth[:200] = 1
    called = np.where(rng.random(400) < 0.8, truth, 1 - truth)
    low, high = bootstrap_intervals(called, truth, classification_metrics, n_resamples=2000)["accuracy"]
    accuracy = (called == truth).mean()
    sigma = np.sqrt(accuracy * (1 - accuracy) / 400)
    assert (high - low) / (2 * 1.96 * sigma) == pytest.approx(1, abs=0.1)
    assert low < accuracy < high


def test_every_draw_has_every_class():
    """Two classes that are always right and one object of a third that is not: no draw can do better than 2 / 3."""
    truth = np.repeat([0, 1, 2], [50, 50, 1])
    called = np.where(truth == 2, 0, truth)
    assert bootstrap_intervals(called, truth, classification_metrics)["balanced_accuracy"] == pytest.approx(
        (2 / 3, 2 / 3)
    )
    assert paired_margin(called, truth, truth, classification_metrics)["balanced_accuracy"] == pytest.approx(
        (-1 / 3,) * 3
    )
    score = np.stack([truth == 0, truth == 1, truth != 2], axis=1)
    area = bootstrap_intervals(score, truth, lambda p, t: {"area": roc_auc(p, t, classes=(0, 1, 2))})["area"]
    assert area == pytest.approx((2 / 3, 2 / 3))


def test_the_interval_of_a_few_runs_holds_the_mean_as_often_as_it_says():
    """Of normal runs, 95 % of intervals hold the true mean, were there only two; one run has no interval."""
    rng = np.random.default_rng(0)
    for n in (2, 5):
        ends = np.array([mean_interval(runs) for runs in rng.normal(size=(2000, n))])
        assert ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() == pytest.approx(0.95, abs=0.015)
    assert np.isnan(mean_interval(np.array([0.7]))).all()


def test_roc_by_hand():
    probability = np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
    assert roc_auc(probability, np.array([0, 0, 1, 1]), classes=(0, 1)) == 0.75  # three of four pairs in order
    assert roc_auc(np.full((4, 2), 0.5), np.array([0, 0, 1, 1]), classes=(0, 1)) == 0.5


def test_outliers_at_two_limits_and_rms_by_hand():
    metrics = photoz_metrics(np.array([0.1, 1.0, 2.6, 0.5]), np.array([0.0, 1.0, 3.0, 0.0]))
    assert metrics["outlier_fraction"] == 0.25
    assert metrics["outlier_fraction_0.05"] == 0.75
    assert metrics["rms"] == pytest.approx(np.sqrt((0.01 + 0.01 + 0.25) / 4))


def test_bins_by_hand():
    truth = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    predicted = np.array([0.1, 0.3, 1.0, 1.2, 1.4])
    by = np.array([20.0, 21.0, 22.0, 23.0, np.nan])
    table = binned_metrics(predicted, truth, by, edges=(20, 22, 23), metric=photoz_metrics, min_count=2)
    assert table["n"].tolist() == [2, 2]
    np.testing.assert_allclose(table["bias"], [0.2, 0.05])
    assert (table["bias_low"] <= table["bias"]).all()
    assert binned_metrics(predicted, truth, by, edges=(20, 22, 23), metric=photoz_metrics, min_count=3)[
        "n"
    ].tolist() == [2, 2]
    with pytest.raises(ValueError, match="ascend"):
        binned_metrics(predicted, truth, by, edges=(1, 1), metric=photoz_metrics)


def test_paired_margin_cancels_what_is_hard_for_both():
    """Two that err on the same objects, but for five: the margin is far surer than the two intervals say."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 500)
    hard = rng.random(500) < 0.3
    one = np.where(hard, 1 - truth, truth)
    two = one.copy()
    easy = np.flatnonzero(~hard)[:15]
    two[easy] = 1 - two[easy]
    difference, low, high = paired_margin(one, two, truth, classification_metrics)["accuracy"]
    assert difference == pytest.approx(0.03)
    assert 0 < low < difference < high
    alone = bootstrap_intervals(one, truth, classification_metrics)["accuracy"]
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="two vectors of one length"):
        photoz_metrics(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        photoz_metrics(np.zeros(2), np.array([0, np.nan]))
    with pytest.raises(ValueError, match="prediction holds NaN or infinity 1 times"):  # of whole numbers, too
        photoz_metrics(np.array([np.nan, 1.0, 2.0]), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="prediction holds 1 masked values"):
        photoz_metrics(np.ma.array([9.0, 1.0], mask=[True, False]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="truth holds 2 masked values"):
        classification_metrics(np.zeros(2, int), np.ma.masked_all(2, int))
