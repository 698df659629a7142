"""Choosing objects by their labels: ranges, values, lists of values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from skylib.embed import Embeddings

Where = Mapping[str, Any]


def matching_rows(embeddings: Embeddings, where: Where) -> np.ndarray:
    """Tell which objects fulfil all conditions.

    Parameters
    ----------
    embeddings : Embeddings
    where : mapping
        ``{column: (low, high)}`` with both ends included and None for an open end, ``{column: value}``, or
        ``{column: [value, …]}``. The columns are the labels, and ``ra`` and ``dec``.

    Returns
    -------
    ndarray of bool, shape (n,)
        An unknown value (NaN) fulfils no range.

    Raises
    ------
    KeyError
        If there is no such column; the message lists those there are.
    ValueError
        If a range is not a pair, or its column holds text.

    Examples
    --------
    >>> e = Embeddings(np.eye(3), ra=np.arange(3.0), dec=np.zeros(3), columns={"mag": np.array([21, 23, np.nan])})
    >>> matching_rows(e, {"mag": (None, 24), "ra": [1, 2]})
    array([False,  True, False])
    """
    chosen = np.ones(len(embeddings), dtype=bool)
    for name, wanted in where.items():
        values = getattr(embeddings, name) if name in ("ra", "dec") else embeddings.column(name)
        if isinstance(wanted, tuple):
            if len(wanted) != 2 or values.dtype.kind not in "iufb":
                raise ValueError(f"filter {name}={wanted!r}: a range is (low, high), of a column of numbers")
            low, high = (np.inf * sign if end is None else end for end, sign in zip(wanted, (-1, 1), strict=True))
            chosen &= (values >= low) & (values <= high)
        else:
            chosen &= np.isin(values, list(wanted) if isinstance(wanted, (list, set, np.ndarray)) else [wanted])
    return chosen


def parse_filter(text: str) -> dict[str, Any]:
    """Read conditions as one types them: ``mag_i 20..24; class = 0; rare = dwarf, arc``.

    Raises
    ------
    ValueError
        If a condition is of another form.

    Examples
    --------
    >>> parse_filter("mag_i ..24.5; class = 0; rare = dwarf, arc")
    {'mag_i': (None, 24.5), 'class': 0, 'rare': ['dwarf', 'arc']}
    """
    where: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        if between := re.fullmatch(r"(\w+)\s*=?\s*(\S*?)\s*\.\.\s*(\S*)", part):
            try:
                ends = tuple(float(end) if end else None for end in between.groups()[1:])
            except ValueError as error:
                raise ValueError(f"filter {part!r}: a range is 'column low..high', in numbers") from error
            where[between[1]] = ends
        elif equal := re.fullmatch(r"(\w+)\s*=\s*(.+)", part):
            values = [_value(value.strip()) for value in equal[2].split(",")]
            where[equal[1]] = values[0] if len(values) == 1 else values
        else:
            raise ValueError(f"filter {part!r}: must be 'column low..high' or 'column = value, …', separated by ';'")
    return where


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
