"""Facts about one object, and tables of many."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import PurePath
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from skylib.browse.answers import number
from skylib.browse.state import BrowserState
from skylib.data.cutouts import CutoutFile
from skylib.data.plain import degrees
from skylib.model.embeddings import Embeddings
from skylib.search.export import sky_links
from skylib.search.filters import Names

FILES = {".fits", ".fz", ".gz", ".h5", ".hdf5"}  # a label that names such a file is no fact about an object
MOST_NAMES = 64  # numbers beyond are no kinds
MATCHED = 1.5  # arcsec between an object and one of a catalogue that is the same


def class_names(embeddings: Embeddings, cutouts: CutoutFile) -> dict[str, tuple[str, ...]]:
    """Return what the numbers of columns of kinds are called, where the file of cutouts says so."""
    found = {}
    for name, values in embeddings.columns.items():
        if name in cutouts.columns and values.dtype.kind in "iu" and values.max(initial=0) < MOST_NAMES:
            names = cutouts.class_names(name)
            if names != tuple(map(str, range(len(names)))):
                found[name] = names
    return found


def facts(row: int, ra: float, dec: float, *, labels: Mapping[str, Any], names: Names, links: bool) -> str:
    """Return a table in HTML: position, links to surveys, and all labels that say something; all text is escaped."""
    lines = [("position", "unknown")]
    if np.isfinite(ra) and np.isfinite(dec):
        sexagesimal = SkyCoord(ra, dec, unit="deg").to_string("hmsdms", sep=":", precision=2)
        lines = [("ra, dec", f"{ra:.6f} {dec:+.6f}"), ("", sexagesimal)]
    for name, value in labels.items():
        text = number(value)
        if text in ("", "nan") or PurePath(text).suffix in FILES:
            continue
        called = names.get(name, ())
        is_kind = len(called) > 0 and isinstance(value, (int, np.integer)) and 0 <= value < len(called)
        lines.append((name, f"{called[value]} ({value})" if is_kind else text))
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in lines)
    linked = ""
    if links and np.isfinite(ra) and np.isfinite(dec):
        linked = " · ".join(
            f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{escape(name)}</a>'
            for name, url in sky_links(ra, dec).items()
        )
    return (
        f"<div class='sky-facts' role='region' aria-label='facts about object {row}'><b>object {row}</b> {linked}"
        f"<table>{cells}</table></div>"
    )


def known_objects(ra: np.ndarray, dec: np.ndarray, catalogue: Table) -> np.ndarray:
    """Return for each position the name of the nearest object of a catalogue within 1.5 arcsec, or an empty text.

    Parameters
    ----------
    ra, dec : ndarray of float, shape (n,)
        Degrees.
    catalogue : Table
        With ``ra`` and ``dec`` in degrees; without ``name``, its objects are called ``yes``.
    """
    if missing := [name for name in ("ra", "dec") if name not in catalogue.colnames]:
        raise ValueError(f"catalogue: no column {', '.join(missing)}; columns: {', '.join(catalogue.colnames)}")
    names = (
        np.asarray(catalogue["name"]).astype(str) if "name" in catalogue.colnames else np.full(len(catalogue), "yes")
    )
    found = np.full(len(ra), "", dtype=object)
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    ra0, dec0 = (degrees(catalogue[name], name, hours=name == "ra") for name in ("ra", "dec"))
    held = np.flatnonzero(np.isfinite(ra0) & np.isfinite(dec0))
    if len(placed) and len(held):
        others = SkyCoord(ra0[held], dec0[held], unit="deg")
        nearest, separation, _ = SkyCoord(ra[placed], dec[placed], unit="deg").match_to_catalog_sky(others)
        same = separation < MATCHED * u.arcsec
        found[placed[same]] = names[held[nearest[same]]]
    return found.astype(str)


def objects_table(
    rows: list[int], ra: np.ndarray, dec: np.ndarray, columns: Mapping[str, np.ndarray], state: BrowserState
) -> Table:
    """Return some objects as a table: index, ra, dec, labels, and tags where there are any."""
    chosen = np.array(rows, dtype=int)
    table = Table({"index": chosen, "ra": ra[chosen], "dec": dec[chosen]})
    for name, values in columns.items():
        table[f"{name}_label" if name in table.colnames else name] = values[chosen]
    if state.tags:
        table["tags"] = np.array([", ".join(state.tags.get(row, [])) for row in rows], dtype=str)
    return table
