"""The browser: a grid of look-alikes, what a person marked, and the list to take home."""

from __future__ import annotations

import threading
import time
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from skylib.browse.answers import Answers
from skylib.browse.details import class_names, facts, known_objects, objects_table
from skylib.browse.pictures import Pictures
from skylib.browse.state import BrowserState, Question, objects_name
from skylib.browse.view import BrowserView
from skylib.browse.worker import Worker
from skylib.checks import checked
from skylib.data.cutouts import CutoutFile
from skylib.model.embeddings import Embeddings
from skylib.model.mim import MaskedImageModel
from skylib.search.export import write_objects
from skylib.search.queries import find_object, query_vectors

STATE, SELECTION, TAGGED = "browser.json", "selection", "tagged"  # names in the run folder
FIRST_PAGE = ("filter", "hide", "k", "sort", "descending", "fold")  # settings that go back to it


class SimilarityBrowser(BrowserView):
    """Show the objects most similar to a query, take yes and no, and learn from them.

    A click on a picture makes the object the query (or what *click means* is set to). The key ``?`` lists all keys.
    Only marks, tags and undo change what is marked, and with a `run_dir` each change is saved at once.

    Parameters
    ----------
    embeddings : Embeddings
    cutouts : CutoutFile
        Of the same objects, in the same order.
    query : int or sequence of int
        Rows of the first query.
    xy : ndarray, shape (n, 2), optional
        A map (`umap_map`) to show next to the grid; NaN for objects that are not on it.
    colour_by : str
        Label that colours the map at first.
    odd : Table, optional
        From `rank_anomalies`, for the order *odd ones*; made when it is asked for.
    run_dir : path, optional
        Where state and selection are kept; a state found there is restored.
    device : optional
        CUDA if there is one, by default.
    model : MaskedImageModel, optional
        That made the embeddings; needed to ask for images that are not in the catalogue.
    catalogue : path or Table, optional
        Other objects, with positions as for `make_cutouts` and perhaps ``name``, such as known lenses: objects within
        1.5 arcsec get them in the column ``known``, to filter, sort and colour by.
    links : bool, optional
        Link positions to surveys. By default unless the cutouts are of a simulated sky.

    Attributes
    ----------
    selected : astropy.table.Table
        The objects marked yes, with positions, labels and tags.

    Raises
    ------
    ValueError
        If the two hold different numbers of objects, or the saved state is damaged or of others.
    """

    @checked
    def __init__(
        self,
        embeddings: Embeddings,
        cutouts: CutoutFile,
        *,
        query: int | list[int] = 0,
        xy: np.ndarray | None = None,
        colour_by: str = "class",
        odd: Table | None = None,
        run_dir: str | Path | None = None,
        device: Any = None,
        model: MaskedImageModel | None = None,
        catalogue: str | Path | Table | None = None,
        links: bool | None = None,
    ) -> None:
        if len(embeddings) != len(cutouts):
            raise ValueError(f"{len(embeddings)} embeddings for {len(cutouts)} cutouts of {cutouts.path}")
        targets = tuple(int(row) for row in np.atleast_1d(query))
        if not all(0 <= row < len(embeddings) for row in targets):
            raise ValueError(f"query {list(targets)}: rows must be 0 to {len(embeddings) - 1}")
        if catalogue is not None:
            known, embeddings = known_objects(embeddings.ra, embeddings.dec, catalogue), copy(embeddings)
            embeddings.columns = {**embeddings.columns, "known": known}
        self._embeddings, self._cutouts, self._model = embeddings, cutouts, model
        self._names = class_names(embeddings, cutouts)
        self._answers = Answers(embeddings, names=self._names, odd=odd, device=device)
        self._links = not cutouts.simulated if links is None else links
        self._pictures = Pictures(cutouts, size=dict(embeddings.meta.get("model") or {}).get("image_size"))
        self._folder = None if run_dir is None else Path(run_dir)
        state = BrowserState(len(embeddings), objects_name(embeddings), Question("alike", targets))
        if self._folder is not None and (self._folder / STATE).is_file():
            state = BrowserState.load(self._folder / STATE, like=state)
        self._showing = threading.RLock()  # what is shown belongs to the question: both change under it only
        self._page, self._focus = state.integer("page", 0), state.integer("focus", (targets or (0,))[0])
        self._began, self._shown = 0.0, list[int]()
        self.response_ms: list[float] = []  # from a request to the grid redrawn in the browser window
        self._worker = Worker(self._say_error)
        super().__init__(cutouts.bands, embeddings.columns, names=self._names, state=state, xy=xy, colour_by=colour_by)
        self._refresh()
        self._look_at(self._focus)

    @property
    def selected(self) -> Table:
        """The objects marked yes, in the order they were."""
        return objects_table(self.state.marked("yes"), self._embeddings, self.state)

    @checked
    def ask(self, query: int | str | np.ndarray) -> None:
        """Search for a row, for what one would type in the field *find*, or for an object that is not in the catalogue.

        Parameters
        ----------
        query : int, str or ndarray
            A row; a position, ``object_id`` or name (`find_object`); a vector (D,) of the same model; or an image
            (C, S, S) in the model's bands, for which the browser needs the `model`.
        """
        how = ""
        if isinstance(query, str):
            query, how = find_object(self._embeddings, query)
        if isinstance(query, (int, np.integer)):
            if not 0 <= query < len(self._embeddings):
                raise ValueError(f"query {query}: rows are 0 to {len(self._embeddings) - 1}")
            self._ask(Question("alike", (int(query),)))
            self._look_at(int(query))
            if how:
                self._say_file(f"found object {query}: {how}")
        else:
            vectors = query_vectors(np.asarray(query)[None], self._embeddings, self._model)
            self._ask(Question("alike", vectors=tuple(tuple(map(float, vector)) for vector in vectors)))

    @checked
    def wait(self, timeout: float = 60.0) -> bool:
        """Wait until everything is drawn (for scripts; a person need not)."""
        return self._worker.wait(timeout)

    @checked
    def save(self, path: str | Path) -> None:
        """Write questions, marks, tags and settings; a browser with ``run_dir`` does so itself, at each change."""
        self.state.settings = {**self._settings(), "page": self._page, "focus": self._focus}
        self.state.save(path)

    @checked
    def export(self, stem: str | Path | None = None) -> list[Path]:
        """Write selected and tagged objects as CSV, VOTable, FITS and DS9 regions; by default to the run folder."""
        stem = Path(stem or (self._folder or Path()) / SELECTION)
        tagged, place = list(self.state.tags), stem.with_name(f"{stem.name}_{TAGGED}")
        table = objects_table(tagged, self._embeddings, self.state)
        return write_objects(self.selected, stem) + (write_objects(table, place) if tagged else [])

    def _refresh(self) -> None:
        """Draw the grid again, in a thread, so that the notebook stays free."""
        self._began = time.perf_counter()
        self._keep()
        self._files.value = ""  # what was said of the question before
        self._say("looking …" if self._answers.ready else "preparing the embeddings …")
        self._worker.submit("grid", self._draw)

    def _keep(self) -> None:
        if self._folder is not None:
            with self._showing:
                self.save(self._folder / STATE)

    def _draw(self) -> None:
        question, k = self.state.question, self._controls["k"].value
        first = self._page * k
        answer = self._answers.find(question, self.state, self._settings(), first=first, k=k)
        queries = [row for row in question.targets if question.order == "alike" and not (first or row in answer.rows)]
        rows = [*queries, *answer.rows]
        captions = [*("query" for _ in queries), *answer.captions]
        labels = [*("the query" for _ in queries), *(f"{answer.meaning} {text}" for text in answer.captions)]
        shown = zip(rows, captions, labels, self._pictures.thumbnails(rows, self._look()), strict=True)
        items = [{"row": row, "caption": text, "label": label, "src": src} for row, text, label, src in shown]
        with self._showing:
            if question != self.state.question:
                return  # something else was asked meanwhile, and is drawn next
            self._shown, self._grid.focused = rows, self._focus
            self._grid.show(items, list(question.targets))
            self._show_marks()
            self._error.value = ""
            last = first + len(answer.rows)
            self._say(f"{first + 1} to {last} of {answer.n}" if answer.rows else "no such object")
            if self._map is not None:
                self._map.show(rows, self._focus)
            with self._order.hold_trait_notifications():
                self._order.value = question.order if question.order != "map" else None

    def _look_at(self, row: int) -> None:
        """Show one object large, with all its bands and labels."""
        self._focus = row

        def draw() -> None:
            self._picture.value = self._pictures.all_bands(row, self._look())
            place = float(self._embeddings.ra[row]), float(self._embeddings.dec[row])
            labels = {name: values[row] for name, values in self._embeddings.columns.items()}
            own = {"mark": self.state.marks.get(row, ""), "tags": ", ".join(self.state.tags.get(row, []))}
            self._facts.value = facts(row, *place, labels=labels | own, names=self._names, links=self._links)
            if self._map is not None:
                self._map.show(self._shown, row)

        self._worker.submit("detail", draw)

    def _on_event(self, message: dict[str, Any]) -> None:
        event, row = message.get("event"), int(message.get("row", -1))
        if event == "drawn" and message.get("serial") == self._grid.serial and self._began:
            self.response_ms.append(1e3 * (time.perf_counter() - self._began))
            self._began = 0.0
        elif event in self._buttons:
            self._on_button(event)
        elif 0 <= row < len(self._embeddings):
            event = self._controls["click"].value if event == "click" else event
            if event in ("yes", "no", "tag"):
                self._mark(row, event)
            elif event in ("query", "add", "add to query"):
                before = Question() if event == "query" else self.state.question
                self._ask(Question("alike", tuple(dict.fromkeys((*before.targets, row))), vectors=before.vectors))
            self._look_at(row)

    def _ask(self, question: Question) -> None:
        with self._showing:
            self.state.ask(question)
            self._page = 0
        self._refresh()

    def _mark(self, row: int, mark: str) -> None:
        try:
            with self._showing:
                if mark == "tag":
                    self.state.tag(row, self._controls["tag"].value)
                else:
                    self.state.mark(row, mark)
                self._keep()
                self._show_marks()
            self._say(self._said)
        except (ValueError, OSError) as error:
            self._say_error(str(error))

    def _on_order(self, change: dict[str, Any]) -> None:
        if change["new"] is not None and change["new"] != self.state.question.order:
            question = self.state.question
            self._ask(Question(change["new"], question.targets, vectors=question.vectors))

    def _on_setting(self, change: dict[str, Any]) -> None:
        name = next(name for name, control in self._controls.items() if control is change["owner"])
        if name in FIRST_PAGE:
            self._page = 0
        self._refresh()
        if name in ("stretch", "own", "red", "green", "blue"):
            self._look_at(self._focus)

    def _on_find(self, change: dict[str, Any]) -> None:
        if change["new"].strip():
            self._worker.submit("find", lambda: self.ask(change["new"]))

    def _on_lasso(self, rows: list[int]) -> None:
        self._ask(Question("map", self.state.question.targets, tuple(rows)))

    def _on_hover(self, row: int | None) -> None:
        def draw() -> None:
            source = "" if row is None else self._pictures.thumbnails([row], self._look())[0]
            self._hovered.value = f"<img src='{source}' width='84' alt=''> object {row}" if source else ""

        self._worker.submit("hover", draw)

    def _on_button(self, name: str) -> None:
        if name in ("undo", "redo"):
            with self._showing:
                row = self.state.undo() if name == "undo" else self.state.redo()
                self._keep()
                self._show_marks()
            self._say(self._said if row is not None else f"nothing to {name}")
        elif name == "keys":
            self._grid.key_help = not self._grid.key_help
        elif name == "back":
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
        paths = ", ".join(map(str, self.export()))
        self._say_file(f"{len(self.selected)} objects written to {paths}")
