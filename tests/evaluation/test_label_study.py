import dataclasses
import os
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

from skylib import (
    CutoutFile,
    ModelConfig,
    ProbeConfig,
    build_model,
    label_efficiency,
    label_grid,
    labels_to_match,
    seed_means,
    train_head,
    write_cutouts,
)
from skylib.config import LEARNING_RATES
from skylib.evaluation.heads import LabelledCutouts
from skylib.evaluation.labels import nested_subset, select_labels
from skylib.evaluation.networks import EncoderWithHead, Head, parameter_groups
from skylib.evaluation.probes import on_test
from skylib.model.checkpoint import fingerprint

QUICK = ProbeConfig(epochs=4, min_steps=30, batch_size=16, evaluations=3, patience=2, precision="fp32")
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
    config = dataclasses.replace(QUICK, epochs=1, min_steps=10 if method == "supervised" else 30)
    arguments = {"config": config, "task": "regression", "split": "split"}
    result = train_head(model, easy, "brightness", method=method, seed=0, **arguments)
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


@pytest.fixture
def study(easy, model, tmp_path):
    grid = {"methods": ["linear", "attentive"], "n_labels": [10, 40], "seeds": [0, 1]}
    return grid, {**grid, "run_dir": tmp_path, "config": QUICK, "split": "split"}


@pytest.mark.parametrize("dies_at", range(1, 9))
def test_a_kill_at_any_row_repeats_nothing_and_loses_nothing(easy, model, study, monkeypatch, dies_at):
    import skylib.evaluation.label_study as module

    grid, arguments = study
    trained, finished = [], []
    labels = select_labels({}, np.arange(12) % 4, np.repeat([0, 1, 2], 4), "classification")
    tiny = on_test(np.arange(4), labels, validation=1.0, learning_rate=1.0, epochs=1, steps=1, trials=[])

    def dies(labelled, **given):
        trained.append((given["method"], given["n_labels"], given["seed"]))
        if len(trained) == dies_at:
            raise KeyboardInterrupt
        finished.append(trained[-1])
        return tiny

    monkeypatch.setattr(module, "train_on", dies)  # what is trained does not matter here: when is what counts
    with pytest.raises(KeyboardInterrupt):
        label_efficiency(model, easy, "class", **arguments)
    folder = arguments["run_dir"] / "label_efficiency"
    assert len(list(folder.glob("*.json"))) == dies_at - 1
    table = label_efficiency(model, easy, "class", **arguments)
    assert finished == label_grid(**grid)  # each once, in the order of the grid
    assert list(zip(table["method"], table["n_labels"], table["seed"], strict=True)) == label_grid(**grid)
    assert not list(folder.glob("*.partial"))


def test_a_study_knows_its_images_and_its_network(easy, model, tmp_path):
    """Other images at the same path, or another reading of them, are another study; a copy that kept its time is not."""

    def study(network=model):
        data = LabelledCutouts(network, CutoutFile(path), "class", task="classification", split="split")
        return data.key(), data.inputs(data.labels.used[:4], frozen=True).numpy()

    path = shutil.copy2(easy.path, tmp_path / "copy.h5")
    key, tokens = study()
    (tmp_path / "elsewhere").mkdir()
    path = shutil.copy2(easy.path, tmp_path / "elsewhere" / "copy.h5")
    assert study()[0] == key
    linear = build_model(dataclasses.replace(model.config, stretch="linear"))
    linear.load_state_dict(model.state_dict())
    assert study(linear)[0] != key
    assert not np.array_equal(study(linear)[1], tokens)
    remade = shutil.copy2(easy.path, tmp_path / "remade.h5")
    with h5py.File(remade, "r+") as file:
        file["cutouts"][:] = file["cutouts"][:][::-1]
        del file["checksum"]
    os.replace(remade, path)
    assert study()[0] != key
    assert not np.array_equal(study()[1], tokens)


