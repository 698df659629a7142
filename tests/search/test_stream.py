import numpy as np
import pytest

from skylib import Embeddings, SearchIndex, search_files


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 16)) * rng.uniform(0.1, 10, 16) + 100
    vectors[7, 3] = np.nan
    columns = {"mag_i": np.linspace(20, 26, 500), "tile": np.array(["a", "b"] * 250), "row": np.arange(500)}
    whole = Embeddings(vectors, ra=np.arange(500) / 10, dec=np.zeros(500), columns=columns)
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    for path, rows in zip(paths, (slice(0, 200), slice(200, 201), slice(201, 500)), strict=True):
        whole[rows].save(path)
    return whole, paths


@pytest.mark.parametrize("metric", ["cosine", "mse", "mae"])
@pytest.mark.parametrize("rows", [64, 1000])
def test_a_streamed_search_equals_one_in_memory(parts, metric, rows):
    whole, paths = parts
    options = {"k": 40, "metric": metric, "where": {"mag_i": (21, 25), "tile": "a"}}
    wanted = SearchIndex(whole).search(whole.vectors[[30, 400]], **options)
    found = search_files(paths, whole.vectors[[30, 400]], rows=rows, **options)
    first = np.array([0, 200, 201])
    assert (first[found["file"]] + found["row"]).tolist() == wanted["index"].tolist()
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=1e-5, atol=1e-7)
    for name in ("ra", "mag_i", "tile"):
        assert found[name].tolist() == wanted[name].tolist()
    assert found["row_label"].tolist() == wanted["row"].tolist()


def test_what_cannot_be_streamed(parts, tmp_path):
    whole, paths = parts
    with pytest.raises(ValueError, match=r"0\.h5: vectors of 16 numbers, the targets have 5"):
        search_files(paths, np.zeros((1, 5)))
    with pytest.raises(ValueError, match="none of the objects of 3 files can be an answer"):
        search_files(paths, whole.vectors[:1], where={"mag_i": (30, None)})
    with pytest.raises(OSError, match=r"none\.h5: no such file"):
        search_files([tmp_path / "none.h5"], whole.vectors[:1])
    with pytest.raises(ValueError, match="finite targets"):
        search_files(paths, whole.vectors[7:8])


def test_half_precision_keeps_neighbours(tmp_path):
    rng = np.random.default_rng(1)
    vectors = np.tanh(rng.normal(size=(3000, 12)) @ rng.normal(size=(12, 64)) / 3)
    whole = Embeddings(vectors, ra=np.zeros(3000), dec=np.zeros(3000))
    whole.save(tmp_path / "half.h5", half=True)
    half = Embeddings.load(tmp_path / "half.h5")
    assert half.vectors.dtype == np.float32
    assert (tmp_path / "half.h5").stat().st_size < 0.6 * whole.vectors.nbytes + 100_000
    exact, rounded = (SearchIndex(e).nearest(whole.vectors[:100], k=100)[1] for e in (whole, half))
    recall = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(exact, rounded, strict=True)])
    assert recall > 0.995
    with pytest.raises(ValueError, match="half precision ends at 65504, and the largest number is "):
        Embeddings(vectors * 1e6, ra=np.zeros(3000), dec=np.zeros(3000)).save(tmp_path / "large.h5", half=True)
