"""How surveys name their files."""

from __future__ import annotations

import re
from pathlib import Path

from skylib.bands import canonical_band, is_band

PIXEL_SCALE = 0.168  # arcsec, HSC coadds

_FITS = r"\.fits(?:\.fz|\.gz)?"
_COADD_NAME = re.compile(rf"(?:calexp-)?(?:[A-Za-z]+-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>\d+-\d+,\d+){_FITS}")
_CUTOUT_NAME = re.compile(rf"(?P<number>(?:\d+-)?)cutout-(?:HSC-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>.+?){_FITS}")


def split_tile_name(path: Path) -> tuple[str, str] | None:
    """Return the band and the tile name that a file name states, or None where it states none.

    Of coadds, the last three ``-`` parts of the stem are band, tract and patch. HSC's cutout service puts a number and
    the word ``cutout`` before the band, and tract, rerun and more behind it.

    Examples
    --------
    >>> split_tile_name(Path("calexp-HSC-I-9813-4,5.fits")), split_tile_name(Path("NB0816-9813-4,5.fits.fz"))
    (('i', '9813-4,5'), ('NB0816', '9813-4,5'))
    >>> split_tile_name(Path("det-HSC-I-9813-4,5.fits"))  # the detections of the same coadd
    >>> split_tile_name(Path("2-cutout-HSC-I-8279-pdr2_wide.fits"))
    ('i', '2-8279-pdr2_wide')
    """
    for pattern in (_COADD_NAME, _CUTOUT_NAME):
        match = pattern.fullmatch(path.name)
        if match is not None and is_band(match["band"]):
            return canonical_band(match["band"]), match.groupdict().get("number", "") + match["tile"]
    return None
