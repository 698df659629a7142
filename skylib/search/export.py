"""Lists of objects taken home: catalogues, DS9 regions, and links to surveys."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
from astropy.table import Table

from skylib.files import replaced

FORMATS = {"csv": "ascii.csv", "vot": "votable", "fits": "fits", "reg": None}  # suffix: astropy's name


def write_objects(table: Table, stem: str | Path, *, radius: float = 3.0) -> list[Path]:
    """Write a table of objects as CSV, VOTable, FITS and DS9 regions.

    Parameters
    ----------
    table : Table
        With ``ra`` and ``dec`` in degrees ICRS.
    stem : path
        Without suffix: ``folder/name`` gives ``folder/name.csv``, ``.vot``, ``.fits`` and ``.reg``.
    radius : float
        Of the circles in the region file, arcsec.

    Returns
    -------
    list of Path

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    table = table.copy()
    table.meta.clear()  # FITS has no place for it
    for name in ("ra", "dec"):
        table[name].unit = "deg"
    paths = []
    for suffix, form in FORMATS.items():
        path = Path(stem).with_name(f"{Path(stem).name}.{suffix}")
        with replaced(path) as partial:
            if form is None:
                partial.write_text(ds9_regions(table, radius=radius))
            else:
                table.write(partial, format=form, overwrite=True)
        paths.append(path)
    return paths


def ds9_regions(table: Table, *, radius: float = 3.0) -> str:
    """Return DS9 regions: a circle (arcsec) around each object, with its index as the label."""
    names = table["index"] if "index" in table.colnames else np.arange(len(table))
    circles = [
        f'circle({ra:.7f},{dec:.7f},{radius:g}") # text={{{name}}}'
        for ra, dec, name in zip(table["ra"], table["dec"], names, strict=True)
        if np.isfinite(ra) and np.isfinite(dec)
    ]
    return "\n".join(["# Region file format: DS9 version 4.1", "icrs", *circles]) + "\n"


def sky_links(ra: float, dec: float) -> dict[str, str]:
    """Return where to look at a position (degrees ICRS): HSC map, Legacy Survey viewer, SIMBAD.

    Examples
    --------
    >>> sky_links(150.0, 2.2)["Legacy viewer"]
    'https://www.legacysurvey.org/viewer?ra=150.000000&dec=2.200000&layer=hsc-dr3&zoom=16'
    """
    view = {"view": {"a": round(np.deg2rad(ra), 9), "d": round(np.deg2rad(dec), 9), "fovy": 0.0003, "roll": 0}}
    return {
        "HSC map": f"https://hscmap.mtk.nao.ac.jp/hscMap4/app/#/?_={quote(json.dumps(view, separators=(',', ':')))}",
        "Legacy viewer": f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=hsc-dr3&zoom=16",
        "SIMBAD": f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra:.6f}{quote(f'{dec:+.6f}')}&CooFrame=ICRS&Radius=10&Radius.unit=arcsec",
    }
