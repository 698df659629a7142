"""Parameters of a notebook: its cell of typed literals, and values given from outside, checked by name and type."""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import os
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "tuple": tuple}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's cell tagged ``parameters``: ``name: type = default  # comment``."""

    name: str
    annotation: str
    default: Any
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation} = {self.default!r}" + (f"  # {self.comment}" if self.comment else "")


def notebook_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name, in their order.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook; the message lists those beside it.
    ValueError
        If it has no cell tagged ``parameters``, or a line of that cell is no typed literal.
    """
    path = Path(notebook)
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.ipynb"))
        raise FileNotFoundError(f"{path}: no such notebook; in its folder: {', '.join(there) or 'none'}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = ["".join(cell["source"]) for cell in cells if is_tagged(cell, "parameters")]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a notebook: {type(error).__name__}: {error}") from error
    if len(tagged) != 1:
        raise ValueError(f"{path}: {len(tagged)} cells are tagged 'parameters': must be one")
    try:
        return {p.name: p for p in _read_parameters(tagged[0])}
    except (ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"{path}: the cell tagged 'parameters': {error}") from error


def _read_parameters(source: str) -> Iterator[Parameter]:
    statements = ast.parse(source).body
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in statements:
        text = ast.unparse(node)
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
            raise ValueError(f"{text!r} must read 'name: type = literal  # comment'")
        if not _is_type(node.annotation):
            known = f"{', '.join(_TYPES)}, None, list[…], tuple[…] and unions of them by |"
            raise ValueError(f"{text!r}: unknown type; known are {known}")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{text!r}: the value must be a literal") from None
        end = node.end_lineno or node.lineno
        comment = next((comments[n] for n in (end, *range(node.lineno, end)) if n in comments), "")
        parameter = Parameter(node.target.id, ast.unparse(node.annotation), default, comment)
        check_value(parameter, default)
        yield parameter


def parse_overrides(texts: Iterable[str], notebook: str | Path) -> dict[str, Any]:
    """Turn ``name=value`` texts into values of the types that the notebook states.

    Parameters
    ----------
    texts : iterable of str
        A parameter of type ``str`` takes the text as it is, with or without quotes; all others a Python literal.
    notebook : path

    Raises
    ------
    ValueError
        If a text has no ``=``, or a name is unknown or given twice.
    TypeError
        If a value is not of the type stated.
    """
    known, values = notebook_parameters(notebook), {}
    for text in texts:
        name, value = split_override(text)
        if name in values:
            raise ValueError(f"{text!r}: {name} is given twice")
        values[name] = parse_value(find_parameter(known, name, where=notebook), value)
    return values


def share(overrides: Mapping[str, Any] | Iterable[str], notebooks: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Give each parameter to each of the notebooks that has it.

    Parameters
    ----------
    overrides : mapping, or iterable of ``name=value``
    notebooks : iterable of path

    Returns
    -------
    dict
        The checked values for each notebook.

    Raises
    ------
    ValueError, TypeError
        If no notebook has such a parameter, or of such a type.
    """
    parameters = {path: notebook_parameters(path) for path in notebooks}
    everything = {name: parameter for found in parameters.values() for name, parameter in found.items()}
    texts = [] if isinstance(overrides, Mapping) else list(overrides)
    named = list(overrides) if isinstance(overrides, Mapping) else [split_override(text)[0] for text in texts]
    for name in named:
        find_parameter(everything, name, where="the notebooks")
    shared: dict[Path, dict[str, Any]] = {}
    for path, own in parameters.items():
        if isinstance(overrides, Mapping):
            shared[path] = {name: check_value(own[name], value) for name, value in overrides.items() if name in own}
        else:
            shared[path] = parse_overrides([text for text in texts if split_override(text)[0] in own], path)
    return shared


