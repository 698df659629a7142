from importlib import import_module

import numpy as np
import pytest
import torch

from skylib import (
    Embeddings,
    ModelConfig,
    build_model,
    embed,
    feedback_scores,
    parse_filter,
    rank_anomalies,
    search,
    target_vectors,
)
from skylib.data.sky import best_of_each_place, near_any
from skylib.search.filters import matching_rows
from skylib.search.index import SearchIndex
from skylib.search.nearest import nearest, neighbour_graph, smallest
from skylib.search.standard import Standardiser


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 12)) * rng.uniform(0.1, 10, 12) + rng.normal(size=12)
    columns = {"class": np.arange(300) % 3, "mag_i": np.linspace(20, 26, 300), "tile": np.array(["a", "b"] * 150)}
    return Embeddings(vectors, ra=np.arange(300.0), dec=np.zeros(300), columns=columns)


def standardised(vectors):
    x = vectors.astype(np.float64)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def brute_force(x, target, metric, weight=1.0):
    """The distance by its definition, in float64."""
    if metric == "mae":
        return (np.abs(x - target) * weight).mean(axis=-1)
    if metric == "mse":
        return ((x - target) ** 2 * weight).mean(axis=-1)
    norm = np.sqrt((x**2 * weight).sum(axis=-1) * (target**2 * weight).sum())
    return 1 - (x * target * weight).sum(axis=-1) / norm


@pytest.mark.parametrize("metric", ["cosine", "mse", "mae"])
@pytest.mark.parametrize("combine", ["min", "mean", "max"])
@pytest.mark.parametrize("weights", [None, "inverse_variance"])
def test_search_equals_brute_force(embeddings, metric, combine, weights):
    x = standardised(embeddings.vectors)
    weight = 1.0
    if weights:
        weight = 1 / (x[[5, 17]].var(axis=0) + 1 / 2)
        weight = weight / weight.mean()
    wanted = getattr(np, combine)([brute_force(x, x[t], metric, weight) for t in (5, 17)], axis=0)
    wanted[[5, 17]] = np.inf
    found = search(embeddings, [5, 17], k=50, metric=metric, combine=combine, weights=weights)
    assert found["index"].tolist() == np.argsort(wanted, kind="stable")[:50].tolist()
    np.testing.assert_allclose(found["score"], np.sort(wanted)[:50], rtol=1e-6)
    assert found["rank"].tolist() == list(range(50))
    assert found["ra"].tolist() == found["index"].tolist()
    assert (found["class"] == found["index"] % 3).all()


@pytest.mark.parametrize("metric", ["cosine", "mse", "mae"])
def test_many_queries_and_near_ties_equal_brute_force(metric):
    """Where float32 cannot tell the order, float64 does: distances that differ by parts in 10 million."""
    rng = np.random.default_rng(3)
    centre = rng.normal(size=64) * 5
    vectors = (centre + rng.normal(size=(4000, 64)) * 1e-3).astype(np.float32)
    vectors[::2] = rng.normal(size=(2000, 64)).astype(np.float32)
    index = SearchIndex(Embeddings(vectors, ra=np.zeros(4000), dec=np.zeros(4000)), standardize=False, block=777)
    distance, rows = index.nearest(vectors[1:9], k=60, metric=metric)
    for q in range(8):
        wanted = brute_force(vectors.astype(np.float64), vectors[1 + q].astype(np.float64), metric)
        np.testing.assert_allclose(distance[q], np.sort(wanted)[:60], rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(wanted[rows[q]], np.sort(wanted)[:60], rtol=1e-6, atol=1e-15)


def test_the_answer_does_not_depend_on_block_size_or_order():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    vectors[500:540] = vectors[100]  # ties, more than are asked for
    ids = rng.permutation(2000) + 10_000
    e = Embeddings(vectors, ra=np.zeros(2000), dec=np.zeros(2000), columns={"object_id": ids})
    order = rng.permutation(2000)
    shuffled = e[order]
    first = SearchIndex(e).search(vectors[[100, 7]], k=30)
    assert first["object_id"][:20].tolist() == sorted([ids[7], ids[100], *ids[500:540]])[:20]
    for index in (SearchIndex(e, block=64), SearchIndex(e, block=999), SearchIndex(shuffled)):
        again = index.search(vectors[[100, 7]], k=30)
        assert again["object_id"].tolist() == first["object_id"].tolist()
        assert again["score"].tolist() == first["score"].tolist()


def test_the_smallest_of_many_are_found_by_groups():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 20_011))).float()
    low, where = smallest(values, 40)
    assert torch.equal(low.sort(dim=1).values, values.sort(dim=1).values[:, :40])
    assert torch.equal(values.gather(1, where), low)


