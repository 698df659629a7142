import numpy as np
import pandas as pd
import pytest

from skylib import ModelConfig, ProbeConfig, build_model, label_efficiency, train_head, write_cutouts
from skylib.labels import fingerprint, nested_subset

QUICK = ProbeConfig(epochs=4, min_steps=40, batch_size=32, evaluations=4, precision="fp32")
METHODS = ["linear", "attentive", "finetune", "supervised"]


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """Blobs of two widths and some brightness: what any working method learns."""
    rng = np.random.default_rng(0)
    kind, bright = rng.integers(0, 2, 300), rng.uniform(1, 4, 300)
    y, x = np.mgrid[:16, :16] - 8
    width = (1.2 + 2 * kind)[:, None, None, None]
    flux = bright[:, None, None, None] * np.exp(-(x**2 + y**2) / 2 / width**2) + rng.normal(0, 0.1, (300, 2, 16, 16))
    path = tmp_path_factory.mktemp("easy") / "easy.h5"
    position = {"ra": 150 + rng.uniform(0, 0.1, 300), "dec": 2 + rng.uniform(0, 0.1, 300)}
    labels = {"class": kind, "brightness": bright, "split": np.arange(300) % 3}
    return write_cutouts(path, flux, bands="gr", **position, **labels)


@pytest.fixture(scope="module")
def model():
    return build_model(
        ModelConfig(bands=("g", "r"), size="nano", image_size=16, patch_size=4, decoder_width=32, decoder_depth=1)
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_classes(easy, model, method):
    before = fingerprint(model)
    result = train_head(model, easy, "class", method=method, seed=0, config=QUICK, split="split")
    assert result.metrics["accuracy"] > 0.85
    assert result.metrics["n"] == 100
    assert fingerprint(model) == before  # the model given is not changed


@pytest.mark.parametrize("method", ["attentive", "supervised"])
def test_and_values(easy, model, method):
    result = train_head(
        model, easy, "brightness", method=method, seed=0, config=QUICK, task="regression", split="split"
    )
    assert result.metrics["r2"] > (0.5 if method == "attentive" else 0.1)


def test_the_same_seed_gives_the_same_result(easy, model):
    one, two = (
        train_head(model, easy, "class", method="attentive", n_labels=20, seed=3, config=QUICK, split="split")
        for _ in "ab"
    )
    np.testing.assert_array_equal(one.prediction, two.prediction)


def test_subsets_are_nested_and_hold_every_class():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    small, large = (set(nested_subset(labels, n, task="classification", seed=1)) for n in (20, 60))
    assert small < large
    assert np.bincount(labels[list(small)]).tolist() == [16, 3, 1]
    assert set(nested_subset(labels, 20, task="classification", seed=2)) != small


def test_the_study_is_written_row_by_row_and_resumes(easy, model, tmp_path, monkeypatch):
    import skylib.labels as module

    arguments = {
        "methods": ["linear", "attentive"],
        "n_labels": [10, 40],
        "seeds": [0, 1],
        "run_dir": tmp_path,
        "config": QUICK,
        "split": "split",
    }
    train, calls = module._train, []

    def dies_at_the_fourth(*given):
        calls.append(given[1:4])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(module, "_train", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        label_efficiency(model, easy, "class", **arguments)
    assert len(pd.read_csv(tmp_path / "label_efficiency.csv")) == 3
    table = label_efficiency(model, easy, "class", **arguments)
    assert len(calls) == 9  # eight rows, of which the one that died was begun twice
    assert len(table) == 8
    assert not table.duplicated(["method", "n_labels", "seed"]).any()
    assert len(label_efficiency(model, easy, "class", **arguments)) == 8
    assert len(calls) == 9
    other = build_model(model.config, seed=1)
    assert len(label_efficiency(other, easy, "class", **(arguments | {"seeds": [0], "n_labels": [10]}))) == 2
    assert len(calls) == 11  # rows of other weights do not count


def test_what_cannot_be_studied(easy, model, tmp_path):
    with pytest.raises(ValueError, match=r"n_labels=\[500\]: the training part has 1 to 100 labels"):
        label_efficiency(model, easy, "class", n_labels=[10, 500], run_dir=tmp_path, split="split")
    with pytest.raises(ValueError, match="method='magic'"):
        train_head(model, easy, "class", method="magic", split="split")
