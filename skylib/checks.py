"""Checks of values that a user gives, with messages that say what is allowed."""

from __future__ import annotations

from typing import Any


def check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError, naming the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(
            f"{name}={value!r}: must be {f'at least {low}' if high == float('inf') else f'{low} to {high}'}"
        )
