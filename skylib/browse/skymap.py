"""The map next to the grid: a lasso selects objects; the objects of the answer and the one in view are marked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import jscatter
import numpy as np
import pandas as pd

from skylib.search.filters import Names

CLICK = 1.0  # s
MOST_CLASSES = 12  # distinct values of a column that is coloured by class
CROSS = "#e6550d"


def map_places(xy: Any, n: int) -> np.ndarray:
    """Return the coordinates of n objects on a map, (n, 2), or raise ValueError where they are none."""
    places = np.asarray(xy)
    if places.shape != (n, 2) or places.dtype.kind not in "fiu":
        raise ValueError(f"xy has shape {places.shape} and type {places.dtype}: must be ({n}, 2), one place per object")
    if not np.isfinite(places).all(axis=1).any():
        raise ValueError("xy holds no finite place: at least one object must be on the map")
    return places.astype(float)


class MapPanel(widgets.VBox):
    """A map of embeddings as a scatter plot with a lasso, coloured by any label.

    Parameters
    ----------
    xy : ndarray, shape (n, 2)
        NaN for objects that are not on the map.
    columns : mapping of str to ndarray, shape (n,)
        What it can be coloured by. Text or few integers are taken as classes, other numbers as values.
    names : mapping
        What the numbers of a column are called.
    colour_by : str
        The column at first, if there is such a one.
    on_lasso : callable
        Gets the rows that a person chose.
    on_hover : callable
        Gets the row under the pointer, or None.
    """

    def __init__(
        self,
        xy: np.ndarray,
        *,
        columns: Mapping[str, np.ndarray],
        names: Names,
        colour_by: str,
        on_lasso: Callable[[list[int]], None],
        on_hover: Callable[[int | None], None],
    ) -> None:
        self._rows = np.flatnonzero(np.isfinite(xy).all(axis=1))
        self._place = {int(row): i for i, row in enumerate(self._rows)}
        self._on_lasso, self._shown, self._lassoed = on_lasso, frozenset[int](), -CLICK
        self._marks: deque[frozenset[int]] = deque(maxlen=50)  # the page echoes them one by one, perhaps late
        self._xy = xy[self._rows]
        frame: dict[str, Any] = {"x": self._xy[:, 0], "y": self._xy[:, 1]}
        for name, values in columns.items():
            if (colours := _colours(np.asarray(values)[self._rows], names.get(name, ()))) is not None:
                frame[f"by {name}"] = colours
        usable = [name.removeprefix("by ") for name in frame if name.startswith("by ")]
        self.colour = widgets.Dropdown(
            options=["", *usable],
            value=colour_by if colour_by in usable else "",
            description="colour by",
            tooltip="the column that colours the map",
            layout={"width": "260px"},
        )
        self.scatter = jscatter.Scatter(data=pd.DataFrame(frame), x="x", y="y", height=300, axes=False)
        self.dark(False)
        self.colour.observe(lambda _: self._paint(), "value")
        self.scatter.widget.observe(self._on_selection, "selection")
        self.scatter.widget.observe(lambda change: on_hover(self._row(change["new"])), "hovering")
        super().__init__([self.colour, self.scatter.show()], layout={"flex": "0 0 auto", "min_height": "345px"})

    def show(self, rows: Sequence[int], focus: int | None) -> None:
        """Show where the objects of an answer lie, and the one that is looked at, with a cross through it."""
        places = sorted({self._place[row] for row in (*rows, focus) if row in self._place})
        self._shown = frozenset(places)
        self._marks.append(self._shown)
        self.scatter.selection(places)
        cross = []
        if focus in self._place:
            x, y = map(float, self._xy[self._place[focus]])
            cross = [jscatter.VLine(x, line_color=CROSS), jscatter.HLine(y, line_color=CROSS)]
        self.scatter.annotations(cross)

    def dark(self, dark: bool) -> None:
        """Take the colours of a dark or a light page."""
        self._dark = dark
        self.scatter.background("#111111" if dark else "#ffffff")
        for axes in (True, False):  # a new background draws them; only a change takes them away
            self.scatter.widget.axes = axes
        self._paint()

    def _paint(self) -> None:
        if self.colour.value:
            self.scatter.color(by=f"by {self.colour.value}", map="auto")
            self.scatter.legend(True)
        else:
            self.scatter.color(default="#56B4E9" if self._dark else "#0072B2", by=None)
            self.scatter.legend(False)

    def _row(self, place: int | None) -> int | None:
        return int(self._rows[place]) if place is not None and 0 <= place < len(self._rows) else None

    def _on_selection(self, change: dict) -> None:
        chosen = [int(i) for i in np.asarray(change["new"] if change["new"] is not None else [], dtype=int)]
        # A lasso that ends where it began also counts as a click on the point there.
        ends_lasso = len(chosen) == 1 and time.monotonic() - self._lassoed < CLICK
        if chosen and not ends_lasso and frozenset(chosen) not in {self._shown, *self._marks}:
            self._shown, self._lassoed = frozenset(chosen), time.monotonic()
            self._on_lasso([int(self._rows[i]) for i in sorted(chosen)])


def _colours(values: np.ndarray, called: Sequence[str]) -> pd.Series | None:
    """Return values or classes to colour by; None for text of too many different values."""
    series = pd.Series(values)
    if called:
        series = series.map(dict(enumerate(called))).fillna("unknown")
    if series.dtype.kind in "iufb" and (series.dtype.kind == "f" or series.nunique() > MOST_CLASSES):
        low, high = np.nanpercentile(series, [1, 99]) if series.notna().any() else (0.0, 1.0)
        return series.astype(float).clip(low, high)  # an outlier would take all colours
    return series.astype(str).astype("category") if series.nunique() <= MOST_CLASSES else None
