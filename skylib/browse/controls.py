"""The browser's controls: fields, sliders and buttons, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from skylib.browse.grid import ThumbnailGrid
from skylib.browse.state import ORDERS

BUTTONS = {  # name: icon, what it does
    "back": ("arrow-left", "the question before (backspace)"),
    "previous": ("chevron-left", "previous page (page up)"),
    "next": ("chevron-right", "next page (page down)"),
    "undo": ("undo", "undo the last mark or tag (u)"),
    "redo": ("repeat", "redo it (r)"),
    "keys": ("keyboard-o", "list of keys (?)"),
    "export": ("download", "write the objects marked yes as CSV, VOTable, FITS and DS9 regions"),
}
ROW = {"flex_flow": "row wrap", "align_items": "center"}


def make_controls(bands: Sequence[str], columns: Sequence[str], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the settings by name, with the values that were saved where these are still allowed."""
    last = len(bands) - 1
    red, green, blue = (
        band if band in bands else bands[i] for band, i in zip("irg", (last, last // 2, 0), strict=True)
    )
    narrow, wide = {"width": "170px"}, {"width": "260px"}
    controls: dict[str, Any] = {
        "click": widgets.ToggleButtons(
            options=["query", "add to query", "yes", "no"],
            tooltips=["make it the query", "add it to the queries", "mark it yes", "mark it no"],
            style={"button_width": "112px"},
        ).add_class("sky-click"),
        "metric": widgets.Dropdown(
            options=["cosine", "mse", "mae"], description="metric", tooltip="distance between embeddings", layout=narrow
        ),
        "combine": widgets.Dropdown(
            options=["min", "mean", "max"],
            description="combine",
            tooltip="distance to several queries: to the nearest, on average, or to the farthest",
            layout=narrow,
        ),
        "k": widgets.IntSlider(value=24, min=6, max=120, step=6, description="show", layout=wide),
        "size": widgets.IntSlider(value=112, min=56, max=280, step=8, description="size", layout=wide),
        "stretch": widgets.FloatLogSlider(
            value=1.0,
            base=10,
            min=-1.5,
            max=1.5,
            step=0.1,
            description="stretch",
            tooltip="small is bright",
            layout=wide,
        ),
        "own": widgets.Checkbox(
            description="contrast of each", tooltip="not one for all images", indent=False, layout={"width": "150px"}
        ),
        "red": widgets.Dropdown(options=bands, value=red, description="red", layout=narrow),
        "green": widgets.Dropdown(options=bands, value=green, description="green", layout=narrow),
        "blue": widgets.Dropdown(options=bands, value=blue, description="blue", layout=narrow),
        "filter": widgets.Text(
            placeholder="mag_i < 22; class = galaxy; tag = lens",
            description="filter",
            tooltip="only objects that fulfil all conditions, separated by ';'",
            continuous_update=False,
            layout={"width": "360px"},
        ),
        "sort": widgets.Dropdown(
            options=columns, description="column", tooltip="for the order 'by a column'", layout={"width": "220px"}
        ),
        "descending": widgets.Checkbox(description="largest first", indent=False, layout={"width": "110px"}),
        "hide": widgets.Checkbox(description="hide marked", indent=False, layout={"width": "110px"}),
        "fold": widgets.BoundedFloatText(
            value=0.0,
            min=0.0,
            max=3600.0,
            step=0.5,
            description="fold twins",
            tooltip="of objects within this many arcsec, only the best is shown; 0: all",
            layout=narrow,
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


def make_buttons() -> dict[str, widgets.Button]:
    """Return the buttons by name."""
    return {
        name: widgets.Button(description=name, icon=icon, tooltip=tip, layout={"width": "92px"})
        for name, (icon, tip) in BUTTONS.items()
    }


def make_orders() -> widgets.ToggleButtons:
    """Return the choice of the order; the one of the map is chosen by a lasso."""
    return widgets.ToggleButtons(
        options=list(ORDERS.items())[:4], value=None, style={"button_width": "118px"}
    ).add_class("sky-order")


def arrange(
    order: widgets.Widget,
    find: widgets.Widget,
    controls: dict[str, Any],
    buttons: dict[str, widgets.Widget],
    status: Sequence[widgets.Widget],
    grid: ThumbnailGrid,
    beside: Sequence[widgets.Widget],
) -> list[widgets.Widget]:
    """Return all rows from top to bottom; grid and details stand side by side, and both stay in view."""
    c, b = controls, buttons
    rows = [
        [order, c["sort"], c["descending"]],
        [find, c["filter"], c["hide"], c["fold"]],
        [widgets.Label("click means"), c["click"], *(b[name] for name in ("back", "previous", "next"))],
        [c["tag"], *(b[name] for name in ("undo", "redo", "keys", "export"))],
    ]
    look = [c[name] for name in ("k", "size", "stretch", "own", "red", "green", "blue", "metric", "combine")]
    more = widgets.Accordion([widgets.HBox(look, layout=ROW)], titles=("pictures and distance",), selected_index=None)
    pane = {"height": "700px", "overflow": "auto"}
    left = widgets.VBox([grid], layout={"flex": "1 1 420px", "min_width": "300px", **pane})
    right = widgets.VBox(list(beside), layout={"flex": "0 1 480px", "min_width": "320px", **pane})
    panes = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
    return [*(widgets.HBox(row, layout=ROW) for row in rows), more, *status, panes]
