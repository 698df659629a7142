"""What a person has asked, marked and tagged: plain data, saved and restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skylib.checks import check_choice
from skylib.files import write_json
from skylib.model.embeddings import Embeddings

ORDERS = {
    "look-alikes": "alike",
    "my yes and no": "marks",
    "odd ones": "odd",
    "by a column": "column",
    "chosen on the map": "map",
}
MARKS = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """What the grid answers: which objects in which order, similar to which."""

    order: str = "alike"
    targets: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()  # chosen on the map
    vectors: tuple[tuple[float, ...], ...] = ()  # of objects that are not in the catalogue

    def __post_init__(self) -> None:
        check_choice("order", self.order, tuple(ORDERS.values()))


@dataclass
class BrowserState:
    """The question, those before it, marks, tags and settings.

    Only `mark` and `tag`, and undoing them, change marks and tags, here or in another browser that keeps its state in
    the same file.
    """

    n_objects: int
    objects: str  # which these are (`objects_name`): marks are bound to them
    question: Question = Question()
    history: list[Question] = field(default_factory=list)
    marks: dict[int, str] = field(default_factory=dict)  # row: "yes" or "no", in the order given
    tags: dict[int, list[str]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._on_disk: dict[Path, dict[str, dict[int, Any]]] = {}  # marks and tags as last read or written here
        self._done: list[tuple[str, int, Any, Any]] = []  # field, row, before, after
        self._undone: list[tuple[str, int, Any, Any]] = []

    def ask(self, question: Question) -> None:
        """Put another question; the one before can be returned to."""
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
        """Mark an object "yes" or "no"; the same mark again, or None, removes it."""
        check_choice("mark", mark, (*MARKS, None))
        before = self.marks.get(row)
        self._change("marks", row, None if mark == before else mark)

    def tag(self, row: int, tag: str) -> None:
        """Give an object a tag of any text; the same tag again removes it."""
        tag = tag.strip()
        if not tag or ";" in tag or "," in tag:
            raise ValueError(f"tag={tag!r}: must be a word or a few, without ',' and ';'")
        before = self.tags.get(row, [])
        after = [one for one in before if one != tag] if tag in before else [*before, tag]
        self._change("tags", row, after or None)

    def undo(self) -> int | None:
        """Take back the last mark or tag; return its row, or None if there is none."""
        return self._move(self._done, self._undone, 2)

    def redo(self) -> int | None:
        """Repeat what was undone last; return its row, or None if there is nothing."""
        return self._move(self._undone, self._done, 3)

    def marked(self, mark: str) -> list[int]:
        """Return the rows with this mark, in the order given."""
        return [row for row, value in list(self.marks.items()) if value == mark]

    def integer(self, name: str, default: int) -> int:
        """Return a setting that is a row or a page, or the default where none was saved."""
        value = self.settings.get(name)
        return value if isinstance(value, int) and 0 <= value < self.n_objects else default

    def save(self, path: str | Path) -> None:
        """Write JSON that a kill at any moment leaves either old or new.

        What another browser has marked or tagged in the file since is merged; where both changed one object, this
        browser counts. Browsers that save at the same time, on any machine, wait for each other.

        Raises
        ------
        ValueError
            If the file holds marks of other objects, or is damaged.
        """
        path = Path(path).resolve()
        with locked(path):
            before = self._on_disk.get(path, {"marks": {}, "tags": {}})
            if path.is_file():
                saved = self.load(path, like=self)
                for name in ("marks", "tags"):
                    own, theirs, old = getattr(self, name), getattr(saved, name), before[name]
                    changed = [row for row in {**old, **own} if old.get(row) != own.get(row)]
                    merged = {row: value for row, value in theirs.items() if row not in changed}
                    setattr(self, name, merged | {row: value for row, value in own.items() if row in changed})
            content = asdict(self) | {"marks": list(self.marks.items()), "tags": list(self.tags.items())}
            write_json(path, content)
            self._on_disk[path] = {"marks": dict(self.marks), "tags": dict(self.tags)}

    @classmethod
    def load(cls, path: str | Path, *, like: BrowserState) -> BrowserState:
        """Read what `save` wrote, of the same objects as `like`.

        Raises
        ------
        ValueError
            If it is of other objects, or damaged: everything in it is checked.
        """
        path = Path(path)
        try:
            saved = json.loads(path.read_text())
            n, objects = _number(saved["n_objects"], 2**62), str(saved["objects"])
            state = cls(n, objects, _question(saved["question"], n), [_question(one, n) for one in saved["history"]])
            for row, mark in saved["marks"]:
                check_choice("mark", mark, MARKS)
                state.marks[_number(row, n)] = mark
            for row, tags in saved.get("tags", []):
                state.tags[_number(row, n)] = [_of_type(tag, str) for tag in _of_type(tags, list)]
            settings = _of_type(saved["settings"], dict)
            state.settings = {name: _of_type(value, str, int, float, bool) for name, value in settings.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read as the state of a browser: {error}") from error
        if n != like.n_objects:
            raise ValueError(f"{path}: marks of {n} objects, not of these {like.n_objects}")
        if objects != like.objects:
            other = f"marks of another catalogue, or another order, of {n} objects"
            raise ValueError(f"{path}: {other}: choose another run folder")
        state._on_disk[path.resolve()] = {"marks": dict(state.marks), "tags": dict(state.tags)}
        return state

    def _change(self, name: str, row: int, after: Any) -> None:
        before = self._set(name, row, after)
        self._done.append((name, row, before, after))
        self._undone.clear()

    def _set(self, name: str, row: int, value: Any) -> Any:
        before = getattr(self, name).pop(row, None)
        if value is not None:
            getattr(self, name)[row] = value
        return before

    def _move(self, source: list[tuple[str, int, Any, Any]], to: list[tuple[str, int, Any, Any]], i: int) -> int | None:
        if not source:
            return None
        change = source.pop()
        to.append(change)
        self._set(change[0], change[1], change[i])
        return change[1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time pass, on any machine that sees the file; where a disk has no locks, all pass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as file:
        with suppress(ImportError, OSError):  # Windows; some network file systems
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


def objects_name(embeddings: Embeddings) -> str:
    """Return a short name for objects in their order: by ``object_id``, or else by position."""
    ids = embeddings.columns.get("object_id")
    digest = hashlib.sha256()
    for values in (embeddings.ra, embeddings.dec) if ids is None else (ids,):
        digest.update(np.asarray(values.astype(str) if values.dtype.kind == "O" else values).tobytes())
    return digest.hexdigest()[:16]


def _question(saved: Any, n: int) -> Question:
    targets, rows = (tuple(_number(row, n) for row in _of_type(saved[name], list)) for name in ("targets", "rows"))
    vectors = tuple(tuple(float(_of_type(x, int, float)) for x in v) for v in saved.get("vectors", []))
    return Question(_of_type(saved["order"], str), targets, rows, vectors)


def _number(value: Any, n: int) -> int:
    if not 0 <= _of_type(value, int) < n:
        raise ValueError(f"row {value}: must be 0 to {n - 1}")
    return value


def _of_type(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise ValueError(f"{str(value)[:80]!r}: must be of type {' or '.join(kind.__name__ for kind in kinds)}")
    return value
