"""Pictures for the browser: thumbnails made when they are first seen, and one object in all its bands."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from skylib.data.cutouts import CutoutFile
from skylib.data.photometry import measure_sky_noise
from skylib.plotting import rgb_image

Look = tuple[float, tuple[str, ...]]  # stretch, and the bands shown as red, green, blue


class Pictures:
    """PNG pictures of the objects of a file, kept once they are made.

    Parameters
    ----------
    cutouts : CutoutFile
    n_kept : int
        Thumbnails in memory; those not seen for longest go first.
    """

    def __init__(self, cutouts: CutoutFile, *, n_kept: int = 20_000) -> None:
        self._cutouts, self._n_kept = cutouts, n_kept
        self._kept: OrderedDict[tuple[int, Look], str] = OrderedDict()
        some = cutouts.flux(slice(0, 200))
        self._sigma = np.nan_to_num(measure_sky_noise(some), nan=1.0)

    def thumbnails(self, rows: Sequence[int], look: Look) -> list[str]:
        """Return colour pictures as data URIs; all that are new are read from the file at once."""
        new = [row for row in dict.fromkeys(rows) if (row, look) not in self._kept]
        if new:
            for row, flux in zip(new, self._cutouts.flux(new), strict=True):
                self._kept[row, look] = "data:image/png;base64," + base64.b64encode(png(self._colour(flux, look))).decode()  # fmt: skip
        pictures = []
        for row in rows:
            self._kept.move_to_end((row, look))
            pictures.append(self._kept[row, look])
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        return pictures

    def all_bands(self, row: int, look: Look, *, side: int = 110) -> bytes:
        """Return one object large in colour, and beside it in each band, arcsinh(flux / sky noise) in grey: PNG."""
        flux = self._cutouts.flux(row)[0]
        columns, step = -(-len(flux) // 2), side + 4
        sheet = Image.new("RGB", (step * (2 + columns) - 4, 2 * step - 4), "white")
        sheet.paste(_enlarged(self._colour(flux, look), 2 * step - 4), (0, 0))
        for i, (image, sigma, band) in enumerate(zip(flux, self._sigma, self._cutouts.bands, strict=True)):
            grey = (np.arcsinh(image[::-1] / (sigma * look[0])) + 1.5) / 6.5
            picture = _enlarged(np.stack(3 * [(255 * np.nan_to_num(grey.clip(0, 1))).astype(np.uint8)], axis=-1), side)
            ImageDraw.Draw(picture).text((4, 2), band, fill=(255, 220, 120))
            sheet.paste(picture, (step * (2 + i % columns), step * (i // columns)))
        return png(np.asarray(sheet))

    def _colour(self, flux: np.ndarray, look: Look) -> np.ndarray:
        stretch, rgb = look
        return rgb_image(flux, self._cutouts.bands, rgb=rgb, stretch=stretch)[::-1]  # row 0 is at the bottom


def png(image: np.ndarray) -> bytes:
    """Return an RGB image (H, W, 3), first row on top, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _enlarged(image: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.NEAREST)
