"""Surveys: those known from the start (``surveys.toml``), and others by registration or from a file."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from skylib.checks import checked
from skylib.data.description import Survey

_OWN = Path(__file__).with_name("surveys.toml")
_SURVEYS = {name: Survey(name=name, **about) for name, about in tomllib.loads(_OWN.read_text("utf-8")).items()}
HSC = _SURVEYS["hsc"]


@checked
def register_survey(survey: Survey) -> Survey:
    """Make a survey known by its name, in place of any other of that name, and return it.

    Examples
    --------
    >>> survey = skylib.Survey(name="mini", bands="gri", file_names="{tile}_{band}", zero_point=25.0, pixel_scale=0.2)
    >>> skylib.register_survey(survey) is skylib.get_survey("mini")
    True
    """
    _SURVEYS[survey.name.lower()] = survey
    return survey


@checked
def get_survey(survey: str | Path | Survey) -> Survey:
    """Return a survey by its name, or read its description from a TOML file with the fields of `Survey`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the name is unknown, or the file does not describe a survey; the message names it.

    Examples
    --------
    >>> get_survey("sdss").zero_point
    22.5
    """
    if isinstance(survey, Survey):
        return survey
    if str(survey).lower() in _SURVEYS:
        return _SURVEYS[str(survey).lower()]
    path = Path(str(survey))
    if path.suffix != ".toml":
        names = ", ".join(repr(name) for name in sorted(_SURVEYS))
        raise ValueError(f"survey={str(survey)!r}: one of {names}, a Survey, or the path of a .toml file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such description of a survey")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        allowed = [f.name for f in fields(Survey)]
        if unknown := sorted(set(content) - set(allowed)):
            raise ValueError(f"unknown fields {', '.join(unknown)}; fields are {', '.join(allowed)}")
        return Survey(**{"name": path.stem, **content})
    except (ValueError, TypeError, RecursionError) as error:  # also what is no TOML, or no text
        raise ValueError(f"{path}: does not describe a survey: {error}") from error
