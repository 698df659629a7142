import numpy as np
import pytest

from skylib import ApproximateIndex, Embeddings, SearchIndex, plotting


def test_an_approximate_index_finds_nearly_all_with_exact_distances():
    pytest.importorskip("faiss", reason="needs faiss, of the extra scale")
    rng = np.random.default_rng(0)
    vectors = np.tanh(rng.normal(size=(3000, 6)) @ rng.normal(size=(6, 32)) / 2) + 0.02 * rng.normal(size=(3000, 32))
    e = Embeddings(vectors, ra=np.zeros(3000), dec=np.zeros(3000))
    wanted, rows = SearchIndex(e).nearest(e.vectors[:20], k=10)
    distance, found = ApproximateIndex(e, n_lists=16, code_bytes=16).nearest(e.vectors[:20], k=10, n_lists=8)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, rows, strict=True)]) > 0.95
    assert (found[:, 0] == np.arange(20)).all()
    np.testing.assert_allclose(distance[found == rows], wanted[found == rows], atol=1e-6)
    with pytest.raises(ValueError, match="10 objects: an approximate index needs 256"):
        ApproximateIndex(e[:10])


def test_a_map_of_very_many_objects_is_drawn_as_cells(monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr("skylib.plotting.maps.MANY", 100)
    xy = np.random.default_rng(0).normal(size=(500, 2))
    for values, names in ((np.arange(500) % 4 - 1, ["a", "b", "c"]), (np.where(xy[:, 0] > 0, xy[:, 1], np.nan), None)):
        ax = plotting.plot_map(xy, values, names=names)
        drawn = [len(collection.get_offsets()) for collection in ax.collections]
        assert 0 < max(drawn) < 500
        plt.close("all")
