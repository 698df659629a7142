"""Sky Embeddings: learn from multi-band images of the sky without labels."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

# Each public name is loaded at its first use: torch alone takes seconds, and GalSim and ipywidgets are not everywhere.
# The names and their modules are listed once, in the stub beside this file, which editors and type checkers read, too.
_HOMES = {
    name.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}
__all__ = sorted(_HOMES)

# Python sets a room that it loads as an attribute: this one is loaded now, so that `skylib.search` stays the function.
import_module("skylib.search")
del globals()["search"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skylib' has no attribute {name!r}")
    globals()[name] = getattr(import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
