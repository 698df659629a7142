"""Facts about one object, and tables of many."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from skylib.browse.answers import number
from skylib.browse.state import BrowserState
from skylib.data.cutouts import CutoutFile
from skylib.data.cutouts.catalogue import read_catalogue
from skylib.data.sky import nearest_within
from skylib.model.embeddings import Embeddings
from skylib.search.export import sky_links
from skylib.search.filters import Names

FILES = {".fits", ".fz", ".gz", ".h5", ".hdf5"}  # a label that names such a file is no fact about an object
MOST_NAMES = 64  # a column with larger numbers holds no classes
MATCHED = 1.5  # arcsec, within which an object of another catalogue counts as the same


def class_names(embeddings: Embeddings, cutouts: CutoutFile) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes in each column of classes, where the file of cutouts has them."""
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


def known_objects(ra: np.ndarray, dec: np.ndarray, catalogue: str | Path | Table) -> np.ndarray:
    """Return for each position the name of the nearest object of a catalogue within 1.5 arcsec, or an empty text.

    Parameters
    ----------
    ra, dec : ndarray of float, shape (n,)
        Degrees.
    catalogue : path or Table
        For `read_catalogue`; without ``name``, its objects are called ``yes``.
    """
    table = read_catalogue(catalogue)
    names = np.asarray(table["name"]).astype(str) if "name" in table.colnames else np.full(len(table), "yes")
    return np.append(names, "")[nearest_within(ra, dec, table["ra"], table["dec"], radius=MATCHED)]


def objects_table(rows: list[int], embeddings: Embeddings, state: BrowserState) -> Table:
    """Return some objects as a table: index, ra, dec, labels, and tags where there are any."""
    chosen = np.array(rows, dtype=int)
    table = Table({"index": chosen, "ra": embeddings.ra[chosen], "dec": embeddings.dec[chosen]})
    for name, values in embeddings.columns.items():
        table[f"{name}_label" if name in table.colnames else name] = values[chosen]
    if state.tags:
        table["tags"] = np.array([", ".join(state.tags.get(row, [])) for row in rows], dtype=str)
    return table