def split_override(text: str) -> tuple[str, str]:
    """Part ``name=value`` at the first ``=``.

    Examples
    --------
    >>> split_override("query=z_spec==0")
    ('query', 'z_spec==0')
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"{text!r}: must read name=value")
    return name.strip(), value


def parse_value(parameter: Parameter, text: str) -> Any:
    """Return the value that a text means for a parameter.

    Examples
    --------
    >>> parse_value(Parameter("run", "str", ""), "007"), parse_value(Parameter("rate", "float", 0.1), "3e-4")
    ('007', 0.0003)
    """
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError):
        literal = text
    members = {ast.unparse(member) for member in _members(ast.parse(parameter.annotation, mode="eval").body)}
    if "str" not in members:
        return check_value(parameter, literal)
    if literal is None and "None" not in members:
        raise TypeError(
            f"{parameter.name}=None: must be {parameter.annotation} (for the word itself, write quotes around it)"
        )
    try:  # quoted text, None, or another member of a union; all else is text as it stands
        return check_value(parameter, literal)
    except TypeError:
        return text


def check_value(parameter: Parameter, value: Any) -> Any:
    """Return the value as the notebook will get it, or raise TypeError.

    A float may be given as int, text as path; True is no int.

    Examples
    --------
    >>> check_value(Parameter("rate", "float", 0.1), 3)
    3.0
    """
    try:
        return _fit(value, ast.parse(parameter.annotation, mode="eval").body)
    except TypeError:
        hint = " (True or False)" if "bool" in parameter.annotation else ""
        got = f"{parameter.name}={value!r} is of type {type(value).__name__}"
        raise TypeError(f"{got}: must be {parameter.annotation}{hint}") from None
    except ValueError as error:
        raise ValueError(f"{parameter.name}={value!r}: {error}") from None


def find_parameter(parameters: Mapping[str, Parameter], name: str, *, where: object) -> Parameter:
    """Return a parameter by name, or raise ValueError with the nearest name and all known ones."""
    if name == "run_dir":
        raise ValueError("run_dir: is given as the run folder, and cannot be given a second time as a parameter")
    if name in parameters:
        return parameters[name]
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(f"{p.name}: {p.annotation}" for p in parameters.values() if p.name != "run_dir")
    raise ValueError(f"{where}: unknown parameter {name!r}; {hint}known are {listed}")


def is_tagged(cell: Mapping[str, Any], tag: str) -> bool:
    """Return whether a cell of a notebook bears a tag."""
    return tag in cell.get("metadata", {}).get("tags", [])


def _is_type(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _is_type(node.left) and _is_type(node.right)
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in ("list", "tuple") and all(map(_is_type, _inner(node)))
    if isinstance(node, ast.Constant):
        return node.value is None or isinstance(node.value, EllipsisType)
    return isinstance(node, ast.Name) and node.id in _TYPES


def _members(node: ast.expr) -> list[ast.expr]:
    """Return the members of a union, or the one type."""
    return [*_members(node.left), *_members(node.right)] if isinstance(node, ast.BinOp) else [node]


def _inner(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _fit(value: Any, wanted: ast.expr) -> Any:
    """Return the value as a plain Python object of the wanted type, or raise TypeError."""
    if isinstance(wanted, ast.BinOp):
        for member in _members(wanted):
            try:
                return _fit(value, member)
            except TypeError:
                continue
    elif isinstance(wanted, ast.Subscript):
        container, inner = _TYPES[ast.unparse(wanted.value)], _inner(wanted)
        if type(value) is container:
            if container is list or ast.unparse(inner[-1]) == "...":
                inner = inner[:1] * len(value)
            if len(inner) == len(value):
                return container(_fit(v, w) for v, w in zip(value, inner, strict=True))
    elif isinstance(wanted, ast.Constant):
        if value is None:
            return None
    elif (kind := ast.unparse(wanted)) == "float" and isinstance(value, float | int) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("must be finite")
        return float(value)  # NumPy's float64 too, whose repr is no literal
    elif kind == "str" and isinstance(value, str | os.PathLike):
        return str(value)
    elif type(value) is _TYPES[kind]:  # not isinstance: True is no int
        return value
    raise TypeError
