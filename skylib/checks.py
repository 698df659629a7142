"""Checks of values that a user gives, with messages that say what is allowed."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError, naming the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        allowed = f"at least {low}" if high == float("inf") else f"{low} to {high}"
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def check_ranges(config: object, names: str, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless ``low <= value <= high`` for the attributes of these names, separated by spaces."""
    for name in names.split():
        check_range(name, getattr(config, name), low, high)


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: `name`, or with ``_label`` behind it as often as need be.

    Examples
    --------
    >>> free_name("rank", {"score"}), free_name("rank", {"rank", "rank_label"})
    ('rank', 'rank_label_label')
    """
    while name in taken:
        name += "_label"
    return name


def check_literals(config: object) -> None:
    """Raise ValueError unless each field of a dataclass whose type is a Literal holds one of its values."""
    for name, hint in get_type_hints(type(config)).items():
        options = (hint, *get_args(hint))
        allowed = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
        if allowed:
            check_choice(name, getattr(config, name), (*allowed, *([None] if type(None) in options else [])))
