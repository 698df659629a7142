"""What the browser shows: the widgets, and the texts in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np

from skylib.browse.grid import ThumbnailGrid
from skylib.browse.pictures import Look
from skylib.browse.skymap import MapPanel, map_places
from skylib.browse.state import ORDERS, BrowserState
from skylib.search.filters import Names

BUTTONS = {  # name: icon, what it does
    "back": ("arrow-left", "the question before (backspace)"),
    "previous": ("chevron-left", "previous page (page up)"),
    "next": ("chevron-right", "next page (page down)"),
    "undo": ("undo", "undo the last mark or tag (u)"),
    "redo": ("repeat", "redo it (r)"),
    "keys": ("keyboard-o", "list of keys (?)"),
    "export": ("download", "write the objects marked yes as CSV, VOTable, FITS and DS9 regions"),
}
NO_REDRAW = {"click", "size", "tag"}  # settings that change nothing in the grid, or that the page itself obeys
ROW = {"flex_flow": "row wrap", "align_items": "center"}


class BrowserView(widgets.VBox):
    """The widgets of a browser. What a change, a click or a lasso does is left to a subclass, in methods ``_on_…``.

    Parameters
    ----------
    bands : sequence of str
        That can be shown.
    columns : mapping of str to ndarray, shape (n,)
        To sort by and to colour the map by.
    names : mapping
        What the numbers of a column are called.
    state : BrowserState
        Whose settings are restored.
    xy : ndarray, shape (n, 2), optional
        The map.
    colour_by : str
    """

    state: BrowserState
    _on_setting: Callable[[dict[str, Any]], None]
    _on_order: Callable[[dict[str, Any]], None]
    _on_find: Callable[[dict[str, Any]], None]
    _on_button: Callable[[str], None]
    _on_event: Callable[[dict[str, Any]], None]
    _on_lasso: Callable[[list[int]], None]
    _on_hover: Callable[[int | None], None]

    def __init__(
        self,
        bands: Sequence[str],
        columns: Mapping[str, np.ndarray],
        *,
        names: Names,
        state: BrowserState,
        xy: np.ndarray | None,
        colour_by: str,
    ) -> None:
        self.state, self._said = state, ""
        self._controls = make_controls(bands, [*columns, "ra", "dec"], state.settings)
        for name in self._controls.keys() - NO_REDRAW:
            self._controls[name].observe(self._on_setting, "value")
        self._buttons: dict[str, widgets.Button] = {}
        for name, (icon, tip) in BUTTONS.items():
            button = widgets.Button(description=name, icon=icon, tooltip=tip, layout={"width": "92px"})
            button.on_click(lambda _, name=name: self._on_button(name))
            self._buttons[name] = button
        orders = list(ORDERS.items())[:4]  # that of the map is chosen by a lasso
        self._order = widgets.ToggleButtons(options=orders, value=None, style={"button_width": "118px"})
        self._order.add_class("sky-order").observe(self._on_order, "value")
        self._find = widgets.Text(
            placeholder="150.1 2.2, object_id, name or #row",
            description="find",
            tooltip="search for the object at a position, or with this object_id, name or row",
            continuous_update=False,
            layout={"width": "340px"},
        )
        self._find.observe(self._on_find, "value")
        self._status, self._error, self._files, self._hovered = (widgets.HTML() for _ in range(4))
        self._grid = ThumbnailGrid(side=self._controls["size"].value)
        widgets.jslink((self._controls["size"], "value"), (self._grid, "side"))
        self._grid.on_msg(lambda _, message, __: self._on_event(message))
        self._picture, self._facts = widgets.Image(layout={"max_width": "100%"}), widgets.HTML()
        self._map = None
        if xy is not None:
            self._map = MapPanel(
                map_places(xy, state.n_objects),
                columns=columns,
                names=names,
                colour_by=colour_by,
                on_lasso=self._on_lasso,
                on_hover=self._on_hover,
            )
            self._grid.observe(lambda change: self._map.dark(change["new"]), "dark")
        self._picture.add_class("sky-picture")
        super().__init__(self._arranged())
        self.add_class("sky-browser")

    def _arranged(self) -> list[widgets.Widget]:
        """Return all rows from top to bottom; grid and details stand side by side, and both stay in view."""
        c, b = self._controls, self._buttons
        rows = [
            [self._order, c["sort"], c["descending"]],
            [self._find, c["filter"], c["hide"], c["fold"]],
            [widgets.Label("click means"), c["click"], *(b[name] for name in ("back", "previous", "next"))],
            [c["tag"], *(b[name] for name in ("undo", "redo", "keys", "export"))],
        ]
        look = [c[name] for name in ("k", "size", "stretch", "own", "red", "green", "blue", "metric", "combine")]
        more = widgets.Accordion([widgets.HBox(look, layout=ROW)], titles=("pictures and distance",))
        beside = [self._picture, *([self._map, self._hovered] if self._map else []), self._facts]
        pane = {"height": "700px", "overflow": "auto"}
        left = widgets.VBox([self._grid], layout={"flex": "1 1 420px", "min_width": "300px", **pane})
        right = widgets.VBox(beside, layout={"flex": "0 1 480px", "min_width": "320px", **pane})
        panes = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
        return [*(widgets.HBox(row, layout=ROW) for row in rows), more, self._status, self._error, self._files, panes]

    def _settings(self) -> dict[str, Any]:
        return {name: control.value for name, control in self._controls.items()}

    def _look(self) -> Look:
        rgb = tuple(self._controls[name].value for name in ("red", "green", "blue"))
        return round(self._controls["stretch"].value, 4), rgb, self._controls["own"].value

    def _show_marks(self) -> None:
        self._grid.marks, self._grid.tags = dict(self.state.marks), dict(self.state.tags)

    def _say(self, text: str) -> None:
        """Say what is shown, and how many objects are marked."""
        question = self.state.question
        order = next(name for name, value in ORDERS.items() if value == question.order)
        like = [*map(str, question.targets), *("your own" for _ in question.vectors)]
        about = f" of {', '.join(like)}" if question.order == "alike" else ""
        n_yes, n_no, n_tags = len(self.state.marked("yes")), len(self.state.marked("no")), len(self.state.tags)
        self._said = text
        rest = escape(f": {text}; {n_yes} yes, {n_no} no{f', {n_tags} tagged' if n_tags else ''}", quote=False)
        self._status.value = f"<span class='sky-status' role='status'><b>{escape(order + about)}</b>{rest}</span>"

    def _say_error(self, text: str) -> None:
        style = "color:var(--jp-error-color1,#b3261e)"
        self._error.value = f"<b class='sky-error' role='alert' style='{style}'>{escape(text, quote=False)}</b>"
        self._files.value = ""
        self._say("could not be done")

    def _say_file(self, text: str) -> None:
        self._files.value = f"<span class='sky-files' role='status'>{escape(text, quote=False)}</span>"


def make_controls(bands: Sequence[str], columns: Sequence[str], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings by name, with the values that were saved where these are still allowed."""
    instead = bands[-1], bands[(len(bands) - 1) // 2], bands[0]
    rgb = [band if band in bands else other for band, other in zip("irg", instead, strict=True)]
    wide = {"width": "260px"}

    def choice(name: str, options: Sequence[str], tooltip: str | None = None, **more: Any) -> widgets.Dropdown:
        layout = {"width": "170px"}
        return widgets.Dropdown(options=options, description=name, tooltip=tooltip, **{"layout": layout, **more})

    controls: dict[str, Any] = {
        "click": widgets.ToggleButtons(
            options=["query", "add to query", "yes", "no"],
            tooltips=["make it the query", "add it to the queries", "mark it yes", "mark it no"],
            style={"button_width": "112px"},
        ).add_class("sky-click"),
        "metric": choice("metric", ["cosine", "mse", "mae"], "distance between embeddings"),
        "combine": choice(
            "combine",
            ["min", "mean", "max"],
            "distance to several queries: to the nearest, on average, or to the farthest",
        ),
        "k": widgets.IntSlider(value=24, min=6, max=120, step=6, description="show", layout=wide),
        "size": widgets.IntSlider(value=112, min=56, max=280, step=8, description="size", layout=wide),
        "stretch": widgets.FloatLogSlider(
            value=1.0, min=-1.5, max=1.5, step=0.1, description="stretch", tooltip="small is bright", layout=wide
        ),
        "own": widgets.Checkbox(
            description="contrast of each", tooltip="not one for all images", indent=False, layout={"width": "150px"}
        ),
        **{name: choice(name, bands, value=band) for name, band in zip(("red", "green", "blue"), rgb, strict=True)},
        "filter": widgets.Text(
            placeholder="mag_i < 22; class = galaxy; tag = lens",
            description="filter",
            tooltip="only objects that fulfil all conditions, separated by ';'",
            continuous_update=False,
            layout={"width": "360px"},
        ),
        "sort": choice("column", columns, "for the order 'by a column'", layout={"width": "220px"}),
        "descending": widgets.Checkbox(description="largest first", indent=False, layout={"width": "110px"}),
        "hide": widgets.Checkbox(description="hide marked", indent=False, layout={"width": "110px"}),
        "fold": widgets.BoundedFloatText(
            value=1.0,
            max=3600.0,
            step=0.5,
            description="fold twins, ″",
            tooltip="of objects within this many arcsec, only the best is shown; 0: all",
            layout={"width": "170px"},
        ),
        "tag": widgets.Text(
            placeholder="lens", description="tag", tooltip="key t gives it to an object", layout={"width": "200px"}
        ),
    }
    for name, control in controls.items():
        value = saved.get(name)
        allowed = getattr(control, "options", None)
        if type(value) is type(control.value) and (allowed is None or value in allowed):
            control.value = value
    return controls
