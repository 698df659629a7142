"""Flat batches, already on the device, from tiles or from files of cutouts."""

from skylib.loading.batch import Batch
from skylib.loading.cutouts import CutoutLoader
from skylib.loading.tiles import TileLoader

Loader = CutoutLoader | TileLoader

__all__ = ["Batch", "CutoutLoader", "Loader", "TileLoader"]
