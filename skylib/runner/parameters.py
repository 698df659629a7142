"""Parameters of a notebook: its cell of typed literals, and values given from outside, checked by name and type."""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import os
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

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
        found = sorted(p.name for p in path.parent.glob("*.ipynb"))
        raise FileNotFoundError(f"{path}: no such notebook; in its folder: {', '.join(found) or 'none'}")
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
        annotation = ast.unparse(node.annotation)
        try:
            _type(annotation)
        except (ValueError, SyntaxError, TypeError) as error:
            raise ValueError(f"{text!r}: {error}") from None
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{text!r}: the value must be a literal") from None
        end = node.end_lineno or node.lineno
        comment = next((comments[n] for n in (end, *range(node.lineno, end)) if n in comments), "")
        parameter = Parameter(node.target.id, annotation, default, comment)
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
    return share(texts, [Path(notebook)])[Path(notebook)]


def share(texts: Iterable[str], notebooks: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Give each parameter to each of the notebooks that has it: `parse_overrides` for several notebooks.

    Returns
    -------
    dict
        The checked values for each notebook.
    """
    parameters = {path: notebook_parameters(path) for path in notebooks}
    everything = {name: parameter for found in parameters.values() for name, parameter in found.items()}
    where = next(iter(parameters)) if len(parameters) == 1 else "the notebooks"
    given: dict[str, str] = {}
    for text in texts:
        name, value = split_override(text)
        find_parameter(everything, name, where=where)
        if name in given:
            raise ValueError(f"{text!r}: {name} is given twice")
        given[name] = value
    return {
        path: {name: parse_value(own[name], value) for name, value in given.items() if name in own}
        for path, own in parameters.items()
    }


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
    wanted = _type(parameter.annotation)
    members = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    if str not in members:
        return check_value(parameter, literal)
    if literal is None and NoneType not in members:
        raise TypeError(f"{parameter.name}=None: must be {parameter.annotation} (the word itself needs quotes)")
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
        return _fit(value, _type(parameter.annotation))
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


def _type(annotation: str) -> Any:
    """Return the type that an annotation names. No other word is evaluated than those of `_TYPES`."""
    if not re.fullmatch(rf"(\b({'|'.join(_TYPES)}|None)\b|\.\.\.|[\[\],|\s])+", annotation):
        raise ValueError(f"unknown type; allowed are {', '.join(_TYPES)}, None, list[…], tuple[…] and unions by |")
    return eval(annotation)


def _fit(value: Any, wanted: Any) -> Any:
    """Return the value as a plain Python object of the wanted type, or raise TypeError."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is UnionType:
        for member in inner:
            with suppress(TypeError):
                return _fit(value, member)
    elif origin in (list, tuple):
        if type(value) is origin:
            if origin is list or inner[-1] is ...:
                inner = inner[:1] * len(value)
            if len(inner) == len(value):
                return origin(map(_fit, value, inner))
    elif wanted is float and isinstance(value, float | int) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("must be finite")
        return float(value)  # NumPy's float64 too, whose repr is no literal
    elif wanted is str and isinstance(value, str | os.PathLike):
        return str(value)
    elif type(value) is wanted:  # not isinstance: True is no int
        return value
    raise TypeError
