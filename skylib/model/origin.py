"""What data a model was trained on, and how other data differ from it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from skylib.data.cutouts import CutoutFile
from skylib.data.tiles import FLUX_UNIT, tile_pixel_scale
from skylib.model.mim import MaskedImageModel

log = logging.getLogger(__name__)
_said: set[tuple[Any, str]] = set()


def describe_data(loader: Any) -> dict[str, Any]:
    """Return survey, bands, pixel scale (arcsec), unit and, if known, seeing (FWHM, arcsec) of what a loader gives."""
    if hasattr(loader, "tiles"):
        survey, scale, seeing = loader.tiles[0].survey.name, tile_pixel_scale(loader.tiles[0]), np.nan
    else:
        data: CutoutFile = loader.cutouts
        survey, scale = data.survey, data.pixel_scale
        seeing = np.nanmedian(data.column("seeing")) if "seeing" in data.columns else np.nan
    about = {"survey": survey, "bands": list(loader.bands), "pixel_scale": float(scale), "unit": FLUX_UNIT}
    return about | ({"seeing": round(float(seeing), 3)} if np.isfinite(seeing) else {})


def warn_of_differences(model: MaskedImageModel, cutouts: CutoutFile) -> None:
    """Log, once for the same data, how cutouts differ from what a model was trained on, and what helps."""
    bands, size, scale = model.config.bands, model.config.image_size, cutouts.pixel_scale
    trained = model.origin.get("trained_on") or {}
    found = []
    if abs(scale / (trained_scale := trained.get("pixel_scale", scale)) - 1) > 0.05:
        found.append(
            f"pixels of {scale:.3g} arcsec, but the model was trained with {trained_scale:.3g}; "
            f"skylib.at_scale(cutouts, {trained_scale:g}), or skylib embed --rescale, resamples them"
        )
    if missing := [band for band in bands if band not in cutouts.bands]:
        found.append(f"bands {' '.join(missing)} of the model are missing and count as no data")
    if unknown := [band for band in cutouts.bands if band not in bands]:
        found.append(f"bands {' '.join(unknown)} are left out, the model has {' '.join(bands)}")
    if cutouts.size < size:
        found.append(f"cutouts of {cutouts.size} pixels are padded with no data to {size}")
    new = {(cutouts.path, text) for text in found} - _said
    if new:
        log.warning("%s: %s", cutouts.path, "; ".join(found))
        _said.update(new)
