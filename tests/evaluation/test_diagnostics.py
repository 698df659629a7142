import numpy as np
import pandas as pd
import pytest

from skylib import (
    Embeddings,
    ModelConfig,
    build_model,
    find_label_errors,
    missing_bands,
    nuisance_audit,
    observing_conditions,
    position_leakage,
    write_cutouts,
)

SHAPE = {"size": "nano", "image_size": 16, "patch_size": 8, "decoder_width": 32, "decoder_depth": 1}


def blobs(path, **columns):
    """Noise in two bands with a source in g of the brightness ``source`` and depth that grows with declination."""
    rng = np.random.default_rng(0)
    n = 400
    ra, dec = rng.uniform(100, 200, n), rng.uniform(-40, 40, n)
    sigma = 0.1 * 10 ** (dec / 100)
    kind = rng.integers(0, 2, n)
    y, x = np.mgrid[:16, :16] - 8
    flux = rng.normal(0, 1, (n, 2, 16, 16)) * sigma[:, None, None, None]
    flux[:, 0] += (5 * kind)[:, None, None] * np.exp(-(x**2 + y**2) / 8)
    east = (ra > 150).astype(int)
    return write_cutouts(
        path,
        flux,
        ra=ra,
        dec=dec,
        bands="gr",
        kind=kind,
        east=east,
        sigma=sigma,
        split=rng.integers(0, 3, n),
        **columns,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("blobs") / "blobs.h5")


@pytest.fixture(scope="module")
def model():
    return build_model(ModelConfig(bands=("g", "r"), **SHAPE))


def test_a_planted_leak_of_the_position_is_seen(data, model):
    """A label that is nothing but the position: read with the true ones by a model with a sky token, lost without."""
    knows = build_model(ModelConfig(bands=("g", "r"), ra_dec=True, **SHAPE))
    table = position_leakage(knows, data, "east", task="classification", split=data.column("split"), pool="cls")
    score = table.set_index("positions")["balanced_accuracy"]
    assert score["true"] > 0.85
    assert score["shuffled"] < 0.65
    assert score["zeroed"] < 0.65
    assert score["alone"] > 0.9
    blind = position_leakage(model, data, "east", task="classification", split=data.column("split")).set_index(
        "positions"
    )
    assert (
        blind["balanced_accuracy"]["true"]
        == blind["balanced_accuracy"]["shuffled"]
        == blind["balanced_accuracy"]["zeroed"]
    )
    assert blind["low"]["true"] < 0.55


def test_the_band_that_matters_is_missed(data, model):
    table = missing_bands(model, data, "kind", task="classification", split=data.column("split"), pool="central")
    score = table.set_index("dropped")["balanced_accuracy"]
    assert list(score.index) == ["", "g", "r"]
    assert score[""] > 0.95
    assert score["r"] > 0.8
    assert score["g"] < 0.65
    turned = missing_bands(
        model, data, "kind", task="classification", split=data.column("split"), pool="central", all_orientations=True
    ).set_index("dropped")["balanced_accuracy"]
    assert turned[""] > 0.95 > 0.65 > turned["g"]


def test_a_planted_depth_gradient_is_found(data, model):
    from skylib.model.embed import encode

    everyone = np.arange(len(data))
    conditions = observing_conditions(data, rows=everyone)
    assert np.corrcoef(conditions["depth"], np.log10(data.column("sigma")))[0, 1] > 0.95
    vectors = encode(model, data, rows=everyone, pools=["mean"])[-1, "mean"]
    known = Embeddings(vectors, ra=data.ra, dec=data.dec)
    rng = np.random.default_rng(3)
    nuisances = {"depth": conditions["depth"], "nothing": rng.normal(size=len(data)), "constant": np.ones(len(data))}
    audit = nuisance_audit(known, nuisances, split=data.column("split")).set_index("nuisance")
    assert audit.loc["depth", "found"]
    assert audit.loc["depth", "value"] > 0.2
    assert not audit.loc["nothing", "found"]
    assert "constant" not in audit.index


def test_nuisances_of_a_split_by_tile(data):
    """Tiles that are whole parts, and what is the same all over a part, can be neither fitted nor judged."""
    rng, split = np.random.default_rng(0), data.column("split")
    known = Embeddings(rng.normal(size=(400, 4)), ra=data.ra, dec=data.dec)
    shared = rng.choice(["one", "two"], 400)
    nuisances = {
        "tile": np.array(["a", "b", "c"])[split],
        "tiles": np.char.add(np.array(["a", "b", "c"])[split], shared),
        "seeing": np.where(split == 2, 0.6, rng.normal(size=400)),
        "camera": np.where(rng.random(400) < 0.1, np.char.add("only in ", split.astype(str)), shared),
    }
    audit = nuisance_audit(known, nuisances, split=split)
    assert audit["nuisance"].tolist() == ["camera"]
    assert audit["chance"].item() == 0.5  # "only in 2" is not among them
    assert list(nuisance_audit(known, {}, split=split)) == list(audit)


def test_conditions_of_a_simulated_field(cutouts):
    everyone = np.arange(len(cutouts))
    conditions = observing_conditions(cutouts, rows=everyone)
    assert set(conditions) == {"depth", "no_data", "tile", "seeing", "edge_distance"}
    assert conditions["no_data"].max() > 0.15  # the second tile lacks y
    assert conditions["edge_distance"].min() == 0
    seeing = np.unique(conditions["seeing"][np.isfinite(conditions["seeing"])])
    assert len(seeing) <= 2
    assert ((seeing > 0.4) & (seeing < 1.5)).all()


def test_planted_label_errors_are_found():
    rng = np.random.default_rng(0)
    n = 2000
    truth = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 8))
    x[np.arange(n), truth] += 4
    flipped = rng.choice(n, n // 20, replace=False)
    labels = truth.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, 3, len(flipped))) % 3
    labels[:100] = np.where(np.isin(np.arange(100), flipped), labels[:100], -1)
    sky = {"ra": rng.uniform(150, 150.2, n), "dec": rng.uniform(2, 2.2, n)}
    found = find_label_errors(Embeddings(x, **sky), labels)
    right = np.isin(found["row"], flipped)
    assert right.mean() > 0.8
    assert right.sum() > 0.7 * len(flipped)
    assert (found.loc[right, "suggested"] == truth[found.loc[right, "row"]]).mean() > 0.9
    assert isinstance(found, pd.DataFrame)
    assert found["margin"].is_monotonic_decreasing
    padded = np.char.add(np.array(["galaxy", "qso", "star", ""])[labels], np.where(np.arange(n) % 2, " ", ""))
    assert find_label_errors(Embeddings(x, **sky), padded)["row"].tolist() == found["row"].tolist()
    with pytest.raises(ValueError, match="same class"):
        find_label_errors(Embeddings(x, **sky), np.zeros(n, int))
