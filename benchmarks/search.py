"""Search, feedback, maps: how fast, and beside what.

Exact search for 1 and for 64 queries over 200,000 vectors of 768 numbers beside ``faiss.IndexFlatIP``, on the same
vectors, with the same number of threads, in turns. Ours also gives the answer in float64 and in a fixed order of ties.
With ``--map N``: an UMAP of N objects on the exact graph beside plain umap-learn, with the trustworthiness of both.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from harness import measure, parser, ratio, report

from skylib import Embeddings
from skylib.search.index import SearchIndex
from skylib.search.maps import fit_map, trustworthiness
from skylib.search.ranking import feedback_scores

K = 100


def galaxies(n: int, width: int, *, seed: int = 0) -> Embeddings:
    """Return vectors near a curved surface of 20 dimensions, in clumps, with noise, as real ones do."""
    rng = np.random.default_rng(seed)
    clump = rng.integers(0, 60, n)
    latent = rng.normal(size=(60, 20))[clump] * 1.5 + rng.normal(size=(n, 20))
    hidden = np.tanh(latent @ rng.normal(size=(20, width)) / 4).astype(np.float32)
    vectors = hidden + 0.1 * rng.standard_normal((n, width), dtype=np.float32)
    return Embeddings(vectors, ra=rng.uniform(0, 360, n), dec=rng.uniform(-10, 10, n), columns={"clump": clump})


def compare_search(n: int, width: int, repeats: int) -> dict[str, dict[str, Any]]:
    embeddings = galaxies(n, width)
    start = time.perf_counter()
    index = SearchIndex(embeddings)
    ready = time.perf_counter() - start
    queries = embeddings.vectors[:: n // 64][:64]
    cases: dict[str, Any] = {
        "1 query, skylib": lambda: index.nearest(queries[:1], k=K),
        "64 queries, skylib": lambda: index.nearest(queries, k=K),
    }
    try:
        import faiss
    except ImportError:
        faiss = None
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        x = index.vectors.cpu().numpy()
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        flat = faiss.IndexFlatIP(width)
        flat.add(unit)
        asked = np.ascontiguousarray(unit[:: n // 64][:64])
        cases |= {
            "1 query, faiss": lambda: flat.search(asked[:1], K),
            "64 queries, faiss": lambda: flat.search(asked, K),
        }
    cases["1 query, mse, weights, filter (table)"] = lambda: index.search(
        [0, 1, 2], k=K, metric="mse", weights="inverse_variance", where={"ra": (10, 300)}
    )
    cases["1 query, mae"] = lambda: index.search([0], k=K, metric="mae")
    cases["feedback, 5 yes and 5 no"] = lambda: feedback_scores(index, range(5), range(5, 10))
    seconds = measure(cases, repeats=repeats)
    rows: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        rows[name] = {"ms": 1e3 * float(np.median(times)), "n": n, "width": width}
        if faiss is not None and name.endswith(" skylib"):
            rows[name]["times faster than faiss"] = ratio(seconds, name.replace("skylib", "faiss"), name)
    if faiss is not None:
        agree = np.mean(
            [
                len(set(a) & set(b)) / K
                for a, b in zip(index.nearest(queries, k=K)[1], flat.search(asked, K)[1], strict=True)
            ]
        )
        rows["64 queries, faiss"]["same answers"] = float(agree)
    rows["preparing the index, once"] = {"ms": 1e3 * ready, "n": n, "width": width}
    return rows


def compare_maps(n: int, width: int) -> dict[str, dict[str, Any]]:
    import umap
    from sklearn.preprocessing import StandardScaler

    embeddings = galaxies(n, width)
    fit_map(embeddings[:500])  # compiles
    rows = {}
    start = time.perf_counter()
    ours = fit_map(embeddings).xy
    rows["map, skylib"] = {
        "s": time.perf_counter() - start,
        "n": n,
        "width": width,
        "trustworthiness": trustworthiness(embeddings, ours),
    }
    start = time.perf_counter()
    plain = umap.UMAP(random_state=0, n_jobs=1).fit_transform(StandardScaler().fit_transform(embeddings.vectors))
    rows["map, umap-learn"] = {
        "s": time.perf_counter() - start,
        "n": n,
        "width": width,
        "trustworthiness": trustworthiness(embeddings, plain),
    }
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--n", type=int, default=200_000)
    options.add_argument("--width", type=int, default=768)
    options.add_argument(
        "--map", type=int, default=0, metavar="N", help="also make maps of this many objects (minutes)"
    )
    given = options.parse_args()
    n, width = (5_000, 64) if given.quick else (given.n, given.width)
    rows = compare_search(n, width, given.repeats)
    if given.quick or given.map:
        rows |= compare_maps(1_000 if given.quick else given.map, width)
    report("Search for look-alikes", rows, json_file=given.json)


if __name__ == "__main__":
    main()
