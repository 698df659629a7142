"""What a search of the sky has found so far, and where it stands: on disk after each tile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from skylib.files import replaced

HIT = np.dtype([("score", "f4"), ("tile", "i4"), ("row", "i4"), ("col", "i4"), ("snr", "f4"), ("ra", "f8"), ("dec", "f8")])  # fmt: skip


class Shard:
    """The state of one shard of a search.

    Parameters
    ----------
    folder : path
        Of the search; a state found there is read.
    number : int
        Of the shard.
    n_kept : int
        How many hits to keep.

    Attributes
    ----------
    hits : ndarray of HIT
        The best so far, the best first.
    done : set of int
        Numbers of the tiles that were searched.
    skipped : dict of str to str
        Tiles that could not be read, which are not done, and why.
    """

    def __init__(self, folder: Path, number: int, n_kept: int) -> None:
        self._path, self._n_kept = folder / f"shard-{number:04d}.json", n_kept
        self.hits, self.done, self.skipped = np.empty(0, HIT), set[int](), dict[str, str]()
        if self._path.is_file():
            saved = json.loads(self._path.read_text())
            self.hits = np.load(folder / saved["hits"])
            self.done, self.skipped = set(saved["done"]), saved["skipped"]

    def add(self, hits: np.ndarray) -> None:
        """Keep the best of these and those before."""
        self.hits = best_hits(np.concatenate([self.hits, hits]), self._n_kept)

    def save(self) -> None:
        """Write the hits under a new name, then the JSON that points to them: a kill leaves a pair that fits."""
        hits = self._path.with_name(f"{self._path.stem}-{len(self.done):06d}.npy")
        with replaced(hits) as partial, open(partial, "wb") as file:
            np.save(file, self.hits)
        with replaced(self._path) as partial:
            partial.write_text(json.dumps({"hits": hits.name, "done": sorted(self.done), "skipped": self.skipped}))
        for old in self._path.parent.glob(f"{self._path.stem}-*.npy"):
            if old != hits:
                old.unlink()


def best_hits(hits: np.ndarray, n: int) -> np.ndarray:
    """Return the n best, in an order that does not depend on how they came together."""
    return hits[np.lexsort((hits["col"], hits["row"], hits["tile"], hits["score"]))[:n]]