def test_a_missed_neighbour_is_looked_for_again():
    """All lie so close together that float32 separates none: every row has to be computed again."""
    vectors = 100 + torch.arange(500)[:, None] * 2.0**-16 * torch.ones(1, 8)
    distance, rows = nearest(vectors, vectors[:1], k=5, metric="mse")
    assert rows[0].tolist() == [0, 1, 2, 3, 4]
    exact = (vectors.double() - vectors[0].double()).square().mean(dim=1)
    assert torch.equal(distance[0], exact.float().sort().values[:5])


def test_tokens_are_compared_pair_by_pair():
    rng = np.random.default_rng(4)
    tokens = rng.normal(size=(90, 6, 10)).astype(np.float32)
    pooled = Embeddings(tokens.mean(axis=1), ra=np.arange(90.0), dec=np.zeros(90))
    flat = standardised(tokens.reshape(-1, 10)).reshape(90, 6, 10)
    for combine in ("min", "mean", "max"):
        pairs = np.stack([brute_force(flat, token, "mse") for row in (3, 8) for token in flat[row]])  # (12, 90, 6)
        wanted = getattr(pairs, combine)(axis=(0, 2))
        wanted[[3, 8]] = np.inf
        found = search(pooled, [3, 8], k=20, metric="mse", combine=combine, tokens=tokens)
        assert found["index"].tolist() == np.argsort(wanted)[:20].tolist()
        np.testing.assert_allclose(found["score"], np.sort(wanted)[:20], rtol=1e-5)
    with pytest.raises(ValueError, match=r"tokens of shape \(5, 6, 10\): must be \(90, N, D\)"):
        search(pooled, 0, tokens=tokens[:5])


def test_whitened_features_are_uncorrelated():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(3000, 6)) @ rng.normal(size=(6, 6)) + 3
    x[:, 5] = x[:, 4]  # no information of its own
    index = SearchIndex(Embeddings(x, ra=np.zeros(3000), dec=np.zeros(3000)), standardize="whiten")
    covariance = np.cov(index.vectors.numpy().T)
    np.testing.assert_allclose(np.sort(np.diag(covariance)), [0, 1, 1, 1, 1, 1], atol=2e-3)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=2e-3)


