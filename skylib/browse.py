"""Browsing for look-alikes in JupyterLab: a grid of pictures to click. The only module that imports ipywidgets."""

from __future__ import annotations

import io
from functools import lru_cache

import ipywidgets as widgets
import numpy as np
from astropy.table import Table
from PIL import Image

from skylib.cutouts import CutoutFile
from skylib.embed import Embeddings
from skylib.plotting import rgb_image
from skylib.similarity import search


class SimilarityBrowser(widgets.VBox):
    """Show the objects most like a query, and collect a list of candidates.

    A click on "like" makes an object the query, or adds it to the queries; "keep" puts it on the list, which no
    other click changes.

    Parameters
    ----------
    embeddings : Embeddings
    cutouts : CutoutFile
        Of the same objects, in the same order.
    query : int
        The object to start from.

    Attributes
    ----------
    selected : astropy.table.Table
        The candidates kept, with positions and labels.

    Raises
    ------
    ValueError
        If the two hold different numbers of objects.
    """

    def __init__(self, embeddings: Embeddings, cutouts: CutoutFile, *, query: int = 0) -> None:
        if len(embeddings) != len(cutouts):
            raise ValueError(f"{len(embeddings)} embeddings for {len(cutouts)} cutouts of {cutouts.path}")
        self._embeddings, self._cutouts = embeddings, cutouts
        self._queries: list[int] = [query]
        self._history: list[list[int]] = []
        self._kept: list[int] = []
        self._picture = lru_cache(maxsize=4096)(self._render)
        self._metric = widgets.Dropdown(
            options=["cosine", "mse", "mae"], description="metric", layout={"width": "180px"}
        )
        self._combine = widgets.Dropdown(
            options=["min", "mean", "max"], description="several", layout={"width": "180px"}
        )
        self._k = widgets.IntSlider(value=18, min=6, max=60, step=6, description="show")
        self._stretch = widgets.FloatLogSlider(value=1.0, base=10, min=-1.5, max=1.5, step=0.1, description="stretch")
        self._adding = widgets.ToggleButton(value=False, description="add to the queries", icon="plus")
        self._back = widgets.Button(description="back", icon="arrow-left", layout={"width": "90px"})
        self._status = widgets.HTML()
        self._grid = widgets.GridBox(layout={"grid_template_columns": "repeat(auto-fill, 118px)", "grid_gap": "6px"})
        for control in (self._metric, self._combine, self._k, self._stretch):
            control.observe(self._redraw, "value")
        self._back.on_click(self._go_back)
        controls = widgets.HBox(
            [self._metric, self._combine, self._k, self._stretch, self._adding, self._back],
            layout={"flex_flow": "row wrap"},
        )
        super().__init__([controls, self._status, self._grid])
        self._redraw()

    @property
    def selected(self) -> Table:
        """The candidates kept, in the order they were."""
        rows = np.array(self._kept, dtype=int)
        labels = {name: values[rows] for name, values in self._embeddings.columns.items()}
        return Table({"index": rows, "ra": self._embeddings.ra[rows], "dec": self._embeddings.dec[rows], **labels})

    def _redraw(self, _: object = None) -> None:
        try:
            found = search(
                self._embeddings, self._queries, k=self._k.value, metric=self._metric.value, combine=self._combine.value
            )
        except ValueError as error:  # shown where it happened, instead of in a log that nobody reads
            self._status.value = f"<b style='color:#b3261e'>{error}</b>"
            return
        cards = [self._card(row, "query") for row in self._queries]
        cards += [
            self._card(int(row), f"{score:.3f}") for row, score in zip(found["index"], found["score"], strict=True)
        ]
        self._grid.children = cards
        self._say()

    def _say(self) -> None:
        queries = ", ".join(map(str, self._queries))
        self._status.value = f"<span class='sky-status'>query {queries}; {len(self._kept)} kept</span>"

    def _card(self, row: int, caption: str) -> widgets.VBox:
        image = widgets.Image(value=self._picture(row, round(self._stretch.value, 3)), width=112, height=112)
        like = widgets.Button(description="like", tooltip=f"show what is like object {row}", layout={"width": "52px"})
        keep = widgets.ToggleButton(
            value=row in self._kept,
            description="keep",
            tooltip=f"put object {row} on the list",
            layout={"width": "54px"},
        )
        like.on_click(lambda _: self._ask(row))
        keep.observe(lambda change: self._keep(row, change["new"]), "value")
        text = widgets.HTML(f"<small>{row}: {caption}</small>")
        border = "2px solid #D55E00" if caption == "query" else "1px solid #ddd"
        return widgets.VBox([image, text, widgets.HBox([like, keep])], layout={"border": border, "padding": "2px"})

    def _ask(self, row: int) -> None:
        self._history.append(self._queries)
        self._queries = [*self._queries, row] if self._adding.value and row not in self._queries else [row]
        self._redraw()

    def _go_back(self, _: object) -> None:
        if self._history:
            self._queries = self._history.pop()
            self._redraw()

    def _keep(self, row: int, keep: bool) -> None:
        if keep and row not in self._kept:
            self._kept.append(row)
        elif not keep and row in self._kept:
            self._kept.remove(row)
        self._say()

    def _render(self, row: int, stretch: float) -> bytes:
        flux = self._cutouts.flux(row)[0]
        buffer = io.BytesIO()
        Image.fromarray(rgb_image(flux, self._cutouts.bands, stretch=stretch)[::-1]).save(buffer, "png")
        return buffer.getvalue()
