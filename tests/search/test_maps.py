import numpy as np
import pytest
from sklearn.manifold import trustworthiness as sklearn_trustworthiness
from sklearn.neighbors import NearestNeighbors

from skylib import Embeddings, fit_map, trustworthiness, umap_map
from skylib.search.maps import EmbeddingMap
from skylib.search.nearest import neighbour_graph


@pytest.fixture(scope="module")
def kinds():
    rng = np.random.default_rng(0)
    kind = np.arange(240) % 3
    vectors = rng.normal(size=(240, 10)) + 8 * np.eye(10)[kind]
    return kind, Embeddings(vectors, ra=np.zeros(240), dec=np.zeros(240))


@pytest.fixture(scope="module")
def fitted(kinds):
    return fit_map(kinds[1][:200], n_neighbors=10, seed=4)


def test_a_map_keeps_clusters_apart_and_repeats_with_its_seed(kinds, fitted):
    kind, embeddings = kinds
    xy = umap_map(embeddings[:200], n_neighbors=10, seed=4)
    assert xy.shape == (200, 2)
    np.testing.assert_array_equal(xy, fitted.xy)
    nearest = np.linalg.norm(xy[:, None] - xy[None], axis=2).argsort(axis=1)[:, 1:6]
    assert (kind[:200][nearest] == kind[:200, None]).mean() > 0.95
    with pytest.raises(ValueError, match="more than n_neighbors=15"):
        umap_map(embeddings[:10])
    holed = Embeddings(
        np.where(np.arange(240)[:, None] == 3, np.nan, embeddings.vectors), ra=np.zeros(240), dec=np.zeros(240)
    )
    with pytest.raises(ValueError, match="1 of 240 vectors are not finite"):
        umap_map(holed)
    assert np.flatnonzero(np.isnan(fitted.transform(holed)).any(axis=1)).tolist() == [3]


def test_new_objects_land_among_their_like_and_the_map_survives_a_file(kinds, fitted, tmp_path):
    kind, embeddings = kinds
    new = fitted.transform(embeddings[200:])
    centres = np.stack([fitted.xy[kind[:200] == k].mean(axis=0) for k in range(3)])
    assert (np.linalg.norm(new[:, None] - centres, axis=2).argmin(axis=1) == kind[200:]).all()
    fitted.save(tmp_path / "map.npz")
    np.testing.assert_array_equal(EmbeddingMap.load(tmp_path / "map.npz").transform(embeddings[200:]), new)
    with pytest.raises(ValueError, match="vectors of 3 numbers: the map was made from 10"):
        fitted.transform(Embeddings(np.zeros((1, 3)), ra=np.zeros(1), dec=np.zeros(1)))
    (tmp_path / "map.npz").write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"map\.npz: cannot be read as a map"):
        EmbeddingMap.load(tmp_path / "map.npz")


def test_the_neighbour_graph_is_exact():
    import torch

    points = np.random.default_rng(1).normal(size=(3000, 20)).astype(np.float32)
    rows, distance = neighbour_graph(torch.from_numpy(points), torch.from_numpy(points), k=12)
    wanted_distance, wanted = NearestNeighbors(n_neighbors=12, algorithm="brute").fit(points).kneighbors(points)
    assert (rows == wanted).mean() > 0.9999
    np.testing.assert_allclose(distance[:, 1:], wanted_distance[:, 1:], rtol=1e-4)
    assert (distance[:, 0] == 0).all()


def test_trustworthiness_does_not_depend_on_the_precision_of_a_training_loop(kinds, monkeypatch):
    """Products of a GPU would be rounded to TF32; a CPU may not do so: what is asked of it is seen here."""
    import torch

    asked, addmm = [], torch.addmm

    def watched(*args, **kwargs):
        asked.append(torch.get_float32_matmul_precision())
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        trustworthiness(kinds[1], kinds[1].vectors[:, :2], n_neighbors=7, sample=10)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(asked) == {"highest"}


def test_trustworthiness_equals_its_definition(kinds):
    embeddings = kinds[1]
    x = (embeddings.vectors - embeddings.vectors.mean(axis=0)) / embeddings.vectors.std(axis=0)
    for xy in (np.random.default_rng(2).normal(size=(240, 2)), x[:, :2]):
        wanted = sklearn_trustworthiness(x, xy, n_neighbors=7)
        assert trustworthiness(embeddings, xy, n_neighbors=7) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ValueError, match="n_neighbors=120"):
        trustworthiness(embeddings, x[:, :2], n_neighbors=120)
