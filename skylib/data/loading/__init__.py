"""Flat batches, already on the device, from tiles or from files of cutouts."""

from skylib.data.loading.batch import Batch
from skylib.data.loading.cutouts import CutoutLoader
from skylib.data.loading.tiles import TileLoader

Loader = CutoutLoader | TileLoader

__all__ = ["Batch", "CutoutLoader", "Loader", "TileLoader"]
