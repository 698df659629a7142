"""What search, anomalies and maps cost against the number of objects, with the exponent fitted to it.

Processor time of one thread, so that what else the machine does counts little. Each row is one size; ``exponent`` is the
slope of log time against log size over the sizes of its group. ``--sizes`` sets those of the exact search through files.
"""

from __future__ import annotations

import os

os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # before anything imports numba

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import parser, report
from search import galaxies

from skylib import Embeddings, SearchIndex, fit_map, rank_anomalies, search_files, trustworthiness
from skylib.search import nearest
from skylib.search.approximate import ApproximateIndex

Rows = dict[str, dict[str, Any]]
K = 100


def grows(name: str, sizes: list[int], case: Callable[[int], dict[str, Any] | None]) -> Rows:
    """Run one case at several sizes; what it returns is reported beside the time."""
    rows: Rows = {}
    for n in sizes:
        start = time.process_time()
        more = case(n)
        rows[f"{name}, {n}"] = {"cpu s": time.process_time() - start, "n": n, **(more or {})}
        print(name, rows[f"{name}, {n}"], flush=True)  # a long one may be stopped
    seconds = [row["cpu s"] for row in rows.values()]
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]) if len(sizes) > 1 else None
    for row in rows.values():
        row["exponent"] = slope
    return rows


def streamed(folder: Path, width: int, sizes: list[int]) -> Rows:
    """Search files in half precision for one object; files are the same few, read again."""
    part = galaxies(min(sizes[0], 250_000), width)
    part.save(folder / "part.h5", half=True)
    return grows(
        "search through files",
        sizes,
        lambda n: {"found": len(search_files([folder / "part.h5"] * (n // len(part)), part.vectors[:1]))},
    )


def recall(e: Embeddings, width: int) -> Rows:
    """Half precision and the approximate index beside the exact answer."""
    queries = e.vectors[:: max(1, len(e) // 64)][:64]
    wanted = SearchIndex(e).nearest(queries, k=K)[1]

    def share(rows: np.ndarray) -> float:
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows, wanted, strict=True)]))

    half = Embeddings(e.vectors.astype(np.float16), ra=e.ra, dec=e.dec)
    rows: Rows = {"half precision": {"n": len(e), "recall@100": share(SearchIndex(half).nearest(queries, k=K)[1])}}
    try:
        index = ApproximateIndex(e)
    except ModuleNotFoundError:
        return rows
    for n_lists in (16, 64, 128):
        start = time.process_time()
        found = index.nearest(queries, k=K, n_lists=n_lists)[1]
        ms = 1e3 * (time.process_time() - start) / len(queries)
        rows[f"approximate index, {n_lists} lists"] = {"n": len(e), "ms/query": ms, "recall@100": share(found)}
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[250_000, 1_000_000, 10_000_000])
    options.add_argument("--maps", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="of maps and anomalies")
    options.add_argument("--width", type=int, default=384)
    given = options.parse_args()
    sizes, maps, width = ([500, 1000], [300, 600], 32) if given.quick else (given.sizes, given.maps, given.width)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = streamed(Path(folder), width, sizes)
    e = galaxies(maps[-1], width)
    rows |= recall(e, width)
    nearest.PAIRS = {True: 0.0, False: 0.0} if not given.quick else nearest.PAIRS  # approximate from the first
    fit_map(e[:500])  # compiles
    rows |= grows("anomalies", maps, lambda n: {"ranked": len(rank_anomalies(e[:n]))})

    def whole(n: int) -> dict[str, Any]:
        return {"trustworthiness": trustworthiness(e[:n], fit_map(e[:n]).xy, sample=500)}

    def placed(n: int) -> dict[str, Any]:
        fitted = fit_map(e[np.random.default_rng(0).permutation(n)[: n // 5]])
        return {"trustworthiness": trustworthiness(e[:n], fitted.transform(e[:n]), sample=500)}

    rows |= grows("map", maps, whole) | grows("map of a fifth, others placed on it", maps, placed)
    report("What grows how fast with the number of objects", rows, json_file=given.json)


if __name__ == "__main__":
    main()
