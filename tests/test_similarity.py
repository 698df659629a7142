import numpy as np
import pytest

from skylib import Embeddings, search, umap_map


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 12)) * rng.uniform(0.1, 10, 12) + rng.normal(size=12)
    return Embeddings(vectors, ra=np.arange(300.0), dec=np.zeros(300), columns={"class": np.arange(300) % 3})


def brute_force(vectors, target, metric):
    """The distance by its definition, in float64."""
    x = vectors.astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    if metric == "cosine":
        return np.array([1 - v @ x[target] / np.sqrt((v @ v) * (x[target] @ x[target])) for v in x])
    return np.array([((v - x[target]) ** 2).mean() if metric == "mse" else np.abs(v - x[target]).mean() for v in x])


@pytest.mark.parametrize("metric", ["cosine", "mse", "mae"])
@pytest.mark.parametrize("combine", ["min", "mean", "max"])
def test_search_equals_brute_force(embeddings, metric, combine):
    wanted = getattr(np, combine)([brute_force(embeddings.vectors, t, metric) for t in (5, 17)], axis=0)
    wanted[[5, 17]] = np.inf
    found = search(embeddings, [5, 17], k=50, metric=metric, combine=combine)
    assert found["index"].tolist() == np.argsort(wanted, kind="stable")[:50].tolist()
    np.testing.assert_allclose(found["score"], np.sort(wanted)[:50], rtol=1e-4, atol=1e-5)
    assert found["rank"].tolist() == list(range(50))
    assert found["ra"].tolist() == found["index"].tolist()
    assert (found["class"] == found["index"] % 3).all()


def test_an_object_is_most_like_itself_by_row_or_by_vector(embeddings):
    for weights in (None, "inverse_variance"):
        by_row = search(embeddings, 7, k=10, exclude_targets=False, weights=weights)
        by_vector = search(embeddings, embeddings.vectors[7], k=10, weights=weights)
        assert by_row["index"][0] == by_vector["index"][0] == 7
        assert by_row["index"].tolist() == by_vector["index"].tolist()


def test_weights_favour_what_the_targets_share():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(500, 20))
    vectors[:40, 0] = 3 + rng.normal(size=40) * 0.01  # the kind shares one feature
    embeddings = Embeddings(vectors, ra=np.zeros(500), dec=np.zeros(500))
    hits = [
        (search(embeddings, list(range(6)), k=34, metric="mse", combine="mean", weights=w)["index"] < 40).sum()
        for w in (None, "inverse_variance")
    ]
    assert hits[1] > 1.5 * hits[0]


def test_ties_are_ordered_by_row_and_k_may_exceed_what_there_is():
    embeddings = Embeddings(np.tile([[1.0, 2.0], [2.0, 1.0]], (5, 1)), ra=np.zeros(10), dec=np.zeros(10))
    found = search(embeddings, 0, k=99)
    assert found["index"].tolist() == [2, 4, 6, 8, 1, 3, 5, 7, 9]


def test_what_cannot_be_searched(embeddings):
    with pytest.raises(ValueError, match="metric='l2'.*'cosine', 'mse', 'mae'"):
        search(embeddings, 0, metric="l2")
    with pytest.raises(ValueError, match="row numbers must be 0 to 299"):
        search(embeddings, [300])
    with pytest.raises(ValueError, match=r"vectors must be \(t, 12\)"):
        search(embeddings, np.zeros(5))
    with pytest.raises(ValueError, match="no targets"):
        search(embeddings, [])
    with pytest.raises(ValueError, match="k=0"):
        search(embeddings, 0, k=0)


def test_embeddings_survive_a_file_and_become_a_table(embeddings, tmp_path):
    embeddings.columns["tile"] = np.array(["9813-0,0"] * 300)
    embeddings.save(tmp_path / "e.h5")
    back = Embeddings.load(tmp_path / "e.h5")
    np.testing.assert_array_equal(back.vectors, embeddings.vectors)
    assert back.column("tile").tolist() == embeddings.column("tile").tolist()
    assert back.to_table()["vector"].shape == (300, 12)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "e.h5").read_bytes()[:3000])
    with pytest.raises(OSError, match=r"cut\.h5: cannot be read as embeddings"):
        Embeddings.load(tmp_path / "cut.h5")
    with pytest.raises(ValueError, match=r"column 'z' has shape \(2,\)"):
        Embeddings(np.zeros((3, 4)), ra=np.zeros(3), dec=np.zeros(3), columns={"z": np.zeros(2)})


def test_a_map_keeps_clusters_apart_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    kind = np.arange(150) % 3
    vectors = rng.normal(size=(150, 10)) + 8 * np.eye(10)[kind]
    embeddings = Embeddings(vectors, ra=np.zeros(150), dec=np.zeros(150))
    xy = umap_map(embeddings, n_neighbors=10, seed=4)
    assert xy.shape == (150, 2)
    nearest = np.linalg.norm(xy[:, None] - xy[None], axis=2).argsort(axis=1)[:, 1:6]
    assert (kind[nearest] == kind[:, None]).mean() > 0.95
    np.testing.assert_array_equal(xy, umap_map(embeddings, n_neighbors=10, seed=4))
    with pytest.raises(ValueError, match="more than n_neighbors=15"):
        umap_map(embeddings[:10])
