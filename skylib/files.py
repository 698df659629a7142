"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` when all is written and on disk.

    With `shared`, processes on any node may write the same file at the same time: each writes under a name of its own,
    and the last one wins. Without, what a killed process left is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{f'.{uuid.uuid4().hex}' if shared else ''}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that a kill at any moment leaves either old or new, also where several processes write it."""
    with replaced(Path(path), shared=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
