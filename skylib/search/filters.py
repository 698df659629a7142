"""Choosing objects by their labels: ranges, values, lists of values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil, floor
from numbers import Integral, Real
from typing import Any

import numpy as np

from skylib.checks import checked
from skylib.data.plain import EXACT
from skylib.model.embeddings import Embeddings

Where = Mapping[str, Any] | str
Names = Mapping[str, Sequence[str]]  # column: what its numbers 0, 1, … are called

NUMBER = r"[^\s'\"=<>]+"


def matching_rows(embeddings: Embeddings, where: Where, *, names: Names | None = None) -> np.ndarray:
    """Return which objects fulfil all conditions.

    Parameters
    ----------
    embeddings : Embeddings
    where : mapping
        ``{column: (low, high)}`` with both ends included and None for an open end, ``{column: value}``, or
        ``{column: [value, …]}``; or the same as text, for `parse_filter`. Columns are the labels, ``ra`` and ``dec``.
    names : mapping, optional
        What the numbers of a column are called, such as ``{"class": ("galaxy", "qso", "star")}``, so that
        ``{"class": "galaxy"}`` is understood.

    Returns
    -------
    ndarray of bool, shape (n,)
        An unknown value (NaN) fulfils no range.

    Raises
    ------
    KeyError
        If there is no such column; the message lists those there are.
    ValueError
        If a range is not a pair, reversed, or of a column of text; or if NaN is asked for, text meets a column of
        numbers, or a number one of text.

    Examples
    --------
    >>> e = Embeddings(np.eye(3), ra=np.arange(3.0), dec=np.zeros(3), columns={"mag": np.array([21, 23, np.nan])})
    >>> matching_rows(e, {"mag": (None, 24), "ra": [1, 2]})
    array([False,  True, False])
    """
    chosen = np.ones(len(embeddings), dtype=bool)
    for name, wanted in (parse_filter(where) if isinstance(where, str) else where).items():
        values = getattr(embeddings, name) if name in ("ra", "dec") else embeddings.column(name)
        kind, of_numbers = values.dtype.kind, values.dtype.kind in "iufb"
        if isinstance(wanted, tuple):
            if len(wanted) != 2 or not of_numbers:
                raise ValueError(f"filter {name}={wanted!r}: a range is (low, high), of a column of numbers")
            low, high = open_range(wanted, name=f"filter {name}")  # float64, not rounded, whatever the column
            if kind in "iu":  # whole numbers above 2^53 are compared as such
                low, high = (end if abs(end) == np.inf else to(end) for to, end in ((ceil, low), (floor, high)))
            chosen &= (values >= low) & (values <= high)
            continue
        wanted = list(np.atleast_1d(wanted)) if isinstance(wanted, np.ndarray) else wanted
        wanted = list(wanted) if isinstance(wanted, list | set) else [wanted]
        called = [str(one).lower() for one in (names or {}).get(name, ())]
        wanted = [called.index(v.lower()) if isinstance(v, str) and v.lower() in called else v for v in wanted]
        for value in wanted:
            if not (_is_number(value) if of_numbers else isinstance(value, str)):
                hint = f", called {', '.join(called)}" if called else ""
                hint = hint if of_numbers else "; put in quotes what looks like a number or holds a comma"
                held = "numbers" if of_numbers else "text"
                raise ValueError(f"filter {name}={value!r}: the column holds {held}{hint}")
        if kind in "iu":
            info = np.iinfo(values.dtype)
            wanted = [int(value) for value in wanted if value % 1 == 0 and info.min <= value <= info.max]
        if not of_numbers:  # spaces around a text, as files pad them, mean nothing
            values, wanted = np.char.strip(values), [value.strip() for value in wanted]
        chosen &= np.isin(values, np.array(wanted, values.dtype if kind in "iuf" else None))
    return chosen


def open_range(ends: tuple[float | None, float | None], *, name: str = "range") -> tuple[float, float]:
    """Return the ends of a range, minus and plus infinity for None; floats as float64, whole numbers as they are.

    Raises
    ------
    ValueError
        If an end is no number, or the low end is above the high one; the message begins with `name`.

    Examples
    --------
    >>> open_range((None, 24.5))
    (-inf, 24.5)
    """
    low, high = (np.inf * sign if end is None else end for sign, end in zip((-1, 1), ends, strict=True))
    if not (_is_number(low) and _is_number(high) and low <= high):
        raise ValueError(f"{name}={ends!r}: must be (low, high), two numbers or None, and low not above high")
    low, high = (int(end) if isinstance(end, Integral) else float(end) for end in (low, high))
    return low, high


def _is_number(value: Any) -> bool:
    real = isinstance(value, Real | np.bool_)
    return real and (abs(value) < 1e300 or abs(value) == np.inf)  # not NaN


@checked
def parse_filter(text: str) -> dict[str, Any]:
    """Read conditions as one types them: ``mag_i < 22; z_spec 0.2..0.4; class = galaxy, qso; tile = '9813-4,5'``.

    Conditions are separated by ``;`` or ``and``. What is in quotes, single or double, is one text, whatever it holds.

    Raises
    ------
    ValueError
        If a condition is of another form.

    Examples
    --------
    >>> parse_filter("mag_i ..24.5; class = 0; rare = dwarf, arc")
    {'mag_i': (None, 24.5), 'class': 0, 'rare': ['dwarf', 'arc']}
    >>> parse_filter("snr >= 5 and snr <= 9 and tile = '9813-4,5', '9813-4,6'")
    {'snr': (5.0, 9.0), 'tile': ['9813-4,5', '9813-4,6']}
    """
    where: dict[str, Any] = {}
    for part in _split(re.sub(r"\s+and\s+(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", ";", text), ";"):
        if between := re.fullmatch(rf"({NUMBER})\s*=?\s*([^\s'\"]*?)\s*\.\.\s*([^\s'\"]*)", part):
            ends = [_number(end, part) if end else None for end in between.groups()[1:]]
            _narrow(where, between[1], (ends[0], ends[1]))
        elif compared := re.fullmatch(rf"({NUMBER})\s*(<=|>=|<|>)\s*({NUMBER})", part):
            name, sign, value = compared[1], compared[2], _number(compared[3], part)
            if len(sign) == 1:  # the ends of a range are included
                step = -1 if sign == "<" else 1
                value = value + step if isinstance(value, int) else float(np.nextafter(value, step * np.inf))
            _narrow(where, name, (None, value) if sign[0] == "<" else (value, None))
        elif (equal := re.fullmatch(rf"({NUMBER})\s*==?\s*([^=<>].*)", part)) and (texts := _split(equal[2], ",")):
            values = [_value(value) for value in texts]
            where[equal[1]] = values[0] if len(values) == 1 else values
        else:
            raise ValueError(
                f"filter {part!r}: must be 'column low..high', 'column < value' or 'column = value, …'; "
                "conditions are separated by ';'"
            )
    return where


def _narrow(where: dict[str, Any], name: str, ends: tuple[float | None, float | None]) -> None:
    """Add a range; two of one column leave what lies in both."""
    before = where.get(name)
    if isinstance(before, tuple):
        lows, highs = ([x for x in pair if x is not None] for pair in zip(before, ends, strict=True))
        ends = (max(lows) if lows else None, min(highs) if highs else None)
    where[name] = ends


def _number(text: str, part: str) -> float:
    try:
        return int(text) if text.lstrip("+-").isdigit() and abs(int(text)) > EXACT else float(text)
    except ValueError as error:
        raise ValueError(f"filter {part!r}: {text!r} is not a number, as a range or a comparison needs") from error


def _split(text: str, separator: str) -> list[str]:
    """Return the parts between separators that are not in quotes, without empty ones."""
    parts = re.findall(rf"""(?:'[^']*'|"[^"]*"|[^{separator}])+""", text)
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> int | float | str:
    if quoted := re.fullmatch(r"(['\"])(.*)\1", text):
        return quoted[2]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
