"""The grid widget: what JavaScript draws, and the events that it sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

KEYS = {
    "arrows": "move",
    "y, n": "mark yes or no, and move on",
    "t": "give the tag that is written in the field, or remove it",
    "enter": "make it the query",
    "+": "add it to the queries",
    "backspace": "back to the question before",
    "u, r": "undo or redo a mark or tag",
    "page up, page down": "previous or next page",
    "?": "show or hide this list",
}


class ThumbnailGrid(anywidget.AnyWidget):
    """Thumbnails to click, or to walk through with the keyboard.

    It sends ``{"event": …, "row": …}``: ``click``, ``yes``, ``no``, ``tag``, ``focus``, ``query``, ``add``, ``back``,
    ``undo``, ``redo``, ``previous``, ``next`` and, after each redraw, ``drawn`` with the ``serial`` drawn.
    """

    _esm = Path(__file__).with_name("grid.js")
    _css = Path(__file__).with_name("grid.css")

    items = traitlets.List(traitlets.Dict()).tag(sync=True)  # {"row", "caption", "label", "src"}
    marks: Any = traitlets.Dict().tag(sync=True)  # {row: "yes" or "no"}
    tags: Any = traitlets.Dict().tag(sync=True)  # {row: [tag, …]}
    targets = traitlets.List(traitlets.Int()).tag(sync=True)
    focused = traitlets.Int(-1).tag(sync=True)  # row
    side = traitlets.Int(112).tag(sync=True)  # pixels
    serial = traitlets.Int(0).tag(sync=True)  # counts redraws
    dark = traitlets.Bool(False).tag(sync=True)  # whether the page has a dark theme
    key_list = traitlets.Dict(KEYS).tag(sync=True)
    key_help = traitlets.Bool(False).tag(sync=True)  # whether the list of keys is shown

    def show(self, items: list[dict[str, Any]], targets: list[int]) -> None:
        """Draw other objects, in one message."""
        with self.hold_sync():
            self.items, self.targets, self.serial = items, targets, self.serial + 1
