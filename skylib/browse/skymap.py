"""The map beside the grid: a lasso chooses objects, and the object at hand is marked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import ipywidgets as widgets
import jscatter
import numpy as np
import pandas as pd

_CLICK = 1.0  # s


class MapPanel(widgets.VBox):
    """A map of embeddings as a scatter plot with a lasso.

    Parameters
    ----------
    xy : ndarray, shape (n, 2)
        NaN for objects that are not on the map.
    colour : ndarray, shape (n,)
        Text or few integers are taken as kinds, other numbers as values.
    on_lasso : callable
        Is given the rows that a person chose.
    """

    def __init__(self, xy: np.ndarray, colour: np.ndarray | None, on_lasso: Callable[[list[int]], None]) -> None:
        self._rows = np.flatnonzero(np.isfinite(xy).all(axis=1))
        self._place = {int(row): i for i, row in enumerate(self._rows)}
        self._on_lasso, self._shown, self._lassoed = on_lasso, frozenset[int](), -_CLICK
        self._marks: deque[frozenset[int]] = deque(maxlen=50)  # told back by the page one after the other, perhaps late
        frame = pd.DataFrame({"x": xy[self._rows, 0], "y": xy[self._rows, 1]})
        more = {}
        if colour is not None:
            values = pd.Series(np.asarray(colour)[self._rows])
            kinds = values.dtype.kind in "OSUb" or (values.dtype.kind in "iu" and values.nunique() <= 12)
            frame["colour"] = values.astype(str).astype("category") if kinds else values.astype(float)
            more["color_by"] = "colour"
        self.scatter = jscatter.Scatter(data=frame, x="x", y="y", height=320, axes=False, legend=bool(more), **more)
        self.scatter.widget.observe(self._on_selection, "selection")
        super().__init__([self.scatter.show()], layout={"min_width": "380px", "flex": "1 1 380px"})

    def mark(self, row: int | None) -> None:
        """Show where an object lies."""
        places = [self._place[row]] if row in self._place else []
        self._shown = frozenset(places)
        self._marks.append(self._shown)
        self.scatter.selection(places)

    def _on_selection(self, change: dict) -> None:
        chosen = [int(i) for i in np.asarray(change["new"] if change["new"] is not None else [], dtype=int)]
        # Where a lasso ends at its beginning, the plot takes that for a click on the point there, too.
        ends_lasso = len(chosen) == 1 and time.monotonic() - self._lassoed < _CLICK
        if chosen and not ends_lasso and frozenset(chosen) not in {self._shown, *self._marks}:
            self._shown, self._lassoed = frozenset(chosen), time.monotonic()
            self._on_lasso([int(self._rows[i]) for i in sorted(chosen)])
