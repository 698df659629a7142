"""What a person has asked and marked: plain data, saved and restored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from skylib.checks import check_choice
from skylib.files import write_json
from skylib.model.embeddings import Embeddings

ORDERS = {"look-alikes": "alike", "my yes and no": "marks", "odd ones": "odd", "chosen on the map": "map"}


@dataclass(frozen=True)
class Question:
    """What the grid answers: objects in which order, and like which."""

    order: str = "alike"
    targets: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()  # chosen on the map

    def __post_init__(self) -> None:
        check_choice("order", self.order, tuple(ORDERS.values()))


@dataclass
class BrowserState:
    """The question, those before it, the marks, and the settings.

    Only `mark` changes a mark, here or in another browser that keeps its state in the same file; asking something else
    never does.
    """

    n_objects: int
    objects: str  # which these are (`objects_name`): marks are bound to them
    question: Question = Question()
    history: list[Question] = field(default_factory=list)
    marks: dict[int, str] = field(default_factory=dict)  # row: "yes" or "no", in the order given
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._on_disk: dict[Path, dict[int, str]] = {}  # marks of each file, as last read or written here

    def ask(self, question: Question) -> None:
        """Put another question; the one before can be gone back to."""
        if question != self.question:
            self.history.append(self.question)
            self.question = question

    def back(self) -> bool:
        """Return to the question before; False if there is none."""
        if self.history:
            self.question = self.history.pop()
            return True
        return False

    def mark(self, row: int, mark: str | None) -> None:
        """Mark an object "yes" or "no"; the same mark again, or None, takes it off."""
        check_choice("mark", mark, ("yes", "no", None))
        before = self.marks.pop(row, None)
        if mark is not None and mark != before:
            self.marks[row] = mark

    def marked(self, mark: str) -> list[int]:
        """Return the rows with this mark, in the order given."""
        return [row for row, value in list(self.marks.items()) if value == mark]

    def save(self, path: str | Path) -> None:
        """Write JSON that a kill at any moment leaves either old or new.

        Marks that another browser has changed in the file since are taken over; where both changed one, this counts.

        Raises
        ------
        ValueError
            If the file holds marks of other objects, or is damaged.
        """
        path = Path(path).resolve()
        if path.is_file():
            theirs, before = self.load(path, like=self).marks, self._on_disk.get(path, {})
            if theirs != before:
                changed = [row for row in {**before, **self.marks} if before.get(row) != self.marks.get(row)]
                kept = {row: mark for row, mark in theirs.items() if row not in changed}
                self.marks = kept | {row: mark for row, mark in self.marks.items() if row in changed}
        content = asdict(self) | {"marks": list(self.marks.items())}  # JSON would turn the rows into text
        write_json(path, content)
        self._on_disk[path] = dict(self.marks)

    @classmethod
    def load(cls, path: str | Path, *, like: BrowserState) -> BrowserState:
        """Read what `save` wrote, of the same objects as `like`.

        Raises
        ------
        ValueError
            If it is of other objects, or damaged.
        """
        try:
            saved = json.loads(Path(path).read_text())
            saved = {f.name: saved[f.name] for f in fields(cls)}
            saved["question"] = _question(saved["question"])
            saved["history"] = [_question(one) for one in saved["history"]]
            saved["marks"] = {int(row): str(mark) for row, mark in saved["marks"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: cannot be read as the state of a browser: {error}") from error
        if saved["n_objects"] != like.n_objects:
            raise ValueError(f"{path}: marks of {saved['n_objects']} objects, not of these {like.n_objects}")
        if saved["objects"] != like.objects:
            raise ValueError(f"{path}: marks of another catalogue, or another order, of {like.n_objects} objects: choose another run folder")  # fmt: skip
        state = cls(**saved)
        state._on_disk[Path(path).resolve()] = dict(state.marks)
        return state


def objects_name(embeddings: Embeddings) -> str:
    """Return a short name for objects in their order: by ``object_id``, or else by position."""
    ids = embeddings.columns.get("object_id")
    digest = hashlib.sha256()
    for values in (embeddings.ra, embeddings.dec) if ids is None else (ids,):
        digest.update(np.asarray(values.astype(str) if values.dtype.kind == "O" else values).tobytes())
    return digest.hexdigest()[:16]


def _question(saved: dict[str, Any]) -> Question:
    return Question(saved["order"], tuple(saved["targets"]), tuple(saved["rows"]))