def test_rows_made_alone_are_merged(easy, model, study):
    grid, arguments = study
    for row in (5, 0, 3):
        alone = label_efficiency(model, easy, "class", **arguments, row=row)
        assert tuple(alone.iloc[0][["method", "n_labels", "seed"]]) == label_grid(**grid)[row]
        assert not (arguments["run_dir"] / "label_efficiency.csv").exists()
    before = {p: p.stat().st_mtime_ns for p in (arguments["run_dir"] / "label_efficiency").iterdir()}
    table = label_efficiency(model, easy, "class", **arguments)
    assert len(table) == 8
    assert before.items() <= {p: p.stat().st_mtime_ns for p in before}.items()  # tokens and rows are used again
    written = pd.read_csv(arguments["run_dir"] / "label_efficiency.csv")
    assert len(written) == 8
    assert {"balanced_accuracy", "balanced_accuracy_low", "validation", "learning_rate", "steps"} <= set(written)
    same = label_efficiency(model, easy, "class", **{**arguments, "run_dir": arguments["run_dir"] / "again"})
    drop = ["seconds"]
    pd.testing.assert_frame_equal(table.drop(columns=drop), same.drop(columns=drop))  # order and restarts do not matter
    other = build_model(model.config, seed=1)
    label_efficiency(other, easy, "class", **{**arguments, "seeds": [0], "n_labels": [10], "methods": ["linear"]})
    assert (
        len(list((arguments["run_dir"] / "label_efficiency").glob("*.json"))) == 9
    )  # rows of other weights do not count
    with pytest.raises(ValueError, match="row=8: the study has 8 rows, 0 to 7"):
        label_efficiency(model, easy, "class", **arguments, row=8)


def test_rows_of_several_processes_are_those_of_one(easy, model, study):
    _, arguments = study
    grid = {"methods": ["linear", "supervised"], "n_labels": [10], "seeds": [0, 1]}
    grid["config"] = dataclasses.replace(QUICK, epochs=1, min_steps=4, evaluations=1)
    one = label_efficiency(model, easy, "class", **arguments | grid)
    two = label_efficiency(
        model, easy, "class", **arguments | grid | {"run_dir": arguments["run_dir"] / "two"}, workers=2
    )
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"), rtol=0.05)
    with pytest.raises(ValueError, match="workers=0"):
        label_efficiency(model, easy, "class", **arguments, workers=0)


def test_every_method_gets_as_many_rates_and_validation_chooses(easy, model):
    quick = dataclasses.replace(QUICK, epochs=1, min_steps=4, evaluations=1)
    config = dataclasses.replace(quick, rate_factors=(0.01, 1), length_factors=(1, 3))
    for method, epochs in (("attentive", [1, 3]), ("supervised", [3])):  # from nothing, the longest is enough
        result = train_head(model, easy, "class", method=method, n_labels=40, config=config, split="split")
        trials = pd.DataFrame(result.settings["trials"])
        assert result.settings["validation"] == trials["validation"].max()
        assert sorted(trials["epochs"]) == sorted(epochs * 2)
        assert sorted(set(trials["learning_rate"] / LEARNING_RATES[method])) == pytest.approx([0.01, 1])


def test_supervised_training_ends_when_validation_stops_rising(easy, model, caplog):
    """With labels that mean nothing, it ends soon; what is kept is the evaluation that was best."""
    caplog.set_level("DEBUG", logger="skylib.evaluation.heads")
    nothing = np.random.default_rng(1).integers(0, 2, 300)
    config = dataclasses.replace(QUICK, min_steps=4, epochs=1, evaluations=1, patience=2)
    result = train_head(model, easy, nothing, method="supervised", n_labels=40, config=config, split="split")
    lines = [record.getMessage() for record in caplog.records]
    scores = [float(line.split()[-3]) for line in lines if line.startswith("supervised")]
    assert 3 <= len(scores) - 1 < 16  # the first is of the head alone
    assert result.settings["steps"] == 4 * (len(scores) - 1)
    assert result.settings["validation"] == pytest.approx(max(scores), abs=1e-4)


def test_nothing_of_an_encoder_stays_untrained(model):
    """The cls token and the position on the sky too, and each parameter once: in the group before the blocks."""
    whole = build_model(dataclasses.replace(model.config, ra_dec=True))
    network = EncoderWithHead(whole, Head(whole.config.width, 2, attentive=True))
    groups = parameter_groups(network, 1.0, layer_decay=0.75)
    trained = [id(p) for group in groups for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(p) for p in (*whole.encoder.parameters(), whole.no_data, *network.head.parameters())}
    first = min(groups, key=lambda group: group["lr"])
    assert {id(whole.encoder.cls), id(whole.encoder.sky.weight)} <= {id(p) for p in first["params"]}


