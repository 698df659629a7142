"""The description of a survey's files, which the readers of tiles follow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from skylib.bands import canonical_band, is_band, register_band, sort_bands
from skylib.checks import check_fields, checked

NoiseKind = Literal["variance", "weight", "sigma"]
Hdu = int | str | tuple[int | str, ...]
PIXEL_SCALE = 0.168  # arcsec, HSC coadds
_ENDINGS = r"(?i:\.(?:fits?|fts)(?:\.(?:fz|gz|bz2|xz))?)"
_ALSO = {"Ks": ("k",), "r": ("r2",), "i": ("i2",)}


@dataclass(frozen=True, kw_only=True)
class Survey:
    """How the files of a survey are named, and what is in them.

    Parameters
    ----------
    name : str
    bands : str or sequence of str, or mapping of str to float
        Names of the bands; as a mapping with the effective wavelength in nm of each, which makes new names known.
    file_names : str, sequence of str, or mapping of str to str
        Templates without folder and ending, such as ``"frame-{band}-{tile}"``; ``*`` stands for any text. Files with
        one tile and several bands have no ``{band}``. A mapping gives each band a template of its own. A template with
        ``(?P<tile>…)`` is a regular expression.
    zero_point : float, optional
        AB magnitude of one unit of flux. The header goes first: ``FLUXMAG0``, a flux unit in ``BUNIT``,
        `zero_point_keyword` and other usual keywords. None: every file must state it.
    pixel_scale : float, optional
        Arcsec, for images without sky coordinates.
    band_names : mapping of str to str
        What file names and headers call the bands, where it is not the name here: ``{"NIR-Y": "YE"}``.
    image_hdu, mask_hdu, variance_hdu : int, str, or tuple of them
        Number or name (``EXTNAME`` or ``EXTTYPE``); of several, the first that exists. In names ``{band}`` is replaced.
        A number after names is used only where that HDU has no name.
    mask_file, variance_file : (str, str), optional
        Where the mask, or the noise, is a file of its own: the text in the name of the image, and what replaces it.
    variance_kind : {"variance", "weight", "sigma"}
        What the noise plane holds: the variance, its inverse, or the standard deviation.
    mask_planes : mapping of str to int
        Bits of the mask by name, where the header does not name them (``MP_*`` cards).
    bad_planes : sequence of str or int
        Planes, by name or bit, whose pixels are always taken as no data.
    zero_point_keyword, exposure_keyword : str, optional
        Header keywords: of the zero-point; of the exposure time in s, where the image is summed over it and the
        zero-point is for 1 s.
    trust_header : bool
        False: `zero_point` counts, whatever the header says.
    no_data : float, optional
        Pixels of this value have no data, besides NaN, infinity, 1e20 and more, and areas of 0, -99, -999, -9999
        or -32768.
    align : bool
        Bring bands whose pixels lie at different places to those of the first.
    sky : bool
        False: images without sky coordinates are taken; their objects are given by pixel (columns ``x`` and ``y``).

    Raises
    ------
    ValueError
        If a field does not fit; the message names it.

    Examples
    --------
    >>> mine = Survey(name="mine", bands={"g": 475, "F814W": 802}, file_names="{tile}_{band}_sci", zero_point=25.0)
    >>> mine.match("m51_f814w_sci.fits.gz")
    ('m51', 'F814W')
    """

    name: str
    bands: str | Sequence[str] | Mapping[str, float]
    file_names: str | Sequence[str] | Mapping[str, str]
    zero_point: float | None = None
    pixel_scale: float | None = None
    band_names: Mapping[str, str] = field(default_factory=dict)
    image_hdu: Hdu | None = None
    mask_hdu: Hdu | None = None
    variance_hdu: Hdu | None = None
    mask_file: tuple[str, str] | None = None
    variance_file: tuple[str, str] | None = None
    variance_kind: NoiseKind = "variance"
    mask_planes: Mapping[str, int] = field(default_factory=dict)
    bad_planes: Sequence[str | int] = ()
    zero_point_keyword: str | None = None
    exposure_keyword: str | None = None
    trust_header: bool = True
    no_data: float | None = None
    align: bool = False
    sky: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.bad_planes, str):
            object.__setattr__(self, "bad_planes", (self.bad_planes,))
        check_fields(self, where=f"survey {self.name}: ")
        if not self.name:
            raise ValueError(f"name={self.name!r}: a survey needs a name")
        if isinstance(self.bands, Mapping):
            for band, wavelength in self.bands.items():
                register_band(band, wavelength)
        object.__setattr__(self, "bands", sort_bands(self.bands))
        for name in ("image_hdu", "mask_hdu", "variance_hdu", "mask_file", "variance_file", "bad_planes"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.pixel_scale is not None and not 0 < self.pixel_scale < math.inf:
            raise ValueError(f"survey {self.name}: pixel_scale={self.pixel_scale!r}: must be positive")
        if self.zero_point is not None and not math.isfinite(self.zero_point):
            raise ValueError(f"survey {self.name}: zero_point={self.zero_point!r}: must be finite")
        if not self.trust_header and self.zero_point is None:
            raise ValueError(f"survey {self.name}: trust_header=False needs a zero_point")
        if unknown := [band for band in self.band_names.values() if canonical_band(band) not in self.bands]:
            raise ValueError(f"survey {self.name}: band_names gives {unknown[0]!r}, bands are {' '.join(self.bands)}")
        object.__setattr__(self, "_patterns", tuple(self._compile()))

    @checked
    def match(self, file_name: str) -> tuple[str, str | None] | None:
        """Return the tile and the band that a file name states, or None where it is none of this survey's images.

        The band is None where the file holds several.
        """
        stated: str | None
        for band, pattern in self._patterns:  # type: ignore[attr-defined]
            found = pattern.fullmatch(file_name)
            if found is None:
                continue
            parts = found.groupdict()
            stated = self.band(parts["band"]) if "band" in parts else band
            if stated is None and "band" in parts:
                continue
            return (parts.get("number") or "") + (parts.get("tile") or file_name.split(".")[0]), stated
        return None

    @checked
    def band(self, word: str) -> str | None:
        """Return the band that a word in a file name or header stands for, or None."""
        for name, band in self.band_names.items():
            if name.lower() == word.lower():
                return canonical_band(band)
        found = canonical_band(word) if is_band(word) else None
        return found if found in self.bands else None

    @property
    def examples(self) -> str:
        """The templates of file names, as text for messages."""
        names = self.file_names
        return ", ".join([names] if isinstance(names, str) else names.values() if isinstance(names, Mapping) else names)

    def _compile(self) -> list[tuple[str | None, re.Pattern[str]]]:
        templates: list[tuple[str | None, str]]
        if isinstance(self.file_names, Mapping):
            templates = [(canonical_band(band), name) for band, name in self.file_names.items()]
            if unknown := [band for band, _ in templates if band not in self.bands]:
                raise ValueError(
                    f"survey {self.name}: file_names gives {unknown[0]!r}, bands are {' '.join(self.bands)}"
                )
        else:
            names = [self.file_names] if isinstance(self.file_names, str) else self.file_names
            templates = [(None, name) for name in names]
        if not templates or not all(name and isinstance(name, str) for _, name in templates):
            raise ValueError(f"survey {self.name}: file_names={self.file_names!r} must be names of files")
        words = {*self.bands, *self.band_names, *(word for band in self.bands for word in _ALSO.get(band, ()))}
        any_band = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        compiled = []
        for band, template in templates:
            text = template
            if "(?P<" not in text:
                text = re.sub(r"(?i)\.(?:fits?|fts)(\.\w+)?$", "", text)
                text = re.escape(text).replace(r"\*", ".*?").replace(r"\{band\}", f"(?P<band>(?i:{any_band}))")
                text = text.replace(r"\{tile\}", "(?P<tile>.+?)", 1).replace(r"\{tile\}", "(?P=tile)")
                if "{" in text.replace("(?P", ""):
                    raise ValueError(f"survey {self.name}: file name {template!r} may hold {{band}}, {{tile}} and *")
            try:
                compiled.append((band, re.compile(text + _ENDINGS)))
            except re.error as error:
                raise ValueError(f"survey {self.name}: file name {template!r}: {error}") from error
        return compiled
