"""Pictures for the browser: thumbnails made when they are first seen, and one object in all its bands."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter

from skylib.data.cutouts import CutoutFile
from skylib.data.photometry import measure_sky_noise
from skylib.plotting import rgb_image

Look = tuple[float, tuple[str, ...], bool]  # brightness; bands as red, green, blue; contrast of each image alone
MOST_KEPT = 20_000  # thumbnails in memory; those not seen for longest are dropped first
BAND_SIDE = 92  # pixels of the picture of one band
SIGMAS = 10.0  # of sky noise: flux beyond is compressed


class Pictures:
    """PNG pictures of the objects of a file, kept once they are made.

    Parameters
    ----------
    cutouts : CutoutFile
    size : int, optional
        Side in pixels of what is shown, around the centre: what the network saw. All by default.
    """

    def __init__(self, cutouts: CutoutFile, *, size: int | None = None) -> None:
        self._cutouts = cutouts
        self._side = min(size or cutouts.size, cutouts.size)
        self._kept: OrderedDict[tuple[int, Look], str] = OrderedDict()
        sigma = measure_sky_noise(cutouts.flux(slice(0, 200)))
        self._sigma = np.where(np.isfinite(sigma) & (sigma > 0), sigma, 1.0)

    def thumbnails(self, rows: Sequence[int], look: Look) -> list[str]:
        """Return colour pictures as data URIs; all that are new are read from the file at once."""
        new = [row for row in dict.fromkeys(rows) if (row, look) not in self._kept]
        if new:
            for row, flux in zip(new, self._flux(new), strict=True):
                encoded = base64.b64encode(png(self._colour(flux, look))).decode()
                self._kept[row, look] = f"data:image/png;base64,{encoded}"
        pictures = []
        for row in rows:
            self._kept.move_to_end((row, look))
            pictures.append(self._kept[row, look])
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return pictures

    def all_bands(self, row: int, look: Look) -> bytes:
        """Return one object large in colour, and next to it in each band, arcsinh(flux / sky noise) in grey: PNG."""
        flux = self._flux([row])[0]
        side, columns, step = BAND_SIDE, -(-len(flux) // 2), BAND_SIDE + 4
        sheet = Image.new("RGBA", (step * (2 + columns) - 4, 2 * step - 4))  # transparent, for dark themes
        sheet.paste(_enlarged(self._colour(flux, look), 2 * step - 4), (0, 0))
        for i, (image, sigma, band) in enumerate(zip(flux, self._sigma, self._cutouts.bands, strict=True)):
            grey = (np.arcsinh(image[::-1] / (sigma * look[0])) + 1.5) / 6.5
            picture = _enlarged(np.stack(3 * [(255 * np.nan_to_num(grey.clip(0, 1))).astype(np.uint8)], axis=-1), side)
            text = band if np.isfinite(image).any() else f"{band}: no data"
            ImageDraw.Draw(picture).text((4, 2), text, fill=(255, 220, 120))
            sheet.paste(picture, (step * (2 + i % columns), step * (i // columns)))
        return png(np.asarray(sheet))

    def _flux(self, rows: Sequence[int]) -> np.ndarray:
        first = (self._cutouts.size - self._side) // 2
        return self._cutouts.flux(list(rows))[..., first : first + self._side, first : first + self._side]

    def _colour(self, flux: np.ndarray, look: Look) -> np.ndarray:
        """Return a colour picture; what is not above the noise is grey, since its colours are those of the noise."""
        brightness, rgb, own = look
        unit = flux / self._sigma[:, None, None]
        shown = [i for i, band in enumerate(self._cutouts.bands) if band in rgb and np.isfinite(unit[i]).any()]
        shown = shown or list(range(len(flux)))
        grey = np.nan_to_num(unit[shown]).mean(axis=0)
        if own:  # its brightest pixels, not those of the file, fill the range
            brightness *= max(1.0, float(np.percentile(grey, 99.5))) / SIGMAS
        signal = uniform_filter(grey, 5) * 5 * np.sqrt(len(shown))  # S/N of the mean over bands and 5 x 5 pixels
        colour = np.clip((signal - 2) / 6, 0, 1)
        picture = grey + colour * (unit - grey)
        one, stretch = np.ones(len(flux)), SIGMAS * brightness / 10
        image = rgb_image(picture, self._cutouts.bands, rgb=rgb, stretch=stretch, sky_sigma=one)
        return image[::-1]  # row 0 at the bottom


def png(image: np.ndarray) -> bytes:
    """Return an RGB or RGBA image (H, W, 3 or 4), first row on top, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _enlarged(image: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.NEAREST)