def test_labels_without_weight_are_not_learnt(easy, model):
    wrong = easy.column("class").copy()
    flipped = np.arange(300) % 4 == 0  # every part has some
    wrong[flipped] = 1 - wrong[flipped]
    trust = np.where(flipped, 0.0, 1.0)
    train = easy.column("split") == 0
    labels = np.where(train, wrong, easy.column("class"))
    plain, weighted = (
        train_head(model, easy, labels, method="attentive", config=QUICK, split="split", weights=w)
        for w in (None, trust)
    )
    assert weighted.metrics["accuracy"] > 0.85
    assert weighted.settings["trials"][0]["validation"] >= plain.settings["trials"][0]["validation"]
    sure = [r.probability.max(axis=1).mean() for r in (plain, weighted)]
    assert sure[1] > sure[0] + 0.1  # a quarter of wrong labels makes a head doubt
    with pytest.raises(ValueError, match="weights of shape"):
        train_head(model, easy, "class", weights=np.full(300, -1.0), split="split")


def test_labels_to_match_by_hand():
    table = pd.DataFrame(
        [("supervised", n, s, y) for n, y in ((32, 0.4), (64, 0.5), (128, 0.8)) for s in (0, 1)]
        + [("linear", n, s, y) for n, y in ((32, 0.7), (64, 0.9), (128, 0.95)) for s in (0, 1)]
        + [("finetune", n, s, y) for n, y in ((32, 0.85), (64, 0.9), (128, 0.95)) for s in (0, 1)]
        + [("attentive", n, s, y) for n, y in ((32, 0.1), (64, 0.2), (128, 0.3)) for s in (0, 1)],
        columns=["method", "n_labels", "seed", "balanced_accuracy"],
    )
    found = labels_to_match(table).set_index("method")
    assert found.loc["linear", "n_labels"] == pytest.approx(32 * 2**0.5)
    assert found.loc["linear", "times_fewer"] == pytest.approx(4 / 2**0.5)
    assert found.loc["linear", "text"] == "2.8 times fewer labels"
    assert found.loc["finetune", ["n_labels", "note"]].tolist() == [32, "at most"]
    assert found.loc["finetune", "text"] == "at least 4.0 times fewer labels"
    assert found.loc["attentive", "text"] == "not reached with 128 labels"
    assert np.isnan(found.loc["attentive", "n_labels"])
    assert found.loc["attentive", "note"] == "not reached"


def test_intervals_over_seeds_know_how_few_there_are():
    """Two seeds: t = 12.7 of one degree of freedom; one seed: no interval, in either table."""
    table = pd.DataFrame(
        [
            (m, n, s, y + 0.02 * s, 300)
            for m, y in (("supervised", 0.5), ("linear", 0.55))
            for n in (8, 16)
            for s in (0, 1)
        ],
        columns=["method", "n_labels", "seed", "balanced_accuracy", "n"],
    )
    means = seed_means(table).set_index(["method", "n_labels"])
    assert means.loc[("linear", 8), "median"] == pytest.approx(0.56)
    assert means.loc[("linear", 8), ["seeds", "balanced_accuracy", "n"]].tolist() == pytest.approx([2, 0.56, 300])
    np.testing.assert_allclose(means["high"] - means["low"], 2 * 12.706 * 0.01, rtol=1e-3)
    found = labels_to_match(table).iloc[0]
    assert found["low"] == 0  # two seeds cannot exclude that it never gets there
    assert found["high"] == 2
    alone = table[table["seed"] == 0]
    assert seed_means(alone)[["low", "high"]].isna().all(axis=None)
    assert labels_to_match(alone)[["low", "high"]].isna().all(axis=None)


def test_what_cannot_be_studied(easy, model, tmp_path, caplog):
    with pytest.raises(ValueError, match=r"n_labels=\[500\]: the training part has 1 to 100 labels"):
        label_efficiency(model, easy, "class", n_labels=[10, 500], run_dir=tmp_path, split="split")
    few = {"methods": ["linear"], "seeds": [0], "run_dir": tmp_path, "split": "split", "cap": True}
    table = label_efficiency(model, easy, "class", n_labels=[10, 400, 500], **few)
    assert table["n_labels"].tolist() == [10, 100]
    assert "n_labels=[400, 500]: the training part has 1 to 100 labels; all are taken" in caplog.text
    with pytest.raises(ValueError, match="method='magic'"):
        train_head(model, easy, "class", method="magic", split="split")
