"""What the grid shows for a question: rows in order, with a score each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from astropy.table import Table

from skylib.browse.state import BrowserState, Question
from skylib.data.sky import near_any
from skylib.device import pick_device
from skylib.model.embeddings import Embeddings
from skylib.search.filters import Names, matching_rows, parse_filter
from skylib.search.index import SearchIndex, best_apart
from skylib.search.ranking import feedback_scores, rank_anomalies

Settings = Mapping[str, Any]
Ranked = tuple[np.ndarray, np.ndarray]  # rows, best first, and the score of each


@dataclass(frozen=True)
class Answer:
    """Rows in order, a caption for each, what the captions are, and how many objects there are in all."""

    rows: list[int]
    captions: list[str]
    meaning: str
    n: int


class Answers:
    """Answers questions about a set of objects; the search index is made when it is first needed.

    Parameters
    ----------
    embeddings : Embeddings
    names : mapping
        What the numbers of a column are called, such as ``{"class": ("galaxy", "qso", "star")}``.
    odd : Table, optional
        From `rank_anomalies`; made when it is asked for.
    device : optional
    """

    def __init__(self, embeddings: Embeddings, *, names: Names, odd: Table | None = None, device: Any = None) -> None:
        if odd is not None and not {"index", "score"} <= set(getattr(odd, "colnames", ())):
            raise ValueError(f"odd={odd!r}: must be the table of rank_anomalies, with index and score")
        self._embeddings, self._names, self._odd, self._device = embeddings, names, odd, pick_device(device)

    @cached_property
    def _index(self) -> SearchIndex:
        return SearchIndex(self._embeddings, device=self._device)

    @property
    def ready(self) -> bool:
        """Whether the search index has been made."""
        return "_index" in vars(self)

    def find(self, question: Question, state: BrowserState, settings: Settings, *, first: int, k: int) -> Answer:
        """Return k objects, from number `first` on, in the order asked for.

        Parameters
        ----------
        question : Question
        state : BrowserState
            Its marks and tags.
        settings : mapping
            metric, combine, filter, hide, fold (arcsec), sort, descending.
        first, k : int
        """
        keep = self._kept(state, settings)
        ranked, meaning, form = self._ranking(question, state, settings, keep)
        n = int(keep.sum())
        rows, scores = best_apart(ranked, self._embeddings, k=first + k, radius=settings["fold"])
        return Answer(rows[first:].tolist(), [form(score) for score in scores[first:]], meaning, n)

    def _kept(self, state: BrowserState, settings: Settings) -> np.ndarray:
        """Return which objects the filter leaves; ``mark`` and ``tag`` are columns, too."""
        keep = np.ones(len(self._embeddings), dtype=bool)
        where = parse_filter(settings["filter"])
        given = {"mark": {row: [mark] for row, mark in state.marks.items()}, "tag": state.tags}
        for name in ("mark", "tag"):
            if name in where and name not in self._embeddings.columns:
                wanted = {str(value) for value in np.atleast_1d(where.pop(name))}
                chosen = np.zeros_like(keep)
                chosen[[row for row, values in given[name].items() if wanted & set(values)]] = True
                keep &= chosen
        keep &= matching_rows(self._embeddings, where, names=self._names)
        if settings["hide"]:
            keep[list(state.marks)] = False
        return keep

    def _ranking(
        self, question: Question, state: BrowserState, settings: Settings, keep: np.ndarray
    ) -> tuple[Callable[[int], Ranked], str, Callable[[Any], str]]:
        """Return what gives the k best rows with scores, what the scores mean, and how they are written."""
        if question.order == "map":
            chosen = np.zeros_like(keep)
            chosen[list(question.rows)] = True
            keep &= chosen
        if question.order == "marks":
            scores = feedback_scores(self._index, state.marked("yes"), state.marked("no"))
            keep &= np.isfinite(scores)
            return _by(scores, keep, descending=True), "likeness to yes", "{:+.2f}".format
        if question.order == "odd":
            if self._odd is None:
                self._odd = rank_anomalies(self._index)
            kept = keep[self._odd["index"]]
            rows, scores = (np.asarray(self._odd[name])[kept] for name in ("index", "score"))
            return lambda k: (rows[:k], scores[:k]), "distance to its neighbours", "{:.3g}".format
        if question.order == "column" or not (question.targets or question.vectors):
            name = settings["sort"]
            values = getattr(self._embeddings, name) if name in ("ra", "dec") else self._embeddings.column(name)
            called = dict(enumerate(self._names.get(name, ())))
            by_value = _by(values, keep, descending=settings["descending"])
            return by_value, name, lambda value: str(called.get(value, number(value)))
        return self._similar(question, settings, keep), f"{settings['metric']} distance", "{:.3f}".format

    def _similar(self, question: Question, settings: Settings, keep: np.ndarray) -> Callable[[int], Ranked]:
        targets: Any = list(question.targets)
        keep = keep.copy()  # the query counts among the objects, but is not its own answer
        if question.order == "alike" and targets:
            keep[targets] = False
            if settings["fold"] > 0:
                ra, dec = self._embeddings.ra, self._embeddings.dec
                keep &= ~near_any(ra, dec, ra[targets], dec[targets], radius=settings["fold"])
        if question.vectors:
            targets = np.concatenate([self._embeddings.vectors[targets], np.array(question.vectors, dtype=np.float32)])
        options = {"metric": settings["metric"], "combine": settings["combine"], "exclude_targets": False, "keep": keep}

        def ranked(k: int) -> Ranked:
            found = self._index.search(targets, k=k, **options)
            return np.asarray(found["index"]), np.asarray(found["score"])

        return ranked


def number(value: Any) -> str:
    """Return a value as one reads it: five digits of a number."""
    return f"{value:.5g}" if isinstance(value, (float, np.floating)) else str(value)


def _by(values: np.ndarray, keep: np.ndarray, *, descending: bool) -> Callable[[int], Ranked]:
    """Return what gives the first k rows in the order of their values; unknown ones (NaN) come last."""
    rows = np.flatnonzero(keep)
    if values.dtype.kind in "OSU":
        order = np.argsort(values[rows].astype(str), kind="stable")
        rows = rows[order[::-1] if descending else order]
    else:
        numbers = values[rows].astype(np.float64)
        rows = rows[np.argsort(-numbers if descending else numbers, kind="stable")]
    return lambda k: (rows[:k], values[rows[:k]])
