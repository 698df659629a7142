"""The grid of thumbnails as a widget: what JavaScript draws, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets


class ThumbnailGrid(anywidget.AnyWidget):
    """Thumbnails to click, or to walk through with the keyboard.

    It sends ``{"event": …, "row": …}``: ``click``, ``yes``, ``no``, ``focus``, ``query`` (enter), ``back`` (backspace)
    and, after each redraw, ``drawn`` with the ``serial`` drawn.
    """

    _esm = Path(__file__).with_name("grid.js")
    _css = Path(__file__).with_name("grid.css")

    items = traitlets.List(traitlets.Dict()).tag(sync=True)  # {"row", "caption", "src"}
    marks: Any = traitlets.Dict().tag(sync=True)  # {row: "yes" or "no"}
    targets = traitlets.List(traitlets.Int()).tag(sync=True)
    side = traitlets.Int(112).tag(sync=True)  # pixels
    serial = traitlets.Int(0).tag(sync=True)  # counts redraws

    def show(self, items: list[dict[str, Any]], targets: list[int]) -> None:
        """Draw other objects, in one message."""
        with self.hold_sync():
            self.items, self.targets, self.serial = items, targets, self.serial + 1