def test_filters_and_positions_limit_the_answer(embeddings):
    found = search(embeddings, 7, k=300, where={"mag_i": (21, 23.5), "class": [0, 2], "tile": "a"})
    mag = np.asarray(found["mag_i"])
    assert ((mag >= 21) & (mag <= 23.5) & (found["class"] != 1) & (found["tile"] == "a")).all()
    assert len(found) == matching_rows(embeddings, parse_filter("mag_i 21..23.5; class = 0, 2; tile = a")).sum() > 10
    twins = Embeddings(embeddings.vectors, ra=150 + np.arange(300) // 2 * 0.01, dec=np.zeros(300))
    assert 7 in search(twins, 6, k=300, exclude_radius=0)["index"]
    assert set(range(300)) - set(search(twins, 6, k=300, exclude_radius=1.0)["index"].tolist()) == {6, 7}


def test_one_entry_per_source_anywhere_in_the_list(embeddings):
    ra = 150 + np.arange(300) // 2 * 0.01
    ra[100:] = np.nan  # where no position is known, each is a source of its own
    twins = Embeddings(embeddings.vectors, ra=ra, dec=np.zeros(300))
    whole = search(twins, 6, k=300)["index"].tolist()
    first = {}
    for row in whole:
        first.setdefault(row // 2 if row < 100 else row, row)
    for k in (5, 40, 300):
        assert search(twins, 6, k=k, min_separation=1.0)["index"].tolist() == list(first.values())[:k]
    odd = rank_anomalies(twins, min_separation=1.0)["index"].tolist()
    assert len({row // 2 if row < 100 else row for row in odd}) == len(odd) == 250 - (299 - len(whole))


def test_examples_may_be_positions(embeddings):
    twins = Embeddings(embeddings.vectors, ra=150 + np.arange(300) // 2 * 0.01, dec=np.zeros(300))
    by_place = search(twins, ["150.03 0", "150.05 0.001"], k=5)
    assert by_place["index"].tolist() == search(twins, [6, 10], k=5)["index"].tolist()
    with pytest.raises(ValueError, match="no object within 5 arcsec"):
        search(twins, "150.035 0")


def test_filters_that_cannot_be_used(embeddings):
    with pytest.raises(KeyError, match="no column 'snr'"):
        search(embeddings, 0, where={"snr": (5, None)})
    with pytest.raises(ValueError, match="a range is"):
        search(embeddings, 0, where={"tile": ("a", "b")})
    with pytest.raises(ValueError, match="must be 'column low..high'"):
        parse_filter("brighter than 20")
    with pytest.raises(ValueError, match="must be 'column low..high'"):
        parse_filter("class = ,")


def test_filters_take_names_with_commas_and_refuse_another_kind(embeddings):
    names = np.array(["9813-4,5", "9813-4,6", "7"] * 100)
    embeddings.columns["tile"] = names
    for text, wanted in (("tile = '9813-4,5'", names == "9813-4,5"), ('tile="9813-4,6" , "7"', names != "9813-4,5")):
        assert matching_rows(embeddings, parse_filter(f"{text}; mag_i ..30")).tolist() == wanted.tolist()
    assert parse_filter("kind = 'a; b..c'; class = 1, 2") == {"kind": "a; b..c", "class": [1, 2]}
    with pytest.raises(ValueError, match="filter tile=5: the column holds text; put in quotes"):
        matching_rows(embeddings, parse_filter("tile = 9813-4,5"))
    with pytest.raises(ValueError, match="filter class='galaxy': the column holds numbers"):
        matching_rows(embeddings, parse_filter("class = galaxy"))


def test_separation_on_the_sky_holds_at_the_pole_and_across_zero():
    assert near_any(np.array([359.9999, 0.1]), np.zeros(2), np.array([0.0001]), np.zeros(1), radius=1).tolist() == [
        True,
        False,
    ]
    assert near_any(np.array([180.0]), np.array([89.9999]), np.array([0.0]), np.array([89.9999]), radius=1).all()
    assert best_of_each_place(np.array([0.0, 180, 90]), np.array([89.9999, 89.9999, 0]), radius=1, n=5).tolist() == [
        0,
        2,
    ]


def test_an_object_is_most_like_itself_by_row_or_by_vector(embeddings):
    for weights in (None, "inverse_variance"):
        by_row = search(embeddings, 7, k=10, exclude_targets=False, weights=weights)
        by_vector = search(embeddings, embeddings.vectors[7], k=10, weights=weights)
        assert by_row["index"][0] == by_vector["index"][0] == 7
        assert by_row["score"][0] == 0
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


def test_objects_without_a_finite_vector_are_no_answer(embeddings):
    embeddings.vectors[11, 3] = np.nan
    found = search(embeddings, 7, k=400)
    assert len(found) == 298
    assert 11 not in found["index"]
    assert np.isfinite(found["score"]).all()
    assert len(rank_anomalies(embeddings)) == 299
    assert np.isnan(feedback_scores(SearchIndex(embeddings), [7])[11])
    with pytest.raises(ValueError, match="a vector is not finite"):
        search(embeddings, 11)


def test_what_cannot_be_searched(embeddings):
    with pytest.raises(ValueError, match="metric='l2'.*'cosine', 'mse', 'mae'"):
        search(embeddings, 0, metric="l2")
    with pytest.raises(ValueError, match="row numbers must be 0 to 299"):
        search(embeddings, [300])
    index = SearchIndex(embeddings)
    for wrong in ({"metric": "euclid"}, {"combine": "median"}):
        with pytest.raises(ValueError, match="euclid|median"):
            index.scores(index.vectors[:3], [0], **wrong)
    with pytest.raises(ValueError, match=r"vectors must be \(t, 12\)"):
        search(embeddings, np.zeros(5))
    with pytest.raises(ValueError, match="no targets"):
        search(embeddings, [])
    with pytest.raises(ValueError, match="k=0"):
        search(embeddings, 0, k=0)


def test_turned_targets_find_what_is_turned(cutouts):
    """With all eight orientations as targets, a turned copy is as near as the target itself; else it is not."""
    config = ModelConfig(size="nano", image_size=32, patch_size=4, decoder_width=32, decoder_depth=1)
    model = build_model(config)
    flux = cutouts.flux(slice(0, 30))
    turned = np.ascontiguousarray(np.rot90(flux, axes=(2, 3)))
    both = np.concatenate([target_vectors(model, flux), target_vectors(model, turned)])
    e = Embeddings(both, ra=np.zeros(60), dec=np.zeros(60))
    targets = target_vectors(model, flux[4:5], augment=True)
    assert targets.shape == (8, model.config.width)
    found = search(e, targets, k=60)
    assert set(found["index"][:2]) == {4, 34}
    np.testing.assert_allclose(found["score"][:2], 0, atol=1e-5)
    plain = search(e, target_vectors(model, flux[4:5]), k=60)
    assert plain["score"][plain["index"] == 34][0] > 1e-3


def test_a_model_that_takes_positions_gets_those_of_its_targets(cutouts):
    config = ModelConfig(size="nano", image_size=32, patch_size=8, decoder_width=32, decoder_depth=1, ra_dec=True)
    model = build_model(config)
    flux = cutouts.flux(slice(0, 3))
    known = target_vectors(model, flux, ra=cutouts.ra[:3], dec=cutouts.dec[:3], augment=True)
    wanted = embed(model, cutouts, precision="fp32").vectors[:3]
    np.testing.assert_allclose(known[::8], wanted, atol=1e-5)
    assert np.abs(target_vectors(model, flux) - wanted).max() > 1e-3


@pytest.mark.parametrize("how", [True, False, "whiten"])
def test_vectors_are_standardised_in_a_copy(how):
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 4)))  # float64, as it is computed in
    before = vectors.clone()
    Standardiser([vectors], how)(vectors)
    assert torch.equal(vectors, before)


def test_odd_objects_come_first():
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(400, 8))
    vectors[:4] = 12 * rng.choice([-1, 1], size=(4, 8))
    e = Embeddings(vectors, ra=np.zeros(400), dec=np.zeros(400))
    table = rank_anomalies(e, n_neighbors=10)
    x = standardised(e.vectors)
    apart = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, 10]
    assert table["index"][:20].tolist() == np.argsort(-apart)[:20].tolist()
    np.testing.assert_allclose(table["score"], np.sort(apart)[::-1], rtol=1e-5)
    assert set(rank_anomalies(e, by="isolation")["index"][:4]) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="by='lof'"):
        rank_anomalies(e, by="lof")
    with pytest.raises(ValueError, match="n_neighbors=400: must be 1 to 399"):
        rank_anomalies(e, n_neighbors=400)


