import numpy as np
import pytest

from skylib import Embeddings, catalogue_probe, constant_probe, knn_probe, linear_probe, original_probe
from skylib.evaluation.labels import select_labels
from skylib.evaluation.probes import candidates, choose


@pytest.fixture
def known():
    """A class and a value that are linear in the vectors, and a split."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(900, 6)) * 5 + 100
    columns = {
        "class": (vectors[:, 0] > 100).astype(int) + (vectors[:, 1] > 103),
        "value": vectors[:, 2] - 2 * vectors[:, 3],
        "split": np.arange(900) % 3,
        "mag_g": vectors[:, 2],
        "mag_r": vectors[:, 3],
    }
    return Embeddings(vectors, ra=np.zeros(900), dec=np.zeros(900), columns=columns)


def test_a_linear_truth_is_found(known):
    assert linear_probe(known, "value", task="regression", split="split").metrics["r2"] > 0.999
    assert linear_probe(known, "class", task="classification", split="split").metrics["accuracy"] > 0.75
    assert knn_probe(known, "class", task="classification", split="split").metrics["accuracy"] > 0.6
    colours = catalogue_probe(known, "value", magnitudes=["mag_g", "mag_r"], task="regression", split="split")
    assert colours.metrics["r2"] > 0.9


def test_the_constant_is_the_floor(known):
    floor = constant_probe(known, "class", task="classification", split="split")
    truth = known.column("class")[known.column("split") == 2]
    assert floor.metrics["balanced_accuracy"] == pytest.approx(1 / 3)
    assert floor.metrics["accuracy"] == pytest.approx(np.mean(truth == np.bincount(truth).argmax()))
    assert constant_probe(known, "value", task="regression", split="split").metrics["r2"] == pytest.approx(0, abs=0.02)


def test_random_labels_give_chance(known):
    labels = np.random.default_rng(1).integers(0, 2, 900)
    low, high = linear_probe(known, labels, task="classification", split="split").intervals["accuracy"]
    assert low < 0.5 < high


def test_test_objects_cannot_reach_the_fit(known):
    """Whatever stands in the test rows, the predictions for the same vectors do not change: scaler and model are train's."""
    rows = known.column("split") == 2
    before = linear_probe(known, "value", task="regression", split="split")
    spoilt = known.vectors.copy()
    spoilt[np.flatnonzero(rows)[1:]] = 1e6
    labels = known.column("value").copy()
    labels[np.flatnonzero(rows)[1:]] = -1e6
    after = linear_probe(
        Embeddings(spoilt, ra=known.ra, dec=known.dec), labels, task="regression", split=known.column("split")
    )
    assert after.prediction[0] == before.prediction[0]
    assert after.settings["chosen"] == before.settings["chosen"]


def test_the_scaler_knows_train_alone(known):
    """Built into the pipeline: what a fitted probe subtracts is the mean of train, whatever the other parts hold."""
    labels = select_labels(known.column, "class", "split", "classification")
    shifted = known.vectors.copy()
    shifted[known.column("split") != 0] += 1e3
    best = choose(shifted, labels, candidates("linear", "classification"))
    np.testing.assert_allclose(best.model[0].mean_, known.vectors[known.column("split") == 0].mean(axis=0), rtol=1e-5)


def test_models_given_to_several_choices_are_fitted_by_none(known):
    labels = select_labels(known.column, "class", "split", "classification")
    models = candidates("linear", "classification")
    best = choose(known.vectors, labels, models)
    before = best.model.predict_proba(known.vectors)
    choose(known.vectors[:, ::-1], labels, models)
    np.testing.assert_array_equal(best.model.predict_proba(known.vectors), before)


def test_the_probes_of_the_original_have_its_settings(known):
    result = original_probe(known, "class", task="classification", split="split")
    assert result.settings["chosen"] == "C=0.01"
    assert result.metrics["accuracy"] > 0.7
    number = original_probe(known, "value", task="regression", split="split")
    assert number.settings["chosen"] == "alpha=0.0001, l1_ratio=0.9"
    assert number.metrics["r2"] > 0.999


def test_probabilities_give_the_area_under_the_curve(known):
    result = linear_probe(known, "class", task="classification", split="split")
    assert result.probability.shape == (300, 3)
    low, high = result.intervals["roc_auc"]
    assert 0.9 < low < result.metrics["roc_auc"] <= high


def test_unlabelled_objects_are_left_out(known):
    labels, values = known.column("class").copy(), known.column("value").copy()
    labels[::2], values[::5] = -1, np.nan
    assert linear_probe(known, labels, task="classification", split="split").metrics["n"] == 150
    assert linear_probe(known, values, task="regression", split="split").metrics["n"] == 240
    floats = np.where(labels < 0, np.resize([-1.0, -1.0, np.nan, np.nan], 900), labels)
    assert (
        select_labels(known.column, floats, "split", "classification").rows[2].tolist()
        == np.flatnonzero((labels >= 0) & (np.arange(900) % 3 == 2)).tolist()
    )
    result = linear_probe(known, floats, task="classification", split="split")
    assert "completeness_2" in result.metrics
    np.testing.assert_array_equal(result.truth, labels[result.rows])


def test_classes_may_be_text(known):
    names = np.array(["galaxy", "qso", "star"])
    numbers, text = (
        linear_probe(known, labels, task="classification", split="split")
        for labels in (known.column("class"), names[known.column("class")])
    )
    np.testing.assert_array_equal(text.prediction, names[numbers.prediction])
    assert text.metrics["purity_qso"] == numbers.metrics["purity_1"]
    assert text.intervals["roc_auc"] == numbers.intervals["roc_auc"]


def test_what_cannot_be_probed(known):
    with pytest.raises(KeyError, match="no column 'z'; columns: class, value"):
        linear_probe(known, "z", task="regression", split="split")
    with pytest.raises(ValueError, match="no object with a known 'class' in the validation part"):
        linear_probe(known, "class", task="classification", split=np.arange(900) % 2 * 2)
    with pytest.raises(ValueError, match="task='classify'"):
        linear_probe(known, "class", task="classify", split="split")
    with pytest.raises(ValueError, match="no classes to tell apart"):
        linear_probe(known, np.zeros(900, int), task="classification", split="split")
    with pytest.raises(ValueError, match=r"target holds 0\.5: classes are whole numbers"):
        linear_probe(known, np.full(900, 0.5), task="classification", split="split")
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        select_labels(known.column, np.zeros(5), "split", "regression")
