"""The browser's settings, as fields and sliders, and its buttons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

BUTTONS = {  # name: icon, what it does
    "back": ("arrow-left", "the question before (backspace)"),
    "previous": ("chevron-left", "previous page (page up)"),
    "next": ("chevron-right", "next page (page down)"),
    "undo": ("undo", "undo the last mark or tag (u)"),
    "redo": ("repeat", "redo it (r)"),
    "keys": ("keyboard-o", "list of keys (?)"),
    "export": ("download", "write the objects marked yes as CSV, VOTable, FITS and DS9 regions"),
}


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
            max=3600.0,
            step=0.5,
            description="fold twins",
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
