"""Cutouts around objects: the HDF5 files that keep them, and slicing them from tiles."""

from skylib.data.cutouts.file import CutoutFile
from skylib.data.cutouts.make import make_cutouts, slice_cutout
from skylib.data.cutouts.scaled import at_scale
from skylib.data.cutouts.write import copy_cutouts, write_cutouts

__all__ = ["CutoutFile", "at_scale", "copy_cutouts", "make_cutouts", "slice_cutout", "write_cutouts"]