def test_neighbours_of_many_objects_are_found_approximately(monkeypatch):
    """As if there were too many for an exact graph: nearly all neighbours are found, and the oddest stay the oddest."""
    rng = np.random.default_rng(8)
    points = torch.from_numpy(np.tanh(rng.normal(size=(2000, 8)) @ rng.normal(size=(8, 24)) / 3)).float()
    e = Embeddings(points.numpy(), ra=np.zeros(2000), dec=np.zeros(2000))
    exact, exact_odd = neighbour_graph(points, k=11)[0], rank_anomalies(e)
    monkeypatch.setattr(import_module("skylib.search.nearest"), "PAIRS", {True: 0, False: 0})
    threads = torch.get_num_threads()
    rows, distance = neighbour_graph(points, k=11)
    assert torch.get_num_threads() == threads  # which numba changes
    again, odd = neighbour_graph(points, k=11)[0], rank_anomalies(e)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(rows, exact, strict=True)]) / 11 > 0.98
    assert (rows[:, 0] == np.arange(2000)).all()
    assert (np.diff(distance, axis=1) >= 0).all()
    np.testing.assert_array_equal(rows, again)
    assert len(set(odd["index"][:50]) & set(exact_odd["index"][:50])) >= 48


def test_each_round_of_yes_and_no_finds_more():
    """A simulated user says what each of ten more is; the kind differs from the rest in a direction to be learnt.

    All that was looked at counts, beside as many of the ranking without any marks.
    """
    rng = np.random.default_rng(7)
    n, kind = 3000, 40
    vectors = rng.normal(size=(n, 32))
    vectors[:kind, :3] += 2.2  # the mean of the kind: three features of many
    index = SearchIndex(Embeddings(vectors, ra=np.zeros(n), dec=np.zeros(n)))
    found = []
    for start in range(4):
        given = [3 * start, 3 * start + 1, 3 * start + 2]
        yes, no, seen, more = given, [], [], []
        plain = [row for row in np.argsort(-feedback_scores(index, yes)).tolist() if row not in given]
        for _ in range(6):
            order = np.argsort(-feedback_scores(index, yes, no)).tolist()
            new = [row for row in order if row not in yes and row not in no][:10]
            yes, no = yes + [r for r in new if r < kind], no + [r for r in new if r >= kind]
            seen += new
            more.append(sum(r < kind for r in seen) - sum(r < kind for r in plain[: len(seen)]))
        found.append(more)
    mean = np.mean(found, axis=0)
    assert mean[0] == 0  # nothing was said yet
    assert mean[-1] > 3, mean
    with pytest.raises(ValueError, match=r"objects \[1\] are marked both"):
        feedback_scores(index, [0, 1], [1])


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["cosine", "mse", "mae"])
def test_a_gpu_gives_the_same_answer(embeddings, metric):
    one, other = (SearchIndex(embeddings, device=d).search([5, 17], k=50, metric=metric) for d in ("cpu", "cuda"))
    assert one["index"].tolist() == other["index"].tolist()
    np.testing.assert_array_max_ulp(one["score"], other["score"], maxulp=1)  # sums in another order, then rounded


def test_one_search_leaves_nothing_behind_for_the_next(embeddings):
    index = SearchIndex(embeddings)
    first = index.search([3, 5], k=20, exclude_radius=5.0)
    index.search([3], k=5, where={"class": [1]})
    again = index.search([3, 5], k=20, exclude_radius=5.0)
    assert first["index"].tolist() == again["index"].tolist()
    assert bool(index.finite.all())
    assert 3 in index.search([9], k=len(embeddings))["index"]
