"""One band of a tile: its image, mask and noise, as the description of its survey says where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from skylib.bands import sort_bands
from skylib.data.calibration import FILLERS, MAX_FLUX, flux_scale, undo_asinh
from skylib.data.description import Hdu, Survey
from skylib.data.fitsfile import opened, refuse
from skylib.data.grids import pixel_scale, read_grid

_ROWS = 64  # of an image at a time, which a cache holds


@dataclass(frozen=True)
class BandImage:
    """What was read of one band, in the unit and byte order of its file; perhaps mapped into memory."""

    path: Path
    image: np.ndarray
    wcs: WCS | None
    scale: float  # to counts at zero-point 27
    survey: Survey
    noise: np.ndarray | None
    bad: np.ndarray | None  # bool: what the mask says not to use

    def flux(self, out: np.ndarray) -> np.ndarray:
        """Write the flux at zero-point 27 to `out`, float32 (H, W), with NaN for no data, and return it."""
        zero = np.empty(out.shape, dtype=bool)
        for start in range(0, len(out), _ROWS):
            rows = slice(start, start + _ROWS)
            part = out[rows]
            part[...] = self.image[rows]
            low, high = np.fmin.reduce(part, axis=None), np.fmax.reduce(part, axis=None)
            bad = (np.abs(part) >= MAX_FLUX) if max(-low, high) >= MAX_FLUX else np.zeros(part.shape, dtype=bool)
            if self.survey.no_data is not None:
                bad |= part == np.float32(self.survey.no_data)
            if self.bad is not None:
                bad |= self.bad[rows]
            if self.noise is not None and self.survey.variance_kind == "weight":
                bad |= ~(self.noise[rows] > 0)  # a weight of 0 is how surveys mark what was not observed
            part[bad] = np.nan
            np.equal(part, 0, out=zero[rows])
            if low in FILLERS:
                zero[rows] |= part == low
            if self.scale != 1:
                part *= self.scale
        if zero.any():
            out[_areas(zero)] = np.nan
        return out

    def variance(self, out: np.ndarray) -> np.ndarray:
        """Write the variance at zero-point 27 to `out`, float32 (H, W), with NaN for none, and return it."""
        assert self.noise is not None
        out[...] = self.noise
        out[~(np.isfinite(out) & (out > 0))] = np.nan
        with np.errstate(over="ignore"):
            if self.survey.variance_kind == "weight":
                np.divide(1, out, out=out)
            elif self.survey.variance_kind == "sigma":
                np.square(out, out=out)
        out[np.isinf(out)] = np.nan  # as of a standard deviation of 1e30
        self._check_variance(out)
        if self.scale != 1:
            out *= self.scale**2
        return out

    def _check_variance(self, variance: np.ndarray) -> None:
        """Refuse, say, a weight given as a variance: compare it with the noise that the image shows."""
        some_rows = slice(None, None, max(1, len(self.image) // 128))
        some = np.asarray(self.image[some_rows], dtype=np.float64)
        step, noise = np.abs(np.diff(some, axis=1)), np.asarray(variance[some_rows], dtype=np.float64)
        step, noise = step[np.isfinite(step) & (step > 0)], noise[np.isfinite(noise) & (noise > 0)]
        if step.size < 1000 or noise.size < 1000:
            return
        seen, stated = (1.4826 * np.median(step)) ** 2 / 2, np.median(noise)
        kind = self.survey.variance_kind
        stored = {"variance": stated, "weight": 1 / stated, "sigma": np.sqrt(stated)}[kind]
        others = {"variance": stored, "weight": 1 / stored, "sigma": stored**2}
        other = min(others, key=lambda name: abs(np.log10(others[name] / seen)))
        if abs(np.log10(stated / seen)) > 1.5 and abs(np.log10(others[other] / seen)) < 0.7:
            raise ValueError(
                f"{self.path}: the {kind} is {stored:.3g} where the pixels scatter by {seen**0.5:.3g}: it looks like "
                f"the {other}; Survey(variance_kind={other!r}) reads it as such"
            )


def read_band(
    path: Path, survey: Survey, band: str, *, bad_planes: Sequence[str | int] = (), variance: bool = False
) -> BandImage:
    """Read one band; with `variance` its noise too.

    Raises
    ------
    OSError
        If a file cannot be read; the message names it.
    ValueError
        If the file lacks what is asked for; the message names it.
    """
    mask_path, noise_path = (_beside(path, pair) for pair in (survey.mask_file, survey.variance_file))
    with opened(path) as hdus:
        hdu = _find(hdus, survey.image_hdu, band, path)
        image = undo_asinh(_two_dimensional(hdu, survey, band), hdu.header)
        wcs = read_grid(hdu.header)
        scale = _scale(hdu, hdus, survey, band, wcs)
        bad = noise = None
        if bad_planes and mask_path is None:
            bad = _flagged(_optional(hdus, survey.mask_hdu, band), survey, bad_planes, image.shape)
        if variance and noise_path is None:
            noise = _noise(_optional(hdus, survey.variance_hdu, band), image.shape)
    if bad_planes and mask_path is not None:
        with opened(mask_path) as hdus:
            hdu = _find(hdus, survey.mask_hdu, band, mask_path)
            bad = _flagged(hdu, survey, bad_planes, image.shape)
    if variance and noise_path is not None:
        with opened(noise_path) as hdus:
            noise = _noise(_find(hdus, survey.variance_hdu, band, noise_path), image.shape)
    return BandImage(path, image, wcs, scale, survey, noise, bad)


def read_header(path: Path, survey: Survey, band: str) -> tuple[WCS | None, tuple[int, int]]:
    """Return the WCS and the shape (H, W) of one band, without its pixels."""
    with opened(path) as hdus:
        hdu = _find(hdus, survey.image_hdu, band, path)
        if hdu.header.get("NAXIS", 0) < 2:
            raise ValueError("no two-dimensional image")
        return read_grid(hdu.header), tuple(hdu.shape[-2:])


def bands_in(path: Path, survey: Survey) -> tuple[str, ...]:
    """Return the bands of a file that holds several: as its header says (``BANDS``), or else all of the survey."""
    with opened(path) as hdus:
        words = [str(hdu.header["BANDS"]) for hdu in hdus[:2] if "BANDS" in hdu.header]
    return sort_bands(words[0]) if words else tuple(survey.bands)


def _beside(path: Path, pair: tuple[str, str] | None) -> Path | None:
    """Return the file whose name follows from that of the image."""
    other = path if pair is None else path.with_name(path.name.replace(*pair))
    return other if other != path and other.is_file() else None


def _find(hdus: fits.HDUList, wanted: Hdu | None, band: str, path: Path) -> Any:
    """Return the HDU that is wanted, or the first with an image."""
    kinds = fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU
    images = (hdu for hdu in hdus if isinstance(hdu, kinds) and hdu.header.get("NAXIS", 0) >= 2)
    hdu = next(images, None) if wanted is None else _optional(hdus, wanted, band)
    if hdu is None:
        raise KeyError(f"{path} has no {wanted or 'image'!r} among its HDUs {[hdu.name for hdu in hdus]}")
    return hdu


def _optional(hdus: fits.HDUList, wanted: Hdu | None, band: str) -> Any:
    """Return the HDU of that number, or whose EXTNAME or EXTTYPE is that name, or None."""
    choices = wanted if isinstance(wanted, tuple) else () if wanted is None else (wanted,)
    named = any(isinstance(choice, str) for choice in choices)
    for choice in choices:
        if isinstance(choice, int):
            if (
                choice == 0
                and not hdus[0].header.get("NAXIS")
                and any(isinstance(h, fits.CompImageHDU) for h in hdus[1:2])
            ):
                choice = 1  # where a compressed image is, which cannot be in the first HDU
            if choice < len(hdus) and not (named and hdus[choice].name not in ("", "PRIMARY", "COMPRESSED_IMAGE")):
                return hdus[choice]
            continue
        for hdu in hdus:
            kind = str(hdu.header.get("EXTTYPE", "")).strip().upper()
            if choice.replace("{band}", band).upper() in (hdu.name.upper(), kind):
                return hdu
    return None


def _squeezed(hdu: Any) -> np.ndarray | None:
    """Return the pixels of an HDU without first axes of one pixel."""
    data = None
    if isinstance(hdu, fits.CompImageHDU):
        from skylib.data.rice import decode_rice  # late: it is compiled

        data = decode_rice(hdu)
    if data is None and hdu is not None:
        data = hdu.data
    while data is not None and data.ndim > 2 and data.shape[0] == 1:
        data = data[0]
    return data


def _two_dimensional(hdu: Any, survey: Survey, band: str) -> np.ndarray:
    """Return the image of one band, also of a cube of bands."""
    data = _squeezed(hdu)
    if data is not None and data.ndim == 3:
        order = list(sort_bands(str(hdu.header["BANDS"]))) if "BANDS" in hdu.header else list(survey.bands)
        words = str(hdu.header.get("BANDS", ""))
        order = [survey.band(word) or word for word in words] if words and len(words) == len(data) else order
        if len(order) != len(data) or band not in order:
            raise refuse(f"{len(data)} planes, but bands {' '.join(map(str, order))}: which is {band} is not known")
        data = data[order.index(band)]
    if data is None or data.ndim != 2 or not data.size:
        raise KeyError(f"no two-dimensional image in HDU {hdu.name or 1}")
    if data.dtype.kind not in "fiu":
        raise refuse(f"pixels of type {data.dtype}")
    return data


def _scale(hdu: Any, hdus: fits.HDUList, survey: Survey, band: str, wcs: WCS | None) -> float:
    side = pixel_scale(wcs) if wcs is not None else survey.pixel_scale
    try:
        return flux_scale(
            hdu.header, survey, band, primary=hdus[0].header, pixel_area=None if side is None else side**2
        )
    except ValueError as error:
        raise refuse(str(error)) from error


def _flagged(hdu: Any, survey: Survey, names: Sequence[str | int], shape: tuple[int, ...]) -> np.ndarray:
    """Return where any of the planes of a mask is set, bool (H, W)."""
    # A survey's long plane names are HIERARCH cards, which astropy gives under the same keys.
    header = {} if hdu is None else hdu.header
    planes = dict(survey.mask_planes) | {k.removeprefix("MP_"): v for k, v in header.items() if k.startswith("MP_")}
    bad = np.zeros(shape, dtype=bool)
    mask = _squeezed(hdu)
    if mask is not None and (mask.shape != shape or mask.dtype.kind not in "iu"):
        raise refuse(f"a mask of {mask.shape} pixels of type {mask.dtype} for an image of {shape}")
    for name in names:
        bit = int(name) if isinstance(name, int | np.integer) else planes.get(name)
        if mask is None or bit is None:
            raise refuse(f"no mask plane {name!r}; planes there: {', '.join(planes) or 'none'}")
        n_bits = 8 * mask.dtype.itemsize
        if isinstance(bit, bool) or not isinstance(bit, int) or not 0 <= bit < n_bits:
            raise refuse(f"mask plane {name!r} is bit {bit!r}, but the mask has bits 0 to {n_bits - 1}")
        unsigned = np.dtype(mask.dtype.str.replace("i", "u"))
        bad |= (mask.view(unsigned) & unsigned.type(1 << bit)) != 0
    return bad


def _noise(hdu: Any, shape: tuple[int, ...]) -> np.ndarray:
    data = _squeezed(hdu)
    if data is None or data.shape != shape:
        got = "no" if data is None else f"{data.shape} pixels of"
        raise refuse(f"{got} variance for an image of {shape} pixels")
    return data


def _areas(zero: np.ndarray) -> np.ndarray:
    """Return which pixels of one value lie in areas, 3 x 3 at least, of it: padding, where nothing was observed."""
    if zero.all():
        return zero
    core = ~_grown(~zero)
    return zero & _grown(core) if core.any() else core


def _grown(mask: np.ndarray) -> np.ndarray:
    """Return a mask grown by a pixel on all sides, corners too."""
    wide = np.pad(mask, 1)
    tall = wide[:-2] | wide[1:-1] | wide[2:]
    return tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
