"""The browser: a grid of look-alikes, what was said of them, and the list to take home."""

from __future__ import annotations

import threading
import time
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from astropy.table import Table

from skylib.browse.grid import ThumbnailGrid
from skylib.browse.pictures import Look, Pictures
from skylib.browse.skymap import MapPanel
from skylib.browse.state import ORDERS, BrowserState, Question, objects_name
from skylib.browse.worker import Worker
from skylib.data.cutouts import CutoutFile
from skylib.model.embeddings import Embeddings
from skylib.search.export import sky_links, write_objects
from skylib.search.filters import matching_rows, parse_filter
from skylib.search.index import SearchIndex
from skylib.search.ranking import feedback_scores, rank_anomalies

STATE, SELECTION = "browser.json", "selection"  # names in the run folder
MAX_ODD = 20_000  # for more objects, finding odd ones takes too long to wait for


class SimilarityBrowser(widgets.VBox):
    """Show the objects most like a query, take yes and no, and learn from them.

    A click on a picture makes the object the query (or what *a click* is set to). Keyboard, once the grid was clicked:
    arrows move, y and n mark, enter makes the object the query, backspace goes back. Marks are changed by nothing
    else, and with a `run_dir` each is saved at once.

    Parameters
    ----------
    embeddings : Embeddings
    cutouts : CutoutFile
        Of the same objects, in the same order.
    query : int or sequence of int
        What to start from.
    xy : ndarray, shape (n, 2), optional
        A map (`umap_map`) to show beside; NaN for objects that are not on it.
    colour_by : str
        Label that colours the map.
    odd : Table, optional
        From `rank_anomalies`, for the order *odd ones*; made when asked for, if there are not too many objects.
    run_dir : path, optional
        Where state and selection are kept; a state found there is restored.
    device : optional
        CUDA if there is one, by default.

    Attributes
    ----------
    selected : astropy.table.Table
        The objects marked yes, with positions and labels.

    Raises
    ------
    ValueError
        If the two hold different numbers of objects, or the saved state is of others.
    """

    def __init__(
        self, embeddings: Embeddings, cutouts: CutoutFile, *, query: int | list[int] = 0, xy: np.ndarray | None = None,
        colour_by: str = "class", odd: Table | None = None, run_dir: str | Path | None = None, device: Any = None,
    ) -> None:  # fmt: skip
        if len(embeddings) != len(cutouts):
            raise ValueError(f"{len(embeddings)} embeddings for {len(cutouts)} cutouts of {cutouts.path}")
        if xy is not None and np.shape(xy) != (len(embeddings), 2):
            raise ValueError(f"xy has shape {np.shape(xy)}: must be ({len(embeddings)}, 2), one place an object")
        targets = tuple(int(row) for row in np.atleast_1d(query))
        if not all(0 <= row < len(embeddings) for row in targets):
            raise ValueError(f"query {list(targets)}: rows must be 0 to {len(embeddings) - 1}")
        self._embeddings, self._cutouts, self._device = embeddings, cutouts, device
        self._index: SearchIndex | None = None
        self._odd = None if odd is None else np.asarray(odd["index"])
        self._pictures = Pictures(cutouts)
        self._folder = None if run_dir is None else Path(run_dir)
        self.state = BrowserState(len(embeddings), objects_name(embeddings), Question("alike", targets))
        if self._folder is not None and (self._folder / STATE).is_file():
            self.state = BrowserState.load(self._folder / STATE, like=self.state)
        self._showing = threading.RLock()  # what is shown belongs to what was asked: both change under it only
        self._focus = (self.state.question.targets or (0,))[0]
        self._page, self._began = 0, 0.0
        self.response_ms: list[float] = []  # from a request to the grid redrawn in the browser window
        self._worker = Worker(self._say_error)
        self._build(xy, colour_by)
        self._refresh()
        self._look_at(self._focus)

    @property
    def selected(self) -> Table:
        """The objects marked yes, in the order they were."""
        rows = np.array(self.state.marked("yes"), dtype=int)
        labels = {name: values[rows] for name, values in self._embeddings.columns.items()}
        return Table({"index": rows, "ra": self._embeddings.ra[rows], "dec": self._embeddings.dec[rows], **labels})

    def wait(self, timeout: float = 60.0) -> bool:
        """Wait until all that was asked for is drawn (for scripts; a person need not)."""
        return self._worker.wait(timeout)

    def save(self, path: str | Path) -> None:
        """Write questions, marks and settings; a browser with ``run_dir`` does so by itself, at each change."""
        self.state.settings = {name: control.value for name, control in self._controls.items()}
        self.state.save(path)

    def export(self, stem: str | Path | None = None) -> list[Path]:
        """Write the selection as CSV, VOTable, FITS and DS9 regions, by default to the run folder."""
        return write_objects(self.selected, stem or (self._folder or Path()) / SELECTION)

    # What is shown

    def _build(self, xy: np.ndarray | None, colour_by: str) -> None:
        bands, saved = self._cutouts.bands, self.state.settings
        red, green, blue = [band if band in bands else bands[i] for band, i in zip("irg", (-1, len(bands) // 2, 0), strict=True)]  # fmt: skip
        small, wide = {"width": "170px"}, {"width": "280px"}
        order = widgets.ToggleButtons(options=list(ORDERS.items())[:3], value=None, style={"button_width": "128px"})
        self._order = order
        self._controls: dict[str, Any] = {
            "click": widgets.ToggleButtons(
                options=["query", "add to query", "yes", "no"],
                tooltips=["make it the query", "add it to the queries", "mark it yes", "mark it no"],
                style={"button_width": "110px"},
            ),
            "metric": widgets.Dropdown(options=["cosine", "mse", "mae"], description="metric", layout=small),
            "combine": widgets.Dropdown(options=["min", "mean", "max"], description="several", layout=small),
            "k": widgets.IntSlider(value=24, min=6, max=120, step=6, description="show", layout=wide),
            "stretch": widgets.FloatLogSlider(
                value=1.0, base=10, min=-1.5, max=1.5, step=0.1, description="stretch", layout=wide
            ),
            "red": widgets.Dropdown(options=bands, value=red, description="red", layout=small),
            "green": widgets.Dropdown(options=bands, value=green, description="green", layout=small),
            "blue": widgets.Dropdown(options=bands, value=blue, description="blue", layout=small),
            "filter": widgets.Text(
                placeholder="mag_i 20..24; class = 0", description="only", continuous_update=False, layout={"width": "400px"}
            ),
            "hide": widgets.Checkbox(description="hide the marked", indent=False, layout={"width": "140px"}),
        }  # fmt: skip
        for name, control in self._controls.items():
            if name in saved and saved[name] in getattr(control, "options", [saved[name]]):
                control.value = saved[name]
            control.observe(self._on_setting, "value")
        order.observe(self._on_order, "value")
        buttons = {"back": "arrow-left", "previous": "chevron-left", "next": "chevron-right", "export": "download"}
        self._buttons = {
            name: widgets.Button(description=name, icon=icon, layout={"width": "96px"})
            for name, icon in buttons.items()
        }
        for name in buttons:
            self._buttons[name].on_click(lambda _, name=name: self._on_button(name))
        self._status, self._error, self._files = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._grid = ThumbnailGrid()
        self._grid.on_msg(lambda _, message, __: self._on_event(message))
        self._picture, self._facts = widgets.Image(layout={"max_width": "100%"}), widgets.HTML()
        self._map = None
        if xy is not None:
            columns = self._embeddings.columns
            self._map = MapPanel(np.asarray(xy, dtype=float), columns.get(colour_by), self._on_lasso)
        row = {"flex_flow": "row wrap", "align_items": "center"}
        c = self._controls
        top = [
            widgets.HBox([order, self._buttons["back"], self._buttons["previous"], self._buttons["next"]], layout=row),
            widgets.HBox([widgets.Label("a click:"), c["click"]], layout=row),
            widgets.HBox([c["metric"], c["combine"], c["k"], c["stretch"]], layout=row),
            widgets.HBox([c["red"], c["green"], c["blue"], c["hide"]], layout=row),
            widgets.HBox([c["filter"], self._buttons["export"], self._files], layout=row),
        ]
        detail = widgets.VBox([self._picture, self._facts], layout={"flex": "1 1 480px", "min_width": "300px"})
        beside = widgets.HBox([detail, *([self._map] if self._map else [])], layout={"flex_flow": "row wrap"})
        super().__init__([*top, self._status, self._error, self._grid, beside])

    def _refresh(self) -> None:
        """Draw the grid anew, beside the notebook's own work."""
        self._began = time.perf_counter()
        self._keep()
        self._say("looking …" if self._index else "making the embeddings ready …")
        self._worker.submit("grid", self._draw)

    def _keep(self) -> None:
        if self._folder is not None:
            with self._showing:
                self.save(self._folder / STATE)

    def _draw(self) -> None:
        question, k = self.state.question, self._controls["k"].value
        rows, captions, n = self._answer(question, (self._page + 1) * k)
        first = self._page * k
        rows, captions = rows[first : first + k], captions[first : first + k]
        shown = [row for row in question.targets if self._page == 0 and question.order == "alike" and row not in rows]
        rows, captions = [*shown, *rows], [*("query" for _ in shown), *captions]
        sources = self._pictures.thumbnails(rows, self._look())
        items = [
            {"row": row, "caption": caption, "src": source}
            for row, caption, source in zip(rows, captions, sources, strict=True)
        ]
        with self._showing:
            if question != self.state.question:
                return  # something else was asked meanwhile, and is drawn next
            self._grid.show(items, list(question.targets))
            self._grid.marks = dict(self.state.marks)
            self._error.value = ""
            self._say(f"{first + 1} to {first + len(rows) - len(shown)} of {n}" if rows else "no such object")
            order = question.order if question.order != "map" else None
            with self._order.hold_trait_notifications():
                if self._order.value != order:
                    self._order.value = order

    def _answer(self, question: Question, k: int) -> tuple[list[int], list[str], int]:
        """Return the rows to show, best first, a caption each, and how many there are in all."""
        if self._index is None:
            self._index = SearchIndex(self._embeddings, device=self._device)
        keep = np.ones(len(self._embeddings), dtype=bool)
        if self._controls["filter"].value.strip():
            keep = matching_rows(self._embeddings, parse_filter(self._controls["filter"].value))
        if self._controls["hide"].value:
            keep[list(self.state.marks)] = False
        if question.order == "map":
            chosen = np.zeros_like(keep)
            chosen[list(question.rows)] = True
            keep &= chosen
        if question.order in ("alike", "map") and question.targets:
            found = self._index.search(
                question.targets, k=k, metric=self._controls["metric"].value, combine=self._controls["combine"].value,
                keep=keep, exclude_targets=question.order == "alike",
            )  # fmt: skip
            return found["index"].tolist(), [f"{score:.3f}" for score in found["score"]], int(keep.sum())
        if question.order == "marks":
            scores = feedback_scores(self._index, self.state.marked("yes"), self.state.marked("no"))
            keep &= np.isfinite(scores)
            order = np.lexsort((np.arange(len(scores)), -np.where(keep, scores, -np.inf)))[: min(k, int(keep.sum()))]
            return order.tolist(), [f"{scores[row]:+.2f}" for row in order], int(keep.sum())
        if question.order == "odd":
            if self._odd is None:
                if len(self._embeddings) > MAX_ODD:
                    raise ValueError(
                        f"{len(self._embeddings)} objects: give odd=rank_anomalies(embeddings), made before"
                    )
                self._odd = np.asarray(rank_anomalies(self._index)["index"])
            order = self._odd[keep[self._odd]]
        else:
            order = np.flatnonzero(keep)
        return order[:k].tolist(), [str(row) for row in order[:k]], len(order)

    def _look_at(self, row: int) -> None:
        """Show one object large, with all its bands and labels."""
        self._focus = row

        def draw() -> None:
            self._picture.value = self._pictures.all_bands(row, self._look())
            ra, dec = float(self._embeddings.ra[row]), float(self._embeddings.dec[row])
            labels = {name: values[row] for name, values in self._embeddings.columns.items()}
            facts = "; ".join(f"{escape(name)} {_number(value)}" for name, value in labels.items())
            where = "position unknown"
            if np.isfinite(ra) and np.isfinite(dec):
                links = [f'<a href="{escape(url)}" target="_blank" rel="noopener">{name}</a>' for name, url in sky_links(ra, dec).items()]  # fmt: skip
                where = f"ra {ra:.6f}, dec {dec:+.6f} &nbsp; {' · '.join(links)}"
            bands = ", ".join(("colour", *self._cutouts.bands))
            self._facts.value = (
                f"<div class='sky-facts' style='line-height:1.5'><b>object {row}</b> ({bands})<br>{where}<br>"
                f"<small>{facts}</small></div>"
            )
            if self._map is not None:
                self._map.mark(row)

        self._worker.submit("detail", draw)

    def _look(self) -> Look:
        rgb = tuple(self._controls[name].value for name in ("red", "green", "blue"))
        return round(self._controls["stretch"].value, 4), rgb

    def _say(self, text: str) -> None:
        question = self.state.question
        order = next(name for name, value in ORDERS.items() if value == question.order)
        like = f" of {', '.join(map(str, question.targets))}" if question.order == "alike" else ""
        n_yes, n_no = len(self.state.marked("yes")), len(self.state.marked("no"))
        self._told = text
        self._status.value = f"<span class='sky-status'><b>{order}{like}</b>: {text}; {n_yes} yes, {n_no} no</span>"

    def _say_error(self, text: str) -> None:
        self._error.value = f"<b class='sky-error' style='color:#b3261e'>{escape(text, quote=False)}</b>"
        self._say("could not be done")

    # What a person does

    def _on_event(self, message: dict[str, Any]) -> None:
        event, row = message.get("event"), int(message.get("row", -1))
        if event == "drawn":
            if message.get("serial") == self._grid.serial and self._began:
                self.response_ms.append(1e3 * (time.perf_counter() - self._began))
                self._began = 0.0
            return
        if event == "click":
            event = self._controls["click"].value
        if event in ("yes", "no"):
            self._mark(row, event)
        elif event in ("query", "add to query"):
            before = self.state.question.targets if event == "add to query" else ()
            self._ask(Question("alike", tuple(dict.fromkeys((*before, row)))))
        elif event == "back":
            self._on_button("back")
        if event != "back":
            self._look_at(row)

    def _ask(self, question: Question) -> None:
        with self._showing:
            self.state.ask(question)
            self._page = 0
        self._refresh()

    def _mark(self, row: int, mark: str) -> None:
        with self._showing:
            self.state.mark(row, mark)
            self._keep()
            self._grid.marks = dict(self.state.marks)
        self._say(self._told)

    def _on_order(self, change: dict[str, Any]) -> None:
        if change["new"] is not None and change["new"] != self.state.question.order:
            self._ask(Question(change["new"], self.state.question.targets))

    def _on_setting(self, change: dict[str, Any]) -> None:
        if change["owner"] is self._controls["click"]:
            return
        if change["owner"] in (self._controls["filter"], self._controls["hide"], self._controls["k"]):
            self._page = 0
        self._refresh()
        if change["owner"] in (self._controls[name] for name in ("stretch", "red", "green", "blue")):
            self._look_at(self._focus)

    def _on_lasso(self, rows: list[int]) -> None:
        self._ask(Question("map", self.state.question.targets, tuple(rows)))

    def _on_button(self, name: str) -> None:
        if name == "back":
            with self._showing:
                went = self.state.back()
                self._page = 0 if went else self._page
            if went:
                self._refresh()
        elif name == "export":
            self._worker.submit("export", self._export)
        else:
            self._page = max(0, self._page + (1 if name == "next" else -1))
            self._refresh()

    def _export(self) -> None:
        paths = self.export()
        self._files.value = f"<span class='sky-files'>{len(self.selected)} objects written to {escape(', '.join(map(str, paths)))}</span>"  # fmt: skip


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, (float, np.floating)) else escape(str(value))
