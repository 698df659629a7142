"""Imports point one way: along data, model, training, evaluation; along model, search, browse; or down to the ground.

`KNOWN` lists what is still against this. An entry that no longer occurs fails a test: delete its line.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SKYLIB = Path(__file__).parents[1] / "skylib"
GROUND, TOP = "ground", "top"
ROOMS = ("data", "model", "training", "evaluation", "search", "plotting", "browse", "runner")
ALLOWED = {  # besides the ground and the room itself
    GROUND: (),
    "plotting": (),
    "runner": (),
    "data": (),
    "model": ("data",),
    "training": ("model", "data", "plotting"),
    "evaluation": ("training", "model", "data"),
    "search": ("model", "data"),
    "browse": ("search", "model", "data", "plotting"),
    TOP: ROOMS,  # __init__, which exports, and __main__, the command line
}
WIDGETS = {"ipywidgets", "anywidget", "traitlets", "jscatter"}
LONGEST = 300  # lines of a module

KNOWN: dict[str, set[str]] = {
    "direction": set(),
    "private": set(),
    "widgets": set(),
    "length": set(),
}


@cache
def modules() -> dict[str, Path]:
    """Return the modules by name without `skylib.`; the package itself is called `__init__`."""
    names = {}
    for path in sorted(SKYLIB.rglob("*.py")):
        parts = path.relative_to(SKYLIB).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return names


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def node(name: str) -> str:
    """Return the room, or the ground file, that a module belongs to: a node in the picture of the imports.

    >>> node("data.loading.tiles"), node("config"), node("__main__")
    ('data', 'config', '__main__')
    """
    return name.split(".")[0]


def floor(name: str) -> str:
    """Return the row of `ALLOWED` for a node."""
    return TOP if name in ("__init__", "__main__") else name if name in ALLOWED else GROUND


def imports(name: str) -> Iterator[str]:
    """Yield the modules of skylib that a module imports, at its top or inside of a function."""
    for statement in ast.walk(tree(name)):
        if isinstance(statement, ast.Import):
            found = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"skylib/{name}: imports are absolute"
            found = [f"{statement.module}.{alias.name}" for alias in statement.names]
        else:
            continue
        for full in found:
            if full.split(".")[0] != "skylib":
                continue
            short = full.removeprefix("skylib").strip(".")
            while short and short not in modules():  # a name in a module
                short = short.rpartition(".")[0]
            yield short or "__init__"


def edges() -> set[tuple[str, str]]:
    return {(name, other) for name in modules() for other in imports(name) if other != name}


def picture() -> dict[str, set[str]]:
    """Return which node imports which, without what may go only for a while."""
    result: dict[str, set[str]] = {node(name): set() for name in modules()}
    for name, other in edges():
        if node(name) != node(other) and f"{name} -> {other}" not in KNOWN["direction"]:
            result[node(name)].add(node(other))
    return result


def height(name: str, below: dict[str, set[str]], path: tuple[str, ...] = ()) -> int:
    """Return the floor a node is on, counted from 1; a circle is an error."""
    assert name not in path, f"a circle of imports: {' -> '.join([*path, name])}"
    return 1 + max((height(other, below, (*path, name)) for other in below[name]), default=0)


def compare(found: set[str], kind: str, why: str) -> None:
    new, mended = found - KNOWN[kind], KNOWN[kind] - found
    assert not new, f"{why}: {sorted(new)}"
    assert not mended, f"well done: delete {sorted(mended)} from KNOWN[{kind!r}] in {Path(__file__).name}"


def test_every_folder_is_a_room():
    assert {path.name for path in SKYLIB.iterdir() if path.is_dir() and any(path.glob("*.py"))} == set(ROOMS)


def test_imports_point_one_way():
    wrong = set()
    for name, other in edges():
        here, target = node(name), node(other)
        if here == target or floor(target) == GROUND:
            continue
        if target not in ALLOWED[floor(here)]:
            wrong.add(f"{name} -> {other}")
    compare(wrong, "direction", "an import points along data, model, training, evaluation or down to the ground")


def test_no_circle_among_modules():
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for name, other in edges():
        below[name].add(other)
    for name in list(below):  # a package's own __init__ only gathers names of its modules
        if modules()[name].name == "__init__.py":
            below[name] = {other for other in below[name] if not other.startswith(f"{name}.")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join([*path, name])}"
        if name not in done:
            for other in sorted(below[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in below:
        visit(name, ())


def test_picture_of_the_imports_is_small():
    below = picture()
    heights = {name: height(name, below) for name in below}
    assert len(below) <= 20, sorted(below)
    assert max(heights.values()) <= 8, heights


def test_no_private_name_across_modules():
    found = set()
    for name in modules():
        taken = set()
        for statement in ast.walk(tree(name)):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == "skylib":
                taken |= {alias.asname or alias.name for alias in statement.names}
                found |= {f"{name} -> {a.name}" for a in statement.names if private(a.name)}
        for expression in ast.walk(tree(name)):
            if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):  # noqa: SIM102
                if expression.value.id in taken and private(expression.attr):
                    found.add(f"{name} -> {expression.value.id}.{expression.attr}")
    compare(found, "private", "a name that begins with _ stays in its module")


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_only_browse_imports_widgets():
    found = set()
    for name in modules():
        for statement in ast.walk(tree(name)):
            if isinstance(statement, ast.Import):
                names = {alias.name.split(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom):
                names = {(statement.module or "").split(".")[0]}
            else:
                continue
            if names & WIDGETS and node(name) != "browse":
                found.add(name)
    compare(found, "widgets", "widgets belong into skylib/browse")


def test_modules_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    found = {name for name, n in lengths.items() if n > LONGEST}
    compare(found, "length", f"longer than {LONGEST} lines")


@pytest.mark.parametrize("name", sorted(modules()))
def test_module_says_what_it_is_for(name):
    assert ast.get_docstring(tree(name)), f"skylib/{name} has no docstring"
