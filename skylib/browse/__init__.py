"""Browsing for look-alikes in JupyterLab and Voila. The only part that imports ipywidgets and jupyter-scatter."""

from skylib.browse.browser import SimilarityBrowser

__all__ = ["SimilarityBrowser"]
