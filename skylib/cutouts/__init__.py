"""Cutouts around objects: the HDF5 files that keep them, and slicing them from tiles."""

from skylib.cutouts.file import CutoutFile
from skylib.cutouts.layouts import CLASS_NAMES, LAYOUTS, Layout
from skylib.cutouts.make import make_cutouts, slice_cutout
from skylib.cutouts.write import write_cutouts

__all__ = ["CLASS_NAMES", "LAYOUTS", "CutoutFile", "Layout", "make_cutouts", "slice_cutout", "write_cutouts"]
