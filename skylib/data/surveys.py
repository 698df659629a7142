"""Surveys: those known from the start, in the layout of their archives, and others by registration or from a file."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from skylib.bands import BROAD_BANDS, NARROW_BANDS
from skylib.data.description import PIXEL_SCALE, Survey

_HSC_NAMES = (  # a coadd: the last three parts are band, tract and patch; then files of the cutout service
    r"(?:calexp-)?(?:[A-Za-z]+-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>\d+-\d+,\d+)",
    r"(?P<number>(?:\d+-)?)cutout-(?:HSC-)?(?P<band>[A-Za-z]+\d*)-(?P<tile>.+?)",
)
_HST_BANDS = {
    "F275W": 271, "F336W": 336, "F435W": 433, "F438W": 433, "F475W": 474, "F555W": 536, "F606W": 592, "F625W": 631,
    "F775W": 769, "F814W": 804, "F850LP": 903, "F098M": 986, "F105W": 1055, "F110W": 1153, "F125W": 1249, "F140W": 1392,
    "F160W": 1537,
}  # fmt: skip
_JWST_BANDS = {
    "F070W": 704, "F090W": 902, "F115W": 1154, "F150W": 1501, "F200W": 1988, "F277W": 2776, "F335M": 3362, "F356W": 3565,
    "F410M": 4084, "F444W": 4402, "F560W": 5635, "F770W": 7639, "F1000W": 9953, "F1500W": 15065, "F1800W": 17987,
    "F2100W": 20795,
}  # fmt: skip

HSC = Survey(
    name="hsc", bands=(*BROAD_BANDS, *NARROW_BANDS), file_names=_HSC_NAMES, zero_point=27.0, pixel_scale=PIXEL_SCALE,
    image_hdu=("IMAGE", 1), mask_hdu=("MASK", 2), variance_hdu=("VARIANCE", 3),
)  # fmt: skip
PRESETS = (
    HSC,
    Survey(  # Rubin: deepCoadd_calexp of the pipelines, deep_coadd of Data Preview 1, in nJy or with FLUXMAG0
        name="lsst", bands="ugrizy", pixel_scale=0.2, image_hdu="IMAGE", mask_hdu="MASK", variance_hdu="VARIANCE",
        file_names=r"(?:deepCoadd(?:_calexp)?|deep_coadd)_(?P<tile>\d+_\d+)_(?P<band>[a-z])(?:_.*)?",
    ),
    Survey(
        name="kids", bands=("u", "g", "r", "i", "z", "y", "J", "H", "Ks"), zero_point=0.0, pixel_scale=0.2,
        file_names="KiDS_DR*_{tile}_{band}_sci", variance_file=("_sci", "_wei"), variance_kind="weight",
        mask_file=("_sci", "_msk"),
    ),
    Survey(  # bands of one field lie up to 14 pixels apart
        name="sdss", bands="ugriz", file_names="frame-{band}-{tile}", zero_point=22.5, pixel_scale=0.396, image_hdu=0,
        align=True,
    ),
    Survey(
        name="legacy", bands="griz", file_names="legacysurvey-{tile}-image-{band}", zero_point=22.5, pixel_scale=0.262,
        variance_file=("-image-", "-invvar-"), variance_kind="weight",
    ),
    Survey(  # cubes of the cutout service, with BANDS in the header
        name="legacy_cutout", bands="griz", file_names="cutout_{tile}", zero_point=22.5, pixel_scale=0.262,
    ),
    Survey(
        name="des", bands="grizy", file_names="{tile}_r*_{band}", zero_point=30.0, pixel_scale=0.263, image_hdu=("SCI", 0),
        mask_hdu="MSK", variance_hdu="WGT", variance_kind="weight",
    ),
    Survey(
        name="panstarrs", bands="grizy", file_names="rings.v3.skycell.{tile}.stk.{band}.unconv", zero_point=25.0,
        exposure_keyword="EXPTIME", pixel_scale=0.25, variance_file=(".unconv.", ".unconv.wt."),
        mask_file=(".unconv.", ".unconv.mask."),
    ),
    Survey(
        name="euclid", bands={"VIS": 715, "YE": 1081, "JE": 1367, "HE": 1771}, pixel_scale=0.1,
        band_names={"NIR-Y": "YE", "NIR-J": "JE", "NIR-H": "HE"}, zero_point_keyword="MAGZERO",
        file_names=r"EUC_MER_BGSUB-MOSAIC-(?P<band>VIS|NIR-[YJH])_TILE(?P<tile>\d+).*",
    ),
    Survey(
        name="hst", bands=_HST_BANDS, file_names=r"(?P<tile>.+?)_(?P<band>[fF]\d{3}(?:[wWmMnN]|lp|LP))_(?:.*_)?(?:drz|drc|sci)",
        image_hdu=("SCI", 0), variance_hdu="WHT", variance_kind="weight", align=True,
    ),
    Survey(
        name="jwst", bands=_JWST_BANDS, variance_hdu="ERR", variance_kind="sigma", image_hdu="SCI", align=True,
        file_names=r"(?P<tile>jw.+?)_(?:nircam|miri|niriss)_(?:clear-)?(?P<band>f\d{3,4}[wmn])(?:[_-].*)?_i2d",
    ),
)  # fmt: skip
_SURVEYS: dict[str, Survey] = {survey.name: survey for survey in PRESETS}


def register_survey(survey: Survey) -> Survey:
    """Make a survey known by its name, in place of any other of that name, and return it."""
    if not isinstance(survey, Survey):
        raise ValueError(f"survey={survey!r}: must be a Survey")
    _SURVEYS[survey.name.lower()] = survey
    return survey


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
    if str(survey).endswith(".toml"):
        return _read(Path(survey))
    names = ", ".join(repr(name) for name in sorted(_SURVEYS))
    raise ValueError(f"survey={str(survey)!r}: one of {names}, a Survey, or the path of a .toml file")


def _read(path: Path) -> Survey:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such description of a survey")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(content) - {f.name for f in fields(Survey)}):
            allowed = ", ".join(f.name for f in fields(Survey))
            raise ValueError(f"unknown fields {', '.join(unknown)}; fields are {allowed}")
        return Survey(**{"name": path.stem, **content})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: does not describe a survey: {error}") from error
